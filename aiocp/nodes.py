"""Links, FIFOs, sockets and device nodes: made anew, in place of what has their name."""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from errno import EISDIR
from functools import partial

from aiocp import metadata
from aiocp.destination import temporary_name
from aiocp.errors import fail, operation
from aiocp.linux import replace_node


def copy_node(
    seen: os.stat_result,
    name: bytes,
    dir_fd: int | None,
    to_fd: int,
    to_name: bytes,
    preserve: frozenset[str],
) -> None:
    """Copy what is no regular file and no directory: make another of its kind.

    Raises OSError, the operation in its text: of readlink(2), symlink(2), mknod(2), EISDIR where a
    directory has the name.
    """
    if stat.S_ISLNK(seen.st_mode):
        with operation("read link"):
            text = os.readlink(name, dir_fd=dir_fd)
        with operation("make link"):
            link, replace = partial(os.symlink, text), partial(replace_node, text=text)
            make_node(seen, to_fd, to_name, link, replace, preserve)
        return
    mode = seen.st_mode  # with its setuid and sticky bits, as cp leaves them
    if metadata.DEFAULT_MODE in preserve:
        mode = stat.S_IFMT(mode) | metadata.new_mode(mode, preserve)
    with operation("make special file"):
        make = partial(os.mknod, mode=mode, device=seen.st_rdev)
        replace = partial(replace_node, mode=mode, device=seen.st_rdev)
        make_node(seen, to_fd, to_name, make, replace, preserve)


def make_node(
    seen: os.stat_result,
    to_fd: int,
    name: bytes,
    make: Callable[..., object],
    replace: Callable[..., object],
    preserve: frozenset[str],
) -> None:
    """Call `make(name, dir_fd=...)`, or where the name is taken `replace`, which is also given a
    `temporary` name; then give it its attributes."""
    try:
        make(name, dir_fd=to_fd)
    except FileExistsError:
        existing = os.stat(name, dir_fd=to_fd, follow_symlinks=False)
        if stat.S_ISDIR(existing.st_mode):
            raise fail(EISDIR, "cannot overwrite a directory with what is none") from None
        replace(name, temporary=temporary_name(name), dir_fd=to_fd)
    metadata.carry_to_name(seen, to_fd, name, preserve)


def link_node(fd: int, found: os.stat_result, to_fd: int, name: bytes) -> None:
    """Give an open file, whose stat `found` is, another name."""

    def make(name: bytes, dir_fd: int) -> None:
        os.link(f"/proc/self/fd/{fd}".encode(), name, dst_dir_fd=dir_fd, follow_symlinks=True)

    with operation("link"):
        with suppress(FileNotFoundError):
            existing = os.stat(name, dir_fd=to_fd, follow_symlinks=False)
            if os.path.samestat(existing, found):
                return
        make_node(found, to_fd, name, make, partial(replace_node, fd=fd), frozenset())
