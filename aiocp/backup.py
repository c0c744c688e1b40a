"""Backups: what is replaced keeps a name, as with cp's --backup.

What is there gets the backup's name besides its own, and then the new file takes its own: at no
moment is there nothing under it. Only what cannot have two names (no hard links on its file system,
another user's file) is renamed, as cp renames all, and comes back if the new file does not come.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from errno import EINVAL, EISDIR
from typing import NamedTuple

from aiocp.errors import fail, operation
from aiocp.linux import File, temporary_name

NONE, SIMPLE, EXISTING, NUMBERED = METHODS = ("none", "simple", "existing", "numbered")
SUFFIX = "~"

_NUMBERED = re.compile(rb"(.+)\.~([1-9][0-9]*)~", re.DOTALL)
_NAME_MAX = 255


class Replaced(NamedTuple):
    """What became of what had a name before: whether there was anything, and its backup's name."""

    existed: bool = False
    backup: bytes | None = None


class Backups:
    """Makes the backups in one directory, whose descriptor every call is given.

    Which numbers are taken is looked up once, and kept for the names that have numbered backups.
    """

    def __init__(self, method: str, suffix: bytes) -> None:
        self._method, self._suffix = method, suffix
        self._numbers: dict[bytes, int] | None = None

    def name(self, directory: int, name: bytes) -> bytes:
        """What the next backup of `name` is called."""
        return self._next(directory, name)[0]

    def foresee(self, directory: int, name: bytes) -> bytes:
        """What the backup of `name` would be called, whose number is taken then."""
        backup, number = self._next(directory, name)
        if number:
            self._highest(directory)[name] = number
        return backup

    def refuse(self, source: bytes, seen: os.stat_result, directory: int, name: bytes) -> None:
        """Raise OSError if the simple backup of `name` would take the name of the source itself."""
        backup = name + self._suffix
        if self._method == NUMBERED or os.path.basename(source) != backup:
            return
        with suppress(FileNotFoundError):
            there = os.stat(backup, dir_fd=directory, follow_symlinks=False)
            if os.path.samestat(there, seen):
                raise OSError(EINVAL, "backing up the destination might destroy the source")

    @contextmanager
    def keeping(self, directory: int, name: bytes) -> Iterator[bytes]:
        """Keep what has a name while the block gives the name away; yield the backup's name.

        If the block raises, all is as before.

        Raises OSError, "back up" in its text; ENOENT where nothing has the name any more.
        """
        with operation("back up"):
            old = File.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory)
            try:
                backup, undo = self._keep(old, directory, name)
            finally:
                old.let_go()
        try:
            yield backup
        except BaseException:
            with suppress(OSError):
                undo()
            raise

    def _keep(self, old: File, directory: int, name: bytes) -> tuple[bytes, Callable[[], object]]:
        """Make a backup; its name, and what takes it back."""
        if stat.S_ISDIR(os.fstat(old.fileno()).st_mode):
            raise fail(EISDIR, "back up")
        while True:
            backup, number = self._next(directory, name)
            try:
                undo = _link(old, directory, backup, numbered=bool(number))
            except FileExistsError:  # somebody else has taken the number
                self._highest(directory)[name] = number
                continue
            except OSError:
                undo = _rename(directory, name, backup)
            if number:
                self._highest(directory)[name] = number
            return backup, undo

    def _next(self, directory: int, name: bytes) -> tuple[bytes, int]:
        """The name of the next backup, and its number, 0 if it has none."""
        number = self._highest(directory).get(name, 0)
        if self._method == NUMBERED or number:
            number += 1
            backup = b"%b.~%d~" % (name, number)
        else:
            backup = name + self._suffix
        return (backup, number) if len(backup) <= _NAME_MAX else (name[: _NAME_MAX - 1] + b"~", 0)

    def _highest(self, directory: int) -> dict[bytes, int]:
        """The highest number of each name that has numbered backups, as far as it matters."""
        if self._numbers is None:
            self._numbers = {}
            if self._method != SIMPLE:
                with suppress(OSError), os.scandir(directory) as entries:  # that we may not read
                    for entry in entries:
                        if match := _NUMBERED.fullmatch(os.fsencode(entry.name)):
                            highest = self._numbers.get(match[1], 0)
                            self._numbers[match[1]] = max(highest, int(match[2]))
        return self._numbers


def keeping(
    backups: Backups | None, directory: int, name: bytes
) -> AbstractContextManager[bytes | None]:
    """`Backups.keeping`, if there are to be backups."""
    return nullcontext() if backups is None else backups.keeping(directory, name)


def check_backup(method: str, suffix: str | bytes) -> tuple[str, bytes]:
    """Return the two as they are taken here; raise ValueError for what is none."""
    if method not in METHODS:
        raise ValueError(f"backup must be {', '.join(METHODS)}, not {method!r}")
    if not suffix or b"/" in (encoded := os.fsencode(suffix)):
        raise ValueError(f"suffix must be part of a name, not {suffix!r}")
    return method, encoded


def _link(old: File, directory: int, backup: bytes, *, numbered: bool) -> Callable[[], object]:
    """Give an open file its backup's name too; what takes that back."""
    try:
        old.link(backup, dir_fd=directory)
    except FileExistsError:
        if numbered:
            raise
        there = os.stat(backup, dir_fd=directory, follow_symlinks=False)
        if os.path.samestat(there, os.fstat(old.fileno())):  # rename(2) would do nothing
            return lambda: None
        old.replace(backup, temporary=temporary_name(backup), dir_fd=directory)
    return lambda: os.unlink(backup, dir_fd=directory)


def _rename(directory: int, name: bytes, backup: bytes) -> Callable[[], object]:
    """Rename to the backup's name; what takes that back."""
    os.rename(name, backup, src_dir_fd=directory, dst_dir_fd=directory)

    def undo() -> None:
        try:
            os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(backup, name, src_dir_fd=directory, dst_dir_fd=directory)

    return undo
