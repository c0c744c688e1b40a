"""Promises of the engine, kept against a scripted context: any order, any count, any error."""

from collections.abc import Callable, Iterable, Iterator
from errno import EAGAIN, EBADF, EDQUOT, EFBIG, EINTR, EINVAL, EIO, ENOMEM, ENOSPC
from itertools import pairwise

import pytest

from aiocp.engine import Engine, Extent, Failure, Step, Sync, Transfer, blocks
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

ALIGNMENTS = [0, 512, 4096]
ERRNOS = [EIO, ENOSPC, EDQUOT, EFBIG, EBADF, ENOMEM, EAGAIN, EINTR]
READ, WRITE, SYNC = Step.READING, Step.WRITING, Step.SYNCING


class Nth(Script):
    """The first operation of a step at an offset ends as asked, everything else is kind."""

    def __init__(self, step: Step, offset: int, res: int) -> None:
        self.step, self.offset, self.res = step, offset, res
        self.met = False

    def result(self, operation: Operation) -> int | None:
        if self.met or (operation.step, operation.offset) != (self.step, self.offset):
            return None
        self.met = True
        return self.res


class AtMost(Script):
    """No read or write moves more than so many bytes."""

    def __init__(self, reads: int | None = None, writes: int | None = None) -> None:
        self.counts = {READ: reads, WRITE: writes}

    def result(self, operation: Operation) -> int | None:
        return self.counts.get(operation.step)


class Backwards(Script):
    """What was submitted last completes first, one at a time."""

    def completes(self, in_flight: list[Operation]) -> list[Operation]:
        return in_flight[-1:]


def copy(
    size: int,
    *,
    depth: int = 2,
    block_size: int = 8,
    script: Script | None = None,
    alignments: tuple[int, int] = (0, 0),
    always: bool = False,
    in_memory: Iterable[Extent] = (),
    ordered: bool = False,
) -> FileTransfer:
    """Copy one file of `size` bytes."""
    source, destination = (File(alignment=alignment) for alignment in alignments)
    source.data[:] = noise(size)
    context = ScriptedContext(depth, block_size, script)
    transfer = FileTransfer(
        context, source, destination, always=always, in_memory=in_memory, ordered=ordered
    )
    assert drive(context, [transfer]) == [transfer]
    return transfer


def several(
    context: ScriptedContext, *sizes: int, sync: Sync = Sync.FDATASYNC
) -> list[FileTransfer]:
    """Transfers of different files of these sizes."""
    return [
        FileTransfer(context, File(noise(size, seed)), File(), sync=sync)
        for seed, size in enumerate(sizes)
    ]


# --- blocks ---


@pytest.mark.parametrize(
    ("extents", "expected"),
    [
        ([], []),
        ([(0, 0)], []),
        ([(0, 1)], [(0, 1)]),
        ([(0, 10)], [(0, 10)]),
        ([(0, 11)], [(0, 10), (10, 1)]),
        ([(20, 20)], [(20, 10), (30, 10)]),
        ([(3, 4)], [(3, 4)]),
        ([(3, 9)], [(3, 7), (10, 2)]),
        ([(3, 4), (8, 0), (8, 5)], [(3, 4), (8, 2), (10, 3)]),
    ],
)
def test_blocks_start_at_multiples_or_where_an_extent_starts(
    extents: list[Extent], expected: list[Extent]
) -> None:
    assert expected == list(blocks(extents, 10))


# --- whole copies ---


@pytest.mark.parametrize("depth", [1, 3, 64])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_every_byte_is_written_once_at_its_offset(depth: int, alignment: int) -> None:
    """Sizes 0, 1, and around every boundary of alignment, block, and depth x block."""
    block = 2 * (alignment or 8)
    marks = {0, alignment, block, 2 * block, depth * block, depth * block + alignment}
    for size in sorted({max(0, mark + near) for mark in marks for near in (-1, 0, 1)}):
        transfer = copy(size, depth=depth, block_size=block, alignments=(alignment, alignment))
        assert_whole(transfer)
        assert_written_once(transfer)


@pytest.mark.parametrize("alignments", [(512, 0), (0, 512), (512, 4096), (4096, 512)])
def test_both_sides_get_the_alignment_of_the_stricter_one(alignments: tuple[int, int]) -> None:
    for size in (1, 511, 512, 513, 8191, 8192, 8193):
        transfer = copy(size, block_size=8192, alignments=alignments)
        assert_whole(transfer)
        assert_written_once(transfer)


@pytest.mark.parametrize("extents", [[(0, 8), (24, 8), (40, 9)], [(8, 24)], [(44, 5)], []])
def test_what_is_not_in_an_extent_is_neither_read_nor_written(extents: list[Extent]) -> None:
    context = ScriptedContext(2, 16)
    destination = File(noise(49, 2))
    transfer = FileTransfer(context, File(noise(49, 1)), destination, extents)
    drive(context, [transfer])
    assert_whole(transfer)
    assert_written_once(transfer)
    reads = [(o.offset, o.length) for o in context.log if o.step is READ]
    assert sorted(reads) == sorted(destination.writes)


