"""Where a copy goes: an open directory and a name in it, links at the destination followed.

A link that is named for a destination is followed wherever it leads, as by cp. One that is found
inside a tree is followed only if nobody else can have put it there: he would choose what is
overwritten, with our rights.
"""

import os
import stat
from errno import EISDIR, ELOOP, ENOENT, ENOTDIR, EPERM
from typing import Self

from aiocp.errors import fail, operation
from aiocp.linux import File

_MOST_LINKS = 40  # as many as the kernel follows


class Place:
    """Where a copy goes: an open directory and a name in it.

    `readable` tells whether the directory can be synced: one that we may not read cannot. `follow`
    is for a link that only the kernel can follow: /dev/stdout, when that is a pipe. `free` tells
    that nothing had the name when a link was looked for.
    """

    free = False

    def __init__(self, path: bytes, *, follow: bool = True) -> None:
        """Resolve `path` through a symbolic link at its end, if `follow`, and open its directory.

        Raises OSError: those of open(2); ENOENT for a dangling link, as cp refuses it.
        """
        with operation("open destination"):
            if path.endswith(b"/"):
                raise fail(ENOTDIR, "open destination")
            resolved, self.follow = path, False
            if follow:
                kind = _kind(path)
                self.free = kind == 0
                if stat.S_ISLNK(kind):
                    resolved, self.follow = _resolve(path)
            head, self.name = os.path.split(resolved)
            self.directory, self.readable = open_directory(head)

    @classmethod
    def behind(cls, directory: File, name: bytes) -> "Place | None":
        """Where a symbolic link leads that is at a destination inside a tree; None if it is none.

        Its owner must be us or root: whoever else may write to a destination could have put it
        there, to choose what is overwritten.

        Raises OSError: EPERM for a link that somebody else may have put there, ENOENT for a
        dangling one, EISDIR where it leads to a directory.
        """
        self = cls.__new__(cls)
        self.follow, self.name = False, name
        self.directory, self.readable = directory, True
        try:
            with operation("open destination"):
                return self if self._follow() else None
        except OSError as error:
            if self.directory is not directory:  # which the error would keep open
                self.directory.close()
            if isinstance(error, FileNotFoundError):
                raise _dangling() from None
            raise

    def _follow(self) -> bool:
        """Go where the link leads that has the name; whether one has."""
        for followed in range(_MOST_LINKS):
            text = _trusted_link(self.directory, self.name)
            if text is None:
                return followed > 0
            head, self.name = os.path.split(text)
            self.name = self.name or b"."
            self.directory, self.readable = open_directory(head, self.directory.fileno())
        raise fail(ELOOP, "open destination")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.directory.let_go()  # what was done in it is synced or has failed


def _kind(path: bytes) -> int:
    """The st_mode of what has a name, 0 if nothing has it."""
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0


def _resolve(path: bytes) -> tuple[bytes, bool]:
    """The path behind a symbolic link, and whether it is one that only the kernel can follow.

    A dangling one is refused as cp refuses it.
    """
    if not os.path.exists(path):
        raise _dangling()
    real = os.path.realpath(path)
    return (real, False) if os.path.exists(real) else (path, True)


def _trusted_link(directory: File, name: bytes) -> bytes | None:
    """What a symbolic link says, None for anything else: looked at, judged and read as one file."""
    with File.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory.fileno()) as file:
        found = os.fstat(file.fileno())
        if stat.S_ISDIR(found.st_mode):
            raise fail(EISDIR, "cannot overwrite a directory with what is none")
        if not stat.S_ISLNK(found.st_mode):
            return None
        if found.st_uid not in (0, os.geteuid()):
            raise fail(EPERM, "will not write through another user's symbolic link")
        return os.readlink(b"", dir_fd=file.fileno())


def open_directory(path: bytes, dir_fd: int | None = None) -> tuple[File, bool]:
    """Open a directory; whether it can be read."""
    try:
        return File.open(path or b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd), True
    except PermissionError:
        return File.open(path or b".", os.O_PATH | os.O_DIRECTORY, dir_fd=dir_fd), False


def _dangling() -> OSError:
    return fail(ENOENT, "not writing through dangling symbolic link")
