"""Where data is and where holes are: against the kernel's word, and against lies."""

import errno
import os
import random
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiocp import extents
from aiocp.engine import Extent
from aiocp.extents import fill_holes, find_data, join, may_have_holes

KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40


def make(path: Path, size: int, data: list[Extent]) -> int:
    """Make a file that holds these extents and nothing else, on the disk; a descriptor of it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.ftruncate(fd, size)
    for start, length in data:
        os.pwrite(fd, b"x" * length, start)
    os.fsync(fd)
    return fd


def assert_sound(found: list[Extent], size: int, unit: int) -> None:
    """In order, apart, within the file, and of whole units but for the file's end."""
    end = 0
    for start, length in found:
        assert end <= start
        assert length > 0
        assert start % unit == 0
        end = start + length
        assert end % unit == 0 or end == size
    assert end <= size


def covered(found: list[Extent]) -> set[int]:
    return {byte for start, length in found for byte in range(start, start + length)}


# --- what the kernel says ---


@pytest.mark.root
@pytest.mark.parametrize("unit", [1, 4 * KIB, 64 * KIB])
def test_the_data_of_a_file_is_found(filesystem: Path, unit: int) -> None:
    """Every page that was written is in an extent, none that is a unit away from data is."""
    rng = random.Random(unit)
    for _ in range(20):
        pages = rng.randint(1, 200)
        written = sorted(rng.sample(range(pages), rng.randint(0, pages)))
        size = pages * 4 * KIB - rng.randint(0, 4 * KIB - 1)
        data = [(page * 4 * KIB, min(4 * KIB, size - page * 4 * KIB)) for page in written]
        fd = make(filesystem / "file", size, data)
        found = list(find_data(fd, size, unit))
        os.close(fd)
        assert_sound(found, size, unit)
        near = max(unit, 4 * KIB)
        expected = {page * 4 * KIB // near for page in written}
        assert expected == {
            at // near for start, length in found for at in range(start, start + length, KIB)
        }


@pytest.mark.root
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_they_are_those_of_filefrag(mount_point: Callable[[str], Path], fstype: str) -> None:
    """Which asks the file system in another way."""
    path = mount_point(fstype) / "file"
    data = [(i * 300 * KIB, 100 * KIB) for i in range(50)]
    fd = make(path, 20 * MIB, data)
    found = {
        block for start, length in find_data(fd, 20 * MIB, 1) for block in blocks(start, length)
    }
    os.close(fd)
    told = subprocess.run(["filefrag", "-v", "-b4096", path], capture_output=True, text=True)
    path.unlink()
    expected = set()
    for line in told.stdout.splitlines():
        if ".." in line:
            first, last = line.split(":")[1].split("..")
            expected |= set(range(int(first), int(last) + 1))
    assert expected
    assert expected == found


def blocks(start: int, length: int) -> range:
    return range(start // 4096, (start + length) // 4096)


@pytest.mark.root
def test_what_was_allocated_and_not_written_is_a_hole(filesystem: Path) -> None:
    """fallocate(2) beside data: tmpfs, and who else knows, says where the data is."""
    fd = make(filesystem / "file", MIB, [(64 * KIB, 64 * KIB)])
    os.posix_fallocate(fd, 512 * KIB, 128 * KIB)
    found = list(find_data(fd, MIB, 4 * KIB))
    os.close(fd)
    assert (64 * KIB, 64 * KIB) in found
    assert covered(found) <= {*range(64 * KIB, 128 * KIB), *range(512 * KIB, 640 * KIB)}


@pytest.mark.root
def test_a_tebibyte_costs_what_its_extents_cost(mount_point: Callable[[str], Path]) -> None:
    """Two calls an extent, made when the extent is asked for, and no memory."""
    path = mount_point("xfs") / "big"
    starts = [i * (TIB // 10_000 // 4096 * 4096) for i in range(10_000)]
    fd = make(path, TIB, [(start, 4096) for start in starts])
    calls = 0

    def counted(*arguments: int) -> int:
        nonlocal calls
        calls += 1
        return os.lseek(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extents, "os", scripted(counted))
        found = find_data(fd, TIB, 4096)
        assert (0, 4096) == next(found)
        assert calls == 2
        tracemalloc.start()
        seen = [0, *(start for start, _ in found)]
        del seen[1::2]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    os.close(fd)
    path.unlink()
    assert starts[::2] == seen
    assert calls <= 2 * 10_000 + 1
    assert peak < MIB


@pytest.mark.root
def test_only_what_has_fewer_blocks_may_have_holes(filesystem: Path) -> None:
    for data, expected in (
        ([(0, 256 * KIB)], False),
        ([(0, 128 * KIB)], True),
        ([(4 * KIB, 252 * KIB)], True),
        ([], True),
    ):
        fd = make(filesystem / "file", 256 * KIB, data)
        assert expected == may_have_holes(os.fstat(fd))
        os.close(fd)
    assert not may_have_holes(os.stat("/dev/null"))


# --- lies ---


class scripted:  # noqa: N801 - stands for a module
    """The module `os`, with another lseek()."""

    def __init__(self, lseek: Callable[..., int]) -> None:
        self.lseek = lseek
        self.SEEK_DATA, self.SEEK_HOLE = os.SEEK_DATA, os.SEEK_HOLE


@pytest.fixture
def answers() -> Iterator[Callable[[Callable[[int, int], int]], None]]:
    """Have lseek() answer as a function of offset and whence does."""
    with pytest.MonkeyPatch.context() as patch:
        yield lambda answer: patch.setattr(extents, "os", scripted(lambda fd, *rest: answer(*rest)))


def fail(code: int) -> int:
    raise OSError(code, os.strerror(code))


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE])
def test_where_it_cannot_be_asked_all_is_data(
    code: int, whence: int, answers: Callable[[Callable[[int, int], int]], None]
) -> None:
    """From the first answer that is an error on."""
    answers(lambda at, asked: fail(code) if asked == whence else at)
    assert [(0, 1000)] == list(find_data(-1, 1000, 10))
    known = {(0, os.SEEK_DATA): 100, (100, os.SEEK_HOLE): 300}
    answers(lambda at, asked: known.get((at, asked)) or fail(code))
    assert [(100, 200), (300, 700)] == list(find_data(-1, 1000, 10))


def test_no_more_data_is_a_hole_to_the_end(
    answers: Callable[[Callable[[int, int], int]], None],
) -> None:
    """ENXIO, which is also what a file says that has got shorter: Source.check() sees that."""
    answers(lambda at, asked: fail(errno.ENXIO))
    assert [] == list(find_data(-1, 1000, 10))
    known = {(0, os.SEEK_DATA): 100, (100, os.SEEK_HOLE): 300}
    answers(lambda at, asked: known.get((at, asked)) or fail(errno.ENXIO))
    assert [(100, 200)] == list(find_data(-1, 1000, 10))
    known = {(0, os.SEEK_DATA): 100}
    assert [(100, 900)] == list(find_data(-1, 1000, 10))


@settings(deadline=None, max_examples=1000)
@given(
    size=st.integers(1, 60),
    unit=st.sampled_from([1, 2, 8]),
    lies=st.lists(st.one_of(st.integers(-5, 70), st.sampled_from([None, "error"])), max_size=30),
)
def test_whatever_it_says_there_is_an_end_and_nothing_is_lost(
    size: int, unit: int, lies: list[int | str | None]
) -> None:
    """Left out is only what an answer that leads on has called a hole, or ENXIO."""
    left = iter(lies)
    holes: set[int] = set()
    calls = 0

    def answer(fd: int, at: int, whence: int) -> int:
        nonlocal calls
        calls += 1
        lie = next(left, at + 1)
        if lie == "error":
            return fail(errno.EINVAL)
        if lie is None:
            if whence == os.SEEK_DATA:
                holes.update(range(at, size))
            return fail(errno.ENXIO)
        assert isinstance(lie, int)
        if whence == os.SEEK_DATA:
            holes.update(range(at, lie))
        return lie

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extents, "os", scripted(answer))
        found = list(find_data(-1, size, unit))
    assert_sound(found, size, unit)
    assert set(range(size)) - holes <= covered(found)
    assert calls <= 2 * size


# --- extents that are close to each other ---


@given(
    gap=st.integers(0, 50),
    steps=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), max_size=10),
)
def test_joined_are_those_with_short_holes_between(gap: int, steps: list[Extent]) -> None:
    """Nothing is lost, and of the holes what is as long as `gap` stays."""
    data, end = [], 0
    for hole, length in steps:
        data.append((end + hole, length))
        end += hole + length
    joined = list(join(iter(data), gap))
    assert_sound(joined, end, 1)
    holes = sorted(set(range(end)) - covered(data))
    left = sorted(set(range(end)) - covered(joined))
    long = set()
    for at, (start, _) in enumerate(data):
        before = sum(data[at - 1]) if at else 0
        if start - before >= gap:
            long |= set(range(before, start))
    assert set(holes) >= set(left) == long
    assert all(b[0] - sum(a) >= gap for a, b in pairwise(joined))