@pytest.mark.parametrize("size", [1, 511, 512, 513, 1023, 1025])
def test_a_device_keeps_its_own_bytes_past_the_end(size: int) -> None:
    context = ScriptedContext(2, 1024)
    source, device = File(noise(size, 1), 512), File(noise(4096, 2), 512)
    transfer = FileTransfer(context, source, device, device=True)
    drive(context, [transfer])
    assert_whole(transfer)
    assert device.data == source.data + noise(4096, 2)[size:]


def test_a_source_that_grows_is_copied_to_the_size_it_had() -> None:
    class Growing(Script):
        def result(self, operation: Operation) -> int | None:
            source.data += noise(100)
            return None

    context = ScriptedContext(2, 1024, Growing())
    source = File(noise(1300), 512)
    transfer = FileTransfer(context, source, File(b"", 512))
    drive(context, [transfer])
    assert_whole(transfer)


# --- orders ---


class AnyOrder(Script):
    """Any of what is in flight completes next; in `batches`, or one at a time."""

    def __init__(self, choices: Choices, batches: bool) -> None:
        self.pick, self.batches = choices.pick, batches

    def has_completed(self, in_flight: list[Operation]) -> list[Operation]:
        return self.completes(in_flight) if self.batches and self.pick(2) else []

    def completes(self, in_flight: list[Operation]) -> list[Operation]:
        completed = [in_flight.pop(self.pick(len(in_flight)))]
        while self.batches and in_flight and self.pick(2):
            completed.append(in_flight.pop(self.pick(len(in_flight))))
        return completed


@pytest.mark.parametrize(
    ("depth", "count", "batches", "orders"),
    [
        (1, 4, False, 1),
        (2, 2, False, 6),  # 4! / 2!^2
        (3, 3, False, 90),  # 6! / 2!^3
        (4, 4, False, 2520),  # 8! / 2!^4
        (2, 4, False, None),
        (3, 5, False, None),
        (2, 3, True, None),
        (3, 3, True, None),
    ],
)
def test_every_order_of_completions_gives_the_same_file(
    depth: int, count: int, batches: bool, orders: int | None
) -> None:
    walks = 0
    for choices in Choices.all():
        transfer = copy(8 * count - 3, depth=depth, script=AnyOrder(choices, batches))
        assert_whole(transfer)
        assert_written_once(transfer)
        walks += 1
    assert walks > 1 or depth == 1
    assert orders in (None, walks)


@pytest.mark.parametrize(
    ("depth", "sizes"), [(2, (8, 3, 0)), (2, (1, 9)), (3, (9, 9)), (3, (8, 8, 8)), (3, (1, 0, 9))]
)
def test_every_order_of_completions_of_several_transfers(
    depth: int, sizes: tuple[int, ...]
) -> None:
    for choices in Choices.all():
        context = ScriptedContext(depth, 8, AnyOrder(choices, batches=False))
        for transfer in drive(context, several(context, *sizes)):
            assert_whole(transfer)
            assert_written_once(transfer)


# --- depth ---


