"""Kill a copy, or cut the power of its disk, again and again, and look what is there.

tests/test_power_cut.py and tests/test_kill.py run these loops a few times, scripts/crash many.
There are two ways to cut:

    shutdown     the file system stops where it is, its log unwritten: FS_IOC_SHUTDOWN. What only
                 its memory had is gone. ext4 and XFS.
    write cache  the device loses all that it was not told to flush. Any file system.

A kill is a SIGKILL: the copy is gone, the kernel stays.

There are three kinds of sources: dense ones and ones with holes, both on another file system than
the copy, and ones on the same file system, where the copy is a clone if it can be. Of these the
disk has heard nothing yet when its power is cut.
"""

import argparse
import fcntl
import json
import mmap
import os
import random
import re
import select
import signal
import stat
import struct
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NoReturn

from aiocp import copy_file
from aiocp.destination import Destination
from aiocp.direct import Direct
from faulty_fuse import Rule, faulty_device
from filesystems import (
    clean_up,
    loop_device,
    make_filesystem,
    mount,
    mounted,
    run,
    scratch_directory,
    sparse_file,
)

MIB = 1 << 20
SIZES = (0, 1, 5000, MIB + 777, 8 * MIB)
MODES = (0o644, 0o600, 0o755)
HOW: list[Direct] = ["auto", "never"]
WAYS = (
    ("ext4", "shutdown"),
    ("xfs", "shutdown"),
    ("ext4", "write cache"),
    ("xfs", "write cache"),
    ("btrfs", "write cache"),
)

Kind = Literal["dense", "sparse", "clone"]
KINDS: tuple[Kind, ...] = ("dense", "sparse", "clone")

_DISK_SIZE = 320 * MIB
_FS_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = struct.pack("I", 2)


@dataclass(frozen=True)
class Disk:
    """A mounted file system; `cut` cuts its power, `restart` gives it back and mounts again."""

    mount_point: Path
    cut: Callable[[], None]
    restart: Callable[[], None]

    def sync(self) -> None:
        """Have all of it on the disk."""
        run("sync", "--file-system", self.mount_point)


@contextmanager
def disk(fstype: str, way: str) -> Iterator[Disk]:
    """Make a new file system whose power can be cut in one of the ways."""
    with scratch_directory() as scratch:
        mount_point = scratch / "mnt"
        mount_point.mkdir()
        if way == "shutdown":
            with loop_device(sparse_file(scratch / "image", _DISK_SIZE)) as device:
                make_filesystem(fstype, device)
                with mount(device, mount_point):
                    remount = partial(_remount, device, mount_point, lambda: None)
                    yield Disk(mount_point, partial(_shut_down, mount_point), remount)
        else:
            with faulty_device(_DISK_SIZE, "--volatile") as faulty:
                make_filesystem(fstype, faulty.path)
                with mount(faulty.path, mount_point):
                    remount = partial(_remount, faulty.path, mount_point, faulty.disk.fail)
                    yield Disk(mount_point, partial(faulty.disk.fail, Rule("power")), remount)


def _shut_down(mount_point: Path) -> None:
    directory = os.open(mount_point, os.O_RDONLY)
    try:
        fcntl.ioctl(directory, _FS_IOC_SHUTDOWN, _NO_LOG_FLUSH)
    finally:
        os.close(directory)


def _remount(device: Path, mount_point: Path, power_on: Callable[[], None]) -> None:
    run("umount", mount_point)
    power_on()
    run("mount", device, mount_point)


