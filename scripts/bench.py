"""Time aiocp against its peers: one large file, cold cache, copies durable when the clock stops.

The peers take turns, in an order that moves on by one each round, so that what else the machine
does meets all of them alike. Before each run the last copy is removed, everything is synced and
the page cache is dropped, the programs' own pages included. After it the copy is compared with its
source. Start-up is what a copy of 4 KiB takes.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

ROOT = Path(__file__).resolve().parent.parent
PYTHON = shlex.quote(sys.executable)
COMMAND = Path(sys.executable).parent / "aiocp"
AIOCP = (
    f"exec {shlex.quote(str(COMMAND))} --json"
    if COMMAND.exists()
    else f"PYTHONPATH={shlex.quote(str(ROOT))} exec {PYTHON} -m aiocp --json"
)
SHUTIL = "import os, shutil, sys; shutil.copyfile(*sys.argv[1:]); os.fsync(os.open(sys.argv[2], 2))"

# shell commands that copy "$1" to the new file "$2" and return when it is durable
PEERS = {
    "aiocp": f'{AIOCP} --reflink=never "$1" "$2"',
    "cp + sync": 'cp --reflink=never "$1" "$2" && exec sync -d "$2"',
    "dd direct": 'exec dd bs=1M iflag=direct oflag=direct conv=fdatasync if="$1" of="$2"',
    "rsync --fsync": 'exec rsync -W --fsync "$1" "$2"',
    "shutil + fsync": f'exec {PYTHON} -c "{SHUTIL}" "$1" "$2"',
}

SWEEP_DEPTHS = (1, 4, 16, 64, 256)
SWEEP_BLOCKS = (64 * KIB, 256 * KIB, MIB, 4 * MIB)

START_UPS = 3  # the median one counts

CPU_AIM = 0.1  # seconds per GiB beyond start-up
MEMORY_AIM = 32 * MIB  # beyond depth x block size
RATIO_AIMS = {"cp + sync": 1.5, "rsync --fsync": 3.0, "dd direct": 1.0}


@dataclass(frozen=True)
class Run:
    """One copy: seconds, bytes, and what aiocp's --json said.

    `peak_memory` is the largest process's resident set, never less than that of this program,
    whose the kernel hands down through fork and exec. `cached` is what of the source and the copy
    the page cache held afterwards, None without fincore(1).
    """

    wall: float
    cpu: float
    peak_memory: int
    cached: int | None = None
    told: dict[str, Any] = field(default_factory=dict)


class Failed(Exception):
    """A peer did not copy."""


def timed(command: str, source: Path, copy: Path) -> Run:
    """Run a peer's shell command."""
    with tempfile.TemporaryFile("w+") as output:
        begun = time.perf_counter()
        child = subprocess.Popen(
            ["sh", "-c", command, "sh", source, copy], stdout=output, stderr=output
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        wall = time.perf_counter() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().strip()
    if child.returncode:
        raise Failed(text or f"exit status {child.returncode}")
    return Run(
        wall,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * KIB,
        told=json.loads(text) if text.startswith("{") else {},
    )


def drop_cache(source: Path) -> None:
    """Leave nothing of `source` in memory; as root, nothing of any file."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except PermissionError:
        with source.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached(*files: Path) -> int | None:
    """Bytes of these files in the page cache."""
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", *map(str, files)]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return sum(map(int, answer.stdout.split()))


def write_random(path: Path, size: int) -> None:
    """Create a file that nothing can compress or take for a hole."""
    with path.open("wb") as file:
        for offset in range(0, size, 4 * MIB):
            file.write(os.urandom(min(4 * MIB, size - offset)))
        file.flush()
        os.fsync(file.fileno())


class Bench:
    """A directory with a large and a small source, and the peers that can copy there."""

    def __init__(self, directory: Path, size: int, peers: dict[str, str]) -> None:
        self.size = size
        self.source, self.small = directory / "source", directory / "small"
        self.copy = directory / "copy"
        write_random(self.source, size)
        write_random(self.small, 4 * KIB)
        self.peers: dict[str, str] = {}
        self.start_up: dict[str, Run] = {}
        for name, command in peers.items():
            try:
                tries = [self._time(command, self.small) for _ in range(START_UPS)]
            except Failed as failure:
                if command.startswith(AIOCP):
                    raise
                note(f"without {name}: {str(failure).splitlines()[-1]}")
            else:
                self.peers[name] = command
                self.start_up[name] = sorted(tries, key=lambda run: run.cpu)[START_UPS // 2]
        if not self.peers:
            raise Failed("nothing to time")

    def rounds(self, count: int, compare: Callable[[int], bool]) -> dict[str, list[Run]]:
        """Let every peer copy `count` times; compare the bytes in rounds that `compare` picks."""
        runs: dict[str, list[Run]] = {name: [] for name in self.peers}
        names = list(self.peers)
        for number in range(count):
            for name in names:
                run = self._run(self.peers[name], compare(number))
                runs[name].append(run)
                note(f"round {number + 1}: {name:<16} {run.wall:7.3f} s  cpu {run.cpu:.3f} s")
            names.append(names.pop(0))
        return runs

    def _time(self, command: str, source: Path) -> Run:
        self.copy.unlink(missing_ok=True)
        drop_cache(source)
        return timed(command, source, self.copy)

    def _run(self, command: str, compare: bool) -> Run:
        run = self._time(command, self.source)
        left = cached(self.source, self.copy)
        if self.copy.stat().st_size != self.size:
            raise Failed(f"wrong size after: {command}")
        if compare and subprocess.call(["cmp", self.source, self.copy]):
            raise Failed(f"wrong bytes after: {command}")
        return Run(run.wall, run.cpu, run.peak_memory, left, run.told)


def note(line: str) -> None:
    """Say on stderr how far it is."""
    print(line, file=sys.stderr, flush=True)


def ratio(runs: dict[str, list[Run]], name: str) -> float:
    """How many times aiocp's time a peer takes: the median over the rounds."""
    pairs = zip(runs[name], runs["aiocp"], strict=True)
    return median(peer.wall / ours.wall for peer, ours in pairs)


def summary(bench: Bench, runs: dict[str, list[Run]]) -> dict[str, dict[str, Any]]:
    """The table's figures: seconds, seconds per GiB, bytes."""
    return {
        name: {
            "median": median(run.wall for run in each),
            "min": min(run.wall for run in each),
            "max": max(run.wall for run in each),
            "ratio": ratio(runs, name) if "aiocp" in runs else None,
            "cpu_per_gib": median(run.cpu for run in each) / (bench.size / GIB),
            "peak_memory": max(run.peak_memory for run in each),
            "cached": max((run.cached for run in each if run.cached is not None), default=None),
        }
        for name, each in runs.items()
    }


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """The summary as text."""

    def text(value: float | None, unit: int, digits: int) -> str:
        return "-" if value is None else f"{value / unit:.{digits}f}"

    columns = {
        "median": ("median s", 1, 3),
        "min": ("min", 1, 3),
        "max": ("max", 1, 3),
        "ratio": ("/ aiocp", 1, 2),
        "cpu_per_gib": ("CPU s/GiB", 1, 3),
        "peak_memory": ("peak MiB", MIB, 0),
        "cached": ("cached MiB", MIB, 1),
    }
    width = max(map(len, rows))
    print(f"{'':<{width}}" + "".join(f"{heading:>12}" for heading, _, _ in columns.values()))
    for name, row in rows.items():
        cells = (text(row[key], unit, digits) for key, (_, unit, digits) in columns.items())
        print(f"{name:<{width}}" + "".join(f"{cell:>12}" for cell in cells))


def aims(bench: Bench, runs: dict[str, list[Run]]) -> Iterable[tuple[str, str, bool]]:
    """What is aimed at, what was reached, and whether that will do."""
    for name, aim in RATIO_AIMS.items():
        if name in runs:
            reached = ratio(runs, name)
            yield f"{name} takes >= {aim} x aiocp's time", f"{reached:.2f}", reached >= aim
    ours = runs["aiocp"]
    start_up = bench.start_up["aiocp"].cpu
    cpu = (median(run.cpu for run in ours) - start_up) / (bench.size / GIB)
    yield (
        f"CPU <= {CPU_AIM} s per GiB beyond start-up",
        f"{cpu:.3f} (start-up {start_up:.3f} s)",
        cpu <= CPU_AIM,
    )
    depth, block = ours[0].told["depth"], ours[0].told["block_size"]
    beyond = max(run.peak_memory for run in ours) - depth * block
    yield (
        f"memory <= {depth} x {block // KIB} KiB + {MEMORY_AIM // MIB} MiB",
        f"+ {beyond / MIB:.1f} MiB",
        beyond <= MEMORY_AIM,
    )
    peak = min(run.told["peak_in_flight"] for run in ours)
    wanted = min(depth, -(-bench.size // block))
    yield f"in flight = {wanted}", str(peak), peak == wanted
    direct = all(run.told["direct_read"] and run.told["direct_write"] for run in ours)
    yield "direct reads and writes", "yes" if direct else "no", direct


def size_name(size: int) -> str:
    """64K, 1M."""
    return f"{size // MIB}M" if size >= MIB else f"{size // KIB}K"


def parse_size(text: str) -> int:
    """Bytes of 4096, 64K, 256M, 2G."""
    unit = {"K": KIB, "M": MIB, "G": GIB}.get(text[-1:], 1)
    return int(text[:-1] if unit > 1 else text) * unit


def parse_peer(text: str) -> tuple[str, str]:
    """NAME=COMMAND."""
    name, _, command = text.partition("=")
    if not command:
        raise ValueError(text)
    return name, command


def sweep_name(depth: int, block: int) -> str:
    return f"{depth} x {size_name(block)}"


def sweep_peers() -> dict[str, str]:
    """aiocp at each depth and block size."""
    return {
        sweep_name(
            depth, block
        ): f'{AIOCP} --reflink=never --depth {depth} --block-size {block} "$1" "$2"'
        for depth in SWEEP_DEPTHS
        for block in SWEEP_BLOCKS
    }


def print_heat_map(rows: dict[str, dict[str, Any]], size: int) -> None:
    """MiB per second of the median run, depth down and block size across."""
    print("MiB/s".rjust(8) + "".join(f"{size_name(block):>8}" for block in SWEEP_BLOCKS))
    for depth in SWEEP_DEPTHS:
        rates = (size / MIB / rows[sweep_name(depth, block)]["median"] for block in SWEEP_BLOCKS)
        print(f"{depth:>8}" + "".join(f"{rate:>8.0f}" for rate in rates))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--size", type=parse_size, default=2 * GIB, help="of the file, e.g. 2G")
    parser.add_argument("--rounds", type=int, help="how often each peer copies (5; 3 in a sweep)")
    parser.add_argument("--dir", type=Path, default=Path(), help="in which to copy")
    parser.add_argument("--quick", action="store_true", help="256M, 3 rounds")
    parser.add_argument("--tree", action="store_true", help="many small files instead of one large")
    parser.add_argument("--sparse", action="store_true", help="files with holes, and clones")
    parser.add_argument("--files", type=int, default=20_000, help="how many in the tree")
    parser.add_argument("--scale", metavar="N,...", help="aiocp alone on trees of so many files")
    parser.add_argument("--when", default="cold,warm", help="cold,warm: is the tree in memory")
    parser.add_argument("--on", metavar="TYPE,...", help="new file systems: ext4, xfs, btrfs")
    parser.add_argument("--sweep", action="store_true", help="aiocp alone: depth x block size")
    parser.add_argument("--compare", action="store_true", help="the bytes in each round, not one")
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(PEERS)}")
    parser.add_argument(
        "--peer",
        type=parse_peer,
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help='one more peer: a shell command that copies "$1" to "$2"',
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    options = parser.parse_args()
    if options.quick:
        options.size = 256 * MIB
    if options.rounds is None:
        options.rounds = 3 if options.quick or options.sweep else 5
    return options


def tree(options: argparse.Namespace) -> None:
    """Many small files: scripts/bench_tree.py."""
    import bench_tree

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.scale:
        counts = [int(count) for count in options.scale.split(",")]
        run = partial(bench_tree.run_scale, counts=counts)
        size = 4 * GIB + 32 * KIB * sum(counts)  # six trees of each
    else:
        only = options.only.split(",") if options.only else list(bench_tree.PEERS)
        when = options.when.split(",")
        run = partial(
            bench_tree.run_tree,
            files=options.files,
            count=options.rounds,
            temperatures=when,
            only=only,
        )
        copies = 1 + len(when) * options.rounds * len(only)
        size = max(4 * GIB, 24 * KIB * options.files * copies)
    if options.on:
        bench_tree.on_filesystems(options.on.split(","), size, run)
        return
    with tempfile.TemporaryDirectory(prefix="aiocp-bench-", dir=options.dir) as directory:
        run(Path(directory))


def sparse(options: argparse.Namespace) -> None:
    """Files with holes, and clones: scripts/bench_sparse.py."""
    import bench_sparse

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    only = options.only.split(",") if options.only else None
    if options.on:
        bench_sparse.on_filesystems(options.on.split(","), options.rounds, only)
        return
    with tempfile.TemporaryDirectory(prefix="aiocp-bench-", dir=options.dir) as directory:
        bench_sparse.run_all(Path(directory), options.rounds, only)


def main() -> None:
    options = parse_arguments()
    if options.tree or options.scale:
        tree(options)
        return
    if options.sparse:
        sparse(options)
        return
    peers = sweep_peers() if options.sweep else dict(PEERS)
    if options.only:
        peers = {name: peers[name] for name in options.only.split(",")}
    peers |= options.peer
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the directory goes then as well
    with tempfile.TemporaryDirectory(prefix="aiocp-bench-", dir=options.dir) as directory:
        bench = Bench(Path(directory), options.size, peers)
        runs = bench.rounds(options.rounds, lambda number: options.compare or number == 0)
    rows = summary(bench, runs)
    if options.sweep:
        print_heat_map(rows, bench.size)
    else:
        print_table(rows)
    reached = list(aims(bench, runs)) if "aiocp" in runs else []
    for aim, figure, met in reached:
        print(f"{'met   ' if met else 'MISSED'} {aim}: {figure}")
    if options.json:
        report = {
            "kernel": platform.release(),
            "cpus": os.cpu_count(),
            "size": bench.size,
            "peers": bench.peers,
            "summary": rows,
            "aims": [{"aim": aim, "reached": figure, "met": met} for aim, figure, met in reached],
            "start_up": {name: asdict(run) for name, run in bench.start_up.items()},
            "runs": {name: [asdict(run) for run in each] for name, each in runs.items()},
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"scripts/bench: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
