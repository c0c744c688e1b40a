"""The lean path: slots, their counts, and that nothing is freed while the kernel may touch it."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocp.slots import Slots

BLOCK = 4096
CONTENT = bytes(range(256)) * 64


@pytest.fixture
def slots() -> Iterator[Slots]:
    slots = Slots()
    slots.setup(4)
    slots.resize(4, BLOCK)
    yield slots
    slots.close()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def reap(slots: Slots) -> dict[int, int]:
    """Submit the queue and wait for all that is in flight: res by slot."""
    assert slots.submit() > 0
    return dict(slots.completions(slots.getevents(slots.in_flight, None)))


def test_a_block_is_read_and_written(slots: Slots, fd: int) -> None:
    """A read fills the slot's block from `skip` on, a write takes it from there."""
    slots.prep_preadv(2, fd, 0, BLOCK, BLOCK)
    slots.prep_preadv(0, fd, 100, 50, 7)
    assert reap(slots) == {2: BLOCK, 0: 50}
    assert slots.buffer(2)[:] == CONTENT[BLOCK : 2 * BLOCK]
    assert slots.buffer(0, 100, 50)[:] == CONTENT[7:57]
    slots.buffer(2, 5, 3)[:] = b"new"
    slots.prep_pwritev(2, fd, 4, 5, 1)
    assert reap(slots) == {2: 5}
    assert os.pread(fd, 7, 0) == b"\x00\x04new\x08\x06"


def test_syncs(slots: Slots, fd: int) -> None:
    """Both syncs complete with 0."""
    slots.prep_fsync(0, fd)
    slots.prep_fdsync(1, fd)
    assert reap(slots) == {0: 0, 1: 0}


def test_the_counts(slots: Slots, fd: int) -> None:
    """Queued, in flight, and the most that were in flight at once since `resize`."""
    assert (slots.nr, slots.maxevents, slots.block_size) == (4, 4, BLOCK)
    assert slots.mapped >= 4 * BLOCK
    for slot in range(3):
        slots.prep_preadv(slot, fd, 0, BLOCK, 0)
    assert (slots.queued, slots.in_flight, slots.peak) == (3, 0, 0)
    assert slots.submit() == 3
    assert (slots.queued, slots.in_flight, slots.peak) == (0, 3, 3)
    assert slots.getevents(3, None) == 3
    assert (slots.queued, slots.in_flight, slots.peak) == (0, 0, 3)
    slots.resize(4, BLOCK)
    assert slots.peak == 0


def test_what_is_not_taken_stays_queued(slots: Slots, fd: int) -> None:
    """A bad descriptor in the middle: what comes before it is taken, the rest stays in order."""
    slots.prep_preadv(3, fd, 0, 1, 0)
    slots.prep_preadv(1, -1, 0, 1, 0)
    slots.prep_preadv(2, fd, 0, 1, 0)
    assert slots.submit() == 1
    assert slots.submit() == -errno.EBADF
    assert slots.queued == 2
    assert slots.completions(slots.getevents(1, 0.5)) == [(3, 1)]
    assert slots.getevents(1, 0.001) == 0
    assert slots.getevents(0, 0) == 0
    assert slots.perform() == 1
    assert slots.completions(1) == [(1, -errno.EBADF)]
    assert slots.submit() == 1
    assert slots.completions(slots.getevents(1, None)) == [(2, 1)]


def test_perform_does_the_first_of_the_queue(fd: int) -> None:
    """Without a context: each operation by its plain system call, with the same answers."""
    slots = Slots()
    slots.resize(2, BLOCK)
    assert slots.maxevents == 0
    for prep in (slots.prep_preadv, slots.prep_pwritev):
        prep(1, fd, 0, BLOCK, 3 * BLOCK)
        assert slots.perform() == 1
        assert slots.completions(1) == [(1, BLOCK)]
        assert slots.buffer(1)[:] == CONTENT[3 * BLOCK :][:BLOCK]
    for sync in (slots.prep_fsync, slots.prep_fdsync):
        sync(0, fd)
        assert slots.perform() == 1
        assert slots.completions(1) == [(0, 0)]
    assert (slots.queued, slots.in_flight) == (0, 0)
    slots.close()


