"""Copy one file: open both sides, drive the engine, commit.

The order is the promise: allocate, copy every block, see that the source did not change, set the
mode, sync the data, put the name in place, sync the directory. Whatever fails before the name is in
place leaves the destination as it was.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EINVAL
from time import perf_counter

from aiocp import direct, engine
from aiocp.context import MAX_DEPTH, Context
from aiocp.destination import Destination
from aiocp.errors import fail, operation
from aiocp.source import Source, shrank

StrPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Progress = Callable[[int, int], object]

DEFAULT_DEPTH = 64
DEFAULT_BLOCK_SIZE = 1 << 20
BLOCK_SIZE_UNIT = 4096
MAX_BLOCK_SIZE = 1 << 30


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What happened, not what was asked.

    `size`, `bytes_read`, `bytes_written` and `block_size` are in bytes, `elapsed` in seconds, and
    `rate` in bytes per second. `method` is the rung that carried the data: "aio-direct" (O_DIRECT
    on both sides), "aio-buffered", "plain" (preadv and pwritev) or "stream" (read and write).
    `notes` says what could not be had as asked, and why.
    """

    source: str
    destination: str
    size: int
    bytes_read: int
    bytes_written: int
    method: str
    depth: int
    peak_in_flight: int
    block_size: int
    direct_read: bool
    direct_write: bool
    in_place: bool
    synced: bool
    elapsed: float
    rate: float
    notes: tuple[str, ...]


def copy_file(
    src: StrPath,
    dst: StrPath,
    *,
    depth: int = DEFAULT_DEPTH,
    block_size: int = DEFAULT_BLOCK_SIZE,
    direct: direct.Direct = "auto",
    progress: Progress | None = None,
) -> CopyResult:
    """Copy a file and its mode; on return the copy is whole, in place and on the disk.

    Arguments:
        src: the file to copy, symbolic links followed.
        dst: the new file, or a directory to copy into under the source's name.
        depth: how many blocks are in flight, 1 to 65,536.
        block_size: bytes per block, a multiple of 4096; memory is depth x block_size.
        direct: "auto" takes O_DIRECT where it is possible, "always" fails where it is not, "never"
            copies through the page cache.
        progress: called as `progress(bytes_done, bytes_total)` while blocks are written;
            bytes_total is 0 while unknown. What it raises stops the copy and propagates.

    Raises:
        OSError: of the subclass that belongs to errno, with both file names; its strerror names the
            operation. An existing destination is as it was unless the result would say `in_place`.
        SourceChanged: an OSError: the source shrank or changed while being copied.
        shutil.SameFileError: an OSError: both are one file.
        ValueError: depth or block_size out of range.
    """
    check_depth(depth)
    check_block_size(block_size)
    if direct not in ("auto", "always", "never"):
        raise ValueError(f"direct must be 'auto', 'always' or 'never', not {direct!r}")
    source, destination = os.fsencode(src), os.fsencode(dst)
    if os.path.isdir(destination):
        destination = os.path.join(destination, os.path.basename(source.rstrip(b"/")))
    names = os.fsdecode(source), os.fsdecode(destination)
    try:
        return _copy(source, destination, names, depth, block_size, direct, progress)
    except OSError as error:
        error.filename, error.filename2 = names
        raise


def check_depth(depth: int) -> None:
    """Raise ValueError unless this is a depth."""
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"depth must be from 1 to {MAX_DEPTH:,}, not {depth}")


def check_block_size(block_size: int) -> None:
    """Raise ValueError unless this is a block size."""
    if not 1 <= block_size <= MAX_BLOCK_SIZE or block_size % BLOCK_SIZE_UNIT:
        raise ValueError(
            f"block size must be a multiple of {BLOCK_SIZE_UNIT} up to 1 GiB, not {block_size}"
        )


class _FileTransfer(engine.Transfer):
    """The blocks of one file, then what its source and destination want done before the sync."""

    def __init__(self, source: Source, destination: Destination, how: direct.Direct) -> None:
        super().__init__()
        self.source, self.destination, self.how = source, destination, how
        self.read_fd, self.write_fd = source.fd, destination.fd
        self.read_direct, self.write_direct = bool(source.alignment), bool(destination.alignment)
        self.alignment = max(source.alignment, destination.alignment, 1)
        self.sync = engine.Sync.FDATASYNC if destination.seekable else engine.Sync.NONE
        self.size = 0

    def padding(self, offset: int, length: int) -> bytes:
        return self.destination.padding(offset, length)

    def undirect(self, step: engine.Step) -> None:
        if self.how == "always":
            raise fail(EINVAL, f"{_DOING[step]} with O_DIRECT")
        super().undirect(step)
        direct.switch_off(self.read_fd if step is engine.Step.READING else self.write_fd)

    def written(self) -> None:
        self.source.check()
        self.destination.finish(self.size)


