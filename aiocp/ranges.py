"""A large file, cut into ranges that a crew copies, several at once, into one file.

give     the next range goes to the crew
took     its bytes are there, and synced; what is resumed later is told how far all is
ended    when all are there the file is like any other whose last block is down
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from aiocp import engine, extents
from aiocp.crew import Crew
from aiocp.direct import Direct
from aiocp.engine import Extent
from aiocp.result import Worker
from aiocp.share import Done, Ground, Range, RangeDone, file_seen
from aiocp.transfer import FileTransfer

# A range has at least so many bytes of data, and begins at a multiple of them, so that stripes and
# pages are one worker's; a file that has not two of them is not cut
RANGE = 256 << 20


def worth_cutting(size: int | None) -> bool:
    """Whether a file has more than one range."""
    return size is not None and size >= 2 * RANGE


class Part(NamedTuple):
    """The bytes from `start` to `stop`, of which `extents` hold data."""

    start: int
    stop: int
    extents: list[Extent]


def cut(data: Iterable[Extent], start: int, stop: int) -> Iterator[Part]:
    """Cut what is between `start` and `stop` into parts that each have data, but for a last one
    that has none; `data` ascends."""
    held: Part | None = None
    begin, amount = start, 0
    found: list[Extent] = []
    for offset, length in engine.blocks(data, RANGE):
        edge = offset - offset % RANGE
        if amount >= RANGE and edge > begin:
            if held is not None:
                yield held
            held = Part(begin, edge, found)
            begin, found, amount = edge, [], 0
        found.append((offset, length))
        amount += length
    if held is not None and amount < RANGE:  # too little for a range
        begin, found = held.start, held.extents + found
    elif held is not None:
        yield held
    yield Part(begin, stop, found)


class How(NamedTuple):
    """As those of `Range`, and of all of a file's."""

    direct: Direct
    depth: int
    block_size: int
    sync: bool
    verify: bool
    allow_changed: bool
    idle: bool


class Ranges:
    """The ranges of one file, whose `transfer` is laid out in a file that has a name.

    `pending` counts those that the crew has; when there are none, and no `more`, the transfer is to
    be ended by an engine, without extents. `depth` and `peak_in_flight` are the most that a worker
    had, `verified` tells that all were compared, `past_the_cache` that none of it in memory.
    """

    def __init__(
        self,
        crew: Crew,
        ground: Ground,
        source: bytes,
        temporary: bytes,
        transfer: FileTransfer,
        how: How,
        ended: Callable[[], object] = lambda: None,
    ) -> None:
        """`source` and `temporary` are the paths of the transfer's two files, absolute ones;
        `ended` is called when there is nothing more to be done."""
        self.pending = 0
        self.depth = self.peak_in_flight = 0
        self.verified, self.past_the_cache, self.plain = how.verify, True, False
        self._crew, self._ground, self._transfer, self._how = crew, ground, transfer, how
        self._path = source
        self._temporary = temporary
        self._inode = os.fstat(transfer.write_fd).st_ino
        self._open: set[int] = set()  # where the ranges start that the crew has, or has not copied
        self._parts = self._all(transfer.extents)
        self._next = next(self._parts, None)
        transfer.extents = ()
        self._ended = ended
        if not self.more:
            ended()
        transfer.record_nothing()

    @property
    def workers(self) -> tuple[Worker, ...]:
        """What each has done, of all that was given to the crew."""
        return self._crew.workers

    @property
    def more(self) -> bool:
        """Whether there is one to give."""
        return self._next is not None and not self._transfer.failed

    def give(self) -> None:
        """Give the next one to the crew. Raises ExecutorFailed."""
        part, self._next = self._next, next(self._parts, None)
        assert part is not None
        self.pending += 1
        self._open.add(part.start)
        self._crew.give(part, partial(self._took, part))

    def _all(self, data: Iterable[Extent]) -> Iterator[Range]:
        """All there are: first those that are there already, if they are to be compared."""
        transfer, resumed = self._transfer, self._transfer.resumed
        if resumed and self._how.verify:
            there = extents.find_data(transfer.read_fd, resumed, transfer.alignment)
            for part in cut(there, 0, resumed):
                yield self._range(part, copied=True)
        for part in cut(data, resumed, transfer.size):
            if part.extents or self._how.verify:
                yield self._range(part, copied=False)

    def _range(self, part: Part, *, copied: bool) -> Range:
        how, transfer = self._how, self._transfer
        return Range(
            self._ground,
            self._path,
            file_seen(transfer.source.stat),
            self._temporary,
            self._inode,
            part.start,
            part.stop,
            part.extents,
            copied,
            how.direct,
            how.depth,
            how.block_size,
            transfer.hole_unit,
            how.sync,
            how.verify,
            how.allow_changed,
            how.idle,
        )

    def _took(self, part: Range, outcome: Done | OSError) -> None:
        transfer = self._transfer
        self.pending -= 1
        if isinstance(outcome, OSError):
            transfer.error = transfer.error or outcome
        else:
            self._open.discard(part.start)
            self._add_up(part, outcome)
        if not (self.pending or self.more):
            self._ended()

    def _add_up(self, part: Range, outcome: Done) -> None:
        transfer, done = self._transfer, outcome.what
        assert isinstance(done, RangeDone)
        self.depth = max(self.depth, outcome.depth.asked)
        self.peak_in_flight = max(self.peak_in_flight, outcome.depth.peak)
        self.past_the_cache &= done.past_the_cache
        if part.copied:
            return
        self.plain |= done.plain
        transfer.bytes_read += done.bytes_read
        transfer.bytes_cached += done.bytes_cached
        transfer.bytes_written += done.bytes_written
        transfer.holes += done.holes
        transfer.read_direct &= done.read_direct
        transfer.write_direct &= done.write_direct
        self._mark()

    def _mark(self) -> None:
        """Have it known how far all is on the disk, now and then, if that is to be resumed."""
        unfinished = self._transfer.unfinished
        if unfinished is not None and unfinished.due(self._transfer.bytes_written):
            unfinished.mark(self._reached())

    def _reached(self) -> int:
        first = self._next.start if self._next is not None else self._transfer.size
        return max(self._transfer.resumed, min(self._open, default=first))

    def stopped(self) -> None:
        """Have it known how far all is that has come back: nothing more does."""
        if (unfinished := self._transfer.unfinished) is not None:
            unfinished.mark(self._reached())
            unfinished.settle()
