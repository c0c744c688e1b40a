"""A range of a large file, copied by one of many workers into a file that all of them write."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from errno import EINVAL, ESTALE

from aiocp import direct, engine
from aiocp.context import Context
from aiocp.engine import Sync
from aiocp.errors import Cancel, SourceChanged, fail, look, operation
from aiocp.linux import File, buffers_direct_writes
from aiocp.share import Depth, Range, RangeDone, file_seen
from aiocp.source import Source
from aiocp.transfer import what_stopped
from aiocp.verify import Digests, Verification


class _Temporary:
    """The file that the range goes into. Raises OSError ESTALE where it is another."""

    seekable = regular = True

    def __init__(self, part: Range) -> None:
        with operation("open destination"):
            self.file = File.open(part.temporary, os.O_RDWR | os.O_NOFOLLOW)
            if os.fstat(self.fd).st_ino != part.inode:
                raise fail(ESTALE, "open destination")
            how = part.direct
            self.through_cache = how == "auto" and buffers_direct_writes(self.fd)
            if self.through_cache:
                how = "never"
            self.alignment = direct.switch_on(self.fd, how, part.block_size)

    @property
    def fd(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        """Close what is synced, if it is to be. Raises OSError from close(2)."""
        with operation("close"):
            self.file.close()


class _RangeTransfer(engine.Transfer):
    """The blocks of a range; only read, to be compared, if they are there already."""

    def __init__(self, part: Range, source: Source, copy: _Temporary) -> None:
        super().__init__()
        self._source, self._must = source, part.direct == "always"
        self.read_fd, self.read_direct = source.fd, bool(source.alignment)
        self.alignment = max(source.alignment, copy.alignment, 1)
        self.extents = part.extents
        self.sync = Sync.FDATASYNC if part.sync else Sync.NONE
        self.digests = Digests(part.block_size) if part.verify else None
        self.looks = part.verify
        if part.copied:
            self.sync = Sync.NONE
            return
        self.write_fd, self.write_direct = copy.fd, bool(copy.alignment)
        self.hole_unit = part.hole_unit
        if self.read_direct and not self._must:
            self.cached_fd = source.open_cache()

    def is_cached(self, offset: int, length: int) -> bool:
        return self._source.is_cached(offset, length)

    def saw(self, offset: int, block: memoryview) -> None:
        if self.digests is not None:
            self.digests.add(offset, block)

    def undirect(self, step: engine.Step) -> None:
        if self._must:
            raise fail(EINVAL, "O_DIRECT")
        super().undirect(step)
        direct.switch_off(self.read_fd if step is engine.Step.READING else self.write_fd)


def copy_range(part: Range, cancel: Cancel | None) -> tuple[RangeDone, Depth]:
    """Copy a range, and sync it; what became of it. Raises OSError, Cancelled."""
    with (
        _opened(part) as source,
        closing(_Temporary(part)) as copy,
        Context(part.depth, part.block_size, idle=part.idle) as context,
    ):
        transfer = _RangeTransfer(part, source, copy)
        _drive(context, transfer, cancel)
        if transfer.failed:
            raise what_stopped(transfer)
        source.check(part.allow_changed)
        past_the_cache = False
        if transfer.digests is not None:
            past_the_cache = _verify(part, copy, transfer.digests, context, cancel)
        if copy.through_cache and part.sync:  # which is to be left to others
            os.posix_fadvise(copy.fd, part.start, part.stop - part.start, os.POSIX_FADV_DONTNEED)
        depth = Depth(context.depth, context.peak_in_flight)
    done = RangeDone(
        transfer.bytes_read,
        transfer.bytes_cached,
        transfer.bytes_written,
        transfer.holes,
        transfer.read_direct,
        transfer.write_direct,
        context.plain,
        past_the_cache,
    )
    return done, depth


@contextmanager
def _opened(part: Range) -> Iterator[Source]:
    """The source, which is the one that the coordinator sees. Raises OSError, SourceChanged."""
    with Source(part.source, part.direct, part.block_size) as source:
        seen = source.stat
        if part.seen.inode != seen.st_ino:
            raise SourceChanged(ESTALE, "source was replaced while being copied")
        if not part.allow_changed and part.seen != file_seen(seen):
            raise SourceChanged(ESTALE, "source changed while being copied")
        yield source


def _drive(context: Context, transfer: engine.Transfer, cancel: Cancel | None) -> None:
    for _ in engine.Engine(context, [transfer]).run():
        look(cancel)


def _verify(
    part: Range, copy: _Temporary, digests: Digests, context: Context, cancel: Cancel | None
) -> bool:
    """Compare what is on the disk with what was read; whether that was past the page cache."""
    size = min(part.stop, part.seen.size)
    with closing(
        Verification(copy, digests, size, part.block_size, start=part.start, whole=False)
    ) as verification:
        _drive(context, verification, cancel)
        if error := verification.why():
            raise error
        return verification.past_the_cache
