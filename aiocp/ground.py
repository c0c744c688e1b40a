"""What is measured on: a file of our own in a directory, which is copied, or what is only read."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from errno import EINVAL, EIO, ENOSPC, EOPNOTSUPP
from itertools import islice
from statistics import median
from typing import NamedTuple

from aiocp import direct, engine, extents
from aiocp.context import Context
from aiocp.destination import Destination
from aiocp.errors import Cancel, fail, look, operation
from aiocp.linux import File, allocate, buffers_direct_writes, temporary_name
from aiocp.source import Source
from aiocp.sweep import BLOCK_SIZES, KIB, MIB
from aiocp.transfer import FileTransfer, what_stopped

# A batch, whose submit is timed: its blocks, and their size in bytes
BATCH, BATCH_BLOCK = 64, 256 * KIB

# How large our own file is at most; twice as much is taken of the space that is free
_LARGEST = 256 * MIB
_SHARE_OF_FREE = 8

# How many pieces of a file with holes are read
_PIECES = 10_000


class Submission(NamedTuple):
    """Where the time of a batch went: `seconds` until it was done, of these `in_submit` inside
    io_submit(2), medians of several. A batch is `depth` blocks of `block_size` bytes.

    `asynchronous`: most of it after io_submit had returned, and none by plain system calls.
    """

    asynchronous: bool
    seconds: float
    in_submit: float
    depth: int
    block_size: int


class Ground:
    """`data` are the extents that are read, `size` is their bytes, `reads` is how.

    `cancel` stops what is measured.
    """

    def __init__(self, data: list[engine.Extent], cancel: Cancel | None) -> None:
        self._cancel = cancel
        self._take(data)

    def _take(self, data: list[engine.Extent]) -> None:
        self.size = sum(length for _, length in data)
        self._data = data
        self._regions = self._round_and_round()

    def _round_and_round(self) -> Iterator[engine.Extent]:
        while True:
            yield from engine.blocks(self._data, max(BLOCK_SIZES))

    def transfer(self, block_size: int) -> AbstractContextManager[engine.Transfer]:
        """What the engine is to move, but for its extents."""
        raise NotImplementedError

    def open(self, block_size: int) -> Source:
        """Open what is read."""
        raise NotImplementedError

    def measure(self, depth: int, block_size: int, amount: int, seconds: float) -> float | None:
        """Bytes per second of that many bytes, or of what is done of them after some seconds.

        From where the last measurement ended, so that no cache below has them. None where the
        kernel grants less depth. Raises OSError, Cancelled.
        """
        with self.transfer(block_size) as transfer, Context(depth, block_size) as context:
            if context.depth < depth:
                return None
            transfer.extents = self._blocks(block_size, amount, time.monotonic() + seconds)
            begun = time.monotonic()
            for _ in engine.Engine(context, [transfer]).run():
                look(self._cancel)
            elapsed = time.monotonic() - begun
            if transfer.failed:
                raise what_stopped(transfer)
            return transfer.bytes_read / elapsed

    def _blocks(self, block_size: int, amount: int, end: float) -> Iterator[engine.Extent]:
        done = 0
        for region in self._regions:
            for block in engine.blocks([region], block_size):
                if done >= amount or (done and time.monotonic() > end):
                    return
                yield block
                done += block[1]

    def submit_reads(self, context: Context, seconds: float) -> Submission:
        """Time batches of reads. Raises OSError, Cancelled."""
        with self.open(BATCH_BLOCK) as source:
            return self._submit(context, source, seconds)

    def _submit(self, context: Context, source: Source, seconds: float) -> Submission:
        whole = [
            start
            for start, length in islice(engine.blocks(self._data, BATCH_BLOCK), 64 * BATCH)
            if length == BATCH_BLOCK
        ]
        count = min(BATCH, context.depth, len(whole))
        if not count:
            raise fail(EINVAL, "measure: there is not enough to be read")
        end, timings = time.monotonic() + seconds, []
        for start in range(0, len(whole) - count + 1, count):
            look(self._cancel)
            timings.append(batch(context, source.fd, whole[start : start + count], writes=False))
            if time.monotonic() > end:
                break
        return submission(timings, context, count)


class Existing(Ground):
    """A file or a block device, which is only read."""

    def __init__(self, path: bytes, cancel: Cancel | None = None) -> None:
        """Look at what there is to read. Raises OSError."""
        self._path = path
        with self.open(BATCH_BLOCK) as source:
            size = source.size or 0
            self.alignment = source.alignment
            found = extents.find_data(source.fd, size, direct.FILE_BLOCK)
            super().__init__(list(islice(found, _PIECES)), cancel)

    def open(self, block_size: int) -> Source:
        return Source(self._path, "auto", block_size, alone=False)

    @contextmanager
    def transfer(self, block_size: int) -> Iterator[engine.Transfer]:
        with self.open(block_size) as source:
            if not source.alignment:  # else it would be in memory the second time
                os.posix_fadvise(source.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            yield _Reads(source)


class _Reads(engine.Transfer):
    """What is read, and nothing done with it."""

    looks = True
    sync = engine.Sync.NONE

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.read_fd, self.read_direct = source.fd, bool(source.alignment)
        self.alignment = max(source.alignment, 1)

    def undirect(self, step: engine.Step) -> None:
        super().undirect(step)
        direct.switch_off(self.read_fd)


class Scratch(Ground):
    """A file in a directory, of random bytes, whose copies in the same directory are measured.

    It has no name, or a hidden one that goes with it.
    """

    def __init__(self, directory: File, file: File, name: bytes, cancel: Cancel | None) -> None:
        """Take the file and make room; `name` is its own, empty for an unnamed file.

        Raises OSError: ENOSPC, EDQUOT.
        """
        self._directory, self.file, self._name = directory, file, name
        space = os.fstatvfs(file.fileno())
        free = space.f_bavail * space.f_frsize
        size = min(_LARGEST, free // _SHARE_OF_FREE) // MIB * MIB
        with operation("make room to measure"):
            if not size:
                raise fail(ENOSPC, "make room to measure")
            try:
                allocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno != EOPNOTSUPP:
                    raise
                os.ftruncate(file.fileno(), size)
        super().__init__([(0, size)], cancel)

    def fill(self, context: Context, seconds: float) -> Submission:
        """Write it, batch by batch, which are timed, until it is full or the time is over.

        Raises OSError, Cancelled.
        """
        fd = self.file.fileno()
        count = min(BATCH, context.depth, self.size // BATCH_BLOCK)
        for slot in range(count):  # what nothing can compress or take for a hole
            context.memory(slot, BATCH_BLOCK)[:] = os.urandom(BATCH_BLOCK)
        through_cache = buffers_direct_writes(fd)
        direct.switch_on(fd, "never" if through_cache else "auto", BATCH_BLOCK)
        end, done = time.monotonic() + seconds, 0
        timings: list[_Timing] = []
        while done + count * BATCH_BLOCK <= self.size and (not timings or time.monotonic() < end):
            look(self._cancel)
            offsets = range(done, done + count * BATCH_BLOCK, BATCH_BLOCK)
            timings.append(batch(context, fd, offsets, writes=True))
            done += count * BATCH_BLOCK
        with operation("sync"):
            os.ftruncate(fd, done)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._take([(0, done)])
        return submission(timings, context, count)

    def open(self, block_size: int) -> Source:
        if self._name:
            directory = self._directory.fileno()
            return Source(self._name, "auto", block_size, dir_fd=directory, alone=False)
        return Source(b"/proc/self/fd/%d" % self.file.fileno(), "auto", block_size, alone=False)

    @contextmanager
    def destination(self, source: Source, block_size: int) -> Iterator[Destination]:
        """The beginning of a copy, which never gets a name."""
        name = temporary_name(b"probe")
        with Destination(self._directory, name, source, "auto", block_size) as destination:
            yield destination

    @contextmanager
    def transfer(self, block_size: int) -> Iterator[engine.Transfer]:
        with self.open(block_size) as source, self.destination(source, block_size) as destination:
            transfer = FileTransfer(
                source, destination, sync=True, allow_changed=True, must_be_direct=False
            )
            transfer.lay_out("never")
            yield transfer


class _Timing(NamedTuple):
    seconds: float
    in_submit: float


def batch(context: Context, fd: int, offsets: Sequence[int], *, writes: bool) -> _Timing:
    """Read or write blocks of BATCH_BLOCK, all in one submit; how long that took, and all of it.

    Without O_DIRECT on a file that refuses it only now. Raises OSError.
    """
    timing, errno = _batch(context, fd, offsets, writes)
    if errno == EINVAL:
        direct.switch_off(fd)
        timing, errno = _batch(context, fd, offsets, writes)
    if errno:
        raise fail(errno, "write" if writes else "read")
    return timing


def _batch(context: Context, fd: int, offsets: Sequence[int], writes: bool) -> tuple[_Timing, int]:
    prep = context.prep_write if writes else context.prep_read
    for slot, offset in enumerate(offsets):
        prep(slot, fd, 0, BATCH_BLOCK, offset)
    begun = time.monotonic()
    context.submit()
    submitted = time.monotonic()
    left, errno = len(offsets), 0
    while left:
        for _, res in context.reap():
            left -= 1
            if res != BATCH_BLOCK:
                errno = -res if res < 0 else ENOSPC if writes else EIO
    return _Timing(time.monotonic() - begun, submitted - begun), errno


def submission(timings: list[_Timing], context: Context, depth: int) -> Submission:
    """The medians of several batches."""
    seconds = median(timing.seconds for timing in timings)
    inside = median(timing.in_submit for timing in timings)
    asynchronous = inside < seconds / 2 and not context.plain
    return Submission(asynchronous, seconds, inside, depth, BATCH_BLOCK)
