"""Links in place of copies: another name for the source, or a symbolic link to it."""

import os
import stat
from errno import EINVAL, ESTALE
from functools import partial

from aiocp.backup import Backups, Replaced
from aiocp.errors import SourceChanged, operation
from aiocp.linux import File, replace_node, sync_filesystem
from aiocp.nodes import link_node, make_node
from aiocp.place import Place
from aiocp.transfer import sync_directory


def link_file(
    link: str,
    source: bytes,
    seen: os.stat_result,
    destination: bytes,
    *,
    follow: bool,
    replace: bool,
    backups: Backups | None,
    preserve: frozenset[str],
    sync: bool,
) -> Replaced | None:
    """Make a "hard" or a "symbolic" link, and have it on the disk if `sync`.

    Returns None where the two are one file already.

    Raises OSError, the operation in its text: those of `hard_link` and `symbolic_link`.
    """
    with Place(destination, follow=False) as place:
        to_fd, name = place.directory.fileno(), place.name
        if backups is not None:
            backups.refuse(source, seen, to_fd, name)
        if link == "hard":
            replaced = hard_link(
                source,
                None,
                seen,
                to_fd,
                name,
                follow=follow,
                replace=replace,
                backups=backups,
                sync=sync,
            )
        else:
            replaced = symbolic_link(
                source, seen, to_fd, name, preserve, replace=replace, backups=backups
            )
        if sync:
            sync_directory(place.directory, place.readable)
        return replaced


def replaces(seen: os.stat_result, *, follow: bool) -> bool:
    """Whether cp removes what is there for this in any case: for links and nodes, unfollowed."""
    return not (follow or stat.S_ISREG(seen.st_mode))


def hard_link(
    name: bytes,
    dir_fd: int | None,
    seen: os.stat_result,
    to_fd: int,
    to_name: bytes,
    *,
    follow: bool,
    replace: bool,
    backups: Backups | None,
    sync: bool,
) -> Replaced | None:
    """Give what was `seen` another name, its data on the disk before if `sync`.

    None where it has that name already. Raises OSError: of linkat(2), FileExistsError unless
    `replace` or `backups` are given, `SourceChanged` where another file took the source's name.
    """
    with operation("open source"):
        file = File.open(name, os.O_PATH | (0 if follow else os.O_NOFOLLOW), dir_fd=dir_fd)
    with file:
        found = os.fstat(file.fileno())
        if not os.path.samestat(seen, found):
            raise SourceChanged(ESTALE, "source was replaced while being opened")
        if sync and stat.S_ISREG(found.st_mode):
            _sync_data(file.fileno(), to_fd)
        return link_node(file.fileno(), found, to_fd, to_name, replace=replace, backups=backups)


def symbolic_link(
    text: bytes,
    seen: os.stat_result,
    to_fd: int,
    to_name: bytes,
    preserve: frozenset[str],
    *,
    replace: bool,
    backups: Backups | None,
) -> Replaced:
    """Make a link to the path `text`, with the times of what was `seen` if these are preserved.

    Raises OSError: of symlink(2), FileExistsError unless `replace` or `backups` are given, EINVAL
    for a relative path from elsewhere than the current directory.
    """
    refuse_relative(text, os.fstat(to_fd))
    with operation("make link"):
        return make_node(
            seen,
            to_fd,
            to_name,
            partial(os.symlink, text),
            partial(replace_node, text=text),
            preserve & {"timestamps"},
            replace=replace,
            backups=backups,
            kind=stat.S_IFLNK,
        )


def refuse_relative(text: bytes, directory: os.stat_result | None) -> None:
    """Raise OSError where a link to this path would not lead there from a directory, None for one
    that is not there yet."""
    here = directory is not None and os.path.samestat(os.stat(b"."), directory)
    if not (text.startswith(b"/") or here):
        raise OSError(EINVAL, "can make relative symbolic links only in the current directory")


def _sync_data(fd: int, to_fd: int) -> None:
    """Have on the disk what another name is to promise: nothing to do for what is there long."""
    with operation("sync"):
        try:
            file = File.open(f"/proc/self/fd/{fd}".encode(), os.O_RDONLY)
        except OSError:  # ours to link, but not to read
            sync_filesystem(to_fd)
            return
        with file:
            os.fdatasync(file.fileno())
