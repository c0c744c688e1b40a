"""Links, FIFOs, sockets and device nodes: made anew, in place of what has their name."""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from errno import EEXIST, EISDIR
from functools import partial

from aiocp import metadata
from aiocp.backup import Backups, Replaced, keeping
from aiocp.errors import fail, operation
from aiocp.linux import replace_node, temporary_name


def copy_node(
    seen: os.stat_result,
    name: bytes,
    dir_fd: int | None,
    to_fd: int,
    to_name: bytes,
    preserve: frozenset[str],
    *,
    replace: bool = True,
    backups: Backups | None = None,
) -> Replaced:
    """Copy what is no regular file and no directory: make another of its kind.

    Raises OSError, the operation in its text: of readlink(2), symlink(2), mknod(2), EISDIR where a
    directory has the name.
    """
    if stat.S_ISLNK(seen.st_mode):
        with operation("read link"):
            text = os.readlink(name, dir_fd=dir_fd)
        with operation("make link"):
            make, instead = partial(os.symlink, text), partial(replace_node, text=text)
            return make_node(
                seen, to_fd, to_name, make, instead, preserve, replace=replace, backups=backups
            )
    mode = seen.st_mode  # with its setuid and sticky bits, as cp leaves them
    if metadata.DEFAULT_MODE in preserve:
        mode = stat.S_IFMT(mode) | metadata.new_mode(mode, preserve)
    with operation("make special file"):
        make = partial(os.mknod, mode=mode, device=seen.st_rdev)
        instead = partial(replace_node, mode=mode, device=seen.st_rdev)
        return make_node(
            seen, to_fd, to_name, make, instead, preserve, replace=replace, backups=backups
        )


def make_node(
    seen: os.stat_result,
    to_fd: int,
    name: bytes,
    make: Callable[..., object],
    instead: Callable[..., object],
    preserve: frozenset[str],
    *,
    replace: bool = True,
    backups: Backups | None = None,
    kind: int | None = None,
) -> Replaced:
    """Call `make(name, dir_fd=...)`, or where the name is taken `instead`, which is also given a
    `temporary` name; then give it its attributes. `kind` is what is made, if not what was `seen`.

    Raises OSError: what these raise, FileExistsError for a name that is taken unless `replace` or
    `backups` are given, EISDIR where a directory has it.
    """
    replaced = Replaced()
    try:
        make(name, dir_fd=to_fd)
    except FileExistsError:
        existing = os.stat(name, dir_fd=to_fd, follow_symlinks=False)
        refuse(existing, replace=replace or backups is not None)
        with keeping(backups, to_fd, name) as backup:
            instead(name, temporary=temporary_name(name), dir_fd=to_fd)
        replaced = Replaced(existed=True, backup=backup)
    metadata.carry_to_name(seen, to_fd, name, preserve, kind or stat.S_IFMT(seen.st_mode))
    return replaced


def refuse(existing: os.stat_result, *, replace: bool) -> None:
    """Raise OSError where a node cannot have the name of what is there, or may not."""
    if stat.S_ISDIR(existing.st_mode):
        raise fail(EISDIR, "cannot overwrite a directory with what is none") from None
    if not replace:
        raise OSError(EEXIST, os.strerror(EEXIST)) from None


def link_node(
    fd: int,
    found: os.stat_result,
    to_fd: int,
    name: bytes,
    *,
    replace: bool = True,
    backups: Backups | None = None,
) -> Replaced | None:
    """Give an open file, whose stat `found` is, another name; None where it has that already.

    Raises OSError as `make_node` does.
    """

    def make(name: bytes, dir_fd: int) -> None:
        os.link(f"/proc/self/fd/{fd}".encode(), name, dst_dir_fd=dir_fd, follow_symlinks=True)

    with operation("link"):
        with suppress(FileNotFoundError):
            existing = os.stat(name, dir_fd=to_fd, follow_symlinks=False)
            if os.path.samestat(existing, found):
                return None
        instead = partial(replace_node, fd=fd)
        return make_node(
            found, to_fd, name, make, instead, frozenset(), replace=replace, backups=backups
        )
