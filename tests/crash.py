"""Cut the power of a disk again and again while files are copied to it, and look what is there.

tests/test_power_cut.py runs these loops a few times, scripts/crash many. There are two ways to cut:

    shutdown     the file system stops where it is, its log unwritten: FS_IOC_SHUTDOWN. What only
                 its memory had is gone. ext4 and XFS.
    write cache  the device loses all that it was not told to flush. Any file system.
"""

import argparse
import fcntl
import json
import os
import random
import re
import signal
import stat
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

from aiocp import copy_file
from aiocp.direct import Direct
from faulty_fuse import Rule, faulty_device
from filesystems import (
    clean_up,
    loop_device,
    make_filesystem,
    mount,
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

    @classmethod
    def prepare(
        cls, sources: Path, destination: Path, size: int, mode: int, replaces: bool
    ) -> "Case":
        """Make the source, and the old destination."""
        source = sources / f"{size}-{mode:o}"
        if not source.exists():
            source.write_bytes(random.Random(size).randbytes(size))
            source.chmod(mode)
        if replaces:
            destination.write_bytes(b"old" * 1000)
            destination.chmod(mode)
        return cls(size, mode, replaces, source, destination)

    def found(self) -> str:
        """What has become of the destination: "new", "old", "absent" or something worse."""
        try:
            status, now = self.destination.stat(), self.destination.read_bytes()
        except FileNotFoundError:
            return "lost" if self.replaces else "absent"
        if stat.S_IMODE(status.st_mode) != self.mode:
            return f"of mode {status.st_mode:o}"
        if now == self.source.read_bytes():
            return "new"
        return "old" if self.replaces and now == b"old" * 1000 else f"damaged, {len(now)} bytes"

    def __str__(self) -> str:
        return f"{self.size} bytes, mode {self.mode:o}, {'replaced' if self.replaces else 'new'}"


@dataclass
class Tally:
    """What was found after the cuts; `broken` are the promises that were not held."""

    cuts: int = 0
    found: Counter[str] = field(default_factory=Counter)
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
        return f"{self.cuts} cuts: {found}; {self.hidden} hidden; {len(self.broken)} broken"


def after_return(fstype: str, way: str, cuts: int, *, sync: bool = True) -> Tally:
    """Cut the power right after copies have returned, all kinds of them, three to a cut."""
    kinds = list(product(SIZES, MODES, (False, True)))
    random.Random(cuts).shuffle(kinds)
    tally = Tally()
    with disk(fstype, way) as target, scratch_directory() as sources:
        for number in range(cuts):
            cases = [
                Case.prepare(
                    sources, target.mount_point / f"copy{i}", *kinds[(3 * number + i) % len(kinds)]
                )
                for i in range(3)
            ]
            target.sync()
            for i, case in enumerate(cases, number):
                copy_file(case.source, case.destination, direct=HOW[i % 2], sync=sync)
            target.cut()
            target.restart()
            tally.cuts += 1
            for case in cases:
                tally.add(case, ["new"])
    return tally


def at_random_moments(fstype: str, way: str, cuts: int) -> Tally:
    """Cut the power while the command copies, or soon after it has."""
    rng = random.Random(cuts)
    tally = Tally()
    with disk(fstype, way) as target, scratch_directory() as sources:
        lasts: dict[int, float] = {}  # how long it is busy, in seconds
        for number in range(cuts):
            size, mode, replaces = rng.choice(SIZES), rng.choice(MODES), bool(number % 2)
            case = Case.prepare(sources, target.mount_point / "copy", size, mode, replaces)
            command: list[str | Path] = [sys.executable, "-m", "aiocp", "--json"]
            command += [case.source, case.destination]
            if size not in lasts:
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                lasts[size] = json.loads(done.stdout)["elapsed"]
                case.destination.unlink()
                case = Case.prepare(sources, case.destination, size, mode, replaces)
            target.sync()
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


def main() -> int:
    """Run all loops; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="scripts/crash", description=__doc__.split("\n")[0])
    parser.add_argument("--cuts", type=int, default=200, help="power cuts of each kind (200)")
    cuts = parser.parse_args().cuts
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is mounted goes then as well
    broken: list[str] = []
    clean_up()
    try:
        for loop, (fstype, way) in product((after_return, at_random_moments), WAYS):
            tally = loop(fstype, way, cuts)
            name = loop.__name__.replace("_", " ")
            print(f"{fstype}, {way}, {name}: {tally}", *tally.broken, sep="\n  ", flush=True)
            broken += tally.broken
    finally:
        clean_up(own=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
