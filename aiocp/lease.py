"""The file that stands for a copy by many: it is at the destination as long as the copy goes on.

create   by the coordinator, which has it locked
look     by the workers, which stop when it is gone
clear    by the next coordinator on the same machine, if this one was killed
"""

import fcntl
import os
import re
from contextlib import suppress
from errno import ENOENT, ESTALE
from time import monotonic

from aiocp.errors import operation
from aiocp.linux import File
from aiocp.share import kernel

_LOOK_EVERY = 0.5  # seconds
_NAME = re.compile(r"\.aiocp-([0-9a-f]{16})")


class Lease:
    """What stops a part: a file that is no longer there."""

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._gone, self._next = False, 0.0

    def is_set(self) -> bool:
        """Whether it is gone, looked at now and then."""
        now = monotonic()
        if not self._gone and now >= self._next:
            self._next = now + _LOOK_EVERY
            try:  # opened, because network file systems may answer a stat from memory
                File.open(self._path, os.O_RDONLY).let_go()
            except OSError as error:
                self._gone = error.errno in (ENOENT, ESTALE)
        return self._gone


def create(directory_fd: int) -> tuple[File, bytes, bytes]:
    """Make one in a directory; it goes when it is closed. The file, its name, the token that it
    begins with. Raises OSError."""
    with suppress(OSError):  # it may be one that cannot be listed
        _clear(directory_fd)
    token = os.urandom(8).hex().encode()
    name = b".aiocp-" + token
    with operation("create lease"):
        file = File.create_named(name, os.O_RDWR, dir_fd=directory_fd)
        try:
            with suppress(OSError):  # where nothing is locked nothing is cleared either
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(file.fileno(), token + kernel())  # not to be taken for one before it is locked
        except BaseException:
            file.close()
            raise
    return file, name, token


def has(path: bytes, token: bytes) -> bool:
    """Whether a file is the lease with this token. Raises OSError."""
    with File.open(path, os.O_RDONLY) as file:
        return os.read(file.fileno(), len(token)) == token


def _clear(directory_fd: int) -> None:
    """Remove those that are no longer locked. Those of other machines stay: a network file system
    may tell one nothing of the locks of another."""
    if not kernel():
        return
    with os.scandir(directory_fd) as entries:
        names = [found for entry in entries if (found := _NAME.fullmatch(entry.name))]
    for name in names:
        with suppress(OSError):  # as where it is locked
            _clear_one(os.fsencode(name[0]), name[1].encode() + kernel(), directory_fd)


def _clear_one(name: bytes, holds: bytes, directory_fd: int) -> None:
    with File.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory_fd) as file:
        if os.read(file.fileno(), len(holds) + 1) == holds:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=directory_fd)
