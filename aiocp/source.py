"""An open source: what kind it is, its size, and whether it changed while it was copied."""

import os
import stat
from contextlib import suppress
from errno import EISDIR, ELOOP, ESTALE
from typing import Self

from aiocp import direct
from aiocp.errors import SourceChanged, fail, operation
from aiocp.linux import File
from aiocp.page_cache import PageCache

# A file of at most so many bytes has nothing to have in flight: what is written of it goes through
# the page cache, which is one wait for the disk less.
SMALL = 256 << 10


class Source:
    """A source opened for reading.

    `size` in bytes is what it was when opened, None where only reading to the end tells it: pipes,
    character devices, and the files of /proc and /sys that say 0 and are not empty; `small` that it
    is that of a file, known, and not more than SMALL. `alignment` is 0 for buffered reads.
    """

    def __init__(
        self,
        path: bytes,
        how: direct.Direct,
        block_size: int,
        *,
        dir_fd: int | None = None,
        seen: os.stat_result | None = None,
        follow: bool = True,
        alone: bool = True,
    ) -> None:
        """Open `path`, below `dir_fd` if given; `seen` is what a look at it has said. A small file
        that is copied `alone`, with no others in flight, is not read directly with "auto".

        Raises OSError, the operation in its text: those of stat(2) and open(2), EISDIR for a
        directory, EINVAL where direct I/O is a must and not to be had, and `SourceChanged` where
        another file took the name between the look and the open.
        """
        self._cache: PageCache | None = None
        with operation("open source"):
            if seen is None:
                seen = os.stat(path, dir_fd=dir_fd, follow_symlinks=follow)
            if stat.S_ISDIR(seen.st_mode):
                raise fail(EISDIR, "open source")
            self.file = _open(path, seen, dir_fd, follow)
            try:
                self.stat = os.fstat(self.fd)
                if not os.path.samestat(seen, self.stat):
                    raise SourceChanged(ESTALE, "source was replaced while being opened")
                self.size = self._size()
                regular = stat.S_ISREG(self.stat.st_mode)
                self.small = regular and self.size is not None and self.size <= SMALL
                self.alignment = 0
                if not (alone and self.small and how == "auto"):
                    alignment = direct.switch_on(self.fd, how, block_size)
                    if self.size is not None:
                        self.alignment = alignment
            except BaseException:
                self.close()
                raise

    @property
    def fd(self) -> int:
        return self.file.fileno()

    def _size(self) -> int | None:
        if stat.S_ISBLK(self.stat.st_mode):
            return os.lseek(self.fd, 0, os.SEEK_END)
        return self.stat.st_size or None if stat.S_ISREG(self.stat.st_mode) else None

    @property
    def tells_changes(self) -> bool:
        """Whether its times and size tell if it has changed: those of a file do."""
        return stat.S_ISREG(self.stat.st_mode) and self.size is not None

    def open_cache(self) -> int:
        """A descriptor for what of the source is in memory, closed with it; -1 for nothing."""
        self._cache = PageCache.of(self.fd, self.size or 0)
        return -1 if self._cache is None else self._cache.fd

    def is_cached(self, offset: int, length: int) -> bool:
        """Whether a range is to be read from memory."""
        return self._cache is not None and self._cache.has(offset, length)

    def check(self, allow_changed: bool) -> None:
        """Raise `SourceChanged` unless size, mtime and ctime are those of the open.

        With `allow_changed` only if it is smaller.
        """
        try:
            now, then = os.fstat(self.file.fileno()), self.stat
        except OSError as error:
            raise fail(error.errno or ESTALE, "look at source") from error
        if not self.tells_changes:
            return
        if now.st_size < then.st_size:
            raise shrank()
        if not allow_changed and (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (
            then.st_size,
            then.st_mtime_ns,
            then.st_ctime_ns,
        ):
            raise SourceChanged(ESTALE, "source changed while being copied")

    def close(self) -> None:
        """Close; idempotent."""
        if self._cache is not None:
            self._cache.close()
        try:
            self.file.close()
        except OSError as error:
            raise fail(error.errno or ESTALE, "close source") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(OSError):  # the first error is the one to report
                self.close()


def shrank() -> SourceChanged:
    """The error for a source that ended before the size it had when opened."""
    return SourceChanged(ESTALE, "source shrank while being copied")


def _open(path: bytes, seen: os.stat_result, dir_fd: int | None, follow: bool) -> File:
    """Open what was seen; a link or a FIFO that takes the name meanwhile is not followed into."""
    if not stat.S_ISREG(seen.st_mode):  # a FIFO without a writer is waited for when it is read
        return File.open(path, os.O_RDONLY | os.O_NONBLOCK, dir_fd=dir_fd)
    flags = os.O_RDONLY | os.O_NONBLOCK
    try:
        return File.open(path, flags | os.O_NOFOLLOW, dir_fd=dir_fd)
    except OSError as error:
        if error.errno != ELOOP or not follow:
            raise
    if dir_fd is not None:
        return File.open(path, flags, dir_fd=dir_fd)
    try:
        return File.open(os.path.realpath(path), flags | os.O_NOFOLLOW)
    except FileNotFoundError:  # /proc/self/fd/N of a deleted file has no path to resolve to
        return File.open(path, flags)
