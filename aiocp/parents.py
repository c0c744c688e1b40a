"""The directories above a source, made below the target as --parents has them."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import ENOTDIR
from typing import NamedTuple

from aiocp import metadata
from aiocp.errors import operation
from aiocp.linux import File
from aiocp.place import open_directory
from aiocp.quoting import quoted
from aiocp.transfer import sync_directory


class _Level(NamedTuple):
    """A directory on the way to the source, and the one that goes with it."""

    source: File
    seen: os.stat_result
    file: File
    readable: bool
    created: bool
    mask: int


@contextmanager
def parents(
    source: bytes,
    target: bytes,
    preserve: frozenset[str],
    *,
    sync: bool,
    tell: Callable[[bytes, bytes], object],
) -> Iterator[None]:
    """Make the directories above `source` below `target`; give them their attributes at the end.

    `tell` is called with both paths of each that was made. Links on the way are followed.

    Raises OSError: of open(2) and mkdir(2), ENOTDIR for what is in the way, and what the attributes
    and the syncs raise.
    """
    head = os.path.dirname(source.rstrip(b"/"))
    if not head or os.path.isdir(os.path.join(target, head.lstrip(b"/"))):
        yield  # as they are, for cp too
        return
    from_path, to_path = b"/" * source.startswith(b"/"), target
    with operation("open destination"):
        file, readable = open_directory(target)
    here, _ = open_directory(from_path)
    levels = [_Level(here, os.fstat(here.fileno()), file, readable, created=False, mask=0)]
    try:
        for name in filter(None, head.split(b"/")):
            from_path, to_path = os.path.join(from_path, name), os.path.join(to_path, name)
            levels.append(_make(name, levels[-1], to_path))
            if levels[-1].created:
                tell(from_path, to_path)
        yield
    except BaseException:
        with suppress(OSError):
            _finish(levels, preserve, sync)
        raise
    _finish(levels, preserve, sync)


def _make(name: bytes, above: _Level, path: bytes) -> _Level:
    """Make, or take, one directory in another."""
    with operation("open source"):
        source, _ = open_directory(name, above.source.fileno())
        seen = os.fstat(source.fileno())  # before the target, which may be in it, changes it
    to_fd = above.file.fileno()
    with operation("make directory"):
        created = True
        try:
            os.mkdir(name, 0o700, dir_fd=to_fd)
        except FileExistsError:
            created = False
    try:
        with operation("open destination"):
            file, readable = open_directory(name, to_fd)
    except NotADirectoryError:
        raise in_the_way(path) from None
    mask = metadata.creation_mask(to_fd)[0] if created else 0
    return _Level(source, seen, file, readable, created, mask)


def in_the_way(path: bytes) -> OSError:
    """The error for what has the name of a directory that is to be made."""
    return OSError(ENOTDIR, f"{quoted(os.fsdecode(path))} exists but is not a directory")


def _finish(levels: list[_Level], preserve: frozenset[str], sync: bool) -> None:
    """Give the directories their attributes, existing ones only what is preserved, and sync."""
    for level in reversed(levels[1:]):
        fd, seen, mode = level.file.fileno(), level.seen, None
        if level.created:  # as mkdir(2) would
            mode = metadata.new_mode(seen.st_mode, preserve) & ~level.mask
            mode |= seen.st_mode & stat.S_ISVTX | os.fstat(fd).st_mode & stat.S_ISGID
        with operation("set attributes"):
            # by a path, because the source may be there to search only
            metadata.carry(f"/proc/self/fd/{level.source.fileno()}", seen, fd, preserve, mode)
        if sync:
            sync_directory(level.file, level.readable)
    if sync:
        sync_directory(levels[0].file, levels[0].readable)
