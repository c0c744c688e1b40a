"""Copy what has no offsets, pipes and character devices, from its beginning to its end.

Plain reads and writes, one at a time. A pipe can wait for its other end for ever, so every wait is
one that `cancel` ends.
"""

import os
import select
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from errno import ENXIO

from aiocp.errors import Cancel, look, operation
from aiocp.linux import File

_LOOK_EVERY = 50  # milliseconds between two looks at `cancel`


def copy(read_fd: int, write_fd: int, block: memoryview, cancel: Cancel | None) -> Iterator[int]:
    """Copy to the end of `read_fd` through `block`; yield the bytes done so far after each block.

    Raises OSError, the operation and the offset in its text, and Cancelled.
    """
    done = 0
    while True:
        with operation(f"read at offset {done}"):
            _wait(read_fd, select.POLLIN, cancel)
            count = os.readv(read_fd, [block])
        if not count:
            return
        written = 0
        while written < count:
            with operation(f"write at offset {done + written}"), suppress(BlockingIOError):
                _wait(write_fd, select.POLLOUT, cancel)
                written += os.write(write_fd, block[written:count])
        done += count
        yield done


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
