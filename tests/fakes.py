"""A context with no kernel behind it: files in memory, and a script that says what the kernel does.

What an AIO context forbids fails the test on the spot: a slot prepared or padded while it is queued
or in flight, memory that changes under a write, a wrong byte written, a sync while a write of its
file is under way, an engine that goes on for ever.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from errno import EAGAIN, EINVAL
from itertools import pairwise

from aiocp.engine import Completion, Engine, Extent, Step, Sync, Transfer

POISON = 0xDB
PATIENCE = 20_000  # operations; more than any test needs


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes of which no two stretches are alike."""
    return random.Random(seed).randbytes(size)


class File:
    """What is behind a descriptor.

    `alignment` is what direct I/O asks of memory, offset and length; 0 is a buffered descriptor.
    `refuses_direct`: any direct I/O is EINVAL. `end_first`: a read at the end gives 0 even where it
    is misaligned; some file systems look at the end first, others at the alignment. Of what a
    cached read asks for `in_memory` is there.
    """

    def __init__(
        self,
        data: bytes = b"",
        alignment: int = 0,
        *,
        refuses_direct: bool = False,
        end_first: bool = False,
    ) -> None:
        self.data = bytearray(data)
        self.alignment = alignment
        self.direct = alignment > 0
        self.refuses_direct = refuses_direct
        self.end_first = end_first
        self.in_memory: list[Extent] = []
        self.writes: list[Extent] = []
        self.synced: list[tuple[Sync, bytes]] = []  # the bytes that each sync found written
        self.expected: bytes | None = None  # what each byte must be when it is written


@dataclass(eq=False)
class Operation:
    """One iocb. `res` is set by its completion, `direct` and `memory` when it is submitted."""

    step: Step
    slot: int
    fd: int
    skip: int = 0
    length: int = 0
    offset: int = 0
    sync: Sync = Sync.NONE
    cached: bool = False
    direct_when_prepared: bool = False
    direct: bool = False
    memory: bytes = field(default=b"", repr=False)
    res: int = 0


class Script:
    """What the kernel does. This one is kind: takes everything, completes it whole and in order."""

    def takes(self, queued: int) -> int:
        """How many of the queue a submit takes."""
        return queued

    def completes(self, in_flight: list[Operation]) -> list[Operation]:
        """Which operations a reap finds completed, in their order; at least one."""
        return in_flight

    def has_completed(self, in_flight: list[Operation]) -> list[Operation]:
        """Which operations a reap that does not wait finds completed."""
        return []

    def result(self, operation: Operation) -> int | None:
        """Zero or a negative errno: that is `res`. A count: it moves at most so many bytes."""
        return None


