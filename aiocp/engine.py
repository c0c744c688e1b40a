"""Copy blocks at a fixed in-flight depth.

    start     while a slot is free and a block is left, the slot reads the block
    complete  a whole read becomes the write of its block, a whole write frees its slot
    holes     of a block whose zeroes are to be holes the rest is written, a stretch after the other
    turns     where blocks are to be seen in order, one that was read waits for those before it
    sync      a transfer whose last block is down takes one slot for its sync, and is finished
    mark      one that is to be resumed is also synced on its way, among its blocks

A slot goes FREE -> READING -> WRITING -> FREE for a block, WAITING before WRITING where it has to,
and FREE -> SYNCING -> FREE for a sync. The engine never waits: `start` begins what can be begun,
`complete` takes what has ended, and whoever drives them decides how to wait in between (`run` does
it with the context's `reap`). With a pace a block is begun when that says so, and `delay` tells for
how long there is nothing to start. It knows integers only: descriptors, offsets, lengths, slots.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from enum import IntEnum
from errno import EAGAIN, EINVAL, ENOSPC
from typing import NamedTuple, Protocol

Completion = tuple[int, int]  # slot, res: a byte count or a negative errno
Extent = tuple[int, int]  # offset, length


class Context(Protocol):
    """What the engine needs of an AIO context: `depth` slots, each with a block of memory.

    A prep queues one operation on a slot; a cached read takes what is in memory, and is EAGAIN, or
    short, where something is not. `submit` hands the queue to the kernel, or as much of it as the
    kernel takes now; `reap` waits for at least one completion while any is in flight, or with a
    timeout for so many seconds, in any case.
    """

    depth: int
    block_size: int

    def prep_read(self, slot: int, fd: int, skip: int, length: int, offset: int) -> None: ...
    def prep_read_cached(self, slot: int, fd: int, skip: int, length: int, offset: int) -> None: ...
    def prep_write(self, slot: int, fd: int, skip: int, length: int, offset: int) -> None: ...
    def prep_fsync(self, slot: int, fd: int) -> None: ...
    def prep_fdsync(self, slot: int, fd: int) -> None: ...
    def memory(self, slot: int, length: int) -> memoryview: ...
    def pad(self, slot: int, start: int, padding: bytes) -> None: ...
    def next_data(self, slot: int, start: int, stop: int, unit: int) -> tuple[int, int]: ...
    def submit(self) -> None: ...
    def reap(self, timeout: float | None = None) -> list[Completion]: ...


class Pace(Protocol):
    """What has blocks wait for their turns: `reserve` gives the time at which one of so many bytes
    is due, `left` the seconds until then, or until it is to be asked again."""

    def reserve(self, length: int) -> float: ...
    def left(self, due: float) -> float: ...


class Sync(IntEnum):
    """How a transfer ends: not synced, its data synced, or its data and all metadata."""

    NONE = 0
    FDATASYNC = 1
    FSYNC = 2


class Step(IntEnum):
    """What a slot is doing."""

    FREE = 0
    READING = 1
    WRITING = 2
    SYNCING = 3
    MARKING = 4
    WAITING = 5


class Failure(NamedTuple):
    """Why a transfer stopped: the step, the errno (0 for a source that ended early), where."""

    step: Step
    errno: int
    offset: int


class Transfer:
    """An open source, an open destination and the extents still to copy between them.

    Reads are rounded up to `alignment` bytes, and so are direct writes; what a write covers past
    the end of its block is `padding(length)`. Buffered writes are exact. With a `hole_unit`, a
    multiple of the alignment, what is all zeroes in units of so many bytes is not written. With a
    `cached_fd`, which is not direct, blocks that are in memory are read from there. What `looks` is
    shown each block that was read; with `turns`, an empty deque, in the order of the extents. A
    transfer that sets `due` is synced on its way, and told by `mark` up to where it is on the disk.
    One without extents is only synced, e.g. a directory, one without a `write_fd` only read.
    """

    read_fd = write_fd = cached_fd = -1
    read_direct = write_direct = False
    looks = due = False
    turns: deque[int] | None = None  # its slots whose blocks were not shown yet
    alignment = 1
    hole_unit = 0
    sync = Sync.FDATASYNC
    extents: Iterable[Extent] = ()

    def __init__(self) -> None:
        self.failure: Failure | None = None
        self.error: OSError | None = None
        self.bytes_read = 0
        self.bytes_cached = 0  # of those read, by way of `cached_fd`
        self.bytes_written = 0
        self.holes = 0  # bytes that were not written, to be holes
        self.resumed = 0  # bytes that were there before
        self.synced = False
        self.in_flight = 0  # slots that this transfer holds

    @property
    def failed(self) -> bool:
        return self.failure is not None or self.error is not None

    @property
    def moved(self) -> int:
        """How many bytes are where they belong."""
        return self.resumed + self.bytes_written + self.holes

    def is_cached(self, offset: int, length: int) -> bool:
        """Whether a block is to be read by way of `cached_fd`."""
        return False

    def saw(self, offset: int, block: memoryview) -> None:
        """Take note of a block that was read; an OSError fails the transfer."""

    def mark(self, offset: int) -> None:
        """Take note that all before `offset` is on the disk, of a transfer whose extents ascend."""

    def padding(self, offset: int, length: int) -> bytes:
        """What to write past the end of the source, from `offset`, to fill `length` bytes."""
        return bytes(length)

    def wrote(self) -> None:
        """Take note of `bytes_written`, which has grown."""

    def undirect(self, step: Step) -> None:
        """Go on without O_DIRECT on the side that refused it; an OSError fails the transfer."""
        if step is Step.READING:
            self.read_direct = False
        else:
            self.write_direct = False

    def written(self) -> None:
        """Do what comes between the last write and the sync; an OSError fails the transfer."""


def blocks(extents: Iterable[Extent], block_size: int) -> Iterator[Extent]:
    """Cut extents into blocks that start at multiples of `block_size` or at an extent's start."""
    for start, length in extents:
        offset, end = start, start + length
        while offset < end:
            stop = min(end, offset - offset % block_size + block_size)
            yield offset, stop - offset
            offset = stop


