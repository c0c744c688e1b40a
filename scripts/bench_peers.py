"""Who copies: shell commands that copy "$1" to the new "$2"."""

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from bench_run import Peer
from bench_sources import KIB, MIB

ROOT = Path(__file__).resolve().parent.parent
PYTHON = f"PYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)}"
COMMAND = Path(sys.executable).parent / "aiocp"
AIOCP = f"exec {shlex.quote(str(COMMAND))}" if COMMAND.exists() else f"{PYTHON} -m aiocp"
UUTILS = "/usr/lib/cargo/bin/coreutils"  # where Debian has them
SYNC = 'exec sync -d "$2"'

SWEEP_DEPTHS = (1, 4, 16, 64, 256)
SWEEP_BLOCKS = (64 * KIB, 256 * KIB, MIB, 4 * MIB)


def ours(options: str = "--reflink=never") -> Peer:
    return Peer(f'{AIOCP} --json {options} "$1" "$2"')


def cp(options: str = "--reflink=never") -> Peer:
    return Peer(f'cp {options} "$1" "$2" && {SYNC}')


def dd(block: str) -> Peer:
    return Peer(f'exec dd bs={block} iflag=direct oflag=direct conv=fdatasync if="$1" of="$2"')


def rsync(options: str) -> Peer:
    return Peer(f'exec rsync {options} --fsync "$1" "$2"')


def python(code: str) -> Peer:
    return Peer(f'{PYTHON} -c {shlex.quote(code)} "$1" "$2"')


def library(program: str, *times: int) -> Peer:
    """One of bench_library.py's."""
    return Peer(
        f'{PYTHON} {ROOT}/scripts/bench_library.py {program} "$1" "$2" {" ".join(map(str, times))}'
    )


QEMU_IMG = Peer(f'qemu-img convert -f raw -O raw -t none -T none -m 16 -W "$1" "$2" && {SYNC}')
SHUTIL = "import os, shutil, sys; shutil.copyfile(*sys.argv[1:]); os.fsync(os.open(sys.argv[2], 2))"

# What the device can do: it reads all bytes of the source and at the same time writes as many to
# space that is there, as aiocp does but neither waiting for the other. 64 MiB in flight in all.
# glibc's tunable gives its buffers huge pages.
FIO = Peer(
    'fallocate -l "$(stat -c %s "$1")" "$2" && GLIBC_TUNABLES=glibc.malloc.hugetlb=1 exec fio'
    " --output-format=json --thread --ioengine=libaio --direct=1 --bs=1M --iodepth=32"
    ' --name=read --rw=read --filename="$1"'
    ' --name=write --rw=write --filename="$2" --overwrite=1 --end_fsync=1',
    copies=False,
    told=True,
)

LARGE = {
    "aiocp": ours(),
    "fio limit": FIO,
    "cp + sync": cp(),
    "shutil + fsync": python(SHUTIL),
    "rsync --fsync": rsync("-W"),
    "rclone + sync": Peer(f'rclone copyto --config "" "$1" "$2" && {SYNC}'),
    "uutils cp + sync": Peer(f'{UUTILS}/cp --reflink=never "$1" "$2" && {SYNC}', clones=True),
    "qemu-img": QEMU_IMG,
    "mbuffer + sync": Peer(f'mbuffer -q -s 1M -m 64M -i "$1" -o "$2" && {SYNC}'),
    "dd direct 1M": dd("1M"),
    "dd direct 4M": dd("4M"),
    "dd direct 16M": dd("16M"),
}