class ScriptedContext:
    """The engine's context, on files in memory."""

    def __init__(self, depth: int, block_size: int, script: Script | None = None) -> None:
        self.depth = depth
        self.block_size = block_size
        self.script = script or Script()
        self.files: list[File] = []
        self.marked: set[int] = set()  # descriptors that are also synced on the way
        self.log: list[Operation] = []  # what completed, in that order
        self.peak = 0
        self.before_reap: Callable[[], None] = lambda: None
        self._buffers = [bytearray([POISON]) * block_size for _ in range(depth)]
        self._queued: list[Operation] = []
        self._in_flight: list[Operation] = []

    def open(self, file: File) -> int:
        """A descriptor for the file."""
        self.files.append(file)
        return len(self.files) - 1

    @property
    def held(self) -> list[Operation]:
        """What is queued or in flight."""
        return self._queued + self._in_flight

    # --- the protocol ---

    def prep_read(self, slot: int, fd: int, skip: int, length: int, offset: int) -> None:
        self._prep(Operation(Step.READING, slot, fd, skip, length, offset))

    def prep_read_cached(self, slot: int, fd: int, skip: int, length: int, offset: int) -> None:
        assert not self.files[fd].direct, "direct I/O goes past the cache"
        self._prep(Operation(Step.READING, slot, fd, skip, length, offset, cached=True))

    def prep_write(self, slot: int, fd: int, skip: int, length: int, offset: int) -> None:
        self._prep(Operation(Step.WRITING, slot, fd, skip, length, offset))

    def prep_fsync(self, slot: int, fd: int) -> None:
        self._prep_sync(Operation(Step.SYNCING, slot, fd, sync=Sync.FSYNC))

    def prep_fdsync(self, slot: int, fd: int) -> None:
        self._prep_sync(Operation(Step.SYNCING, slot, fd, sync=Sync.FDATASYNC))

    def memory(self, slot: int, length: int) -> memoryview:
        self._assert_idle(slot)
        assert 0 < length <= self.block_size
        return memoryview(self._buffers[slot])[:length]

    def pad(self, slot: int, start: int, padding: bytes) -> None:
        self._assert_idle(slot)
        end = start + len(padding)
        assert 0 <= start < end <= self.block_size, "padding outside the block"
        self._buffers[slot][start:end] = padding

    def next_data(self, slot: int, start: int, stop: int, unit: int) -> tuple[int, int]:
        self._assert_idle(slot)
        assert 0 <= start < stop <= self.block_size
        units = [self._buffers[slot][at : min(at + unit, stop)] for at in range(start, stop, unit)]
        zero = [not any(each) for each in units] + [False]
        first = zero.index(False)
        after = [*zero[first:-1], True].index(True)
        return min(start + first * unit, stop), min(start + (first + after) * unit, stop)

    def submit(self) -> None:
        if self._queued:
            taken = self.script.takes(len(self._queued))
            for operation in self._queued[:taken]:
                self._submit(operation)
            del self._queued[:taken]

    def reap(self, timeout: float | None = None) -> list[Completion]:
        if timeout == 0 and self._in_flight:
            return self._complete(self.script.has_completed(list(self._in_flight)))
        if timeout != 0:
            self.before_reap()
        if not self._in_flight:
            if not self._queued:
                return []
            self._submit(self._queued.pop(0))  # as the real one does what the kernel refuses
        completed = list(self.script.completes(list(self._in_flight)))
        assert completed, "a script that completes nothing"
        return self._complete(completed)

    def _complete(self, completed: list[Operation]) -> list[Completion]:
        for operation in completed:
            self._in_flight.remove(operation)
            operation.res = self._perform(operation)
            self.log.append(operation)
        assert len(self.log) < PATIENCE, "the engine does not come to an end"
        return [(operation.slot, operation.res) for operation in completed]

    # --- the kernel ---

    def _assert_idle(self, slot: int) -> None:
        assert 0 <= slot < self.depth, f"no slot {slot}"
        assert slot not in [operation.slot for operation in self.held], f"slot {slot} is not free"

    def _prep(self, operation: Operation) -> None:
        self._assert_idle(operation.slot)
        assert operation.skip >= 0, operation
        assert operation.offset >= 0, operation
        assert 0 < operation.length <= self.block_size - operation.skip, operation
        operation.direct_when_prepared = self.files[operation.fd].direct
        self._queued.append(operation)

    def _prep_sync(self, operation: Operation) -> None:
        self._assert_idle(operation.slot)
        early = operation.fd in [held.fd for held in self.held]
        assert not early or operation.fd in self.marked, "a sync before the last write"
        self._queued.append(operation)

    def _submit(self, operation: Operation) -> None:
        file = self.files[operation.fd]
        operation.direct = file.direct
        memory = slice(operation.skip, operation.skip + operation.length)
        if operation.step is Step.READING:
            self._buffers[operation.slot][memory] = bytes([POISON]) * operation.length
        if operation.step is Step.SYNCING:  # it covers what is written by now, nothing later
            operation.memory = bytes(file.data)
        else:
            operation.memory = bytes(self._buffers[operation.slot][memory])
        self._in_flight.append(operation)
        self.peak = max(self.peak, len(self._in_flight))

    def _perform(self, operation: Operation) -> int:
        asked = self.script.result(operation)
        if asked is not None and asked <= 0:
            return asked
        file = self.files[operation.fd]
        if operation.step is Step.SYNCING:
            file.synced.append((operation.sync, operation.memory))
            return 0
        offset, start, count = operation.offset, operation.skip, operation.length
        reading = operation.step is Step.READING
        left = max(0, len(file.data) - offset)
        if operation.direct and not (reading and file.end_first and not left):
            unit = file.alignment
            if file.refuses_direct or start % unit or count % unit or offset % unit:
                return -EINVAL
        count = min(count, asked or count)
        if operation.cached and left:
            ends = [start + length for start, length in file.in_memory if start <= offset]
            count = min(count, max(0, max(ends, default=0) - offset))
            if not count:
                return -EAGAIN
        if reading:
            count = min(count, left)
            self._read(operation, file, count)
        else:
            self._write(operation, file, count)
        return count

    def _read(self, operation: Operation, file: File, count: int) -> None:
        buffer, start, offset = self._buffers[operation.slot], operation.skip, operation.offset
        buffer[start : start + count] = file.data[offset : offset + count]

    def _write(self, operation: Operation, file: File, count: int) -> None:
        buffer, start, offset = self._buffers[operation.slot], operation.skip, operation.offset
        assert operation.memory == buffer[start : start + operation.length], "changed in flight"
        end = offset + count
        data = operation.memory[:count]
        assert file.expected is None or data == file.expected[offset:end], "wrong bytes"
        file.data.extend(bytes(max(0, end - len(file.data))))
        file.data[offset:end] = data
        file.writes.append((offset, count))