class _DirectorySync(engine.Transfer):
    """The sync of a directory in which a name was put in place."""

    sync = engine.Sync.FSYNC

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.write_fd = fd


_DOING = {
    engine.Step.READING: "read",
    engine.Step.WRITING: "write",
    engine.Step.SYNCING: "sync",
}


def _raise(transfer: engine.Transfer) -> None:
    """Raise what stopped a transfer, if anything did."""
    if transfer.error is not None:
        raise transfer.error
    if transfer.failure is not None:
        step, errno, offset = transfer.failure
        if step is engine.Step.READING and errno == 0:
            raise shrank(offset)
        at = "" if step is engine.Step.SYNCING else f" at offset {offset}"
        raise fail(errno, _DOING[step] + at)


def _copy(
    src: bytes,
    dst: bytes,
    names: tuple[str, str],
    depth: int,
    block_size: int,
    how: direct.Direct,
    progress: Progress | None,
) -> CopyResult:
    begun = perf_counter()
    with (
        Source(src, how, block_size) as source,
        Destination(dst, source, how, block_size) as destination,
        Context(depth, block_size) as context,
    ):
        transfer = _FileTransfer(source, destination, how)
        streamed = source.size is None or not destination.seekable
        if source.size is None or not destination.seekable:
            if how == "always":
                raise fail(EINVAL, "O_DIRECT on a stream")
            direct.switch_off(source.fd)
            direct.switch_off(destination.fd)
            transfer.size = _stream(source, destination, context, progress)
            transfer.bytes_read = transfer.bytes_written = transfer.size
        else:
            transfer.size = source.size
            transfer.extents = [(0, source.size)]
            destination.size(source.size)
        _run(context, transfer, progress)
        destination.commit()
        if transfer.synced and not destination.in_place:
            _run(context, _DirectorySync(destination.directory.fileno()), None)
        destination.close()
        source.close()
    elapsed = perf_counter() - begun
    return CopyResult(
        source=names[0],
        destination=names[1],
        size=transfer.size,
        bytes_read=transfer.bytes_read,
        bytes_written=transfer.bytes_written,
        method=_method(transfer, context, streamed),
        depth=context.depth,
        peak_in_flight=context.peak_in_flight,
        block_size=block_size,
        direct_read=transfer.read_direct and not streamed,
        direct_write=transfer.write_direct and not streamed,
        in_place=destination.in_place,
        synced=transfer.synced,
        elapsed=elapsed,
        rate=transfer.size / elapsed,
        notes=tuple(_notes(transfer, context, streamed)),
    )


def _run(context: Context, transfer: engine.Transfer, progress: Progress | None) -> None:
    """Drive one transfer to its end; raise what stopped it."""
    total = sum(length for _, length in transfer.extents)
    reported = -1
    for _ in engine.Engine(context, [transfer]).run():
        if progress is not None and transfer.bytes_written != reported:
            reported = transfer.bytes_written
            progress(reported, total)
    _raise(transfer)


def _stream(
    source: Source, destination: Destination, context: Context, progress: Progress | None
) -> int:
    """Read to the end and write with plain system calls; return the bytes copied."""
    block = context.buffer(0)
    done = 0
    while True:
        with operation(f"read at offset {done}"):
            count = os.readv(source.fd, [block])
        if not count:
            return done
        written = 0
        while written < count:
            with operation(f"write at offset {done + written}"):
                written += os.write(destination.fd, block[written:count])
        done += count
        if progress is not None:
            progress(done, source.size or 0)


def _method(transfer: _FileTransfer, context: Context, streamed: bool) -> str:
    if streamed:
        return "stream"
    if context.plain:
        return "plain"
    return "aio-direct" if transfer.read_direct and transfer.write_direct else "aio-buffered"


def _notes(transfer: _FileTransfer, context: Context, streamed: bool) -> Iterator[str]:
    yield from context.notes
    if transfer.how == "auto" and not streamed:
        if not transfer.read_direct:
            yield "buffered reads: the source takes no direct I/O"
        if not transfer.write_direct:
            yield "buffered writes: the destination takes no direct I/O"