def test_resize_is_refused_in_flight(slots: Slots, fd: int) -> None:
    """EBUSY with anything in flight; then the slots grow, keep their memory, and shrink."""
    slots.prep_preadv(0, fd, 0, 1, 0)
    slots.submit()
    with pytest.raises(OSError, match="busy") as caught:
        slots.resize(8, BLOCK)
    assert caught.value.errno == errno.EBUSY
    slots.drain()
    slots.resize(8, 2 * BLOCK)
    assert (slots.nr, slots.block_size) == (8, 2 * BLOCK)
    slots.prep_preadv(7, fd, 0, 2 * BLOCK, 0)
    assert reap(slots) == {7: 2 * BLOCK}
    assert slots.buffer(7)[:] == CONTENT[: 2 * BLOCK]


def test_memory_that_cannot_be_had() -> None:
    """ENOMEM from `resize`, and the slots go on as they were."""
    slots = Slots()
    slots.resize(1, BLOCK)
    with pytest.raises(OSError, match="memory") as caught:
        slots.resize(1, 1 << 60)
    assert caught.value.errno == errno.ENOMEM
    assert slots.block_size == BLOCK
    slots.close()


def test_buffers_start_on_a_huge_page(slots: Slots) -> None:
    """The first block is aligned to 2 MiB."""
    mapping = slots._slots.buffers
    assert int(str(mapping).split()[-1].rstrip(">"), 16) % (2 << 20) == 0


@pytest.mark.parametrize(
    ("slot", "start", "length"),
    [(4, 0, 1), (-1, 0, 1), (0, -1, 1), (0, 0, BLOCK + 1), (0, BLOCK, 1), (0, 2, -1)],
)
def test_a_buffer_is_within_its_block(slots: Slots, slot: int, start: int, length: int) -> None:
    """Outside the slot's block: ValueError."""
    with pytest.raises(ValueError, match="in slot"):
        slots.buffer(slot, start, length)


def test_drain_waits_and_forgets(slots: Slots, fd: int) -> None:
    """What is in flight is waited for, what is queued never happens."""
    slots.prep_preadv(0, fd, 0, BLOCK, 0)
    slots.submit()
    slots.prep_pwritev(1, fd, 0, BLOCK, 0)
    slots.drain()
    assert (slots.queued, slots.in_flight) == (0, 0)
    assert slots.buffer(0)[:] == CONTENT[:BLOCK]
    assert os.pread(fd, BLOCK, 0) == CONTENT[:BLOCK]


def test_unmap_and_resize(slots: Slots, fd: int) -> None:
    """The buffers' memory goes and comes back."""
    slots.unmap()
    assert slots.mapped == 0
    slots.resize(4, BLOCK)
    slots.prep_preadv(0, fd, 0, BLOCK, 0)
    assert reap(slots) == {0: BLOCK}


def test_close_twice(slots: Slots) -> None:
    """Closing destroys the context and frees the buffers; once more does nothing."""
    rings = Path("/proc/self/maps").read_text().count("/[aio]")
    for _ in range(2):
        slots.close()
        assert (slots.nr, slots.maxevents, slots.mapped) == (0, 0, 0)
        slots.drain()
    assert Path("/proc/self/maps").read_text().count("/[aio]") == rings - 1


def test_a_forked_child_leaves_the_slots_alone(slots: Slots, fd: int) -> None:
    """Closing them in the child does nothing: the parent's I/O completes."""
    slots.prep_preadv(0, fd, 0, BLOCK, 0)
    slots.submit()
    pid = os.fork()
    if pid == 0:
        slots.close()
        os._exit(0 if slots.pid != os.getpid() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert slots.completions(slots.getevents(1, None)) == [(0, BLOCK)]
    assert slots.buffer(0)[:] == CONTENT[:BLOCK]