class FileTransfer(Transfer):
    """A transfer between two files in memory that knows what must come of it.

    A destination is cut to the source's size by `written`, as a file is, unless it is a `device`.
    `always`: a refusal of direct I/O is an error. Blocks of which some is said to be `in_memory`
    are read from there. One that `marks` is due to be synced on its way after each write, one that
    is `ordered` is to see its blocks one after the other.
    """

    def __init__(
        self,
        context: ScriptedContext,
        source: File,
        destination: File,
        extents: Iterable[Extent] | None = None,
        *,
        sync: Sync = Sync.FDATASYNC,
        device: bool = False,
        always: bool = False,
        in_memory: Iterable[Extent] = (),
        marks: bool = False,
        ordered: bool = False,
    ) -> None:
        super().__init__()
        self.context, self.source, self.destination = context, source, destination
        self.device, self.always, self.sync = device, always, sync
        self.read_fd, self.write_fd = context.open(source), context.open(destination)
        self.read_direct, self.write_direct = source.direct, destination.direct
        self.marks, self.marked = marks, [0]
        if marks:
            context.marked.add(self.write_fd)
        self.in_memory = list(in_memory)
        if self.in_memory:
            cache = File()
            cache.data, cache.in_memory = source.data, self.in_memory
            self.cached_fd = context.open(cache)
        self.alignment = max(source.alignment, destination.alignment, 1)
        self.size = len(source.data)
        self.extents = [(0, self.size)] if extents is None else list(extents)
        self.blocks = list(self._cut(self.extents))
        self.shown: list[tuple[int, int]] = []
        if ordered:
            self.looks, self.turns = True, deque()
        self.events: list[str] = []
        self.cause: OSError | None = None  # what this transfer itself raised
        self._old, self._read = bytes(destination.data), bytes(source.data)
        self._left = self.blocks
        self._seen = 0
        content = bytearray(self._old)
        content.extend(bytes(max(0, self.size + self.alignment - len(content))))
        for start, length in self.extents:
            content[start : start + length] = source.data[start : start + length]
        destination.expected = bytes(content)

    def _cut(self, extents: Iterable[Extent]) -> Iterator[tuple[int, int]]:
        size = self.context.block_size
        for start, length in extents:
            end = start + length
            inner = range(-(-start // size) * size, end, size)
            yield from pairwise(sorted({start, *inner, end}))

    @property
    def expected(self) -> bytes:
        """What the destination holds when the transfer succeeded."""
        assert self.destination.expected is not None
        return self.destination.expected[: len(self._old) if self.device else self.size]

    @property
    def held(self) -> list[Operation]:
        """Its operations that are queued or in flight."""
        return [o for o in self.context.held if self.owns(o)]

    @property
    def log(self) -> list[Operation]:
        """Its operations that completed, in that order."""
        return [o for o in self.context.log if self.owns(o)]

    def owns(self, operation: Operation) -> bool:
        """Whether an operation is its own."""
        fds = {self.read_fd, self.write_fd, self.cached_fd} - {-1}
        return operation.fd in fds

    def waiting(self) -> int:
        """How many of its blocks have been read and wait for one before them, in flight."""
        reading = [o.offset for o in self.held if o.step is Step.READING]
        count = max(0, len(self.turns or ()) - len(reading))
        if count:
            start, end = self.blocks[len(self.shown)]
            assert any(start <= offset < end for offset in reading), "waits for nothing"
        return count

    def wanted(self) -> int:
        """How many slots it has work for: its blocks that are not down yet, then its sync."""
        writes = self.destination.writes[self._seen :]
        self._seen += len(writes)
        self._left = [
            (start, end)
            for start, end in self._left
            if not any(start <= at < end <= at + count for at, count in writes)
        ]
        if self.failed:
            return len(self.held)
        marks = [operation for operation in self.held if operation.step is Step.SYNCING]
        return len(self._left) + len(marks) or (self.sync is not Sync.NONE)

    def wrote(self) -> None:
        self.due = self.marks

    def mark(self, offset: int) -> None:
        """All that is to be before `offset` was there when the sync that this is of began."""
        assert self.destination.expected is not None
        _, synced = self.destination.synced[-1]
        for start, stop in self.blocks:
            end = max(start, min(stop, offset))
            assert synced[start:end] == self.destination.expected[start:end], "not on the disk"
        assert offset >= self.marked[-1]
        self.marked.append(offset)

    def raises(self, error: OSError) -> OSError:
        """Remember an error that this transfer itself is about to raise."""
        assert self.cause is None, "failed twice"
        self.cause = error
        return error

    # --- what the engine calls ---

    def is_cached(self, offset: int, length: int) -> bool:
        return any(at < offset + length and offset < at + size for at, size in self.in_memory)

    def saw(self, offset: int, block: memoryview) -> None:
        end = offset + len(block)
        assert self.blocks[len(self.shown)] == (offset, end), "not its turn"
        assert block == self._read[offset:end], "not what was read"
        self.shown.append((offset, end))

    def padding(self, offset: int, length: int) -> bytes:
        return self._old[offset : offset + length].ljust(length, b"\0")

    def undirect(self, step: Step) -> None:
        self.events.append(f"undirect {step.name}")
        if self.always:
            raise self.raises(OSError(EINVAL, "direct I/O refused"))
        super().undirect(step)
        (self.source if step is Step.READING else self.destination).direct = False

    def written(self) -> None:
        self.events.append("written")
        assert not self.held, "written() while blocks are in flight"
        assert len(self.destination.synced) == len(self.marked) - 1, "written() after the sync"
        if not self.device:
            data = self.destination.data
            data[self.size :] = bytes(max(0, self.size - len(data)))


class Choices:
    """Every sequence of choices there is, depth first: `for choices in Choices.all()`.

    With a limit, every sequence in which at most so many choices are not 0.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._path: list[tuple[int, int]] = []
        self._at = 0

    @classmethod
    def all(cls, limit: int = PATIENCE) -> Iterator["Choices"]:
        choices = cls(limit)
        yield choices
        while choices._advance():
            yield choices

    def pick(self, options: int) -> int:
        """One of 0 .. options - 1."""
        if not self._left:
            return 0
        if self._at == len(self._path):
            self._path.append((0, options))
        choice, known = self._path[self._at]
        assert known == options, "the engine is not deterministic"
        self._at += 1
        self._left -= choice > 0
        return choice

    def _advance(self) -> bool:
        assert self._at == len(self._path), "the engine is not deterministic"
        self._at, self._left = 0, self._limit
        while self._path:
            choice, options = self._path.pop()
            if choice + 1 < options:
                self._path.append((choice + 1, options))
                return True
        return False


def drive(
    context: ScriptedContext,
    transfers: Iterable[FileTransfer],
    then: Callable[[FileTransfer], FileTransfer | None] = lambda _: None,
) -> list[FileTransfer]:
    """Run an engine to its end; the transfers in the order in which they ended.

    Before each reap as many slots must be taken as there is work for, at most depth. Nothing more
    may be prepared for a transfer that failed. Each transfer must end once, with nothing of it in
    flight. `then` may give a transfer to add at each end.
    """
    known = list(transfers)
    ended: list[FileTransfer] = []
    draining: dict[FileTransfer, set[Operation]] = {}
    engine = Engine(context, list(known))

    def check() -> None:
        work = sum(transfer.wanted() for transfer in known if transfer not in ended)
        waiting = sum(transfer.waiting() for transfer in known if transfer not in ended)
        assert engine.in_flight == len(context.held) + waiting <= min(context.depth, work)
        copies = any(transfer.in_memory for transfer in known)  # a block of those at a time
        assert copies or engine.in_flight == min(context.depth, work)
        for transfer in known:
            if transfer.failed:
                held = set(transfer.held)
                assert held <= draining.setdefault(transfer, held), "went on after it failed"

    context.before_reap = check
    for transfer in engine.run():
        if transfer is None:
            continue
        assert isinstance(transfer, FileTransfer)
        assert transfer in known
        assert transfer not in ended, "ended twice"
        assert not transfer.held, "ended with operations in flight"
        ended.append(transfer)
        added = then(transfer)
        if added is not None:
            known.append(added)
            engine.add(added)
    assert not context.held
    assert not engine.in_flight
    assert len(ended) == len(known)
    return ended


def assert_whole(transfer: FileTransfer) -> None:
    """It succeeded: the bytes are there, were there when it was synced, and it was synced once."""
    assert (transfer.failure, transfer.error) == (None, None)
    assert transfer.expected == transfer.destination.data
    synced = [] if transfer.sync is Sync.NONE else [(transfer.sync, transfer.expected)]
    marks = len(transfer.marked) - 1
    assert synced == transfer.destination.synced[marks:]
    assert bool(synced) == transfer.synced
    assert transfer.events.count("written") == 1
    assert transfer.shown == (transfer.blocks if transfer.looks else [])
    total = sum(length for _, length in transfer.extents)
    assert (total, total) == (transfer.bytes_read, transfer.bytes_written)
    assert 0 <= transfer.bytes_cached <= sum(length for _, length in transfer.in_memory)


def assert_failed(transfer: FileTransfer) -> None:
    """It failed, for one reason, and does not look like a success in any way."""
    assert (transfer.failure is None) != (transfer.error is None)
    assert not transfer.synced
    assert len(transfer.destination.synced) == len(transfer.marked) - 1
    assert 0 <= transfer.bytes_written <= transfer.bytes_read <= transfer.size
    syncs = [o for o in transfer.log if o.step is Step.SYNCING and o.res < 0]
    stopped_it = transfer.failure is not None and transfer.failure.step is Step.SYNCING
    assert transfer.marks or len(syncs) == stopped_it


def assert_written_once(transfer: FileTransfer) -> None:
    """Every block was written in one piece, once, at its offset: a direct write rounded up to the
    alignment, a buffered one not by a byte."""
    direct = {o.offset for o in transfer.log if o.step is Step.WRITING and o.direct and o.res > 0}
    blocks = [
        (start, -(-(end - start) // unit) * unit)
        for start, end in transfer.blocks
        for unit in [transfer.alignment if start in direct else 1]
    ]
    assert sorted(blocks) == sorted(transfer.destination.writes)
    assert not direct or transfer.destination.alignment