@dataclass(frozen=True)
class Case:
    """A copy: `size` bytes to a file that has then `mode`, over an old one where it `replaces`."""

    size: int
    mode: int
    replaces: bool
    source: Path
    destination: Path
    content: bytes = field(repr=False)

    @classmethod
    def prepare(
        cls,
        sources: Path,
        destination: Path,
        size: int,
        mode: int,
        replaces: bool,
        kind: Kind = "dense",
    ) -> "Case":
        """Make the source, and the old destination."""
        source = sources / f"{size}-{mode:o}"
        content = bytearray(random.Random(size).randbytes(size))
        if kind == "sparse":  # every other 64 KiB, and the end
            for start in range(0, size, 128 << 10):
                content[start : start + (64 << 10)] = bytes(min(64 << 10, size - start))
        if not source.exists():
            with source.open("xb") as file:
                file.truncate(size)
                for start in range(64 << 10 if kind == "sparse" else 0, size, 128 << 10):
                    end = start + (64 << 10 if kind == "sparse" else 128 << 10)
                    os.pwrite(file.fileno(), content[start:end], start)
            source.chmod(mode)
        if replaces:
            destination.write_bytes(b"old" * 1000)
            destination.chmod(mode)
        return cls(size, mode, replaces, source, destination, bytes(content))

    def forget_on_disk(self) -> None:
        """Have a source of which the disk has not heard: a new file with the same content."""
        self.source.unlink()
        self.source.write_bytes(self.content)
        self.source.chmod(self.mode)

    def found(self) -> str:
        """What has become of the destination: "new", "old", "absent" or something worse."""
        try:
            status, now = self.destination.stat(), self.destination.read_bytes()
        except FileNotFoundError:
            return "lost" if self.replaces else "absent"
        if stat.S_IMODE(status.st_mode) != self.mode:
            return f"of mode {status.st_mode:o}"
        if now == self.content:
            return "new"
        return "old" if self.replaces and now == b"old" * 1000 else f"damaged, {len(now)} bytes"

    def __str__(self) -> str:
        return f"{self.size} bytes, mode {self.mode:o}, {'replaced' if self.replaces else 'new'}"


@dataclass
class Tally:
    """What was found after the cuts or kills; `broken` are the promises that were not held."""

    cuts: int = 0
    found: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    broken: list[str] = field(default_factory=list)

    def add(self, case: Case, allowed: Sequence[str]) -> None:
        """Count what is there now, and remove it."""
        found = case.found()
        self.found[found] += 1
        if found not in allowed:
            self.broken.append(f"{case}: {found}, not {' or '.join(allowed)}")
        for path in case.destination.parent.iterdir():
            if re.fullmatch(rf"\.{case.destination.name}\.aiocp-[0-9a-f]{{16}}", path.name):
                self.hidden += 1
                path.unlink()
        case.destination.unlink(missing_ok=True)

    def __str__(self) -> str:
        found = ", ".join(f"{count} {what}" for what, count in sorted(self.found.items()))
        return f"{self.cuts} times: {found}; {self.hidden} hidden; {len(self.broken)} broken"


@contextmanager
def _sources(mount_point: Path, kind: Kind) -> Iterator[Path]:
    """Where the sources of a kind are."""
    if kind == "clone":
        with TemporaryDirectory(dir=mount_point, ignore_cleanup_errors=True) as directory:
            yield Path(directory)
    else:
        with scratch_directory() as scratch:
            yield scratch


def after_return(
    fstype: str, way: str, cuts: int, *, sync: bool = True, kind: Kind = "dense"
) -> Tally:
    """Cut the power right after copies have returned, all kinds of them, three to a cut."""
    kinds = list(product(SIZES, MODES, (False, True)))
    random.Random(cuts).shuffle(kinds)
    tally = Tally()
    with disk(fstype, way) as target, _sources(target.mount_point, kind) as sources:
        for number in range(cuts):
            cases = [
                Case.prepare(
                    sources,
                    target.mount_point / f"copy{i}",
                    *kinds[(3 * number + i) % len(kinds)],
                    kind,
                )
                for i in range(3)
            ]
            target.sync()
            for i, case in enumerate(cases, number):
                if kind == "clone":
                    case.forget_on_disk()
                result = copy_file(case.source, case.destination, direct=HOW[i % 2], sync=sync)
                tally.methods[result.method] += 1
            target.cut()
            target.restart()
            tally.cuts += 1
            for case in cases:
                tally.add(case, ["new"])
    return tally


