"""What would become of a source and of what is at its destination: looked at, and not opened.

What may be done is asked of the kernel by access(2), what it would mean is for the same code to say
as when it is done.
"""

import os
import stat
from errno import EACCES, EROFS, EXDEV
from typing import Any

from aiocp import direct
from aiocp.backup import Backups, Replaced
from aiocp.destination import Destination, check_size
from aiocp.errors import fail, operation
from aiocp.link import refuse_relative
from aiocp.linux import File
from aiocp.nodes import refuse
from aiocp.source import Source


class ForeseenSource(Source):
    """A source that is not opened."""

    def __init__(
        self, path: bytes, seen: os.stat_result, *, dir_fd: int | None = None, follow: bool = True
    ) -> None:
        """Raises OSError EACCES."""
        if not os.access(path, os.R_OK, dir_fd=dir_fd, effective_ids=True, follow_symlinks=follow):
            raise fail(EACCES, "open source")
        self.file, self.stat, self._cache = File(), seen, None
        self.size = seen.st_size if stat.S_ISREG(seen.st_mode) else None


class ForeseenDestination(Destination):
    """A destination that is not opened: it tells what would be done, or raises why not.

    `existing` is what an operand before would have left there; `made` tells whether the directory
    is there.
    """

    def __init__(
        self,
        *arguments: Any,
        existing: os.stat_result | None,
        made: bool,
        **more: Any,
    ) -> None:
        self._planned, self._made = existing, made
        super().__init__(*arguments, **more)

    def _stat(self) -> os.stat_result | None:
        if self._planned is not None or not self._made:
            return self._planned
        return super()._stat()

    def _open(self, existing: os.stat_result | None, source: Source) -> None:
        if not self._made:
            return
        directory = self.directory.fileno()
        if existing is None:
            may_write(b".", directory)
        elif existing is not self._planned:
            self._refuse_fifo(existing)
            may_write(self.name, directory)
            if stat.S_ISBLK(existing.st_mode):
                with self._open_device(os.O_RDONLY) as device:
                    check_size(device.fileno(), source)

    def _find_out(self, how: direct.Direct, source: Source, block_size: int) -> None:
        """There is nothing open to find out of."""


def foresee_node(
    source: bytes,
    seen: os.stat_result,
    existing: os.stat_result | None,
    directory: int,
    name: bytes,
    there: os.stat_result,
    *,
    made: bool,
    link: str | None,
    replace: bool,
    backups: Backups | None,
) -> Replaced:
    """What would become of what has the name of a node, or of a link in place of a copy.

    `there` is the stat of the directory or, where that is not `made` yet, of the one above it;
    `link` is "hard", "symbolic", or "name" for one more of a copy.

    Raises OSError as making it would.
    """
    if link == "symbolic":
        refuse_relative(source, there if made else None)
    with operation(_doing(link, seen)):
        if link == "hard" and seen.st_dev != there.st_dev:
            raise OSError(EXDEV, os.strerror(EXDEV))
        if existing is not None:
            refuse(existing, replace=replace or backups is not None)
        if made:
            may_write(b".", directory)
    if existing is None:
        return Replaced()
    return Replaced(
        existed=True, backup=None if backups is None else backups.foresee(directory, name)
    )


def _doing(link: str | None, seen: os.stat_result) -> str:
    if link in ("hard", "name"):
        return "link"
    return "make link" if link or stat.S_ISLNK(seen.st_mode) else "make special file"


def may_write(name: bytes, directory: int) -> None:
    """Raise OSError unless a file may be written, or what is in the directory "." be changed."""
    mode = os.W_OK | os.X_OK if name == b"." else os.W_OK
    if not os.access(name, mode, dir_fd=directory, effective_ids=True):
        read_only = os.fstatvfs(directory).f_flag & os.ST_RDONLY
        errno = EROFS if read_only else EACCES
        raise OSError(errno, os.strerror(errno))
