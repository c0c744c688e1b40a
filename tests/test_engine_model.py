"""The engine against a kernel that does whatever an AIO context may do, in every way at once.

The same world twice: small enough to walk through all of it, and large with hypothesis choosing.
What the scripted context and `drive` check all along: in flight never over depth and always as
much as there is work for, memory never touched in flight, no wrong byte written, no sync before the
last write, every operation reaped, each transfer ended once, an end.
"""

from collections.abc import Callable, Iterator
from errno import EAGAIN, EINVAL, EIO, ENOSPC

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiocp.engine import Extent, Failure, Step, Sync
from fakes import (
    Choices,
    File,
    FileTransfer,
    Operation,
    Script,
    ScriptedContext,
    assert_failed,
    assert_whole,
    assert_written_once,
    drive,
    noise,
)

Pick = Callable[[int], int]  # one of so many; 0 is what a kind kernel does


class AnyKernel(Script):
    """Completes anything in any order, takes any part of the queue, and answers what it likes."""

    def __init__(self, pick: Pick, answer: Callable[[Operation], int | None]) -> None:
        self.pick, self.answer = pick, answer

    def result(self, operation: Operation) -> int | None:
        return self.answer(operation)

    def takes(self, queued: int) -> int:
        return queued - self.pick(queued + 1)

    def has_completed(self, in_flight: list[Operation]) -> list[Operation]:
        return self.completes(in_flight) if self.pick(2) else []

    def completes(self, in_flight: list[Operation]) -> list[Operation]:
        completed = [in_flight.pop(self.pick(len(in_flight)))]
        while in_flight and self.pick(2):
            completed.append(in_flight.pop(self.pick(len(in_flight))))
        return completed


class AnyTransfer(FileTransfer):
    """May fail by itself: `extents_fail` after those there are, `written_fails`."""

    extents_fail = written_fails = False
    failed_after = -1  # the number of completions there had been when the extents failed

    def failing_extents(self, extents: list[Extent]) -> Iterator[Extent]:
        yield from extents
        if self.extents_fail:
            self.failed_after = len(self.context.log)
            raise self.raises(OSError(EIO, "extents"))

    def written(self) -> None:
        super().written()
        if self.written_fails:
            raise self.raises(OSError(ENOSPC, "written"))


def first_trouble(transfer: AnyTransfer) -> Failure | OSError | None:
    """What must have failed the transfer, by what the kernel answered."""
    refused: set[Step] = set()
    for count, operation in enumerate(transfer.context.log):
        if count == transfer.failed_after:
            return transfer.cause
        if not transfer.owns(operation) or (operation.cached and operation.res == -EAGAIN):
            continue
        step, res, offset = operation.step, operation.res, operation.offset
        if step is Step.SYNCING:
            if res < 0:
                return Failure(step, -res, 0)
        elif res == 0:
            return Failure(step, 0 if step is Step.READING else ENOSPC, offset)
        elif res == -EINVAL and step is Step.READING and operation.skip % transfer.alignment:
            return Failure(step, 0, offset)
        elif res == -EINVAL and operation.direct_when_prepared:
            if transfer.always:
                return transfer.cause
            refused.add(step)
        elif res < 0:
            return Failure(step, -res, offset)
    return transfer.cause


def check(transfer: AnyTransfer, original: bytes) -> None:
    """The transfer ended as it must: whole and synced, or failed once and for the right reason."""
    trouble = first_trouble(transfer)
    if isinstance(trouble, Failure):
        assert (trouble, None) == (transfer.failure, transfer.error)
    else:
        assert transfer.failure is None
        assert transfer.error is trouble
    moves = [operation for operation in transfer.log if operation.step is not Step.SYNCING]
    ends = {end for _, end in transfer.blocks}
    for move in moves:
        if move.cached:
            assert move.offset + move.length in ends
        elif move.step is Step.READING or move.direct_when_prepared:
            assert (move.skip + move.length) % transfer.alignment == 0
        else:
            assert move.offset + move.length in ends
    if trouble is None:
        assert_whole(transfer)
        if all(operation.res == operation.length for operation in moves):
            assert_written_once(transfer)
    else:
        assert_failed(transfer)
    assert original.startswith(transfer.source.data)  # it may have shrunk, but is never written to
    assert len(transfer.events) == len(set(transfer.events))  # undirect once a side, written once


# --- all of a small world ---