def at_random_moments(fstype: str, way: str, cuts: int, kind: Kind = "dense") -> Tally:
    """Cut the power while the command copies, or soon after it has."""
    rng = random.Random(cuts)
    tally = Tally()
    with disk(fstype, way) as target, _sources(target.mount_point, kind) as sources:
        lasts: dict[int, float] = {}  # how long it is busy, in seconds
        for number in range(cuts):
            size, mode, replaces = rng.choice(SIZES), rng.choice(MODES), bool(number % 2)
            case = Case.prepare(sources, target.mount_point / "copy", size, mode, replaces, kind)
            command: list[str | Path] = [sys.executable, "-m", "aiocp", "--json"]
            command += [case.source, case.destination]
            if size not in lasts:
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                lasts[size] = json.loads(done.stdout.splitlines()[0])["elapsed"]
                case.destination.unlink()
                case = Case.prepare(sources, case.destination, size, mode, replaces, kind)
            target.sync()
            if kind == "clone":
                case.forget_on_disk()
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as copy:
                try:
                    _wait_until_open(copy, case.source)
                    time.sleep(rng.uniform(0, 1.3 * lasts[size]))
                    target.cut()
                    _, error = copy.communicate(timeout=60)
                finally:
                    copy.kill()
            target.restart()
            tally.cuts += 1
            if copy.returncode == 0:
                tally.found["with exit 0"] += 1
                tally.add(case, ["new"])
            else:
                if copy.returncode != 1 or not error.startswith(b"aiocp: cannot copy "):
                    tally.broken.append(f"{case}: exit {copy.returncode}, {error.decode()}")
                tally.add(case, ["new", "old"] if replaces else ["new", "absent"])
    return tally


def _wait_until_open(process: "subprocess.Popen[bytes]", path: Path) -> None:
    """Wait until the process has the file open, or is no more."""
    descriptors = Path("/proc", str(process.pid), "fd")
    while process.poll() is None:
        try:
            if any(os.readlink(descriptor) == str(path) for descriptor in descriptors.iterdir()):
                return
        except OSError:  # closed meanwhile
            pass


# --- kills ---------------------------------------------------------------------------------------


class Phase(IntEnum):
    """How far a copy has come."""

    FORKED = 0
    COPYING = 1
    COMMITTING = 2
    COMMITTED = 3
    DONE = 4


def kills(directory: Path, count: int, rng: random.Random, kind: Kind = "dense") -> Tally:
    """Kill copies to a file in an empty directory, three in four of them over an old one.

    Half of the moments are anywhere in the copy, half while it gives the file its name.
    """
    tally = Tally()
    lasts: dict[tuple[int, bool], list[float]] = {}  # how long each phase is, in seconds
    with _sources(directory.parent, kind) as sources:
        for _ in range(count):
            size, mode, replaces = rng.choice(SIZES[:-1]), rng.choice(MODES), rng.random() < 0.75
            prepare = partial(
                Case.prepare, sources, directory / "copy", size, mode, replaces=replaces, kind=kind
            )
            if (size, replaces) not in lasts:
                lasts[size, replaces] = _phases(prepare())
                (directory / "copy").unlink()
            case, phases = prepare(), lasts[size, replaces]
            if rng.random() < 0.5:
                _kill(case, Phase.COPYING, rng.uniform(0, 1.1 * sum(phases)))
            else:
                committing = phases[Phase.COMMITTING - Phase.COPYING]
                _kill(case, Phase.COMMITTING, rng.uniform(0, 1.1 * committing))
            tally.cuts += 1
            allowed = ["new", "old"] if replaces else ["new", "absent"]
            there = set(os.listdir(directory)) - {"copy"}
            if there:
                tally.broken.append(f"{case}: left behind: {', '.join(there)}")
            tally.add(case, allowed)
    return tally


