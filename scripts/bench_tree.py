"""Time copy_tree() against its peers: a tree of small files, cold or in memory, synced or not.

As scripts/bench does it for one file, but each copy is a new one and all stay until the end: ext4
looks at every inode that was freed in the last minutes before it takes another, so a copy after an
`rm -r` takes three times as long, whoever copies.
"""

import os
import random
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench import PYTHON, ROOT, Failed, Run, drop_cache, note, timed

KIB, MIB = 1 << 10, 1 << 20
MEAN = 11 * KIB
IN_A_DIRECTORY = 100

OURS = (
    "import sys; from aiocp import copy_tree;"
    " copy_tree(*sys.argv[1:], sync={sync}, reflink='never')"
)
SHUTIL = "import shutil, sys; shutil.copytree(*sys.argv[1:], symlinks=True)"


def _python(code: str) -> str:
    return f'PYTHONPATH={shlex.quote(str(ROOT))} exec {PYTHON} -c {shlex.quote(code)} "$1" "$2"'


# shell commands that copy the directory "$1" to the new directory "$2"
DURABLE = {
    "aiocp": _python(OURS.format(sync=True)),
    "cp -r + sync -f": 'cp -r --reflink=never "$1" "$2" && exec sync -f "$2"',
    "rsync -a --fsync": 'exec rsync -a --fsync "$1/" "$2"',
}
NOT_SYNCED = {
    "aiocp no sync": _python(OURS.format(sync=False)),
    "cp -r": 'exec cp -r --reflink=never "$1" "$2"',
    "rsync -a": 'exec rsync -a "$1/" "$2"',
    "tar | tar": 'mkdir "$2" && tar -C "$1" -cf - . | tar -C "$2" -xf -',
    "shutil.copytree": _python(SHUTIL),
}
PEERS = {**DURABLE, **NOT_SYNCED}

# (what, against which peer, cold or warm): how many times aiocp's time it is to take
AIMS = {
    ("aiocp", "rsync -a --fsync", "cold"): 10.0,
    ("aiocp", "cp -r", "cold"): 2.0,
    ("aiocp no sync", "cp -r", "cold"): 3.0,
    ("aiocp no sync", "cp -r", "warm"): 1.0,
}


def make_tree(root: Path, files: int) -> None:
    """Files of 11 KiB on average, a hundred in a directory, in twenty directories."""
    rng = random.Random(1)
    pool = rng.randbytes(MIB)
    for number in range(files):
        group = number // IN_A_DIRECTORY
        directory = root / f"{group % 20}" / f"{group}"
        if number % IN_A_DIRECTORY == 0:
            directory.mkdir(parents=True)
        size = min(int(rng.expovariate(1 / MEAN)), 256 * KIB)
        start = rng.randrange(MIB - size)
        (directory / f"file{number}").write_bytes(pool[start : start + size])


def rounds(
    directory: Path,
    files: int,
    peers: dict[str, str],
    count: int,
    warm: bool,
    compare: Callable[[int], bool],
) -> dict[str, list[Run]]:
    """Let every peer copy `count` times, in turns; with `warm` from a source that is in memory."""
    source = directory / "source"
    if not source.exists():
        make_tree(source, files)
    runs: dict[str, list[Run]] = {name: [] for name in peers}
    names = list(peers)
    for number in range(count):
        for name in names:
            copy = directory / f"{'warm' if warm else 'cold'}-{number}-{names.index(name)}"
            if warm:  # the programs as well
                os.sync()
                read_all(source)
            else:
                drop_cache(source)
            run = timed(peers[name], source, copy)
            runs[name].append(run)
            note(f"round {number + 1}: {name:<16} {run.wall:7.3f} s  cpu {run.cpu:.3f} s")
            if compare(number) and subprocess.call(["diff", "-r", source, copy]):
                raise Failed(f"wrong copy by {name}")
        names.append(names.pop(0))
    return runs


def read_all(root: Path) -> None:
    """Bring a tree into memory."""
    for directory, _, names in os.walk(root):
        for name in names:
            Path(directory, name).read_bytes()


def ratio(runs: dict[str, list[Run]], name: str, ours: str) -> float | None:
    """How many times our time a peer takes: the median over the rounds."""
    if name not in runs or ours not in runs:
        return None
    pairs = zip(runs[name], runs[ours], strict=True)
    return median(peer.wall / our.wall for peer, our in pairs)


def print_table(runs: dict[str, list[Run]], files: int) -> None:
    """Seconds; how many times aiocp's, durable and not; CPU and memory."""
    headings = ("median s", "min", "max", "/ aiocp", "/ no sync", "CPU us/file", "peak MiB")
    width = max(map(len, runs))
    print(f"{'':<{width}}" + "".join(f"{heading:>12}" for heading in headings))
    for name, each in runs.items():
        walls = [run.wall for run in each]
        cells = [f"{value:.3f}" for value in (median(walls), min(walls), max(walls))]
        for ours in ("aiocp", "aiocp no sync"):
            times = ratio(runs, name, ours)
            cells.append("-" if times is None else f"{times:.2f}")
        cells.append(f"{median(run.cpu for run in each) / files * 1e6:.0f}")
        cells.append(f"{max(run.peak_memory for run in each) / MIB:.0f}")
        print(f"{name:<{width}}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def print_aims(runs: dict[str, list[Run]], temperature: str) -> None:
    for (ours, peer, when), aim in AIMS.items():
        reached = ratio(runs, peer, ours)
        if when == temperature and reached is not None:
            met = "met   " if reached >= aim else "MISSED"
            print(f"{met} {peer} takes >= {aim} x the time of {ours}: {reached:.2f}", flush=True)


def run_tree(
    directory: Path, files: int, count: int, temperatures: list[str], only: list[str] | None
) -> None:
    """Print the tables for a directory, cold and warm as asked."""
    peers = {name: PEERS[name] for name in only} if only else PEERS
    for temperature in temperatures:
        warm = temperature == "warm"
        runs = rounds(directory, files, peers, count, warm, lambda number: number == 0)
        print(f"\n{files} files, {temperature}, {count} rounds")
        print_table(runs, files)
        print_aims(runs, temperature)


def on_filesystems(
    types: list[str], files: int, count: int, temperatures: list[str], only: list[str] | None
) -> None:
    """The same on a new file system of each type, on a loop device."""
    sys.path.append(str(ROOT / "tests"))
    from filesystems import GIB, mounted

    size = max(4 * GIB, 32 * KIB * files * len(temperatures) * (count * len(only or PEERS) + 1))
    for fstype in types:
        print(f"\n--- {fstype}", flush=True)
        with mounted(fstype, size) as directory:
            run_tree(directory, files, count, temperatures, only)
