"""What copies can expect of a directory, a device or a file, and the depth and block size to take.

A directory is written to: a file without a name, and copies of it. A block device or a file is only
read.
"""

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EINVAL
from typing import Any, Literal, NamedTuple

from aiocp.context import Context
from aiocp.errors import Cancel, fail, operation
from aiocp.ground import BATCH_BLOCK, Existing, Ground, Scratch, Submission
from aiocp.host import Host, host, huge_bytes
from aiocp.linux import File, clone, temporary_name
from aiocp.mount import device_of, mount_from, mount_of
from aiocp.place import open_directory
from aiocp.sweep import DEPTHS, MOST_MEMORY, Point, Recommendation, recommend, sweep

SECONDS = 5.0

# how much of the time may go to writing the file, and to the batches of reads
_FILL, _READ = 0.2, 0.1

_PAGE = 4096


class Answer(NamedTuple):
    """Yes, or no and why."""

    yes: bool
    why: str = ""


_YES = Answer(yes=True)


def _no(why: str) -> Answer:
    return Answer(yes=False, why=why)


class Probe(NamedTuple):
    """What was found. None is what was not, or has no meaning there; sizes are in bytes.

    `filesystem`, `source` and `mount_point` are those of the file, or of what is on the device,
    which is None if it is not mounted. `size` is that of a file or device, `free` what there is in
    a directory. `alignment` is what direct I/O asks for, 0 for none; `direct_write` is "no" on
    Btrfs, where that goes through the page cache all the same. `reads` and `writes` are the time of
    a batch inside io_submit(2) and all of it. `buffers` is memory that was taken for blocks, of
    which `huge` came in huge pages. `error` says why the rest is missing, if it is.
    """

    path: str
    kind: Literal["directory", "device", "file"]
    size: int | None
    free: int | None
    filesystem: str | None
    source: str | None
    mount_point: str | None
    host: Host
    direct_read: Answer | None = None
    direct_write: Answer | None = None
    alignment: int | None = None
    o_tmpfile: Answer | None = None
    reflink: Answer | None = None
    aio: Answer | None = None
    reads: Submission | None = None
    writes: Submission | None = None
    buffers: int | None = None
    huge: int | None = None
    sweep: tuple[Point, ...] = ()
    recommended: Recommendation | None = None
    error: str | None = None


def probe(
    path: str | bytes | os.PathLike[Any],
    *,
    seconds: float = SECONDS,
    cancel: Cancel | None = None,
) -> Probe:
    """Look at a directory, block device or regular file, measure, and recommend.

    Args:
        path: followed if it is a symbolic link. In a directory up to 512 MiB, at most a quarter of
            what is free, are taken meanwhile, and nothing is left behind; all else is only read.
        seconds: how long to measure, about.
        cancel: stops it, as of `copy_file`.

    What can be told without measuring is told also where that fails: `error` says why it did.

    Raises OSError, the operation in its text, where nothing can be told; `Cancelled`.
    """
    name = os.fsencode(path)
    with operation("open"):
        seen = os.stat(name)
        kind = _kind(seen.st_mode)
        file = open_directory(name)[0] if kind == "directory" else File.open(name, os.O_RDONLY)
    with file:
        found = _seen(file, os.fsdecode(path), kind, seen)
        measuring = _Measuring(seconds, found.host, cancel)
        try:
            if kind == "directory":
                measuring.directory(file)
            else:
                measuring.existing(name)
        except OSError as error:
            measuring.facts["error"] = error.strerror
    return found._replace(**measuring.facts)


def _kind(mode: int) -> Literal["directory", "device", "file"]:
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISBLK(mode):
        return "device"
    if stat.S_ISREG(mode):
        return "file"
    raise fail(EINVAL, "neither a directory, a block device nor a regular file")


def _seen(
    file: File, path: str, kind: Literal["directory", "device", "file"], seen: os.stat_result
) -> Probe:
    """What there is to be seen without writing or reading."""
    fd = file.fileno()
    size = free = None
    if kind == "directory":
        space = os.fstatvfs(fd)
        free = space.f_bavail * space.f_frsize
    else:
        size = os.lseek(fd, 0, os.SEEK_END)
    mount = mount_from(seen.st_rdev) if kind == "device" else mount_of(fd)
    device = seen.st_rdev if kind == "device" else device_of(mount) if mount else 0
    return Probe(
        path=path,
        kind=kind,
        size=size,
        free=free,
        filesystem=mount and mount.type,
        source=mount and mount.source,
        mount_point=mount and mount.point,
        host=host(device),
    )


