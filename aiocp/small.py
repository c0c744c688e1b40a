"""A small file that gets a name which is not taken: a batch of one, some twenty system calls."""

import os
from collections.abc import Callable
from typing import NamedTuple

from aiocp.batch import Batch
from aiocp.engine import Sync
from aiocp.errors import operation
from aiocp.linux import masks_unnamed_files
from aiocp.place import Place
from aiocp.reflink import Reflink
from aiocp.source import Source

_MASKED = masks_unnamed_files()
_LONGEST_NAME = 255  # bytes, that a batch takes: NAME_MAX of the usual file systems


class Copied(NamedTuple):
    """How a small file was copied: `method` as CopyResult calls it."""

    size: int
    method: str
    cached: bool


def copy_small(
    source: Source,
    place: Place,
    *,
    preserve: frozenset[str],
    sync: Sync,
    allow_changed: bool,
    holes: bool,
    reflink: Reflink,
    report: Callable[[int, int], object] | None,
) -> Copied | None:
    """Copy a small file and put it in place, its data synced as `sync` says; None, and nothing is
    changed, where that is for others: the name is taken, the file system has no unnamed files, the
    source has `holes` to keep, ...

    `report` is told of the bytes that are written, and of how many, before the file has its name.

    Raises OSError with the operation that failed.
    """
    if not (place.free and place.readable and _MASKED) or len(place.name) > _LONGEST_NAME:
        return None
    batch = Batch(preserve, sync, allow_changed=allow_changed, holes=holes, alone=True)
    try:
        batch.enter(None, -1, place.directory.fileno(), fresh=True, clone=reflink)
        batch.add(place.name, source.fd)
        if any(batch.open().others()):
            return None
        for file in batch.transfers({}, 0):
            with operation("sync"):
                (os.fsync if sync is Sync.FSYNC else os.fdatasync)(file.write_fd)
        if report is not None:
            _raise_failure(batch)
            report(source.stat.st_size, source.stat.st_size)
        if not batch.place().placed:
            _raise_failure(batch)
        method = "reflink" if batch.cloned else "plain"
        return Copied(batch.size, method, batch.in_memory(0))
    finally:
        batch.close()


def _raise_failure(batch: Batch) -> None:
    for _, error in batch.failures():
        raise error
