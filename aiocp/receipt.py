"""The file that --checksum writes: whole, durable and in place at once, or not at all."""

import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from errno import EEXIST, EINVAL
from typing import Self

from aiocp.destination import Destination
from aiocp.errors import fail, operation
from aiocp.existing import same_entry
from aiocp.place import Place
from aiocp.source import Source
from aiocp.transfer import sync_directory

_MODEL = b"/dev/zero"  # a file like this one: with the mode that a shell's > gives to a new file
_BLOCK_SIZE = 4096  # bytes


class Receipt:
    """Lines on their way into a file, which has them from `commit` on. `close` when done."""

    def __init__(self, path: str, others: Iterable[str]) -> None:
        """Open what is to become the file `path`, which must be none of `others`.

        Raises OSError: those of a `Destination`; EEXIST for one of the others, EINVAL for what can
        only be written in place.
        """
        self.path, self.lines = path, 0
        self._error: OSError | None = None
        if any(_is_one(os.fsencode(path), os.fsencode(other)) for other in others):
            raise OSError(EEXIST, "it is what is copied, or the copy")
        with ExitStack() as stack:
            self._source = stack.enter_context(Source(_MODEL, "never", _BLOCK_SIZE))
            self._place = stack.enter_context(Place(os.fsencode(path)))
            self._destination = stack.enter_context(
                Destination(
                    self._place.directory,
                    self._place.name,
                    self._source,
                    "never",
                    _BLOCK_SIZE,
                    follow=self._place.follow,
                    wait=False,
                )
            )
            if self._destination.in_place:
                raise OSError(EINVAL, "it cannot be replaced as a whole")
            self._there = self._look()
            self._file = open(self._destination.fd, "wb", closefd=False)  # noqa: SIM115 - see close
            self._open = stack.pop_all()

    def add(self, line: bytes) -> None:
        """Add a line; what goes wrong is raised by `commit`."""
        if self._error is None:
            try:
                self._file.write(line)
            except OSError as error:
                self._error = fail(error.errno or EINVAL, "write")
        self.lines += 1

    def commit(self, *, sync: bool) -> None:
        """Put the file in place, and on the disk. Raises OSError: EEXIST where a copy has got its
        name by now."""
        if self._error is not None:
            raise self._error
        destination, place = self._destination, self._place
        with operation("write"):
            self._file.flush()
            length = self._file.tell()
        destination.finish(length, self._source)
        if sync:
            with operation("sync"):
                os.fsync(destination.fd)
        if self._look() != self._there:
            raise OSError(EEXIST, "something else has its name by now")
        destination.commit()
        try:
            if sync:
                sync_directory(place.directory, place.readable, destination.fd)
            destination.close()
        except OSError as error:
            error.strerror = f"written, but {error.strerror}"
            raise

    def _look(self) -> tuple[int, int] | None:
        """What has the file's name: device and inode, of a file that the destination keeps open."""
        try:
            with operation("look at its name"):
                found = os.lstat(self._place.name, dir_fd=self._place.directory.fileno())
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def close(self) -> None:
        """Let go; what was not committed is gone, and what is said of it then is no matter."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_one(one: bytes, other: bytes) -> bool:
    """Whether two paths lead to one file, or to one name that nothing has yet."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return same_entry((one, None), (other, None))