class _Measuring:
    """Collects in `facts` what is found out, as fields of `Probe`."""

    def __init__(self, seconds: float, host: Host, cancel: Cancel | None) -> None:
        self.facts: dict[str, Any] = {}
        self._seconds, self._cancel = seconds, cancel
        self._end = time.monotonic() + seconds
        # what a small container would be killed for is not tried
        self._memory = min(MOST_MEMORY, (host.memory_max or sys.maxsize) // 4)

    def existing(self, name: bytes) -> None:
        """Measure the reading of a file or a block device. Raises OSError, Cancelled."""
        ground = Existing(name, self._cancel)
        with self._buffers() as context:
            self.facts["direct_read"] = _direct(ground.alignment)
            self.facts["alignment"] = ground.alignment
            self.facts["reads"] = ground.submit_reads(context, _READ * self._seconds)
        self._sweep(ground)

    def directory(self, directory: File) -> None:
        """Measure copies in a directory. Raises OSError, Cancelled."""
        facts = self.facts
        file, name = self._create(directory)
        with file:
            ground = Scratch(directory, file, name, self._cancel)
            with self._buffers() as context:
                facts["writes"] = ground.fill(context, _FILL * self._seconds)
                with (
                    ground.open(BATCH_BLOCK) as source,
                    ground.destination(source, BATCH_BLOCK) as copy,
                ):
                    facts["direct_read"] = _direct(source.alignment)
                    facts["direct_write"] = _direct(copy.alignment, copy.through_cache)
                    facts["alignment"] = max(source.alignment, copy.alignment)
                    facts["reflink"] = _clones(copy.fd, source.fd)
                facts["reads"] = ground.submit_reads(context, _READ * self._seconds)
            self._sweep(ground)

    def _create(self, directory: File) -> tuple[File, bytes]:
        """A file of our own, and its name: empty where it needs none, else removed with it."""
        fd = directory.fileno()
        with operation("create a file"):
            try:
                file = File.open(b".", os.O_TMPFILE | os.O_RDWR, dir_fd=fd)
            except OSError as error:
                self.facts["o_tmpfile"] = _no(os.strerror(error.errno or EINVAL))
            else:
                if os.path.exists(f"/proc/self/fd/{file.fileno()}"):
                    self.facts["o_tmpfile"] = _YES
                    return file, b""
                self.facts["o_tmpfile"] = _no("there is no /proc to name the file by")
            name = temporary_name(b"probe")
            return File.create_named(name, os.O_RDWR, dir_fd=fd), name

    @contextmanager
    def _buffers(self) -> Iterator[Context]:
        """A context with all the memory of the sweep, so that no point waits for its own."""
        depth = max(1, min(max(DEPTHS), self._memory // BATCH_BLOCK))
        with Context(depth, BATCH_BLOCK) as context:
            for slot in range(context.depth):
                context.memory(slot, BATCH_BLOCK)[::_PAGE] = bytes(BATCH_BLOCK // _PAGE)
            self.facts["buffers"] = context.depth * BATCH_BLOCK
            self.facts["huge"] = min(self.facts["buffers"], huge_bytes())
            yield context
            self.facts["aio"] = Answer(not context.plain, "; ".join(context.notes()))

    def _sweep(self, ground: Ground) -> None:
        left = self._end - time.monotonic()
        points = sweep(ground.measure, ground.size, left, memory=self._memory)
        self.facts["sweep"] = tuple(points)
        self.facts["recommended"] = recommend(points)


def _direct(alignment: int, through_cache: bool = False) -> Answer:
    if through_cache:
        return _no("they go through the page cache, for the checksums")
    return _YES if alignment else _no("the file system takes none")


def _clones(fd: int, source_fd: int) -> Answer:
    try:
        clone(fd, source_fd)
    except OSError as error:
        return _no(os.strerror(error.errno or EINVAL))
    return _YES