@pytest.mark.parametrize(
    ("depth", "sizes", "alignments", "surprises", "in_memory"),
    [
        (1, (3,), (2, 2), 5, []),
        (1, (2, 1), (0, 0), 4, []),
        (2, (3,), (2, 2), 4, []),
        (2, (3,), (2, 0), 3, []),
        (2, (3,), (0, 2), 3, []),
        (2, (1, 1), (0, 0), 4, []),
        (2, (3, 0), (2, 2), 2, []),
        (3, (5, 1), (2, 2), 2, []),
        (2, (5,), (2, 2), 2, [(1, 2), (4, 1)]),
        (2, (3, 1), (2, 0), 2, [(0, 2)]),
    ],
)
@pytest.mark.parametrize("ordered", [False, True])
def test_all_that_can_happen_to_a_few_blocks(
    depth: int,
    sizes: tuple[int, ...],
    alignments: tuple[int, int],
    surprises: int,
    in_memory: list[Extent],
    ordered: bool,
) -> None:
    """Every run in which the kernel is unkind at most so many times.

    It is unkind when it completes another operation than the oldest or more than one, when it does
    not take the whole queue, and when it answers anything but the whole count.
    """

    def answer(operation: Operation) -> int | None:
        answers = [None, -EIO, -EINVAL, 0, 1]
        return answers[choices.pick(3 if operation.step is Step.SYNCING else 5)]

    for choices in Choices.all(surprises):
        context = ScriptedContext(depth, 2, AnyKernel(choices.pick, answer))
        transfers = [
            AnyTransfer(
                context,
                File(noise(size, seed), alignments[0]),
                File(b"", alignments[1]),
                in_memory=in_memory,
                ordered=ordered,
            )
            for seed, size in enumerate(sizes)
        ]
        drive(context, transfers)
        for seed, transfer in enumerate(transfers):
            check(transfer, noise(sizes[seed], seed))


# --- a large one ---


class World:
    """Transfers of any shape, through a context of any size, on a kernel that does as it likes."""

    def __init__(self, pick: Pick) -> None:
        self.pick = pick
        self.mischief = pick(4)  # 0: no trouble; 1: short counts; 2, 3: more and more errors
        kernel = AnyKernel(pick if pick(2) else lambda _: 0, self.result)
        self.context = ScriptedContext(1 + pick(6), 8 * (1 + pick(4)), kernel)
        self.transfers = [self.transfer(seed) for seed in range(1 + pick(4))]

    def rarely(self) -> bool:
        return self.mischief > 1 and self.pick(8) == 7

    def transfer(self, seed: int, size: int | None = None) -> AnyTransfer:
        pick = self.pick
        size = pick(10 * self.context.block_size) if size is None else size
        source, destination = (
            File(data, [0, 1, 2, 8][pick(4)], refuses_direct=self.rarely(), end_first=bool(pick(2)))
            for data in (noise(size, seed), noise(pick(2) * (size + 8), seed + 100))
        )
        unit = max(source.alignment, destination.alignment, 1)
        transfer = AnyTransfer(
            self.context,
            source,
            destination,
            self.extents(size, unit),
            sync=[Sync.FDATASYNC, Sync.FSYNC, Sync.NONE][pick(3)],
            device=len(destination.data) > size,
            always=self.rarely(),
            in_memory=self.extents(size, 1) or [] if source.direct and pick(2) else [],
            marks=not pick(3),
            ordered=bool(pick(2)),
        )
        transfer.extents_fail, transfer.written_fails = self.rarely(), self.rarely()
        if transfer.extents_fail:
            transfer.extents = transfer.failing_extents(list(transfer.extents))
        return transfer

    def extents(self, size: int, unit: int) -> list[Extent] | None:
        """Data and holes in turn, at aligned bytes; the last may end anywhere."""
        if not self.pick(3):
            return None
        ends = sorted({unit * self.pick(size // unit + 1) for _ in range(self.pick(6))})
        ends += [size] * (len(ends) % 2)
        return [(start, end - start) for start, end in zip(ends[::2], ends[1::2], strict=True)]

    def result(self, operation: Operation) -> int | None:
        if not self.mischief or self.pick(4):
            return None
        if self.rarely():
            return -[EIO, ENOSPC, EINVAL, EAGAIN][self.pick(4)]
        if operation.step is Step.SYNCING:
            return None
        if self.rarely():
            if operation.step is Step.READING:  # the source shrinks
                data = self.context.files[operation.fd].data
                del data[self.pick(len(data) + 1) :]
            return None
        return operation.length - self.pick(operation.length + (self.mischief > 1))

    def directory(self, transfer: FileTransfer) -> AnyTransfer | None:
        """What is added when a transfer ended: often the sync of its directory."""
        if not transfer.synced or transfer.size == 0 or self.pick(2):
            return None
        directory = self.transfer(0, size=0)
        self.transfers.append(directory)
        return directory


@settings(
    max_examples=400,
    deadline=None,
    database=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_anything_that_can_happen(data: st.DataObject) -> None:
    world = World(lambda options: data.draw(st.integers(0, options - 1)))
    originals = [bytes(transfer.source.data) for transfer in world.transfers]
    drive(world.context, world.transfers, world.directory)
    assert world.context.peak <= world.context.depth
    for transfer in world.transfers:
        original = originals.pop(0) if originals else b""
        check(transfer, original)
