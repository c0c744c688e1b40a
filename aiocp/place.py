"""Where a copy goes: an open directory and a name in it, links at the destination followed."""

import os
from contextlib import suppress
from errno import ENOENT, ENOTDIR
from typing import Self

from aiocp.errors import fail, operation
from aiocp.linux import File


class Place:
    """Where a copy goes: an open directory and a name in it.

    `readable` tells whether the directory can be synced: one that we may not read cannot. `follow`
    is for a link that only the kernel can follow: /dev/stdout, when that is a pipe.
    """

    def __init__(self, path: bytes, *, follow: bool = True) -> None:
        """Resolve `path` through a symbolic link at its end, if `follow`, and open its directory.

        Raises OSError: those of open(2); ENOENT for a dangling link, as cp refuses it.
        """
        with operation("open destination"):
            if path.endswith(b"/"):
                raise fail(ENOTDIR, "open destination")
            resolved, self.follow = _resolve(path) if follow else (path, False)
            head, self.name = os.path.split(resolved)
            try:
                self.directory = File.open(head or b".", os.O_RDONLY | os.O_DIRECTORY)
                self.readable = True
            except PermissionError:
                self.directory = File.open(head or b".", os.O_PATH | os.O_DIRECTORY)
                self.readable = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what was done in it is synced or has failed
            self.directory.close()


def _resolve(path: bytes) -> tuple[bytes, bool]:
    """The path behind a symbolic link, and whether it is one that only the kernel can follow.

    A dangling one is refused as cp refuses it.
    """
    if not os.path.islink(path):
        return path, False
    if not os.path.exists(path):
        raise fail(ENOENT, "not writing through dangling symbolic link")
    real = os.path.realpath(path)
    return (real, False) if os.path.exists(real) else (path, True)