def _phases(case: Case) -> list[float]:
    """How long a copy is in each of its phases, in seconds: the shortest of three."""
    runs = []
    for _ in range(3):
        with _forked(case) as reached:
            moments = [reached(phase) for phase in list(Phase)[1:]]
        runs.append([end - start for start, end in pairwise(moments)])
    return [min(lengths) for lengths in zip(*runs, strict=True)]


def _kill(case: Case, phase: Phase, delay: float) -> None:
    """Kill a copy `delay` seconds after it has reached a phase."""
    with _forked(case) as reached:
        moment = reached(phase) + delay
        while time.perf_counter() < moment:
            pass  # a sleep would be late


@contextmanager
def _forked(case: Case) -> Iterator[Callable[[Phase], float]]:
    """Copy in a forked process, which is killed in the end; yield what waits for a phase of it.

    Returns when all that it has started is gone as well: all of that has its pipe open.
    """
    reader, writer = os.pipe()
    with mmap.mmap(-1, 1) as shared:
        pid = os.fork()
        if not pid:
            _copy(case, shared)
        os.close(writer)

        def reached(phase: Phase) -> float:
            end = time.perf_counter() + 60
            while shared[0] < phase:
                if time.perf_counter() > end:
                    raise TimeoutError(f"{case}: not {phase.name}")
            return time.perf_counter()

        try:
            yield reached
        finally:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            gone, _, _ = select.select([reader], [], [], 60)
            os.close(reader)
        if not gone or os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise ChildProcessError(f"{case}: the copy failed, or does not end")


def _copy(case: Case, shared: mmap.mmap) -> NoReturn:
    """Copy, note in `shared` how far it is, and wait for the kill."""
    commit = Destination.commit

    def marked(self: Destination, *, flush: bool = True) -> None:
        shared[0] = Phase.COMMITTING
        commit(self, flush=flush)
        shared[0] = Phase.COMMITTED

    try:
        Destination.commit = marked  # type: ignore[method-assign]
        shared[0] = Phase.COPYING
        copy_file(case.source, case.destination)
        shared[0] = Phase.DONE
        while True:
            signal.pause()
    except BaseException:  # noqa: BLE001 - a child must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(70)


Result = tuple[str, object, list[str]]  # of a loop: what it was, what was found, what is broken


def run_loops(
    loops: Callable[[int, int], Iterator[Result]], description: str, *, cuts: int, kills: int
) -> int:
    """Run loops with as many cuts and kills as the command line asks for; 1 if a promise was
    broken."""
    parser = argparse.ArgumentParser(
        prog="scripts/crash", description=description.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--cuts", type=int, default=cuts, help=f"power cuts of each kind ({cuts})")
    parser.add_argument("--kills", type=int, default=kills, help=f"kills on each system ({kills})")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is mounted goes then as well
    broken: list[str] = []
    clean_up()
    try:
        for name, found, flaws in loops(options.cuts, options.kills):
            print(f"{name}: {found}", *flaws, sep="\n  ", flush=True)
            broken += flaws
    finally:
        clean_up(own=True)
    return 1 if broken else 0


def _loops(cuts: int, number: int) -> Iterator[Result]:
    loops: dict[str, Callable[..., Tally]]
    loops = {"after return": after_return, "at random moments": at_random_moments}
    for name, (fstype, way), kind in product(loops, WAYS, KINDS):
        tally = loops[name](fstype, way, cuts, kind=kind)
        yield f"{fstype}, {kind}, {way}, {name}", tally, tally.broken
    for fstype, kind in product(("ext4", "xfs", "btrfs", "tmpfs"), KINDS):
        with mounted(fstype) as mount_point:
            (mount_point / "empty").mkdir()
            tally = kills(mount_point / "empty", number, random.Random(number), kind)
        yield f"{fstype}, {kind}, SIGKILL", tally, tally.broken


if __name__ == "__main__":
    sys.exit(run_loops(_loops, __doc__, cuts=200, kills=1000))
