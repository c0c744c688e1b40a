"""shutil's copy functions, by its rules, made by aiocp: `from aiocp import shutil`.

What they copy is on the disk when they return, and a file's old contents stay until its new ones
are all there. `sync=False` leaves the first, as shutil does.
"""

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterable
from errno import EEXIST, EISDIR
from typing import Any, TypeVar

from aiocp.asked import StrPath
from aiocp.copier import copy_file
from aiocp.metadata import DEFAULT_MODE, WHERE_POSSIBLE
from aiocp.transfer import sync_parent
from aiocp.tree_copier import copy_tree

__all__ = ["Error", "SameFileError", "SpecialFileError", "copy", "copy2", "copyfile", "copytree"]

Error, SameFileError, SpecialFileError = (
    shutil.Error,
    shutil.SameFileError,
    shutil.SpecialFileError,
)
Path = TypeVar("Path", bound=StrPath)
Ignore = Callable[[Any, list[Any]], Iterable[Any]]

_STAT = frozenset({"mode", "timestamps", "xattr", WHERE_POSSIBLE})  # what copystat() copies


def copyfile(src: StrPath, dst: Path, *, follow_symlinks: bool = True, sync: bool = True) -> Path:
    """Copy a file's contents to the file `dst`, which is returned.

    With `follow_symlinks=False` a symbolic link is made anew.

    Raises OSError as `aiocp.copy_file` does; SpecialFileError for a FIFO.
    """
    sys.audit("shutil.copyfile", src, dst)
    _copy(src, dst, frozenset({DEFAULT_MODE}), follow_symlinks, sync)
    return dst


def copy(src: StrPath, dst: StrPath, *, follow_symlinks: bool = True, sync: bool = True) -> Any:
    """Copy contents and mode to a file, or into a directory; return the new file's path."""
    return _into(src, dst, frozenset({"mode"}), follow_symlinks, sync)


def copy2(src: StrPath, dst: StrPath, *, follow_symlinks: bool = True, sync: bool = True) -> Any:
    """Copy contents, mode, times and extended attributes, as `copy` does."""
    return _into(src, dst, _STAT, follow_symlinks, sync)


def _into(
    src: StrPath, dst: StrPath, preserve: frozenset[str], follow_symlinks: bool, sync: bool
) -> Any:
    if os.path.isdir(dst):
        dst = os.path.join(dst, os.path.basename(src))  # type: ignore[arg-type]
    sys.audit("shutil.copyfile", src, dst)
    sys.audit("shutil.copymode" if preserve == {"mode"} else "shutil.copystat", src, dst)
    _copy(src, dst, preserve, follow_symlinks, sync)
    return dst


def _copy(
    src: StrPath, dst: StrPath, preserve: frozenset[str], follow_symlinks: bool, sync: bool
) -> None:
    if os.path.isdir(src):
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), os.fsdecode(src))
    for path in (src, dst):
        _refuse_special(path)
    if not follow_symlinks and os.path.islink(src):
        _copy_link(src, dst, preserve, sync)
        return
    name = os.fsencode(dst)
    if name.endswith(b"/") and not os.path.exists(name):
        raise FileNotFoundError(f"Directory does not exist: {os.fsdecode(dst)}")
    copy_file(src, dst, preserve=preserve, into_directory=False, sync=sync)


def _refuse_special(path: StrPath) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # it is new, or the error is told where it is opened
    if stat.S_ISFIFO(mode):
        raise SpecialFileError(f"`{os.fsdecode(path)}` is a named pipe")


def _copy_link(src: StrPath, dst: StrPath, preserve: frozenset[str], sync: bool) -> None:
    if os.path.exists(dst) and os.path.samefile(src, dst):
        raise SameFileError(f"{src!r} and {dst!r} are the same file")
    os.symlink(os.readlink(os.fsencode(src)), os.fsencode(dst))
    if preserve == _STAT:
        shutil.copystat(src, dst, follow_symlinks=False)
    if sync:
        sync_parent(os.fsencode(dst))


