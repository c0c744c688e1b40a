"""What is copied, by whom, from which state of memory, and what is aimed at: the table.

The aims are those of the project's issues. A figure is the median over the rounds.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import bench_peers as peers
import bench_sources as sources
from bench_aims import (
    Aim,
    cached_within,
    cpu_within,
    in_flight,
    memory_bounded,
    none_starved,
    nothing_evicted,
    reads_within,
    takes,
    within,
)
from bench_run import Peer
from bench_sources import GIB, KIB, MIB, TIB


@dataclass(frozen=True)
class Scenario:
    """`size` is bytes, or files where `unit` says so; `space` what the file system must hold."""

    name: str
    make: Callable[[Path], object]
    peers: dict[str, Peer]
    size: int
    prepare: Callable[[Path], None] = sources.cold
    aims: tuple[Aim, ...] = ()
    unit: str = "MiB"
    copies_kept: bool = False
    space: int = 0  # of one copy, if it is not `size`
    rounds: int = sys.maxsize  # at most
    place: Callable[[], AbstractContextManager[Path]] | None = None
    common: bool = True  # timed unless others are named

    @property
    def programs_cold(self) -> bool:
        """Whether `prepare` puts the programs out of memory as well."""
        return self.prepare in (sources.cold, sources.half, sources.with_bystander)

    def room(self, rounds: int) -> int:
        """Bytes for the source and the copies, and for the file system itself."""
        copies = rounds * len(self.peers) if self.copies_kept else 1
        return (1 + copies) * (self.space or self.size) * 9 // 8 + 2 * GIB


@contextmanager
def far_away(latency: float) -> Iterator[Path]:
    """Storage with a latency of so many seconds: tests/slow_fuse.py."""
    sys.path.append(str(peers.ROOT / "tests"))
    from slow_fuse import slow_directory

    with slow_directory(latency) as slow:
        yield slow.mount_point


def _large(size: int) -> Iterator[Scenario]:
    make = partial(sources.make_random, size=size)
    yield Scenario(
        "large cold",
        make,
        peers.LARGE,
        size,
        aims=(
            takes("fio limit", 0.97, inner=True),
            takes("cp + sync", 1.5),
            takes("rsync --fsync", 3.0),
            *(takes(name, 1.0) for name in list(peers.LARGE)[3:] if name != "rsync --fsync"),
            in_flight(size),
            memory_bounded(),
        ),
    )
    cached = {name: peers.LARGE[name] for name in ("aiocp", "cp + sync")}
    for name, prepare in {
        "large clean": sources.clean,
        "large dirty": sources.dirty,
        "large half": sources.half,
    }.items():
        yield Scenario(name, make, cached, size, prepare, (takes("cp + sync", 1.3),))
    yield Scenario(
        "cpu/cache",
        make,
        cached,
        size,
        sources.with_bystander,
        (
            cpu_within("cp + sync", 0.1),
            cached_within(size, 0.01),
            nothing_evicted(),
        ),
        space=size + GIB,
    )
    yield Scenario("sweep", make, peers.SWEEP, size, common=False)


def _holes(size: int) -> Iterator[Scenario]:
    data = size // 16
    each = [takes(name, 1.0) for name in list(peers.SPARSE_AUTO)[1:]]
    yield Scenario(
        "sparse 1 TiB, 10,000 extents",  # rsync reads a TiB of holes: minutes
        lambda path: sources.make_extents(path, 10_000, data, TIB, 0),
        {name: peer for name, peer in peers.SPARSE_AUTO.items() if name != "rsync -S --fsync"},
        data,
        aims=(takes("cp + sync", 1.0), takes("qemu-img", 1.0), reads_within(data)),
        space=8 * GIB,  # XFS reserves ahead of buffered writes, by the size of the file
    )
    yield Scenario(
        "sparse, a hole at the end",
        lambda path: sources.make_extents(path, 16, size // 4, size, size // 4 * 3),
        peers.SPARSE_AUTO,
        size // 4,
        aims=(*each, reads_within(size // 4)),
    )
    yield Scenario(
        "sparse, all hole",
        lambda path: sources.make_extents(path, 1, 0, size, 0),
        peers.SPARSE_AUTO,
        size,
        aims=(*each, reads_within(0)),
        space=MIB,
    )
    yield Scenario(
        "zeroes always",
        lambda path: path.write_bytes(bytes(size // 4)),
        peers.SPARSE_ALWAYS,
        size // 4,
        aims=(takes("cp + sync", 2.0),),
    )
    yield Scenario(
        "half zeroes always",
        lambda path: sources.make_mixed(path, size // 4, 0.5),
        peers.SPARSE_ALWAYS,
        size // 4,
        aims=(takes("cp + sync", 1.0),),
    )
    yield Scenario(
        "reflink",
        lambda path: sources.make_mixed(path, size, 0),
        peers.CLONES,
        size,
        aims=(within("cp", 1.5, inner=True),),
    )


_NOT_SYNCED = list(peers.TREES)[4:]
TREE_AIMS_WARM = (
    takes("cp -a + sync -f", 1.0),
    *(takes(name, 1.0, "aiocp no sync") for name in _NOT_SYNCED),
)
TREE_AIMS_COLD = (
    takes("rsync -a --fsync", 10.0),
    takes("cp -r", 2.0),
    takes("cp -r", 3.0, "aiocp no sync"),
    *TREE_AIMS_WARM,
)


def _tree(
    name: str, files: int, make: Callable[[Path], object], space: int, *, few: bool, common: bool
) -> Iterator[Scenario]:
    """Cold and warm. The copies are kept: ext4 looks at every inode that was freed in the last
    minutes before it takes another, so that whoever copies after an `rm -r` takes three times as
    long."""
    for state, prepare, aims in (
        ("cold", sources.cold, TREE_AIMS_COLD),
        ("warm", sources.clean, TREE_AIMS_WARM),
    ):
        yield Scenario(
            f"tree {name} {state}",
            make,
            peers.TREES_FEW if few else peers.TREES,
            files,
            prepare,
            aims,
            "files",
            copies_kept=True,
            space=space,
            common=common,
        )


def _trees(files: int, quick: bool) -> Iterator[Scenario]:
    small = 24 * KIB  # of space a file
    for count, common in ((files, True), (10 * files, False)):
        make = partial(sources.make_tree, files=count)
        few = quick or not common
        yield from _tree(f"{count:,}", count, make, small * count, few=few, common=common)
    count = files // 10
    make = partial(sources.make_equal, files=count, size=MIB)
    yield from _tree("1 MiB", count, make, MIB * count, few=True, common=False)
    size = sources.mix_size(files // 2)
    make = partial(sources.make_mix, files=files // 2)
    yield from _tree("mix", files // 2, make, size, few=True, common=False)
    count = files * 5
    make = partial(sources.make_equal, files=count, size=100)
    yield from _tree("flat", count, make, 8 * KIB * count, few=True, common=False)


def scale(counts: list[int]) -> Iterator[Scenario]:
    """aiocp alone on more and more files, in one directory and in many, and with two names each:
    time and memory of each file are to stay the same."""
    for files in counts:
        for kind, names in (("one", 1), ("many", 1), ("linked", 2)):
            make = partial(sources.make_many, files=files, spread=kind != "one", names=names)
            program = peers.SCALE if names == 1 else peers.SCALE_LINKS
            space = 8 * KIB * files
            yield Scenario(
                f"scale {files:,} {kind}", make, program, files, unit="files", space=space
            )


def _small(quick: bool) -> Iterator[Scenario]:
    times = 1000 if quick else 10_000
    yield Scenario(
        "one small",
        partial(sources.make_random, size=4 * KIB),
        peers.ONE_SMALL,
        4 * KIB,
        sources.clean,
        (within("shutil", 4.0),),
    )
    yield Scenario(
        "small loop",
        partial(sources.make_random, size=4 * KIB),
        peers.small_loop(times),
        times,
        sources.clean,
        (within("shutil", 1.5, inner=True),),
        "files",
        space=80 * MIB,
    )
    size = (4 if quick else 32) * MIB
    yield Scenario(
        "many copies",
        partial(sources.make_equal, files=64, size=size),
        peers.MANY,
        64 * size,
        aims=(takes("in turn", 1.0, inner=True), none_starved(size // MIB)),
    )


def scenarios(*, quick: bool, size: int, files: int) -> list[Scenario]:
    """All of them; `size` of a large file in bytes, `files` in a tree."""
    far = (8 if quick else 32) * MIB
    depth = 64
    return [
        *_large(size),
        Scenario(
            "latency",
            partial(sources.make_random, size=far),
            peers.LATENCY,
            far,
            aims=(
                takes("aiocp 16K depth 1", 0.9 * depth, "aiocp 16K", inner=True),
                takes("dd direct 16K", 10.0, "aiocp 16K"),
                takes("cp + sync", 1.0),
                takes("qemu-img", 1.0),
            ),
            rounds=1 if quick else 2,
            place=partial(far_away, 0.005),
        ),
        *_holes(size),
        *_trees(files, quick),
        *_small(quick),
    ]
