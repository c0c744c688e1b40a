"""Copy what has no offsets, pipes and character devices, from its beginning to its end.

Plain reads and writes, one at a time. A pipe can wait for its other end for ever, so every wait is
one that `cancel` ends.
"""

import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import ENXIO

from aiocp.errors import Cancel, look, operation
from aiocp.linux import File

_LOOK_EVERY = 50  # milliseconds between two looks at `cancel`


# where in the block the next stretch to write is, between two of its bytes: from, to
Data = Callable[[int, int], tuple[int, int]]


def copy(
    read_fd: int,
    write_fd: int,
    block: memoryview,
    cancel: Cancel | None,
    data: Data | None = None,
    saw: Callable[[memoryview], object] | None = None,
) -> Iterator[int]:
    """Copy to the end of `read_fd` through `block`; yield the bytes done so far after each block.

    With `data` only what it gives of each block is written, to a file; the rest is to be a hole.
    `saw` is shown what was read.

    Raises OSError, the operation and the offset in its text, and Cancelled.
    """
    done = 0
    while count := _read(read_fd, block, cancel, done, whole=data is not None):
        if saw is not None:
            saw(block[:count])
        if data is not None:
            with operation("truncate"):  # XFS allocates ahead of writes that extend a file
                os.ftruncate(write_fd, done + count)
        stop = 0
        while stop < count:
            written, stop = data(stop, count) if data else (0, count)
            while written < stop:
                at, rest = done + written, block[written:stop]
                with operation(f"write at offset {at}"), suppress(BlockingIOError):
                    _wait(write_fd, select.POLLOUT, cancel)
                    written += os.pwrite(write_fd, rest, at) if data else os.write(write_fd, rest)
        done += count
        yield done


def _read(fd: int, block: memoryview, cancel: Cancel | None, done: int, *, whole: bool) -> int:
    """Read what there is, or with `whole` a whole block unless the end comes first."""
    count = 0
    while True:
        with operation(f"read at offset {done + count}"):
            _wait(fd, select.POLLIN, cancel)
            got = os.readv(fd, [block[count:]])
        count += got
        if not (got and whole and count < len(block)):
            return count


def open_writer(name: bytes, flags: int, dir_fd: int, cancel: Cancel | None) -> File:
    """Open a FIFO for writing, when it has a reader."""
    while True:
        try:
            return File.open(name, flags | os.O_NONBLOCK, dir_fd=dir_fd)
        except OSError as error:
            if error.errno != ENXIO:
                raise
        look(cancel)
        time.sleep(_LOOK_EVERY / 1000)  # no event tells of a reader


def _wait(fd: int, event: int, cancel: Cancel | None) -> None:
    """Wait until a pipe or a device is ready; a regular file always is."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        look(cancel)
        return
    poll = select.poll()
    poll.register(fd, event)
    look(cancel)
    while not poll.poll(None if cancel is None else _LOOK_EVERY):
        look(cancel)
