"""What the engine transfers: the blocks of a file, the sync of a directory."""

import os
from collections import deque
from collections.abc import Iterator
from errno import EINVAL, EIO, EROFS
from functools import partial
from typing import TYPE_CHECKING

from aiocp import direct, engine, extents, reflink, stream
from aiocp.context import Context
from aiocp.destination import Destination
from aiocp.errors import Cancel, fail, operation
from aiocp.linux import File, sync_filesystem
from aiocp.place import open_directory
from aiocp.source import Source, shrank

if TYPE_CHECKING:
    from aiocp.checksum import Algorithm, Checksum
    from aiocp.pace import Pace
    from aiocp.partial import Partial
    from aiocp.reading import Observer, Reading
    from aiocp.verify import Digests

# Holes of less bytes than this are read with the data around them: that costs less than one more
# read does, and they are left out of the writes as zeroes
_READ_THROUGH = 64 << 10

_DOING = {
    engine.Step.READING: "read",
    engine.Step.WRITING: "write",
    engine.Step.SYNCING: "sync",
}


class FileTransfer(engine.Transfer):
    """The blocks of one file, then what its source and destination want done before the sync."""

    def __init__(
        self,
        source: Source,
        destination: Destination,
        *,
        sync: bool,
        allow_changed: bool,
        must_be_direct: bool,
        unfinished: "Partial | None" = None,
    ) -> None:
        super().__init__()
        self.source, self.destination, self.unfinished = source, destination, unfinished
        self._allow_changed, self._must_be_direct = allow_changed, must_be_direct
        self.read_fd, self.write_fd = source.fd, destination.fd
        self.read_direct, self.write_direct = bool(source.alignment), bool(destination.alignment)
        self.alignment = max(source.alignment, destination.alignment, 1)
        if not sync or not destination.seekable:
            self.sync = engine.Sync.NONE
        self.size = 0
        self.cloned = False
        self.digests: Digests | None = None
        self.checksum: Checksum | None = None
        self.observers: list[Observer] = []

    def clone(self, how: reflink.Reflink, refused: set[int]) -> bool:
        """Share the source's blocks instead of copying them, if that can be: reflink.clone()."""
        self.cloned = reflink.clone(self.source, self.destination, how, refused)
        self.size = self.source.size or 0
        return self.cloned

    def lay_out(self, sparse: extents.Sparse, *, reserve: bool = True) -> None:
        """Find out what is to be written, and make room for it, if `reserve`.

        As with cp blocks of zeroes are not written with "always", and with "auto" if the source has
        holes; its holes are not even read. A device holds something else there: its holes are only
        what it can make zeroes by itself.

        Raises OSError from fallocate(2) and ftruncate(2).
        """
        source, destination = self.source, self.destination
        assert source.size is not None
        self.size = size = source.size
        if self.unfinished is not None:
            self.resumed = self.unfinished.resumed
        if self.read_direct and not self._must_be_direct:
            self.cached_fd = source.open_cache()
        if sparse == "never" or (sparse == "auto" and not extents.may_have_holes(source.stat)):
            self.extents = [(self.resumed, size - self.resumed)]
            if reserve:
                destination.size(size)
            return
        unit = max(self.alignment, 1 if destination.regular else direct.FILE_BLOCK)
        data = extents.find_data(source.fd, size, unit, self.resumed)
        if destination.regular:
            self.leave_zeroes_out(size)
            if reserve and sparse == "auto":
                destination.reserve(extents.find_data(source.fd, size, unit, self.resumed))
            data = extents.join(data, _READ_THROUGH)
        else:
            data = extents.fill_holes(data, size, unit, destination.punch)
        self.extents = self._count_holes(data)

    def leave_zeroes_out(self, size: int) -> None:
        """Make the file a hole of `size` bytes, into which no blocks of zeroes are written."""
        unit = os.fstat(self.write_fd).st_blksize  # as cp takes it
        self.hole_unit = -(-unit // self.alignment) * self.alignment
        self.destination.make_hole(size)

    def _count_holes(self, data: Iterator[engine.Extent]) -> Iterator[engine.Extent]:
        end = self.resumed
        for start, length in data:
            self.holes += start - end
            end = start + length
            yield start, length
        self.holes += self.size - end

    def is_cached(self, offset: int, length: int) -> bool:
        return self.source.is_cached(offset, length)

    def copy_stream(
        self,
        block: memoryview,
        cancel: Cancel | None,
        data: stream.Data | None = None,
        pace: "Pace | None" = None,
    ) -> Iterator[int]:
        """Copy what has no offsets, as stream.copy() does; yield the bytes done so far."""

        def saw(read: memoryview) -> None:
            for observer in self.observers:
                observer.feed(read)
            if pace is not None:
                pace.wait(len(read), cancel)

        for done in stream.copy(self.read_fd, self.write_fd, block, cancel, data, saw):
            self.size = self.bytes_read = done
            self.bytes_written = done - self.holes
            yield done

    def record(
        self,
        *,
        verify: bool,
        checksum: "Algorithm | None",
        block_size: int,
        cancel: Cancel | None,
    ) -> None:
        """Take note of what is read: of each block, to `verify` the copy, and of all in order."""
        if verify:
            from aiocp.verify import Digests

            self.digests = Digests(block_size)
            self.observers.append(self.digests)
        if checksum is not None:
            from aiocp.checksum import Checksum

            self.checksum, self.turns = Checksum(checksum, cancel), deque()
            self.observers.append(self.checksum)
        self.looks = bool(self.observers)

    def record_nothing(self) -> None:
        """Take no note: the blocks are read elsewhere."""
        self.observers, self.digests, self.looks = [], None, False

    def saw(self, offset: int, block: memoryview) -> None:
        for observer in self.observers:
            observer.add(offset, block)

    def reading(self, block_size: int) -> "Reading":
        """What reads, to be looked at, what is in the copy without having been read to be copied:
        all of a clone, and what was there before. It reads the source, where the copy is to be
        compared with that; else the copy, which nobody changes meanwhile. Raises OSError."""
        from aiocp.reading import Reading, reopen

        unread = self.size if self.cloned else self.resumed
        if self.digests is not None:
            source = self.source
            return Reading(source.fd, source.alignment, unread, self.observers, None)
        with operation("open copy"):
            file, alignment = reopen(self.destination.fd, block_size)
        return Reading(file.fileno(), alignment, unread, self.observers, file)

    @property
    def digest(self) -> str | None:
        """That of the whole file, if it was to be taken."""
        return None if self.checksum is None else self.checksum.hex()

    def padding(self, offset: int, length: int) -> bytes:
        return self.destination.padding(offset, length)

    def wrote(self) -> None:
        self.destination.wrote(self.bytes_written)
        if self.unfinished is not None and self.unfinished.due(self.bytes_written):
            self.due = True  # until the engine has a slot for it

    def mark(self, offset: int) -> None:
        assert self.unfinished is not None
        self.unfinished.mark(offset)

    def undirect(self, step: engine.Step) -> None:
        if self._must_be_direct:
            raise fail(EINVAL, f"{_DOING[step]} with O_DIRECT")
        super().undirect(step)
        direct.switch_off(self.read_fd if step is engine.Step.READING else self.write_fd)

    def written(self) -> None:
        if not self.cloned:  # else all is still to be read
            for observer in self.observers:
                observer.end(self.size)
        self.source.check(self._allow_changed)
        self.destination.finish(self.size, self.source)
        if self.unfinished is not None:
            self.unfinished.settle()


def rung(transfer: FileTransfer, context: Context, streamed: bool) -> str:
    """How the data was carried, as CopyResult calls it."""
    if transfer.cloned:
        return "reflink"
    if streamed:
        return "stream"
    if context.plain:
        return "plain"
    return "aio-direct" if transfer.read_direct and transfer.write_direct else "aio-buffered"


def sync_before_name(preserve: frozenset[str], *, in_place: bool = False) -> engine.Sync:
    """What a file needs that is to have these attributes: the mode of a new one is synced with its
    data, that of one which was there with its times."""
    with_data = {"links"} if in_place else {"links", "mode"}
    return engine.Sync.FSYNC if preserve - with_data else engine.Sync.FDATASYNC


class DirectorySync(engine.Transfer):
    """The sync of a directory in which a name was put in place."""

    sync = engine.Sync.FSYNC

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.write_fd = fd

    def assert_done(self) -> None:
        """Raise OSError unless the directory is on the disk."""
        if self.failed:
            raise what_stopped(self)
        with operation("sync"):
            assert_durable(self.write_fd)


def assert_durable(fd: int) -> None:
    """Look at a directory after its sync, for an error that the sync did not tell.

    An XFS that has shut down syncs directories without an error, but stats nothing. Where the sync
    of another has failed, that of ext4 and Btrfs has nothing to do any more and succeeds, but they
    take no new file. Raises OSError.
    """
    os.fstat(fd)
    try:
        File.open(b".", os.O_TMPFILE | os.O_WRONLY, dir_fd=fd)
    except OSError as error:
        if error.errno in (EIO, EROFS):
            raise


def sync_directory(directory: File, readable: bool, fd: int | None = None) -> None:
    """Have the names in a directory on the disk, also in one that we may not read: then by a sync
    of the file system, that of `fd`, an open file, if there is one.

    Raises OSError.
    """
    with operation("its name is not durable: sync"):
        if readable:
            os.fsync(directory.fileno())
            assert_durable(directory.fileno())
        elif fd is None:
            os.sync()
        else:
            sync_filesystem(fd)


def sync_parent(path: bytes, fd: int | None = None) -> None:
    """Have the name at the end of a path on the disk: sync_directory() of the one it is in."""
    with operation("its name is not durable: sync"):
        directory, readable = open_directory(os.path.dirname(path))
        with directory:
            sync_directory(directory, readable, fd)


def resumable(
    source: Source, directory: File, name: bytes, block_size: int, readable: bool
) -> "Partial":
    """A copy, to be called `name` in `directory`, which can be gone on with. Raises OSError EINVAL
    for a source of which one cannot tell whether it changed."""
    from aiocp.partial import Partial

    sync = partial(sync_directory, directory, readable)
    return Partial(directory, name, source, block_size, sync)


def what_stopped(transfer: engine.Transfer) -> OSError:
    """The error that stopped a transfer, with its operation and offset."""
    if transfer.error is not None:
        return transfer.error
    failure = transfer.failure
    assert failure is not None
    step, errno, offset = failure
    if step is engine.Step.READING and errno == 0:
        return shrank()
    at = "" if step is engine.Step.SYNCING else f" at offset {offset}"
    return fail(errno, _DOING[step] + at)
