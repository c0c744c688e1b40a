"""What is mounted where, by /proc/self/mountinfo: see proc_pid_mountinfo(5)."""

import os
import re
import stat
from typing import NamedTuple


class Mount(NamedTuple):
    """A line of mountinfo: `device` is "MAJOR:MINOR", `root` what of the file system is seen."""

    number: int
    device: str
    root: str
    point: str
    type: str
    source: str
    options: list[str]  # of the file system, not of the mount


def mounts() -> list[Mount]:
    """All mounts that this process sees; none where there is no /proc."""
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape") as file:
            return [_parsed(line) for line in file]
    except FileNotFoundError:
        return []


def mount_of(fd: int) -> Mount | None:
    """The mount that an open file is on.

    By its number, as the device of a file on Btrfs is that of its subvolume and in no list.
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            found = re.search(r"^mnt_id:\s*(\d+)$", file.read(), re.MULTILINE)
    except FileNotFoundError:
        return None
    number = int(found[1]) if found else None
    return next((mount for mount in mounts() if mount.number == number), None)


def mount_from(rdev: int) -> Mount | None:
    """The first mount of what is on a block device."""
    return next((mount for mount in mounts() if device_of(mount) == rdev), None)


def device_of(mount: Mount) -> int:
    """The block device below a mount, 0 where there is none. Btrfs has a number of its own."""
    try:
        status = os.stat(mount.source)
    except OSError:  # no path: "tmpfs", "server:/directory"
        return 0
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else 0


def _parsed(line: str) -> Mount:
    first, _, last = line.rstrip("\n").partition(" - ")
    number, _, device, root, point = map(_plain, first.split(" ")[:5])
    kind, source, options = map(_plain, last.split(" ", 2))
    return Mount(int(number), device, root, point, kind, source, options.split(","))


def _plain(word: str) -> str:
    r"""A word without its escapes: a space is \040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)
