"""Time copy_tree() against its peers: a tree of small files, cold or in memory, synced or not.

As scripts/bench does it for one file, but each copy is a new one and all stay until the end: ext4
looks at every inode that was freed in the last minutes before it takes another, so a copy after an
`rm -r` takes three times as long, whoever copies.

With --scale aiocp alone copies more and more files, in one directory and in many: the time and the
memory that each takes are to stay the same.
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
UUTILS = "/usr/lib/cargo/bin/coreutils"  # where Debian has them
LINKS = (
    "import sys; from aiocp import copy_tree;"
    " copy_tree(*sys.argv[1:], preserve=['links'], reflink='never')"
)
SHUTIL = "import shutil, sys; shutil.copytree(*sys.argv[1:], symlinks=True)"


def _python(code: str) -> str:
    return f'PYTHONPATH={shlex.quote(str(ROOT))} exec {PYTHON} -c {shlex.quote(code)} "$1" "$2"'


# shell commands that copy the directory "$1" to the new directory "$2"
DURABLE = {
    "aiocp": _python(OURS.format(sync=True)),
    "cp -a + sync -f": 'cp -a --reflink=never "$1" "$2" && exec sync -f "$2"',
    "rsync -a --fsync": 'exec rsync -a --fsync "$1/" "$2"',
}
NOT_SYNCED = {
    "aiocp no sync": _python(OURS.format(sync=False)),
    "cp -r": 'exec cp -r --reflink=never "$1" "$2"',
    "rsync -a": 'exec rsync -a "$1/" "$2"',
    "tar | tar": 'mkdir "$2" && tar -C "$1" -cf - . | tar -C "$2" -xf -',
    "fpsync": 'mkdir "$2" && exec fpsync -n 4 -f 2000 -t "$2.fpsync" "$1/" "$2/"',
    "uutils cp -r": f'exec {UUTILS}/cp -r --reflink=never "$1" "$2"',
    "rclone copy": 'exec rclone copy --config "" --transfers 16 --checkers 16 "$1" "$2"',
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


def available(peers: dict[str, str], directory: Path) -> dict[str, str]:
    """Those that can copy a tree of one file, fpart's own log apart."""
    source = directory / "one"
    source.mkdir(exist_ok=True)
    (source / "file").write_bytes(b"one")
    found: dict[str, str] = {}
    for name, command in peers.items():
        copy = directory / f"one-{len(found)}-{name.split()[0]}"
        try:
            timed(command, source, copy)
        except Failed as failure:
            note(f"without {name}: {str(failure).splitlines()[-1]}")
        else:
            found[name] = command
    return found


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
    directory: Path, *, files: int, count: int, temperatures: list[str], only: list[str]
) -> None:
    """Print the tables for a directory, cold and warm as asked."""
    peers = available({name: PEERS[name] for name in only}, directory)
    for temperature in temperatures:
        warm = temperature == "warm"
        runs = rounds(directory, files, peers, count, warm, lambda number: number == 0)
        print(f"\n{files} files, {temperature}, {count} rounds")
        print_table(runs, files)
        print_aims(runs, temperature)


def make_many(root: Path, files: int, spread: bool, *, names: int = 1) -> None:
    """Files of a hundred bytes, all in one directory or a hundred in each; with `names` each file
    has as many, of which the first are far from the others."""
    for name in range(names):
        for number in range(files):
            directory = root / f"{name}" / (f"{number // IN_A_DIRECTORY}" if spread else "all")
            if number % IN_A_DIRECTORY == 0:
                directory.mkdir(parents=True, exist_ok=True)
            path = f"{directory}/file{number}"
            if name:
                first = f"{root}/0/{number // IN_A_DIRECTORY if spread else 'all'}/file{number}"
                os.link(first, path)
            else:
                with open(path, "wb") as file:
                    file.write(b"%100d" % number)


def run_scale(directory: Path, counts: list[int]) -> None:
    """Print the time and the memory that each file takes, for more and more of them."""
    print(f"{'files':>10} {'in':>8} {'s':>8} {'us/file':>8} {'peak MiB':>9}")
    for files in counts:
        for kind, names in (("one", 1), ("many", 1), ("linked", 2)):
            source, copy = (directory / f"{kind}-{files}-{what}" for what in ("source", "copy"))
            make_many(source, files, kind != "one", names=names)
            drop_cache(source)
            run = timed(
                _python(OURS.format(sync=True)) if names == 1 else _python(LINKS), source, copy
            )
            each, peak = run.wall / files * 1e6, run.peak_memory / MIB
            print(
                f"{files:>10,} {kind:>8} {run.wall:>8.2f} {each:>8.1f} {peak:>9.1f}",
                flush=True,
            )


def on_filesystems(types: list[str], size: int, run: Callable[[Path], None]) -> None:
    """Do it on a new file system of each type, on a loop device of its own whose space is there."""
    sys.path.append(str(ROOT / "tests"))
    from filesystems import mounted

    for fstype in types:
        print(f"\n--- {fstype}", flush=True)
        options = ["-i", "4096"] if fstype == "ext4" else []  # inodes for many small files
        with mounted(fstype, size, mkfs_options=options, allocated=True) as directory:
            run(directory)
