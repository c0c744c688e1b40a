"""Kill a copy that is to be resumed, or cut the power of its disk, and resume it, until it is done.

tests/test_resume.py runs these loops a few times, scripts/crash many.
"""

import filecmp
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import aiocp.partial
from aiocp import CopyResult, copy_file
from aiocp.direct import Direct
from aiocp.partial import Partial
from crash import WAYS, Result, disk, run_loops
from filesystems import mounted, scratch_directory

KIB, MIB = 1 << 10, 1 << 20
SIZE = 12 * MIB + 777
LEFT = {".copy.aiocp-partial", ".copy.aiocp-journal"}


@dataclass
class Tally:
    """What the copies have done in which somebody cut; `broken` are the promises not held."""

    cuts: int = 0
    copies: int = 0
    kept: int = 0  # cuts that left something to go on with
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.cuts} times in {self.copies} copies, of which {self.kept} left something;"
            f" {len(self.broken)} broken"
        )


def source_file(directory: Path, rng: random.Random) -> Path:
    """A source of random bytes, half of the time with holes."""
    source = directory / "source"
    with source.open("wb") as file:
        file.truncate(SIZE)
        holes = rng.random() < 0.5
        for start in range(0, SIZE, 256 * KIB):
            if not holes or rng.random() < 0.7:
                os.pwrite(file.fileno(), rng.randbytes(min(256 * KIB, SIZE - start)), start)
    return source


def copy(source: Path, destination: Path, direct: Direct = "auto") -> CopyResult:
    """A copy that is marked every MiB."""
    aiocp.partial.EVERY_BYTES = MIB
    return copy_file(
        source,
        destination,
        depth=8,
        block_size=64 * KIB,
        direct=direct,
        reflink="never",
        resume=True,
        progress=lambda *_: time.sleep(0.003),  # as on a slow disk, to be cut in the middle
    )


def lie(self: Partial, moved: int) -> bool:
    """In place of Partial.due: say that all is on the disk that was written, unsynced."""
    if moved - self._marked >= MIB:
        self._marked = moved
        self.mark(max(0, moved - 8 * 64 * KIB))
    return False


def start(source: Path, destination: Path, direct: Direct, lying: bool) -> int:
    """Copy in a forked process: its id. It ends with 0, or 1 for an OSError."""
    pid = os.fork()
    if not pid:
        _copy(source, destination, direct, lying)
    return pid


def _copy(source: Path, destination: Path, direct: Direct, lying: bool) -> NoReturn:
    status = 70
    try:
        if lying:
            Partial.due = lie  # type: ignore[method-assign]
        copy(source, destination, direct)
        status = 0
    except OSError:
        status = 1
    except BaseException:  # noqa: BLE001 - a child must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(status)


def _until_done(
    source: Path,
    destination: Path,
    rng: random.Random,
    cut: Callable[[int], int],
    after: Callable[[], object],
    tally: Tally,
    count: int,
    direct: Direct = "auto",
    lying: bool = False,
) -> None:
    """Start a copy and cut it, by `cut` with its process id, which waits for its end and returns
    how that was; again until one is done, or `count` cuts are. `after` is called at the end."""
    old = rng.randbytes(1000)
    _write_durably(destination, old)
    done = False
    while not done and tally.cuts < count:
        pid = start(source, destination, direct, lying)
        if rng.random() < 0.7:
            _wait_for_journal(destination.parent, pid)
        time.sleep(rng.uniform(0, 0.15))
        status = cut(pid)
        tally.cuts += 1
        done = status == 0
        if status == 70:
            tally.broken.append("an unexpected exception")
        beside = set(os.listdir(destination.parent)) - {destination.name, "lost+found"}
        if beside - LEFT:
            tally.broken.append(f"left behind: {beside - LEFT}")
        tally.kept += LEFT <= beside
        if not done and destination.read_bytes() != old and not same(source, destination):
            tally.broken.append("neither old nor new")
    result = copy(source, destination, direct)
    tally.copies += 1
    after()
    if not same(source, destination):
        tally.broken.append(f"other bytes, {result.resumed} resumed")
    if left := set(os.listdir(destination.parent)) & LEFT:
        tally.broken.append(f"left behind: {left}")
    destination.unlink()


def _wait_for_journal(directory: Path, pid: int) -> None:
    """Wait until something is kept, or the copy has ended."""
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not LEFT <= set(os.listdir(directory)) and os.waitid(os.P_PID, pid, ended) is None:
        time.sleep(0.001)


def _write_durably(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for what in (path, path.parent):
        fd = os.open(what, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def same(source: Path, destination: Path) -> bool:
    """Whether the bytes are the same, by another's eyes."""
    return filecmp.cmp(source, destination, shallow=False)


def kills(directory: Path, count: int, rng: random.Random) -> Tally:
    """Kill copies to a file in an empty directory."""
    tally = Tally()

    def kill(pid: int) -> int:
        os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    with scratch_directory() as scratch:
        while tally.cuts < count:
            source = source_file(scratch, rng)
            _until_done(source, directory / "copy", rng, kill, lambda: None, tally, count)
    return tally


def cuts(
    fstype: str, way: str, count: int, direct: Direct = "auto", *, lying: bool = False
) -> Tally:
    """Cut the power under copies; what was done before a last cut must be there after it."""
    tally = Tally()
    rng = random.Random(count)
    with disk(fstype, way) as target, scratch_directory() as scratch:

        def cut(pid: int) -> int:
            target.cut()
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            target.restart()
            return status

        def again() -> None:
            target.cut()
            target.restart()

        while tally.cuts < count:
            source = source_file(scratch, rng)
            destination = target.mount_point / "copy"
            _until_done(source, destination, rng, cut, again, tally, count, direct, lying)
    return tally


def _loops(cut: int, number: int) -> Iterator[Result]:
    for fstype, way in WAYS:
        tally = cuts(fstype, way, cut)
        yield f"resume, {fstype}, {way}", tally, tally.broken
    for fstype in ("ext4", "xfs", "btrfs", "tmpfs"):
        with mounted(fstype) as mount_point:
            (mount_point / "empty").mkdir()
            tally = kills(mount_point / "empty", number, random.Random(number))
        yield f"resume, {fstype}, SIGKILL", tally, tally.broken


if __name__ == "__main__":
    sys.exit(run_loops(_loops, __doc__, cuts=100, kills=400))
