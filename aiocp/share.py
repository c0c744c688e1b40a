"""What a coordinator has its workers do, and what they answer: batches of files, ranges of one.

A message is the version of aiocp and, behind it, a part that was pickled. It says all that there is
to know, and what it asks for can be done twice, as an executor does that has lost a worker.
"""

import os
import pickle
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import NamedTuple

from aiocp.direct import Direct
from aiocp.engine import Extent
from aiocp.tree_options import TreeOptions

# what is told of an entry, as TreeOutcomes.tell() takes it
Told = tuple[bytes, str, str, bool, bytes | None, int, str | None, tuple[str, ...]]
Failure = tuple[bytes, OSError]  # with the path of what was not copied


class Ground(NamedTuple):
    """What each worker has to see: `source`, which has an inode number and a birth time, and
    `lease`, a file at the destination that has `token` in it; and who it has to be.

    The lease is also what goes when the copy is to stop. Paths are absolute.
    """

    source: bytes
    born: tuple[int, int]
    lease: bytes
    token: bytes
    user: int


class Names(NamedTuple):
    """What is to be copied of one directory, whose `path` is below the root."""

    path: bytes
    files: list[bytes]  # by the listing regular files
    others: list[bytes]


class Batch(NamedTuple):
    """Files, and symbolic links, from one tree to another: `roots` of both.

    `listens` tells whether it is to be told what became of each; `umask` is the coordinator's.
    `synced_by` is the kernel() whose file system the coordinator will sync as a whole, empty for
    none: what has got a name there need not be synced by anybody else.
    """

    ground: Ground
    roots: tuple[bytes, bytes]
    how: TreeOptions
    depth: int
    idle: bool
    umask: int
    synced_by: bytes
    listens: bool
    names: list[Names]


class FileSeen(NamedTuple):
    """What tells that a file is still the one that was seen."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def file_seen(seen: os.stat_result) -> FileSeen:
    return FileSeen(seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


class Range(NamedTuple):
    """The bytes of a large file from `start` to `stop`, of which `extents` hold data.

    They go into the file `temporary`, which has the inode number `inode`; with `copied` they are
    there, and only to be compared. `hole_unit` is that of an engine's transfer.
    """

    ground: Ground
    source: bytes
    seen: FileSeen
    temporary: bytes
    inode: int
    start: int
    stop: int
    extents: list[Extent]
    copied: bool
    direct: Direct
    depth: int
    block_size: int
    hole_unit: int
    sync: bool
    verify: bool
    allow_changed: bool
    idle: bool


Part = Batch | Range


class Depth(NamedTuple):
    """How deep a context was, and how much of it was in flight at most."""

    asked: int
    peak: int


class BatchDone(NamedTuple):
    """What became of a batch: counts as those of TreeOutcomes, and what was told by path."""

    files: int
    links: int
    specials: int
    bytes: int
    holes: int
    reflinked: int
    moved: int
    syncs: int
    told: list[Told]
    failures: list[Failure]


class RangeDone(NamedTuple):
    """What became of a range: figures as those of a transfer, and whether it was compared past the
    page cache."""

    bytes_read: int
    bytes_cached: int
    bytes_written: int
    holes: int
    read_direct: bool
    write_direct: bool
    plain: bool
    past_the_cache: bool


class Done(NamedTuple):
    """A part that was done: by whom, in how many seconds, how deep."""

    worker: str
    busy: float
    depth: Depth
    what: BatchDone | RangeDone


@cache
def kernel() -> bytes:
    """What tells the running kernel from all others, empty where it does not say."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().strip()
    return b""


@cache
def version() -> str:
    """That of the aiocp that is installed."""
    try:
        return installed("aiocp")
    except PackageNotFoundError:
        return ""


def pack(part: Part | Ground) -> bytes:
    """The message that asks for a part."""
    return b"%b\n%b" % (version().encode(), pickle.dumps(part, pickle.HIGHEST_PROTOCOL))


def unpack(message: bytes) -> Part | Ground | None:
    """The part that a message asks for; None for that of another version."""
    theirs, _, pickled = message.partition(b"\n")
    if theirs != version().encode():
        return None
    part: Part | Ground = pickle.loads(pickled)
    return part
