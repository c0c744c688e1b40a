"""Time copies of files with holes, of files full of zeroes, and clones, against the peers' own.

As scripts/bench does it for a dense file. The figures that count are ratios of whole commands with
their start-up; a clone is one system call, so there start-up and sync are taken off.
"""

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench import AIOCP, GIB, KIB, MIB, ROOT, Failed, Run, drop_cache, note, timed

TIB = 1 << 40


def make_extents(path: Path, count: int, data: int, size: int, tail: int) -> None:
    """`data` bytes in `count` pieces all over a file of `size` bytes that ends with a hole."""
    each = data // count // (4 * KIB) * 4 * KIB
    content = random.Random(1).randbytes(each)
    with path.open("xb", buffering=0) as file:
        file.truncate(size)
        for i in range(count):
            os.pwrite(file.fileno(), content, i * ((size - tail) // count // (4 * KIB)) * 4 * KIB)


def make_mixed(path: Path, size: int, zeroes: float, rng: random.Random) -> None:
    """Written data and zeroes, in turns of 4 KiB to 1 MiB."""
    content = rng.randbytes(2 * MIB)
    with path.open("xb") as file:
        while file.tell() < size:
            length = 4 * KIB * rng.randint(1, 256)
            start = rng.randrange(MIB)
            zero = rng.random() < zeroes
            file.write(bytes(length) if zero else content[start : start + length])
        file.truncate(size)


class Scenario(NamedTuple):
    """What is copied and by whom; `aims` are how many times aiocp's time a peer is to take."""

    make: Callable[[Path], object]
    peers: dict[str, str]
    aims: dict[str, float]


def _cp(options: str) -> str:
    return f'cp {options} "$1" "$2" && exec sync -d "$2"'


_AUTO = {
    "aiocp": f'{AIOCP} --reflink=never "$1" "$2"',
    "cp + sync": _cp("--reflink=never"),
    "rsync -S --fsync": 'exec rsync -S --fsync "$1" "$2"',
    "qemu-img": 'exec qemu-img convert -f raw -O raw -t none -T none -m 16 -W "$1" "$2"',
}
_ALWAYS = {
    "aiocp": f'{AIOCP} --sparse=always "$1" "$2"',
    "cp + sync": _cp("--reflink=never --sparse=always"),
    "rsync -S --fsync": 'exec rsync -S --fsync "$1" "$2"',
}
SCENARIOS = {
    # rsync reads a TiB of holes: minutes
    "1 TiB, 10,000 extents, 256 MiB": Scenario(
        lambda path: make_extents(path, 10_000, 256 * MIB, TIB, 0),
        {name: peer for name, peer in _AUTO.items() if name != "rsync -S --fsync"},
        {"cp + sync": 1.0, "qemu-img": 1.0},
    ),
    "4 GiB, 1 GiB of data before a hole": Scenario(
        lambda path: make_extents(path, 16, GIB, 4 * GIB, 3 * GIB),
        _AUTO,
        {"cp + sync": 1.0, "rsync -S --fsync": 1.0, "qemu-img": 1.0},
    ),
    "4 GiB, all hole": Scenario(
        lambda path: make_extents(path, 1, 0, 4 * GIB, 0), _AUTO, {"rsync -S --fsync": 1.0}
    ),
    "1 GiB of zeroes, always": Scenario(
        lambda path: path.write_bytes(bytes(GIB)), _ALWAYS, {"cp + sync": 2.0}
    ),
    "1 GiB, half zeroes, always": Scenario(
        lambda path: make_mixed(path, GIB, 0.5, random.Random(2)), _ALWAYS, {"cp + sync": 1.0}
    ),
    "4 GiB, reflink": Scenario(
        lambda path: make_mixed(path, 4 * GIB, 0, random.Random(3)),
        {"aiocp": f'{AIOCP} --reflink "$1" "$2"', "cp": 'exec cp --reflink=always "$1" "$2"'},
        {},
    ),
}


def _data(path: Path) -> Iterator[tuple[int, bytes]]:
    """What a file has that is no zero byte at its end, by blocks; nothing of its holes."""
    with path.open("rb", buffering=0) as file:
        offset = 0
        while True:
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                return
            offset -= offset % (64 * KIB)
            block = os.pread(file.fileno(), 64 * KIB, offset)
            if stripped := block.rstrip(b"\0"):
                yield offset, stripped
            offset += 64 * KIB


def same(one: Path, two: Path) -> bool:
    """Whether two files are equal, without reading terabytes of holes."""
    if one.stat().st_size != two.stat().st_size:
        return False
    theirs = _data(two)
    return all(block == next(theirs, None) for block in _data(one)) and next(theirs, None) is None


def run_scenario(directory: Path, scenario: Scenario, rounds: int) -> dict[str, list[Run]]:
    """Let every peer copy as often as asked, in turns; compare the copies in the first round."""
    source, copy = directory / "source", directory / "copy"
    source.unlink(missing_ok=True)
    copy.unlink(missing_ok=True)
    scenario.make(source)
    runs: dict[str, list[Run]] = {}
    names = list(scenario.peers)
    for number in range(rounds):
        for name in list(names):
            copy.unlink(missing_ok=True)
            drop_cache(source)
            try:
                run = timed(scenario.peers[name], source, copy)
            except Failed as failure:
                if name == "aiocp":
                    raise
                note(f"without {name}: {str(failure).splitlines()[-1]}")
                names.remove(name)
                continue
            runs.setdefault(name, []).append(run)
            note(f"round {number + 1}: {name:<16} {run.wall:7.3f} s  cpu {run.cpu:.3f} s")
            if number == 0 and not same(source, copy):
                raise Failed(f"wrong bytes after: {scenario.peers[name]}")
        names.append(names.pop(0))
    return runs


def print_table(title: str, scenario: Scenario, runs: dict[str, list[Run]]) -> None:
    """Seconds, and how many times aiocp's; which aims are met."""
    print(f"\n{title}")
    print(f"{'':<18}{'median s':>10}{'min':>10}{'max':>10}{'/ aiocp':>10}{'CPU s':>10}")
    ours = runs["aiocp"]
    for name, each in runs.items():
        walls = [run.wall for run in each]
        ratio = median(run.wall / our.wall for run, our in zip(each, ours, strict=False))
        cells = median(walls), min(walls), max(walls), ratio, median(run.cpu for run in each)
        print(f"{name:<18}" + "".join(f"{cell:>10.3f}" for cell in cells), flush=True)
        if aim := scenario.aims.get(name):
            met = "met   " if ratio >= aim else "MISSED"
            print(f"{met} {name} takes >= {aim} x aiocp's time: {ratio:.2f}")
    told = ours[0].told
    print(f"aiocp: {told['method']}, {told['holes']:,} bytes of holes, {told['elapsed']:.4f} s")


def run_all(directory: Path, rounds: int, only: list[str] | None) -> None:
    """Print the tables of all scenarios, or of those whose titles hold one of the words `only`."""
    for title, scenario in SCENARIOS.items():
        if only and not any(word in title for word in only):
            continue
        try:
            runs = run_scenario(directory, scenario, rounds)
        except Failed as failure:
            print(f"\n{title}: {failure}")
        else:
            print_table(title, scenario, runs)


def on_filesystems(types: list[str], rounds: int, only: list[str] | None) -> None:
    """The same on a new file system of each type, on a loop device."""
    sys.path.append(str(ROOT / "tests"))
    from filesystems import mounted

    for fstype in types:
        print(f"\n--- {fstype}", flush=True)
        with mounted(fstype, 12 * GIB) as directory:
            run_all(directory, rounds, only)
