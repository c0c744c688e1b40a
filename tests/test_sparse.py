"""Holes: made of zeroes."""

import errno
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiocp.engine import Engine, Step, Sync
from aiocp.slots import Slots
from fakes import File, FileTransfer, Operation, Script, ScriptedContext

# pages: "d" is data, "0" written zeroes
Layout = str

# --- finding zeroes ------------------------------------------------------------------------------


@given(
    runs=st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=8),
    start=st.integers(0, 200),
    unit=st.sampled_from([1, 3, 64, 100, 4096]),
    zero=st.integers(0, 1),
)
def test_skip_is_right_to_the_byte(
    runs: list[tuple[int, bool]], start: int, unit: int, zero: int
) -> None:
    """Any bytes, alignment and unit: as a search byte by byte finds it."""
    block = b"".join((b"\0" if empty else b"\x80") * length for length, empty in runs)
    start = min(start, len(block))
    slots = Slots()
    slots.resize(2, 4096)
    slots.buffer(1)[:] = b"\xff" * 4096
    slots.buffer(1, 0, len(block))[:] = block
    expected = start
    while expected < len(block):
        piece = block[expected : min(expected + unit, len(block))]
        if (not any(piece)) != zero:
            break
        expected += len(piece)
    assert expected == slots.skip(1, start, len(block), unit, zero)
    slots.close()


@pytest.mark.parametrize("at", [0, 1, 7, 8, 63, 64, 100, 4031, 4032, 4094, 4095])
def test_one_bit_is_found_anywhere(at: int) -> None:
    slots = Slots()
    slots.resize(1, 8192)
    slots.buffer(0)[:] = bytes(8192)
    for bit in range(8):
        slots.buffer(0, at, 1)[:] = bytes([1 << bit])
        assert (0, 4096) == (slots.skip(0, 0, 8192, 4096, 1), slots.skip(0, 0, 8192, 4096, 0))
    slots.close()


class Short(Script):
    """Moves some of what it is asked for, if direct in whole units; completes in any order."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def completes(self, in_flight: list[Operation]) -> list[Operation]:
        return self.rng.sample(in_flight, self.rng.randint(1, len(in_flight)))

    def result(self, operation: Operation) -> int | None:
        some = self.rng.randint(1, 8)
        return self.rng.choice([None, None, 8 * some if operation.direct else some])


@settings(deadline=None)
@given(
    layout=st.text("d0", max_size=40),
    cut=st.integers(0, 7),
    depth=st.integers(1, 5),
    units=st.integers(1, 9),
    alignments=st.sampled_from([(0, 0), (8, 8), (0, 8), (8, 0)]),
    seed=st.integers(0, 1000),
)
def test_the_engine_writes_no_unit_of_zeroes(
    layout: Layout, cut: int, depth: int, units: int, alignments: tuple[int, int], seed: int
) -> None:
    """And every other byte once, whatever is short: what is not written is counted."""
    unit = 8
    rng = random.Random(seed)
    data = b"".join(rng.randbytes(7) + b"x" if kind == "d" else bytes(8) for kind in layout)
    data = data[: max(0, len(data) - cut)]
    source, destination = File(data, alignments[0]), File(bytes(len(data)), alignments[1])
    context = ScriptedContext(depth, units * unit, Short(seed))
    transfer = FileTransfer(context, source, destination)
    transfer.hole_unit = unit
    for ended in Engine(context, [transfer]).run():
        assert ended in (None, transfer)
    assert (None, None) == (transfer.failure, transfer.error)
    assert data == destination.data
    assert len(data) == transfer.bytes_read == transfer.bytes_written + transfer.holes
    written = [0] * len(layout)
    for start, count in destination.writes:
        for at in range(start // unit, -(-(start + count) // unit)):
            written[at] += 1
    zero = [not any(data[at : at + unit]) for at in range(0, len(data), unit)]
    assert all((times == 0) == empty for times, empty in zip(written, zero, strict=False))
    assert transfer.holes == sum(
        min(unit, len(data) - at * unit) for at, empty in enumerate(zero) if empty
    )
    assert [(Sync.FDATASYNC, data)] == destination.synced


@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_write_between_two_holes_that_fails(nth: int) -> None:
    """Nothing more of the block is written, and the offset is that of the stretch."""

    class Nth(Script):
        def result(self, operation: Operation) -> int | None:
            failing = (operation.step, operation.offset) == (Step.WRITING, 16 * nth + 8)
            return -errno.EIO if failing else None

    data = (bytes(8) + b"x" * 8) * 3
    context = ScriptedContext(1, 48, Nth())
    destination = File(bytes(48))
    transfer = FileTransfer(context, File(data), destination)
    transfer.hole_unit = 8
    for _ in Engine(context, [transfer]).run():
        pass
    assert (Step.WRITING, errno.EIO, 16 * nth + 8) == transfer.failure
    assert [(16 * i + 8, 8) for i in range(nth)] == destination.writes
    assert 8 * nth == transfer.bytes_written
