"""Kill a copy of a tree, or cut the power of its disk, again and again, and look what is there.

As crash.py does it for one file: tests/test_tree_crash.py runs these loops a few times,
scripts/crash many, and the faults of tree_faults.py. After a kill and a cut every name is the old
one or the new one whole, and nothing else is there; after exit status 0 everything is, as it is in
the source.
"""

import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple

import aiocp.backlog
import aiocp.dask_client
import aiocp.part_tree
import aiocp.range_copy
import aiocp.ranges
import aiocp.spread_tree
import aiocp.tree_copier
from aiocp import cli, command  # noqa: F401 - before any power is cut
from crash import WAYS, Result, Tally, disk, run_loops
from faults import write_errors_to
from filesystems import mounted, scratch_directory
from tree_faults import every_call
from trees import KIB, MIB, complaints, facts, flaws

TIMEOUT = 60  # seconds after which a copy hangs
FILES = {"ext4": 100, "xfs": 100, "btrfs": 600}  # where 512 are synced at once, more than that
SIZES = (0, 1, 500, 3000, 3000, 3000, 11 * KIB, 40 * KIB)


def make(root: Path, seed: int, files: int) -> None:
    """A tree of so many files, most of them small, with a link, a hard link and a FIFO to ten."""
    rng = random.Random(seed)
    for directory in ("empty", "a/b", "c"):
        (root / directory).mkdir(parents=True)
    for i in range(files):
        name = f"{('.', 'a', 'a/b', 'c')[i % 4]}/{i}"
        (root / name).write_bytes(rng.randbytes(rng.choice(SIZES)))
        if i % 10 == 5:
            (root / "c" / f"hard {i}").hardlink_to(root / name)
            (root / "c" / f"link {i}").symlink_to(f"{seed}")
            (root / "c" / f"another {i}").symlink_to(f"{seed}" * 100)
            os.mkfifo(root / "c" / f"fifo {i}", 0o600)
    (root / "large").write_bytes(rng.randbytes(300 * KIB + 777))
    (root / "a" / "larger").write_bytes(rng.randbytes(MIB + seed))
    for i, path in enumerate(sorted(root.rglob("*"))):
        os.chown(path, 1000 * seed, i, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(rng.choice((0o644, 0o600, 0o755)))
        if i % 10 == 0 and path.is_file() and not path.is_symlink():
            os.setxattr(path, "user.number", b"%d" % seed)
        os.utime(path, (seed, 1000 * seed + i), follow_symlinks=False)


class Trees:
    """A tree to copy, and another to copy it over."""

    def __init__(self, top: Path, files: int) -> None:
        self.source, self.before, self.stderr = top / "source", top / "before", top / "stderr"
        make(self.source, 1, files)
        make(self.before, 2, files)
        self.new, self.old = facts(self.source), facts(self.before)

    def prepare(self, copy: Path, *, over: bool) -> None:
        """Have the other tree at the destination, or nothing."""
        if copy.exists():
            shutil.rmtree(copy)
        if over:
            subprocess.run(["cp", "-a", self.before, copy], check=True)

    def start(self, copy: Path, *options: str) -> "Child":
        """Begin to copy with the command, in a forked process."""
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                write_errors_to(self.stderr)
                if "--dask" in options:
                    _spread()
                os.write(writer, b"!")
                status = cli.run(["-aT", *options, str(self.source), str(copy)])
            except KeyboardInterrupt:
                status = 128 + signal.SIGINT
            except BaseException:  # noqa: BLE001 - a child must not go on as its parent
                status = 70
            finally:
                os._exit(status)
        os.close(writer)
        os.read(reader, 1)
        return Child(pid, reader, time.perf_counter())

    def judge(self, copy: Path, status: int, *, over: bool) -> list[str]:
        """What is wrong with the copy, given what the command has said of it."""
        said: Sequence[bytes] = [b""]
        if status == 0:
            said = []
        elif status == 1:
            try:
                said = list(complaints(self.stderr.read_text(), self.source, copy))
            except AssertionError as error:
                return [f"it says {error}"]
        elif status != -signal.SIGKILL:
            return [f"status {status}"]
        return list(flaws(self.new, self.old if over else {}, facts(copy), said))

    def found(self, copy: Path) -> str:
        """How much is new: "all", "part" or "nothing" of it."""
        now = facts(copy)
        new = sum(fact.is_as(now.get(path)) for path, fact in self.new.items())
        return "all" if new == len(self.new) else "part" if new else "nothing"


class Child(NamedTuple):
    """A running copy; `alive` is a pipe that all of its processes have open, to the end."""

    pid: int
    alive: int
    begun: float

    def wait_until(self, moment: float) -> None:
        """Wait until so many seconds after its begin."""
        time.sleep(max(0, self.begun + moment - time.perf_counter() - 0.001))
        while time.perf_counter() < self.begun + moment:
            pass  # a sleep would be late

    def end(self) -> int:
        """Wait until it and all that it has started is gone; its exit status."""
        gone, _, _ = select.select([self.alive], [], [], TIMEOUT)
        if not gone:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.alive)
        if not gone:
            raise ChildProcessError("a copy of a tree does not end")
        return os.waitstatus_to_exitcode(status)