class Engine:
    """Drives transfers through a context, with as many slots in flight as there is work for."""

    def __init__(
        self, context: Context, transfers: Iterable[Transfer | None], pace: Pace | None = None
    ) -> None:
        """Take up what `transfers` gives; None is that there is none now, and more may come."""
        depth = context.depth
        self.bytes_written = 0  # by all transfers
        self.delay: float | None = None  # seconds until a block may begin that waits for the pace
        self._context = context
        self._pace = pace
        self._held: Extent | None = None  # the block that waits
        self._due = 0.0  # until then
        self._transfers = iter(transfers)
        self._added: deque[Transfer] = deque()
        self._current: Transfer | None = None
        self._blocks: Iterator[Extent] = iter(())
        self._begun = 0  # of the current transfer all blocks before here
        self._free = list(range(depth - 1, -1, -1))
        self._used = 0  # slots that have been in use: the first ones, as the last freed goes first
        self._step = [Step.FREE] * depth
        self._transfer: list[Transfer | None] = [None] * depth
        self._offset = [0] * depth  # of the block, in the file
        self._length = [0] * depth  # of the block
        self._start = [0] * depth  # what of it this step moves: from here
        self._stop = [0] * depth  # to here
        self._done = [0] * depth  # and how far it has come
        self._ready: deque[int] = deque()  # slots that waited, and whose turn has come
        self._copies = False  # whether the submit to come copies a block from memory
        self._cached = [False] * depth  # whether what is in flight reads from memory
        self._direct = [False] * depth  # whether what is in flight may be direct I/O

    @property
    def in_flight(self) -> int:
        """How many slots are taken."""
        return len(self._step) - len(self._free)

    @property
    def ready(self) -> bool:
        """Whether a block can go on that has waited: then `complete` is to be called at once."""
        return bool(self._ready)

    def add(self, transfer: Transfer) -> None:
        """Take up a transfer before those that the iterator still holds."""
        self._added.append(transfer)

    def start(self) -> list[Transfer]:
        """Fill the free slots and submit.

        Returns at the first transfer that ended without needing a slot, so that what it holds can
        be let go before the next is opened; call again then. After a block that is in memory, too:
        the submit copies it, and its write is not to wait until others are copied.
        """
        finished: list[Transfer] = []
        self._copies = False
        self.delay = None
        while self._free and not (finished or self._copies) and self._next_block(finished):
            pass
        self._context.submit()
        return finished

    def complete(self, completions: Iterable[Completion]) -> list[Transfer]:
        """Advance each completed slot by a step; return the transfers that ended by it.

        Of those that have waited for their turns one goes on: to look at it takes as long as to
        read it, and the disk is to have something to do meanwhile.
        """
        finished: list[Transfer] = []
        for slot, res in completions:
            step, transfer = self._step[slot], self._transfer[slot]
            assert transfer is not None
            if step is Step.READING:
                self._read_done(slot, res)
            elif step is Step.WRITING:
                self._write_done(slot, res)
            else:
                self._sync_done(slot, res)
            if self._step[slot] is Step.FREE:
                self._release(slot, finished)
            if transfer.turns:
                self._take_turns(transfer, transfer.turns)
        self._go_on(finished)
        return finished

    def run(self) -> Iterator[Transfer | None]:
        """Drive to the end, waiting in `reap`: yield transfers as they end, None at each reap."""
        while True:
            if finished := self.start():
                yield from finished
            elif self.in_flight or self.delay:
                yield from self.complete(self._context.reap(0 if self._ready else self.delay))
                yield None
            else:
                return

    # --- refilling ---

    def _next_block(self, finished: list[Transfer]) -> bool:
        """Put the next block into a free slot, or take up the next transfer; False: none left."""
        transfer = self._current
        if transfer is None:
            transfer = self._added.popleft() if self._added else next(self._transfers, None)
            if transfer is None:
                return False
            self._current = transfer
            self._blocks = blocks(transfer.extents, self._context.block_size)
        if transfer.due and not transfer.failed:
            self._begin_mark(transfer)
            return True
        block, self._held = self._held, None
        if transfer.failed:
            block = None
        elif block is None:
            try:
                block = next(self._blocks, None)
                if block is not None and self._pace is not None:
                    self._due = self._pace.reserve(block[1])
            except OSError as error:  # the extents are read lazily, from the source
                transfer.error = error
        if block is None:
            self._current = None
            if not transfer.in_flight:
                self._end(transfer, finished)
            return True
        if self._pace is not None and (left := self._pace.left(self._due)):
            self._held, self.delay = block, left
            return False
        slot = self._take(transfer)
        self._offset[slot], self._length[slot] = block
        self._begun = block[0] + block[1]
        if transfer.turns is not None:
            transfer.turns.append(slot)
        self._cached[slot] = self._copies = transfer.cached_fd >= 0 and transfer.is_cached(*block)
        self._begin(slot, Step.READING, 0, block[1])
        if slot == self._used:  # its memory was made for this: let the disk begin meanwhile
            self._used += 1
            self._context.submit()
        return True

    def _take(self, transfer: Transfer) -> int:
        slot = self._free.pop()
        self._transfer[slot] = transfer
        transfer.in_flight += 1
        return slot

    def _release(self, slot: int, finished: list[Transfer]) -> None:
        transfer = self._transfer[slot]
        assert transfer is not None
        self._transfer[slot] = None
        self._free.append(slot)
        transfer.in_flight -= 1
        if not transfer.in_flight and transfer is not self._current:
            self._end(transfer, finished)

    def _end(self, transfer: Transfer, finished: list[Transfer]) -> None:
        """With no block left and none in flight: sync once, then the transfer is finished."""
        if not transfer.failed and not transfer.synced:
            try:
                transfer.written()
            except OSError as error:
                transfer.error = error
            else:
                if transfer.sync is not Sync.NONE:
                    self._begin_sync(self._take(transfer), transfer)
                    return
        finished.append(transfer)

    # --- the steps of a slot ---

    def _begin(self, slot: int, step: Step, start: int, stop: int) -> None:
        self._step[slot] = step
        self._start[slot] = self._done[slot] = start
        self._stop[slot] = stop
        self._prep(slot)

    def _prep(self, slot: int) -> None:
        """Queue what is left of the slot's step, a direct write or any read rounded up."""
        transfer = self._transfer[slot]
        assert transfer is not None
        done, stop, alignment = self._done[slot], self._stop[slot], transfer.alignment
        offset = self._offset[slot] + done
        if self._cached[slot]:
            self._direct[slot] = False
            self._context.prep_read_cached(slot, transfer.cached_fd, done, stop - done, offset)
        elif self._step[slot] is Step.READING:
            rest = -(-stop // alignment) * alignment - done
            self._direct[slot] = transfer.read_direct
            self._context.prep_read(slot, transfer.read_fd, done, rest, offset)
        else:
            direct = self._direct[slot] = transfer.write_direct
            rest = (-(-stop // alignment) * alignment if direct else stop) - done
            self._context.prep_write(slot, transfer.write_fd, done, rest, offset)

    def _begin_sync(self, slot: int, transfer: Transfer) -> None:
        self._step[slot] = Step.SYNCING
        if transfer.sync is Sync.FSYNC:
            self._context.prep_fsync(slot, transfer.write_fd)
        else:
            self._context.prep_fdsync(slot, transfer.write_fd)

    def _begin_mark(self, transfer: Transfer) -> None:
        """Sync what of the current transfer is down, while its other blocks are in flight."""
        holders = enumerate(self._transfer)
        in_flight = [self._offset[slot] for slot, holder in holders if holder is transfer]
        transfer.due = False
        slot = self._take(transfer)
        self._offset[slot] = min(in_flight, default=self._begun)
        self._step[slot] = Step.MARKING
        self._context.prep_fdsync(slot, transfer.write_fd)

    def _read_done(self, slot: int, res: int) -> None:
        transfer = self._transfer[slot]
        assert transfer is not None
        if self._cached[slot]:
            self._cached[slot] = False
            if not transfer.failed and self._read_from_memory(slot, transfer, res):
                return
        # a residue that is not aligned reads EINVAL, not 0, at the end of a source that shrank
        if res == -EINVAL and self._done[slot] % transfer.alignment:
            res = 0
        if not self._moved(slot, res, 0):
            return
        if transfer.turns is None:
            self._read(slot, transfer)
        else:
            self._step[slot] = Step.WAITING

    def _take_turns(self, transfer: Transfer, turns: deque[int]) -> None:
        """See which blocks wait for none any more that is before them.

        The first that is left is in flight, so its turn comes; of a transfer that has failed none
        has to wait, and what is in flight ends by itself.
        """
        while turns and (transfer.failed or self._step[turns[0]] is Step.WAITING):
            slot = turns.popleft()
            if self._step[slot] is Step.WAITING:
                self._ready.append(slot)

    def _go_on(self, finished: list[Transfer]) -> None:
        """Go on with a block whose turn has come, and let go of those whose transfer has failed."""
        while self._ready:
            slot = self._ready.popleft()
            transfer = self._transfer[slot]
            assert transfer is not None
            self._step[slot] = Step.FREE
            if going := not transfer.failed:
                self._read(slot, transfer)
            if self._step[slot] is Step.FREE:
                self._release(slot, finished)
            if going:
                return

    def _read(self, slot: int, transfer: Transfer) -> None:
        """Write what was read, when it was looked at."""
        length = self._length[slot]
        transfer.bytes_read += length
        if transfer.looks and not self._show(slot, transfer):
            self._step[slot] = Step.FREE
            return
        missing = -length % transfer.alignment
        if missing and transfer.write_direct:
            try:
                padding = transfer.padding(self._offset[slot] + length, missing)
            except OSError as error:
                transfer.error = error
                self._step[slot] = Step.FREE
                return
            self._context.pad(slot, length, padding)
        self._write(slot, transfer, 0)

    def _show(self, slot: int, transfer: Transfer) -> bool:
        """Let a transfer see what was read; whether it is to be written."""
        block = self._context.memory(slot, self._length[slot])
        try:
            transfer.saw(self._offset[slot], block)
        except OSError as error:
            transfer.error = error
        return not transfer.failed and transfer.write_fd >= 0

    def _read_from_memory(self, slot: int, transfer: Transfer, res: int) -> bool:
        """Count what was in memory, and read the rest from the disk; whether there is any."""
        length = self._length[slot]
        if res < 0 and res != -EAGAIN:
            return False
        done = length if res >= length else max(res, 0) // transfer.alignment * transfer.alignment
        transfer.bytes_cached += done
        if res == 0 or done == length:
            return False
        self._done[slot] = done
        self._prep(slot)
        return True

    def _write(self, slot: int, transfer: Transfer, start: int) -> None:
        """Write what the block holds from `start` to the next hole; with nothing left, free it."""
        stop = self._length[slot]
        if transfer.hole_unit and start < stop:
            hole = start
            start, stop = self._context.next_data(slot, start, stop, transfer.hole_unit)
            transfer.holes += start - hole
        if start < stop:
            self._begin(slot, Step.WRITING, start, stop)
        else:
            self._step[slot] = Step.FREE

    def _write_done(self, slot: int, res: int) -> None:
        if self._moved(slot, res, ENOSPC):
            transfer = self._transfer[slot]
            assert transfer is not None
            written = self._stop[slot] - self._start[slot]
            self.bytes_written += written
            transfer.bytes_written += written
            transfer.wrote()
            self._write(slot, transfer, self._stop[slot])

    def _sync_done(self, slot: int, res: int) -> None:
        transfer = self._transfer[slot]
        assert transfer is not None
        if res < 0:
            if not transfer.failed:
                transfer.failure = Failure(Step.SYNCING, -res, 0)
        elif self._step[slot] is Step.MARKING:
            transfer.mark(self._offset[slot])
        else:
            transfer.synced = True
        self._step[slot] = Step.FREE

    def _moved(self, slot: int, res: int, errno_of_zero: int) -> bool:
        """Count `res` bytes; True when the step is whole. Else requeue the residue, or fail."""
        transfer = self._transfer[slot]
        assert transfer is not None
        before = self._done[slot]
        if not transfer.failed:
            if res > 0:
                done = before + res
                if done >= self._stop[slot]:
                    return True
                # go on where it stopped: at the aligned byte before it, if that is progress
                aligned = done - done % transfer.alignment
                self._done[slot] = aligned if aligned > before else done
                self._prep(slot)
                return False
            if res == -EINVAL and self._direct[slot]:
                if self._without_direct(slot, transfer):
                    self._prep(slot)
                    return False
            else:
                errno, offset = -res or errno_of_zero, self._offset[slot] + before
                transfer.failure = Failure(self._step[slot], errno, offset)
        self._step[slot] = Step.FREE
        return False

    def _without_direct(self, slot: int, transfer: Transfer) -> bool:
        step = self._step[slot]
        if transfer.read_direct if step is Step.READING else transfer.write_direct:
            try:
                transfer.undirect(step)
            except OSError as error:
                transfer.error = error
                return False
        return True
