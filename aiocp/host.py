"""What the machine and the container allow: sysctls, huge pages, limits of cgroups."""

import os
import re
from collections.abc import Iterator
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from typing import NamedTuple

from aiocp.mount import mounts

_UNLIMITED = 1 << 62  # version 1 says so with a number near 2**63

# a cgroup's limits of a device: those of version 1 by the names of version 2
_THROTTLE = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}


class Host(NamedTuple):
    """What limits AIO and its buffers here; None for what the kernel does not tell.

    `aio_max_nr` is how many operations all contexts together may have, `aio_nr` how many they have.
    `huge_pages` is the setting of transparent huge pages: always, madvise or never. `open_files` is
    RLIMIT_NOFILE, None for no limit. Of the cgroups that this process is in come `memory_max`,
    bytes, None for no limit, and `io_max`, for one device: rbps and wbps, bytes per second, riops
    and wiops, operations per second. `seccomp` tells whether system calls are filtered.
    """

    aio_max_nr: int | None
    aio_nr: int | None
    huge_pages: str | None
    open_files: int | None
    memory_max: int | None
    io_max: dict[str, int]
    seccomp: bool


def host(device: int) -> Host:
    """Look at everything; `device` is the st_rdev of the disk that matters, 0 for none."""
    limit, _ = getrlimit(RLIMIT_NOFILE)
    setting = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled"))
    return Host(
        aio_max_nr=_number("/proc/sys/fs/aio-max-nr"),
        aio_nr=_number("/proc/sys/fs/aio-nr"),
        huge_pages=setting[1] if setting else None,
        open_files=None if limit == RLIM_INFINITY else limit,
        memory_max=memory_max(),
        io_max=io_max(device) if device else {},
        seccomp=bool(re.search(r"^Seccomp:\s*2$", _read("/proc/self/status"), re.MULTILINE)),
    )


def memory_max() -> int | None:
    """The least of what our cgroup and those above it may have in memory, in bytes."""
    files = ("memory.max", "memory.limit_in_bytes")
    texts = (_read(f"{where}/{file}") for where in _cgroups("memory") for file in files)
    found = [int(text) for text in texts if text.strip().isdecimal()]
    return min((limit for limit in found if limit < _UNLIMITED), default=None)


def io_max(device: int) -> dict[str, int]:
    """The least of what our cgroup and those above it may do on a block device."""
    disks = _disks(device)
    found: dict[str, int] = {}
    for where in _cgroups("blkio"):
        for name, limit in _io_limits(where, disks):
            found[name] = min(limit, found.get(name, limit))
    return found


def huge_bytes() -> int:
    """How many bytes of this process are in transparent huge pages."""
    found = re.search(
        r"^AnonHugePages:\s*(\d+) kB$", _read("/proc/self/smaps_rollup"), re.MULTILINE
    )
    return int(found[1]) << 10 if found else 0


def _io_limits(cgroup: str, disks: set[str]) -> Iterator[tuple[str, int]]:
    for line in _read(f"{cgroup}/io.max").splitlines():
        device, *limits = line.split()
        if device in disks:
            for name, _, value in (limit.partition("=") for limit in limits):
                if value != "max":
                    yield name, int(value)
    for name, file in _THROTTLE.items():
        for line in _read(f"{cgroup}/{file}").splitlines():
            device, value = line.split()
            if device in disks:
                yield name, int(value)


def _disks(device: int) -> set[str]:
    """A device, and the disk that it is a partition of: limits are set for that."""
    name = f"{os.major(device)}:{os.minor(device)}"
    at = f"/sys/dev/block/{name}"
    whole = _read(f"{at}/../dev").strip() if os.path.exists(f"{at}/partition") else ""
    return {name, whole} - {""}


def _cgroups(controller: str) -> Iterator[str]:
    """The directories of our cgroup and of those above it, of both versions."""
    mounted = [mount for mount in mounts() if mount.type in ("cgroup", "cgroup2")]
    for line in _read("/proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        for mount in mounted:
            if mount.type == "cgroup2":
                ours = number == "0"
            else:
                ours = controller in controllers.split(",") and controller in mount.options
            if ours:
                yield from _up(mount.point, os.path.relpath(path, mount.root))


def _up(top: str, path: str) -> Iterator[str]:
    """A directory below `top` and those above it, `top` the last."""
    while path not in ("", ".") and not path.startswith(".."):
        yield f"{top}/{path}"
        path = os.path.dirname(path)
    yield top


def _number(path: str) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read(path: str) -> str:
    """What a file of /proc or /sys says, nothing where it is not there or not for us."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