def _spread() -> None:
    """Have the workers of --dask be threads here, and enough parts for them."""

    @contextmanager
    def connect(address: str) -> Iterator[Executor]:
        yield ThreadPoolExecutor(3)

    aiocp.dask_client.connect = connect
    aiocp.ranges.RANGE = 256 * KIB
    aiocp.backlog.LEAST_FILES = 16


SPREAD = ("--dask", "here:1")  # options


def lasts(trees: Trees, copy: Path, options: Sequence[str] = (), *, over: bool) -> float:
    """How long a copy takes, in seconds."""
    trees.prepare(copy, over=over)
    child = trees.start(copy, *options)
    if child.end() or trees.judge(copy, 0, over=over):
        raise ChildProcessError(f"a copy failed: {trees.stderr.read_text()}")
    return time.perf_counter() - child.begun


def kills(directory: Path, count: int, files: int = 100) -> Tally:
    """Kill copies, every second one over another tree, at any moment."""
    tally = Tally()
    rng = random.Random(count)
    copy = directory / "copy"
    with scratch_directory() as scratch:
        trees = Trees(scratch, files)
        busy = [lasts(trees, copy, over=over) for over in (False, True)]
        for number in range(count):
            over = bool(number % 2)
            trees.prepare(copy, over=over)
            child = trees.start(copy)
            child.wait_until(rng.uniform(0, busy[over]))
            os.kill(child.pid, signal.SIGKILL)
            _add(tally, trees, copy, child.end(), over=over)
        shutil.rmtree(copy, ignore_errors=True)
    return tally


def _hidden(copy: Path) -> list[Path]:
    """What is between its link and its rename, on the disk too; or what workers write and see."""
    number = ".aiocp-" + "[0-9a-f]" * 16
    return [*copy.rglob(".*" + number), *copy.rglob(number)]


def _add(tally: Tally, trees: Trees, copy: Path, status: int, *, over: bool) -> None:
    """Count what is there after a kill or a cut."""
    tally.cuts += 1
    tally.found[trees.found(copy)] += 1
    tally.found["with exit 0"] += status == 0
    tally.broken += [f"status {status}: {flaw}" for flaw in trees.judge(copy, status, over=over)]


def after_return(
    fstype: str,
    way: str,
    cuts: int,
    *,
    files: int = 100,
    sync: bool = True,
    options: Sequence[str] = (),
) -> Tally:
    """Cut the power right after a copy has returned, the second one over another tree."""
    tally = Tally()
    with disk(fstype, way) as target, scratch_directory() as scratch:
        trees = Trees(scratch, files)
        copy = target.mount_point / "copy"
        for number in range(cuts):
            over = bool(number % 2)
            trees.prepare(copy, over=over)
            target.sync()
            status = trees.start(copy, "--sync" if sync else "--no-sync", *options).end()
            target.cut()
            target.restart()
            _add(tally, trees, copy, status, over=over)
    return tally


def at_random_moments(
    fstype: str, way: str, cuts: int, *, files: int = 100, options: Sequence[str] = ()
) -> Tally:
    """Cut the power while a tree is copied, or soon after it was."""
    tally = Tally()
    rng = random.Random(cuts)
    with disk(fstype, way) as target, scratch_directory() as scratch:
        trees = Trees(scratch, files)
        copy = target.mount_point / "copy"
        busy = [lasts(trees, copy, options, over=over) for over in (False, True)]
        for number in range(cuts):
            over = bool(number % 2)
            trees.prepare(copy, over=over)
            target.sync()
            child = trees.start(copy, *options)
            child.wait_until(rng.uniform(0, 1.2 * busy[over]))
            target.cut()
            status = child.end()
            target.restart()
            for path in _hidden(copy):
                tally.hidden += 1
                path.unlink()
            _add(tally, trees, copy, status, over=over)
    return tally


def _loops(cuts: int, number: int) -> Iterator[Result]:
    loops = after_return, at_random_moments
    for loop, (fstype, way), options in product(loops, WAYS, [(), SPREAD]):
        tally = loop(fstype, way, cuts, files=FILES[fstype], options=options)
        by = ", by workers" if options else ""
        yield f"tree{by}, {fstype}, {way}, {loop.__name__}", tally, tally.broken
    for fstype in ("ext4", "xfs", "btrfs", "tmpfs"):
        with mounted(fstype) as mount_point:
            tally = kills(mount_point, number)
            yield f"tree, {fstype}, SIGKILL", tally, tally.broken
        for over in (False, True):
            with mounted(fstype) as mount_point:
                points = [i / 6 for i in range(7)]
                cloned = fstype in {"btrfs", "xfs"}
                wrong = every_call(mount_point, points, over=over, cloned=cloned)
                yield f"tree, {fstype}, faults", f"{len(wrong)} broken", wrong


if __name__ == "__main__":
    sys.exit(run_loops(_loops, __doc__, cuts=100, kills=400))