SPARSE_AUTO = {
    "aiocp": ours(),
    "cp + sync": cp(),
    "rsync -S --fsync": rsync("-S"),
    "qemu-img": QEMU_IMG,
}
SPARSE_ALWAYS = {
    "aiocp": ours("--sparse=always"),
    "cp + sync": cp("--reflink=never --sparse=always"),
    "rsync -S --fsync": rsync("-S"),
}
CLONES = {
    "aiocp": ours("--reflink --no-sync"),
    "cp": Peer('exec cp --reflink=always "$1" "$2"'),
}
LATENCY = {
    "aiocp": ours(),
    "aiocp 16K": ours("--block-size 16K"),
    "aiocp 16K depth 1": ours("--block-size 16K --depth 1"),
    "cp + sync": cp(),
    "qemu-img": QEMU_IMG,
    "dd direct 16K": dd("16K"),
}
ONE_SMALL = {
    "aiocp": ours(),
    "shutil": python("import shutil, sys; shutil.copy(*sys.argv[1:])"),
}
MANY = {"aiocp": library("many-at-once"), "in turn": library("many-in-turn")}


def small_loop(times: int) -> dict[str, Peer]:
    """Library calls again and again."""
    return {"aiocp": library("loop-aiocp", times), "shutil": library("loop-shutil", times)}


def _tree(*, sync: bool, options: str = "") -> Peer:
    return python(
        "import sys; from aiocp import copy_tree;"
        f" copy_tree(*sys.argv[1:], sync={sync}, reflink='never'{options})"
    )


TREES = {
    "aiocp": _tree(sync=True),
    "cp -a + sync -f": Peer('cp -a --reflink=never "$1" "$2" && exec sync -f "$2"'),
    "rsync -a --fsync": Peer('exec rsync -a --fsync "$1/" "$2"'),
    # from here on nothing is synced
    "aiocp no sync": _tree(sync=False),
    "cp -r": Peer('exec cp -r --reflink=never "$1" "$2"'),
    "rsync -a": Peer('exec rsync -a "$1/" "$2"'),
    "tar | tar": Peer('mkdir "$2" && tar -C "$1" -cf - . | tar -C "$2" -xf -'),
    "fpsync": Peer('mkdir "$2" && exec fpsync -n 4 -f 2000 -t "$2.fpsync" "$1/" "$2/"'),
    "uutils cp -r": Peer(f'exec {UUTILS}/cp -r --reflink=never "$1" "$2"', clones=True),
    "rclone copy": Peer('exec rclone copy --config "" --transfers 16 --checkers 16 "$1" "$2"'),
    "shutil.copytree": python("import shutil, sys; shutil.copytree(*sys.argv[1:], symlinks=True)"),
}
TREES_FEW = {
    name: TREES[name]
    for name in ("aiocp", "cp -a + sync -f", "rsync -a --fsync", "aiocp no sync", "cp -r")
}
SCALE = {"aiocp": TREES["aiocp"]}
SCALE_LINKS = {"aiocp": _tree(sync=True, options=", preserve=['links']")}


def executor(options: str) -> Peer:
    """Ours, timed by bench_executor.py from inside."""
    return Peer(f'{PYTHON} {ROOT}/scripts/bench_executor.py {options} "$1" "$2"', told=True)


ENGINES = ("pool", "dask")


def cluster(options: str, counts: Iterable[int]) -> dict[str, Peer]:
    """One process, and so many workers of each engine."""
    return {
        "aiocp": executor(options),
        **{
            f"{engine} {count}": executor(f"--engine {engine} --workers {count} {options}")
            for engine in ENGINES
            for count in counts
        },
    }


# two do what so many would
CLUSTER_COST = {
    "8 workers": executor("--engine pool --workers 2 --as-if 8"),
    "1,000 workers": executor("--engine pool --workers 2 --as-if 1000"),
    "1,000 workers, on_entry": executor("--engine pool --workers 2 --as-if 1000 --told"),
}


def size_name(size: int) -> str:
    """64K, 1M."""
    return f"{size // MIB}M" if size >= MIB else f"{size // KIB}K"


def sweep_name(depth: int, block: int) -> str:
    return f"{depth} x {size_name(block)}"


SWEEP = {
    sweep_name(depth, block): ours(f"--reflink=never --depth {depth} --block-size {block}")
    for depth in SWEEP_DEPTHS
    for block in SWEEP_BLOCKS
}
