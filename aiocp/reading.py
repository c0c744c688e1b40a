"""Blocks that are read to be looked at, and not to be copied."""

import os
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from aiocp import direct, engine, extents
from aiocp.linux import File


class Observer(Protocol):
    """What takes note of the bytes that are read: blocks by their offsets, or a stream."""

    def add(self, offset: int, block: memoryview) -> None: ...
    def feed(self, data: memoryview) -> None: ...
    def end(self, size: int) -> None: ...


class Reads(engine.Transfer):
    """Blocks that are read to be looked at."""

    looks = True
    sync = engine.Sync.NONE

    def undirect(self, step: engine.Step) -> None:
        super().undirect(step)
        direct.switch_off(self.read_fd)


class Reading(Reads):
    """Blocks of a copy that were not read to be copied. `close` when it has ended."""

    def __init__(
        self, fd: int, alignment: int, size: int, observers: Iterable[Observer], file: File | None
    ) -> None:
        """Read the first `size` bytes, for `observers` to see them in order; `file` is closed with
        it."""
        super().__init__()
        self.read_fd, self.read_direct, self.alignment = fd, bool(alignment), max(alignment, 1)
        self.size, self.turns = size, deque()
        self.extents = extents.find_data(fd, size, self.alignment)
        self._observers, self._file = tuple(observers), file

    def saw(self, offset: int, block: memoryview) -> None:
        for observer in self._observers:
            observer.add(offset, block)

    def written(self) -> None:
        for observer in self._observers:
            observer.end(self.size)

    def close(self) -> None:
        if self._file is not None:
            self._file.let_go()


def reopen(fd: int, block_size: int) -> tuple[File, int]:
    """Open a copy again, to be read, past the page cache where possible; and the alignment of
    direct reads, 0 for buffered ones. Raises OSError.
    """
    file = File.open(b"/proc/self/fd/%d" % fd, os.O_RDONLY)
    try:
        alignment = direct.switch_on(file.fileno(), "auto", block_size)
        if not alignment:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except BaseException:
        file.let_go()
        raise
    return file, alignment