def copytree(
    src: StrPath,
    dst: Path,
    symlinks: bool = False,
    ignore: Ignore | None = None,
    copy_function: Callable[[Any, Any], object] = copy2,
    ignore_dangling_symlinks: bool = False,
    dirs_exist_ok: bool = False,
    *,
    sync: bool = True,
) -> Path:
    """Copy a directory with all that is in it, and return `dst`, which must not exist unless
    `dirs_exist_ok`.

    `ignore(directory, names)` returns the names that are not to be copied. A `copy_function` of
    one's own is called by shutil, one file after the other.

    Raises Error: of a list of (source, destination, reason) for all that was not copied, special
    files included. FileExistsError.
    """
    if copy_function not in (copy, copy2, shutil.copy, shutil.copy2):
        _COPYTREE(
            src, dst, symlinks, ignore, copy_function, ignore_dangling_symlinks, dirs_exist_ok
        )
        return dst
    sys.audit("shutil.copytree", src, dst)
    os.scandir(src).close()  # raises as shutil does, before anything is made
    source, destination = os.fsencode(src), os.fsencode(dst)
    if os.path.lexists(destination) and not dirs_exist_ok:
        raise FileExistsError(EEXIST, os.strerror(EEXIST), os.fsdecode(dst))
    errors: list[tuple[Any, Any, str]] = []

    def special(path: bytes) -> bool:
        """Whether something is none of what is copied; of which an error tells."""
        full = os.path.join(source, path)
        mode = os.lstat(full).st_mode
        if stat.S_ISLNK(mode) and not symlinks:
            if ignore_dangling_symlinks and not os.path.exists(full):
                return True
            mode = os.stat(full).st_mode if os.path.exists(full) else stat.S_IFREG
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            return False
        name = os.fsdecode(full)
        what = "a named pipe" if stat.S_ISFIFO(mode) else "a special file"
        errors.append((name, os.fsdecode(os.path.join(destination, path)), f"`{name}` is {what}"))
        return True

    ignored = None if ignore is None else _Ignored(os.fspath(src), ignore)
    into_itself = _new_below(source, destination)
    _make_parents(destination, sync)

    def exclude(path: bytes, is_directory: bool) -> bool:
        if path == into_itself or (ignored is not None and path in ignored):
            return True
        if is_directory and ignored is not None:
            ignored.enter(path)
        return not is_directory and special(path)

    def on_error(error: OSError) -> None:
        errors.append((error.filename, error.filename2, str(error)))

    copy_tree(
        source,
        destination,
        preserve={"mode"} if copy_function in (copy, shutil.copy) else _STAT,
        follow_symlinks=not symlinks,
        exclude=exclude,
        on_error=on_error,
        sync=sync,
    )
    if errors:
        raise Error(errors)
    return dst


_COPYTREE: Any = shutil.copytree  # what has this name there may be ours, one day


class _Ignored:
    """What `ignore` says, which is asked once for each directory."""

    def __init__(self, top: str | bytes, ignore: Ignore) -> None:
        self._top, self._ignore = top, ignore
        self._names: dict[bytes, frozenset[bytes]] = {}
        self.enter(b"")

    def enter(self, directory: bytes) -> None:
        """Ask what of a directory is not to be copied."""
        where: Any = self._top
        if directory:
            below: Any = directory if isinstance(where, bytes) else os.fsdecode(directory)
            where = os.path.join(where, below)
        names = self._ignore(where, os.listdir(where))
        self._names[directory] = frozenset(map(os.fsencode, names))

    def __contains__(self, path: bytes) -> bool:
        directory, name = os.path.split(path)
        return name in self._names[directory]


def _new_below(source: bytes, destination: bytes) -> bytes | None:
    """The name in `source` that only a copy into itself makes there: it is not to be copied."""
    below = os.path.relpath(os.path.realpath(destination), os.path.realpath(source))
    name = below.split(b"/")[0]
    new = name not in (b".", b"..") and not os.path.lexists(os.path.join(source, name))
    return name if new else None


def _make_parents(path: bytes, sync: bool) -> None:
    """Make the directories above a new one, and have their names on the disk."""
    parent = os.path.dirname(path.rstrip(b"/"))
    if not parent or os.path.isdir(parent):
        return
    _make_parents(parent, sync)
    os.mkdir(parent)
    if sync:
        sync_parent(parent)