@pytest.mark.parametrize("script", [Script, Backwards])
@pytest.mark.parametrize("depth", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("count", [1, 2, 6, 7, 8, 63, 64, 65, 130])
def test_depth_is_reached_and_never_exceeded(depth: int, count: int, script: type[Script]) -> None:
    """`drive` checks it before every reap; here it is what the kernel saw."""
    transfer = copy(8 * count, depth=depth, script=script())
    assert_whole(transfer)
    assert transfer.context.peak == min(depth, count)


def test_small_transfers_share_the_slots_with_their_reads_and_with_their_syncs() -> None:
    most: dict[Step, int] = {}

    class Counting(Script):
        def completes(self, in_flight: list[Operation]) -> list[Operation]:
            for step in Step:
                count = [operation.step for operation in in_flight].count(step)
                most[step] = max(most.get(step, 0), count)
            return in_flight

    context = ScriptedContext(8, 8, Counting())
    for transfer in drive(context, several(context, *[5] * 8)):
        assert_whole(transfer)
    assert most == dict.fromkeys(Step, 0) | {READ: 8, WRITE: 8, SYNC: 8}


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("size", [0, 1, 8, 30])
def test_transfers_are_opened_only_as_slots_become_free(depth: int, size: int) -> None:
    """No more of them are open at once than there are slots, which is what bounds open files."""
    context = ScriptedContext(depth, 8)
    opened: list[FileTransfer] = []

    def opening() -> Iterator[FileTransfer]:
        for transfer in several(context, *[size] * 20):
            opened.append(transfer)
            assert len(opened) - ended <= depth
            yield transfer

    ended = 0
    for transfer in Engine(context, opening()).run():
        ended += transfer is not None
    assert ended == 20


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_transfers_that_need_no_slot_are_not_opened_all_at_once(depth: int) -> None:
    context = ScriptedContext(depth, 8)
    opened: list[FileTransfer] = []

    def opening() -> Iterator[FileTransfer]:
        for transfer in several(context, *[0] * 20, sync=Sync.NONE):
            opened.append(transfer)
            assert len(opened) - ended <= depth
            yield transfer

    ended = 0
    for transfer in Engine(context, opening()).run():
        ended += transfer is not None
    assert ended == 20


def test_extents_are_read_only_as_slots_become_free() -> None:
    context = ScriptedContext(3, 8)
    transfer = FileTransfer(context, File(noise(160)), File())
    cut: list[int] = []

    def cutting() -> Iterator[Extent]:
        for offset in range(0, 160, 8):
            cut.append(offset)
            assert len(cut) - len(transfer.destination.writes) <= 3
            yield offset, 8

    transfer.extents = cutting()
    for _ in Engine(context, [transfer]).run():
        pass
    assert len(cut) == 20
    assert transfer.destination.data == transfer.expected


# --- sources in memory ---


@pytest.mark.parametrize(
    ("in_memory", "from_memory", "from_disk"),
    [
        ([(0, 43)], [0, 16, 32], []),
        ([(0, 16)], [0], [16, 32]),
        ([(16, 27)], [16, 32], [0]),
        ([(0, 5)], [0], [0, 16, 32]),  # less than direct I/O can leave out
        ([(0, 8)], [0], [8, 16, 32]),
        ([(16, 12)], [16], [0, 24, 32]),
        ([(8, 8)], [0], [0, 16, 32]),  # it does not begin there: EAGAIN
        ([(40, 3)], [32], [0, 16, 32]),
    ],
)
def test_what_is_in_memory_is_read_from_there_and_the_rest_from_the_disk(
    in_memory: list[Extent], from_memory: list[int], from_disk: list[int]
) -> None:
    transfer = copy(43, block_size=16, alignments=(8, 8), in_memory=in_memory)
    assert_whole(transfer)
    reads = [operation for operation in transfer.log if operation.step is READ]
    assert from_memory == [o.offset for o in reads if o.cached]
    assert from_disk == sorted(o.offset for o in reads if not o.cached)


def test_an_error_of_a_read_from_memory_is_the_sources() -> None:
    transfer = copy(
        43, block_size=16, alignments=(8, 8), in_memory=[(0, 43)], script=Nth(READ, 16, -EIO)
    )
    assert_failed(transfer)
    assert Failure(READ, EIO, 16) == transfer.failure


# --- short reads and writes ---


@pytest.mark.parametrize("step", [READ, WRITE])
@pytest.mark.parametrize("offset", [0, 16, 32])
def test_a_short_count_is_carried_on_at_every_byte(step: Step, offset: int) -> None:
    """Of the first, a middle and the last block."""
    for count in range(1, 16):
        transfer = copy(43, block_size=16, script=Nth(step, offset, count))
        assert_whole(transfer)
        assert len(transfer.log) == 3 + 3 + 1 + (offset + count < 43)


@pytest.mark.parametrize("second", range(1, 16))
@pytest.mark.parametrize("first", range(1, 16))
def test_every_two_short_counts_one_after_the_other(first: int, second: int) -> None:
    class Twice(Script):
        def result(self, operation: Operation) -> int | None:
            return {0: first, first: second}.get(operation.offset % 16)

    assert_whole(copy(43, block_size=16, script=Twice()))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_every_operation_may_be_short_by_any_count(alignment: int) -> None:
    """Aligned to the stricter side a residue starts at an aligned byte, if that is progress."""
    block = 2 * alignment or 16
    for count in range(alignment or 1, block + 1, 1 + alignment // 64):
        script = AtMost(reads=count, writes=count)
        assert_whole(
            copy(2 * block + 5, block_size=block, alignments=(alignment,) * 2, script=script)
        )


@pytest.mark.parametrize("alignment", [512, 4096])
def test_a_short_direct_read_is_carried_on_at_the_aligned_byte_before_it(alignment: int) -> None:
    block = 2 * alignment
    for count in range(alignment, block, 1 + alignment // 512):
        script = Nth(READ, block, count)
        transfer = copy(3 * block, block_size=block, alignments=(alignment,) * 2, script=script)
        assert_whole(transfer)
        assert_written_once(transfer)
        residue = (block + alignment, alignment)
        assert residue in [(o.offset, o.length) for o in transfer.log if o.step is READ]


@pytest.mark.parametrize("alignment", [512, 4096])
def test_a_short_buffered_read_next_to_direct_writes_is_carried_on(alignment: int) -> None:
    block = 2 * alignment
    for count in range(1, block, 1 + alignment // 512):
        script = Nth(READ, block, count)
        transfer = copy(3 * block, block_size=block, alignments=(0, alignment), script=script)
        assert_whole(transfer)
        assert_written_once(transfer)


@pytest.mark.parametrize("alignment", [512, 4096])
def test_a_short_direct_write_is_carried_on_directly_or_if_it_must_buffered(alignment: int) -> None:
    """Below one alignment unit only a buffered write can go on from there."""
    block = 2 * alignment
    for count in range(1, block, 1 + alignment // 512):
        script = Nth(WRITE, block, count)
        transfer = copy(3 * block, block_size=block, alignments=(alignment,) * 2, script=script)
        assert_whole(transfer)
        assert transfer.write_direct == (count >= alignment)
        assert transfer.read_direct


def test_a_short_direct_write_fails_where_direct_is_a_must_and_it_cannot_go_on() -> None:
    script = Nth(WRITE, 1024, 100)
    transfer = copy(3000, block_size=1024, alignments=(512, 512), script=script, always=True)
    assert_failed(transfer)
    assert transfer.error is transfer.cause


@pytest.mark.parametrize("step", [READ, WRITE])
def test_a_count_past_the_end_of_the_block_is_not_the_files(step: Step) -> None:
    """The last block is read and written rounded up; what is past the end does not count."""
    for size in range(1025, 1536, 7):
        for count in range(size - 1024, 512, 13):
            script = Nth(step, 1024, count)
            transfer = copy(size, block_size=1024, alignments=(512, 512), script=script)
            assert_whole(transfer)


# --- errors ---


@pytest.mark.parametrize("errno", ERRNOS)
@pytest.mark.parametrize("depth", [1, 2, 8])
@pytest.mark.parametrize("offset", [0, 16, 32], ids=["first", "middle", "last"])
@pytest.mark.parametrize("step", [READ, WRITE])
def test_an_error_names_its_step_errno_and_offset(
    step: Step, offset: int, depth: int, errno: int
) -> None:
    transfer = copy(40, depth=depth, script=Nth(step, offset, -errno))
    assert_failed(transfer)
    assert transfer.failure == Failure(step, errno, offset)
    assert "written" not in transfer.events


@pytest.mark.parametrize("errno", ERRNOS)
@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("step", [READ, WRITE])
def test_an_error_after_a_short_count_names_where_it_stopped(
    step: Step, count: int, errno: int
) -> None:
    class ShortThenError(Script):
        def result(self, operation: Operation) -> int | None:
            if operation.step is not step:
                return None
            return {8: count, 8 + count: -errno}.get(operation.offset)

    transfer = copy(24, script=ShortThenError())
    assert_failed(transfer)
    assert transfer.failure == Failure(step, errno, 8 + count)


@pytest.mark.parametrize("errno", [*ERRNOS, EINVAL])
@pytest.mark.parametrize("size", [0, 1, 40])
def test_a_failed_sync_is_an_error_and_not_tried_again(size: int, errno: int) -> None:
    transfer = copy(size, script=Nth(SYNC, 0, -errno))
    assert_failed(transfer)
    assert transfer.failure == Failure(SYNC, errno, 0)
    assert transfer.destination.data == transfer.expected


@pytest.mark.parametrize("step", [READ, WRITE])
def test_the_first_of_several_errors_stands_and_no_block_is_begun_after_it(step: Step) -> None:
    class AllFail(Backwards):
        def result(self, operation: Operation) -> int | None:
            return -1 - operation.offset if operation.step is step else None

    transfer = copy(1000, depth=4, script=AllFail())
    assert_failed(transfer)
    first = next(operation for operation in transfer.log if operation.step is step)
    assert transfer.failure == Failure(step, -first.res, first.offset)
    assert max(operation.offset for operation in transfer.log) == 24


@pytest.mark.parametrize("end_first", [False, True])
@pytest.mark.parametrize("alignments", [(0, 0), (512, 512), (0, 512), (512, 0), (512, 4096)])
def test_a_source_that_shrank_fails_where_it_ends(
    alignments: tuple[int, int], end_first: bool
) -> None:
    """No errno, never a loop and never a file that looks whole, whatever size it shrank to."""
    block = max(alignments) or 8
    size = 2 * block + block // 2
    for end in range(0, size, 1 + block // 100):
        context = ScriptedContext(1, block)
        source = File(noise(size), alignments[0], end_first=end_first)
        transfer = FileTransfer(context, source, File(b"", alignments[1]))
        del source.data[end:]
        drive(context, [transfer])
        assert_failed(transfer)
        assert transfer.failure == Failure(READ, 0, end)
        assert transfer.read_direct == bool(alignments[0])


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("alignment", [0, 512])
def test_a_source_that_shrinks_between_two_reads_fails(alignment: int, depth: int) -> None:
    class Shrinking(Script):
        def result(self, operation: Operation) -> int | None:
            if operation.offset >= shrinks_at:
                del source.data[end:]
            return None

    block = 2 * (alignment or 4)
    for shrinks_at in range(block, 4 * block, block):
        for end in range(0, shrinks_at + 1, 1 + alignment // 32):
            context = ScriptedContext(depth, block, Shrinking())
            source = File(noise(4 * block), alignment)
            transfer = FileTransfer(context, source, File(b"", alignment))
            drive(context, [transfer])
            assert_failed(transfer)
            assert transfer.failure is not None
            assert (READ, 0) == transfer.failure[:2]
            assert end <= transfer.failure.offset <= 4 * block


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("room", range(40))
def test_a_write_of_nothing_is_a_full_disk(room: int, depth: int) -> None:
    """A disk that becomes full at any byte: a short write up to there, then 0."""

    class Room(Script):
        def result(self, operation: Operation) -> int | None:
            return max(0, room - operation.offset) if operation.step is WRITE else None

    transfer = copy(40, depth=depth, script=Room())
    assert_failed(transfer)
    assert transfer.failure is not None
    assert (WRITE, ENOSPC) == transfer.failure[:2]
    if depth == 1:
        assert transfer.failure.offset == room


@pytest.mark.parametrize("depth", [1, 2, 8])
@pytest.mark.parametrize("good", range(6))
def test_an_error_of_the_extents_fails_the_transfer_and_drains_it(good: int, depth: int) -> None:
    """They are read from the source while blocks are in flight; what was read is then dropped."""
    error = OSError(EIO, "seek")

    def failing() -> Iterator[Extent]:
        yield from [(8 * i, 8) for i in range(good)]
        raise error

    context = ScriptedContext(depth, 8)
    transfer, other = several(context, 40, 20)
    transfer.extents = failing()
    ended = [ended for ended in Engine(context, [transfer, other]).run() if ended is not None]
    assert len(ended) == 2
    assert set(ended) == {transfer, other}
    assert_failed(transfer)
    assert transfer.error is error
    assert [8 * i for i in range(good)] == [o.offset for o in transfer.log if o.step is READ]
    assert_whole(other)


# --- submit ---


@pytest.mark.parametrize("prefixes", [[1], [2], [0, 1], [0, 0, 0, 5], [3, 0, 1]])
@pytest.mark.parametrize("depth", [1, 4, 9])
def test_a_submit_may_take_any_part_of_the_queue(depth: int, prefixes: list[int]) -> None:
    """What it does not take is neither lost nor done twice, nor is the depth given up for it."""

    class Partial(Script):
        submits = 0

        def takes(self, queued: int) -> int:
            self.submits += 1
            return min(queued, prefixes[self.submits % len(prefixes)])

    context = ScriptedContext(depth, 8, Partial())
    for transfer in drive(context, several(context, 100, 5, 0, 40)):
        assert_whole(transfer)
        assert_written_once(transfer)


def test_a_submit_that_takes_nothing_until_all_is_reaped() -> None:
    class Exhausted(Script):
        def takes(self, queued: int) -> int:
            return 0 if len(context.held) > queued else min(2, queued)

    context = ScriptedContext(8, 8, Exhausted())
    (transfer,) = several(context, 200)
    drive(context, [transfer])
    assert_whole(transfer)
    assert_written_once(transfer)
    assert context.peak == 2


def test_a_slots_first_read_is_submitted_at_once() -> None:
    """Then the slots that are free again are submitted together."""
    submits: list[int] = []

    class Counting(Script):
        def takes(self, queued: int) -> int:
            submits.append(queued)
            return queued

    context = ScriptedContext(4, 8, Counting())
    (transfer,) = several(context, 8 * 8)
    drive(context, [transfer])
    assert_whole(transfer)
    assert submits == [1, 1, 1, 1, 4, 4, 4, 1]


@pytest.mark.parametrize("depth", [1, 3, 64])
def test_what_looks_sees_each_block_once(depth: int) -> None:
    """Whole, before it is written; what has nothing to write to is only read."""
    for written in (True, False):
        context = ScriptedContext(depth, 8)
        (transfer,) = several(context, 100)
        seen: dict[int, bytes] = {}

        def see(offset: int, block: memoryview, seen: dict[int, bytes] = seen) -> None:
            seen[offset] = bytes(block)

        transfer.looks, transfer.saw = True, see  # type: ignore[method-assign]
        content = bytes(context.files[transfer.read_fd].data)
        if not written:
            transfer.write_fd = -1
            transfer.sync = Sync.NONE
        for _ in Engine(context, [transfer]).run():
            pass
        assert b"".join(seen[at] for at in sorted(seen)) == content
        assert transfer.bytes_written == (len(content) if written else 0)


def test_what_is_seen_can_stop_a_transfer() -> None:
    """Nothing of the block is written, and the others go on."""
    context = ScriptedContext(4, 8)
    transfer, other = several(context, 100, 50)

    def refuse(offset: int, block: memoryview) -> None:
        if offset == 16:
            raise OSError(EIO, "not that")

    transfer.looks, transfer.saw = True, refuse  # type: ignore[method-assign]
    for _ in Engine(context, [transfer, other]).run():
        pass
    assert transfer.failed
    assert 16 not in [o.offset for o in transfer.log if o.step is Step.WRITING]
    assert_whole(other)


# --- in order ---


@pytest.mark.parametrize(("depth", "count"), [(1, 3), (2, 4), (3, 4), (3, 5)])
@pytest.mark.parametrize("batches", [False, True])
def test_blocks_are_seen_in_order_whatever_completes_first(
    depth: int, count: int, batches: bool
) -> None:
    """`FileTransfer` says which is next, `drive` that one which waits does so for one in flight."""
    for choices in Choices.all(3 if batches else 20_000):
        script = AnyOrder(choices, batches)
        transfer = copy(8 * count - 3, depth=depth, script=script, ordered=True)
        assert_whole(transfer)
        assert_written_once(transfer)


@pytest.mark.parametrize("depth", [1, 2, 5, 64])
def test_one_is_looked_at_and_the_disk_has_work_again(depth: int) -> None:
    """However many have their turns at once: else the disk would wait until all are seen."""
    done: list[str] = []

    class Telling(Script):
        def takes(self, queued: int) -> int:
            done.append("submitted")
            return queued

    context = ScriptedContext(depth, 8, Telling())
    transfer = FileTransfer(context, File(noise(160)), File(), ordered=True)
    saw = transfer.saw

    def see(offset: int, block: memoryview) -> None:
        done.append("seen")
        saw(offset, block)

    transfer.saw = see  # type: ignore[method-assign]
    drive(context, [transfer])
    assert_whole(transfer)
    assert done.count("seen") == 20
    assert ("seen", "seen") not in pairwise(done)


@pytest.mark.parametrize("depth", [1, 2, 5, 64])
def test_a_short_read_keeps_its_turn(depth: int) -> None:
    for script in (AtMost(reads=3), Backwards(), Nth(READ, 0, 1), Nth(READ, 0, 5)):
        transfer = copy(8 * 20 + 3, depth=depth, script=script, ordered=True)
        assert_whole(transfer)


@pytest.mark.parametrize("depth", [1, 2, 5, 64])
@pytest.mark.parametrize("step", [READ, WRITE])
@pytest.mark.parametrize("offset", [0, 8, 32, 96])
def test_what_waits_is_let_go_when_its_transfer_fails(depth: int, step: Step, offset: int) -> None:
    """Whichever it is, the others are copied."""

    class Late(Nth):
        def completes(self, in_flight: list[Operation]) -> list[Operation]:
            return in_flight[-1:]

    context = ScriptedContext(depth, 8, Late(step, offset, -EIO))
    transfers = [
        FileTransfer(context, File(noise(100, seed)), File(), ordered=True) for seed in range(3)
    ]
    assert len(drive(context, transfers)) == 3
    (failed,) = (transfer for transfer in transfers if transfer.failed)
    assert failed.failure == Failure(step, EIO, offset)
    assert_failed(failed)
    for other in set(transfers) - {failed}:
        assert_whole(other)


@pytest.mark.parametrize("depth", [1, 2, 5, 64])
def test_what_waits_is_let_go_when_it_is_stopped_from_outside(depth: int) -> None:
    """As a cancelled task of aiocp.aio does it; so it is when a block that is seen is refused."""
    for at in range(13):
        context = ScriptedContext(depth, 8, Backwards())
        files = [File(noise(100, seed)) for seed in range(3)]
        stopped, refused, other = [
            FileTransfer(context, file, File(), ordered=True) for file in files
        ]

        def refuse(
            offset: int,
            block: memoryview,
            *,
            saw: Callable[[int, memoryview], None] = refused.saw,
            at: int = at,
        ) -> None:
            saw(offset, block)
            if offset == 8 * at:
                raise OSError(EIO, "not that")

        refused.saw = refuse  # type: ignore[method-assign]
        ended = []
        for transfer in Engine(context, [stopped, refused, other]).run():
            if transfer is not None:
                ended.append(transfer)
            elif len(stopped.shown) >= at:
                stopped.error = stopped.error or OSError(EIO, "stopped")
        assert len(ended) == 3
        assert not context.held
        assert_failed(stopped)
        assert_failed(refused)
        assert len(refused.shown) == at + 1
        assert_whole(other)


# --- several transfers ---


@pytest.mark.parametrize("script", [Script, Backwards])
@pytest.mark.parametrize("depth", [1, 2, 5, 64])
def test_each_of_many_transfers_ends_once_and_whole(depth: int, script: type[Script]) -> None:
    context = ScriptedContext(depth, 8, script())
    sizes = [0, 1, 8, 9, 100, 0, 0, 7, 16, 300, 1, 1, 1, 1, 0]
    for transfer in drive(context, several(context, *sizes)):
        assert_whole(transfer)
        assert_written_once(transfer)


@pytest.mark.parametrize("res", [-EIO, 0])
@pytest.mark.parametrize("depth", [1, 2, 5, 64])
@pytest.mark.parametrize("step", [READ, WRITE])
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_one_transfer_fails_and_the_others_go_on(
    which: int, step: Step, depth: int, res: int
) -> None:
    class Broken(Script):
        def result(self, operation: Operation) -> int | None:
            at = (transfers[which].read_fd, transfers[which].write_fd)
            hit = operation.fd in at and operation.step is step and operation.offset >= 8
            return res if hit else None

    context = ScriptedContext(depth, 8, Broken())
    transfers = several(context, 30, 9, 16, 50)
    drive(context, transfers)
    for i, transfer in enumerate(transfers):
        (assert_failed if i == which else assert_whole)(transfer)
    assert transfers[which].failure == Failure(step, -res or (0 if step is READ else ENOSPC), 8)


def test_an_added_transfer_comes_before_those_not_taken_up_yet() -> None:
    context = ScriptedContext(1, 8)
    first, second, third, added = several(context, 20, 20, 20, 5)
    ended = drive(context, [first, second, third], lambda t: added if t is first else None)
    assert ended.index(added) < ended.index(third)
    for transfer in ended:
        assert_whole(transfer)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_transfer_added_at_the_end_of_the_last_one_is_done(depth: int) -> None:
    """As the sync of a directory is, once the last name is in it."""
    context = ScriptedContext(depth, 8)
    transfer, directory = several(context, 20, 0)
    ended = drive(context, [transfer], lambda t: directory if t is transfer else None)
    assert ended == [transfer, directory]
    assert_whole(directory)


@pytest.mark.parametrize("why", ["nothing to do", "fails at once"])
def test_a_transfer_added_at_the_end_of_one_that_needed_no_slot_is_done(why: str) -> None:
    context = ScriptedContext(2, 8)
    transfer, directory = several(context, 0, 0)
    transfer.sync = Sync.NONE
    if why == "fails at once":
        transfer.written = raising(OSError(EIO, "truncate"))  # type: ignore[method-assign]
    ended = drive(context, [transfer], lambda t: directory if t is transfer else None)
    assert ended == [transfer, directory]
    assert_whole(directory)


def raising(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


# --- the end of a transfer ---


@pytest.mark.parametrize("size", [0, 1, 40])
@pytest.mark.parametrize("sync", Sync)
def test_a_transfer_is_synced_once_as_asked(sync: Sync, size: int) -> None:
    context = ScriptedContext(2, 8)
    (transfer,) = several(context, size, sync=sync)
    drive(context, [transfer])
    assert_whole(transfer)
    assert [o.sync for o in transfer.log if o.step is SYNC] == ([sync] if sync else [])


def test_nothing_to_copy_is_only_synced() -> None:
    """As a directory is."""
    context = ScriptedContext(2, 8)
    transfers = several(context, 0, 0, 0, sync=Sync.FSYNC)
    for transfer in drive(context, transfers):
        assert_whole(transfer)
        assert [operation.step for operation in transfer.log] == [SYNC]


def test_no_transfers_is_the_end_at_once() -> None:
    assert list(Engine(ScriptedContext(2, 8), []).run()) == []


@pytest.mark.parametrize("depth", [1, 2, 64])
@pytest.mark.parametrize("size", [0, 1, 40])
@pytest.mark.parametrize("sync", Sync)
def test_an_error_between_the_last_write_and_the_sync_fails_the_transfer(
    sync: Sync, size: int, depth: int
) -> None:
    context = ScriptedContext(depth, 8)
    transfer, other = several(context, size, 30)
    transfer.sync = sync
    error = OSError(ENOSPC, "truncate")
    transfer.written = raising(error)  # type: ignore[method-assign]
    drive(context, [transfer, other])
    assert_failed(transfer)
    assert transfer.error is error
    assert_whole(other)


def test_what_is_no_oserror_is_raised_to_the_driver() -> None:
    """A bug or a KeyboardInterrupt is not a transfer's error; nothing more is prepared."""
    context = ScriptedContext(2, 8)
    (transfer,) = several(context, 40)
    transfer.written = raising(KeyboardInterrupt())  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        for _ in Engine(context, [transfer]).run():
            pass
    assert not context.held


def test_an_error_of_the_padding_fails_the_transfer() -> None:
    """It is read from the device, which may fail."""
    context = ScriptedContext(2, 1024)
    transfer = FileTransfer(context, File(noise(700), 512), File(noise(1024), 512), device=True)
    (other,) = several(context, 30)
    error = OSError(EIO, "read the device's last block")

    def padding(offset: int, length: int) -> bytes:
        raise error

    transfer.padding = padding  # type: ignore[method-assign]
    drive(context, [transfer, other])
    assert_failed(transfer)
    assert transfer.error is error
    assert_whole(other)


def test_bytes_are_counted_as_whole_blocks_are_down() -> None:
    """For whoever shows progress: at each reap, never back, to exactly the size."""
    context = ScriptedContext(1, 8, AtMost(reads=3, writes=3))
    (transfer,) = several(context, 37)
    seen = [transfer.bytes_written for _ in Engine(context, [transfer]).run()]
    assert seen == sorted(seen)
    assert set(seen) == {0, 8, 16, 24, 32, 37}
    assert_whole(transfer)


def test_the_driver_gets_a_turn_at_each_reap() -> None:
    """None, after the transfers that ended by it: where progress is shown and a copy is stopped."""
    context = ScriptedContext(1, 8)
    first, second = several(context, 8, 8)
    ended: list[Transfer | None] = list(Engine(context, [first, second]).run())
    assert ended == [None, None, first, None, None, None, second, None]


def test_a_run_that_is_abandoned_prepares_nothing_more() -> None:
    context = ScriptedContext(2, 8)
    (transfer,) = several(context, 80)
    run = Engine(context, [transfer]).run()
    next(run)
    run.close()  # type: ignore[attr-defined]
    held = len(context.held)
    assert held <= 2
    while context.held:
        context.submit()
        context.reap()
    assert len(context.log) == 2 + held


# --- direct I/O that is refused ---


@pytest.mark.parametrize("script", [Script, Backwards])
@pytest.mark.parametrize("depth", [1, 2, 8])
@pytest.mark.parametrize("refusing", [(READ,), (WRITE,), (READ, WRITE)])
def test_a_refusal_of_direct_io_is_answered_once_a_side_and_nothing_is_lost(
    refusing: tuple[Step, ...], depth: int, script: type[Script]
) -> None:
    context = ScriptedContext(depth, 1024, script())
    source = File(noise(5000), 512, refuses_direct=READ in refusing)
    destination = File(b"", 512, refuses_direct=WRITE in refusing)
    transfer = FileTransfer(context, source, destination)
    drive(context, [transfer])
    assert_whole(transfer)
    assert_written_once(transfer)
    assert transfer.events == [*(f"undirect {step.name}" for step in refusing), "written"]
    assert transfer.read_direct == (READ not in refusing)
    assert transfer.write_direct == (WRITE not in refusing)
    tries = sum(operation.res == -EINVAL for operation in transfer.log)
    assert len(refusing) <= tries <= depth * len(refusing)


@pytest.mark.parametrize("depth", [1, 2, 8])
@pytest.mark.parametrize("step", [READ, WRITE])
def test_a_refusal_of_direct_io_that_is_a_must_fails_the_transfer(step: Step, depth: int) -> None:
    context = ScriptedContext(depth, 1024)
    source = File(noise(5000), 512, refuses_direct=step is READ)
    destination = File(b"", 512, refuses_direct=step is WRITE)
    transfer = FileTransfer(context, source, destination, always=True)
    (other,) = several(context, 30)
    drive(context, [transfer, other])
    assert_failed(transfer)
    assert transfer.error is transfer.cause
    assert transfer.events == [f"undirect {step.name}"]
    assert_whole(other)


@pytest.mark.parametrize("depth", [1, 2, 8])
@pytest.mark.parametrize("offset", [0, 2048, 4096])
@pytest.mark.parametrize("step", [READ, WRITE])
def test_einval_without_direct_io_is_an_error(step: Step, offset: int, depth: int) -> None:
    script = Nth(step, offset, -EINVAL)
    transfer = copy(5000, depth=depth, block_size=1024, script=script)
    assert_failed(transfer)
    assert transfer.failure == Failure(step, EINVAL, offset)
    assert transfer.events == []


@pytest.mark.parametrize("step", [READ, WRITE])
def test_einval_that_stays_without_direct_io_is_an_error(step: Step) -> None:
    class Invalid(Script):
        def result(self, operation: Operation) -> int | None:
            return -EINVAL if operation.step is step else None

    transfer = copy(5000, block_size=1024, alignments=(512, 512), script=Invalid())
    assert_failed(transfer)
    assert transfer.failure == Failure(step, EINVAL, 0)
    assert transfer.events == [f"undirect {step.name}"]


@pytest.mark.parametrize("count", [1, 100, 511])
def test_a_residue_that_is_misaligned_and_reads_einval_is_a_source_that_shrank(count: int) -> None:
    """Not a refusal of direct I/O: a direct read ends at a misaligned byte only at the end."""
    script = Nth(READ, 1024, count)
    transfer = copy(3000, depth=1, block_size=1024, alignments=(512, 512), script=script)
    assert_failed(transfer)
    assert transfer.failure == Failure(READ, 0, 1024 + count)
    assert transfer.events == []