def test_they_are_joined_as_they_are_found() -> None:
    """One is given as soon as the one behind it is known to be far."""
    seen: list[Extent] = []

    def found() -> Iterator[Extent]:
        for extent in [(0, 10), (15, 10), (50, 10), (90, 10)]:
            seen.append(extent)
            yield extent

    assert (0, 25) == next(join(found(), 10))
    assert [(0, 10), (15, 10), (50, 10)] == seen


# --- holes over old bytes ---


@given(
    size=st.integers(1, 300),
    unit=st.sampled_from([1, 8, 64]),
    ends=st.sets(st.integers(0, 300)),
    allowed=st.integers(0, 10),
)
def test_holes_are_zeroed_or_written(size: int, unit: int, ends: set[int], allowed: int) -> None:
    """Each byte once: in an extent, or in whole units that `zero` was given; not after its no."""
    edges = sorted({min(size, end * unit) for end in ends})
    data = [(a, b - a) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    zeroed: list[Extent] = []

    def zero(offset: int, length: int) -> bool:
        assert len(zeroed) <= allowed
        zeroed.append((offset, length))
        return len(zeroed) <= allowed

    written = list(fill_holes(iter(data), size, unit, zero))
    for offset, length in zeroed:
        assert (0, 0) == (offset % unit, length % unit)
        assert length > 0
    done = sorted(written + zeroed[:allowed])
    assert size == sum(length for _, length in done)
    assert set(range(size)) == covered(done)
    assert set(data) <= set(written)
    assert all(offset % unit == 0 for offset, _ in written)


def test_they_are_filled_as_they_are_met() -> None:
    """No hole is zeroed before the data in front of it is asked for."""
    zeroed: list[Extent] = []

    def zero(*hole: int) -> bool:
        zeroed.append((hole[0], hole[1]))
        return True

    written = fill_holes(iter([(0, 10), (50, 10)]), 100, 10, zero)
    assert ((0, 10), []) == (next(written), zeroed)
    assert ((50, 10), [(10, 40)]) == (next(written), zeroed)
    assert [] == list(written)
    assert [(10, 40), (60, 40)] == zeroed
