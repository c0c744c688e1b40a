"""The rate that --bwlimit sets: what counts, how even it is, and that nothing else waits for it."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest

from aiocp import Cancelled, aio, copy_file, copy_tree
from aiocp.engine import Completion, Engine
from aiocp.pace import MIN_RATE, Pace
from fakes import File, FileTransfer, ScriptedContext, assert_whole, noise
from filesystems import sparse_file, write_cold
from test_interrupt import command, stopped, unnamed_in, wait_for

KIB, MIB = 1 << 10, 1 << 20
CONTENT = random.Random(11).randbytes(MIB)


class Clock:
    """A clock that goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Counting(Pace):
    """A pace that lets nobody wait, and tells what it was asked for."""

    def __init__(self, rate: int = 1 << 50) -> None:
        super().__init__(rate)
        self.asked: list[int] = []

    def reserve(self, length: int) -> float:
        self.asked.append(length)
        super().reserve(length)
        return 0


# --- the pace itself ---


@pytest.mark.parametrize("rate", [-1, 0, 1, MIN_RATE - 1])
def test_rates_that_are_none(rate: int, tmp_path: Path) -> None:
    """The library and the command say so, and touch nothing."""
    for copy in (copy_file, copy_tree):
        with pytest.raises(ValueError, match="at least 4096 bytes per second"):
            copy("/etc", tmp_path / "copy", bwlimit=rate)
    done = subprocess.run(
        [sys.executable, "-m", "aiocp", f"--bwlimit={rate}", "/etc/passwd", tmp_path / "copy"],
        capture_output=True,
        text=True,
    )
    assert (2, []) == (done.returncode, os.listdir(tmp_path))
    assert done.stderr.startswith("aiocp: invalid value for '--bwlimit': ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(4096, 4096), (100_000, 12288), (MIB, 128 * KIB), (8 * MIB, MIB), (1 << 40, MIB)],
)
def test_blocks_are_paid_for_in_an_eighth_of_a_second(rate: int, expected: int) -> None:
    """As far as they can be: whole multiples of 4096, and never more than asked for."""
    assert expected == Pace(rate).block_size(MIB)


def test_bytes_are_paid_for_before_they_are_moved() -> None:
    """One after the other, in the order of asking."""
    clock = Clock()
    pace = Pace(10_000, clock=clock)
    first, second = pace.reserve(5000), pace.reserve(20_000)
    assert (1000.5, 1002.5) == (first, second)
    clock.now = 1002.46
    assert [0, 0.04] == pytest.approx([pace.left(first), pace.left(second)])
    clock.now = 1002.5
    assert 0 == pace.left(second)


def test_time_that_was_not_used_is_made_up_for_only_a_little() -> None:
    clock = Clock()
    pace = Pace(10_000, clock=clock)
    clock.now += 3600
    left = [pace.left(pace.reserve(length)) for length in (1000, 250, 400)]
    assert [0, 0, 0.04] == pytest.approx(left)


def test_whoever_waits_looks_often_whether_to_stop() -> None:
    """Ten times a second at least, however long there is to wait."""
    clock = Clock()
    looks: list[float] = []

    class Stop:
        def is_set(self) -> bool:
            looks.append(clock.now)
            return clock.now > 1010

    with pytest.raises(Cancelled):
        Pace(4096, clock=clock, sleep=clock.sleep).wait(MIB, Stop())
    assert all(0 < after - before <= 0.1 for before, after in pairwise(looks))
    assert clock.now < 1010.2


# --- the engine ---


class Disk(ScriptedContext):
    """A context whose time is that of `clock`: each reap takes `seconds`, or as long as one waits
    for nothing."""

    def __init__(self, clock: Clock, depth: int, block: int, seconds: Iterator[float]) -> None:
        super().__init__(depth, block)
        self.clock, self.seconds = clock, seconds
        self.begun: list[tuple[float, int]] = []

    def prep_read(self, slot: int, fd: int, skip: int, length: int, offset: int) -> None:
        self.begun.append((self.clock.now, length))
        super().prep_read(slot, fd, skip, length, offset)

    def reap(self, timeout: float | None = None) -> list[Completion]:
        self.clock.now += next(self.seconds) if self.held else timeout or 0
        return super().reap(timeout)


def constant(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def busy() -> Iterator[float]:
    """Seconds of a machine that often comes late, by up to a tenth of a second."""
    picked = random.Random(5)
    while True:
        yield picked.choice([0, 0, 0.001, 0.01, picked.random() / 10])


@pytest.mark.parametrize("disk", [lambda: constant(0), lambda: constant(0.003), busy])
@pytest.mark.parametrize("depth", [1, 7, 256])
@pytest.mark.parametrize("rate", [MIN_RATE, 10_000, 300_000])
def test_a_copy_is_as_fast_as_it_may_be_and_no_faster(
    disk: Callable[[], Iterator[float]], depth: int, rate: int
) -> None:
    """Files of all sizes: within 5 % of the rate as a whole, never ahead of it, and at no time more
    at once than a quarter of a second's bytes, or a block where that is more."""
    clock = Clock()
    pace = Pace(rate, clock=clock)
    block = pace.block_size(64 * KIB)
    context = Disk(clock, depth, block, disk())
    sizes = [5 * rate + 1, 0, 1, block, *([1000] * 10), 10 * rate]
    transfers = [FileTransfer(context, File(noise(size)), File()) for size in sizes]
    for _ in Engine(context, transfers, pace).run():
        pass
    for transfer in transfers:
        assert_whole(transfer)
    total = sum(sizes)
    assert 0.999999 <= (clock.now - 1000) / (total / rate) <= 1.05
    moved = list(accumulate(length for _, length in context.begun))
    for (now, _), done in zip(context.begun, moved, strict=True):
        assert done <= rate * (now - 1000) * 1.000001
    largest = max(rate / 4, rate / 8 + block)
    for i, (start, length) in enumerate(context.begun):
        for (now, _), done in zip(context.begun[i:], moved[i:], strict=True):
            assert done - moved[i] + length <= largest + rate * (now - start) + 1


def test_what_moves_no_bytes_does_not_wait() -> None:
    """Files without extents are synced at once; those behind a block that waits wait with it."""
    clock = Clock()
    context = Disk(clock, 4, 8, constant(0))
    empty = [FileTransfer(context, File(), File(), extents=[]) for _ in range(10)]
    for _ in Engine(context, empty, Pace(MIN_RATE, clock=clock)).run():
        pass
    assert all(transfer.synced for transfer in empty)
    assert clock.now == 1000


def test_a_transfer_that_fails_does_not_wait_for_its_block() -> None:
    """An abandoned one ends as soon as the engine is driven again."""
    clock = Clock()
    context = Disk(clock, 4, 4096, constant(0))
    transfer = FileTransfer(context, File(noise(8192)), File())
    engine = Engine(context, [transfer], Pace(MIN_RATE, clock=clock))
    assert [] == engine.start()
    assert (0, True) == (engine.in_flight, bool(engine.delay))
    transfer.error = OSError(5, "stopped")
    assert [transfer] == engine.start()
    assert engine.delay is None


# --- what counts ---


def test_a_file_counts_once(tmp_path: Path) -> None:
    """In the blocks that it is copied by."""
    source = write_cold(tmp_path / "source", CONTENT + b"x")
    pace = Counting()
    copy_file(source, tmp_path / "copy", bwlimit=pace, block_size=256 * KIB)
    assert [256 * KIB] * 4 + [1] == pace.asked
    assert (tmp_path / "copy").read_bytes() == CONTENT + b"x"


@pytest.mark.parametrize("size", [0, 1, 4096, 200 * KIB])
@pytest.mark.parametrize("options", [{}, {"in_place": True}, {"sync": False}])
def test_small_files_count_too(tmp_path: Path, size: int, options: dict[str, Any]) -> None:
    (tmp_path / "source").write_bytes(CONTENT[:size])
    for _ in ("new", "over it"):
        pace = Counting(MIB)
        copy_file(tmp_path / "source", tmp_path / "copy", bwlimit=pace, **options)
        assert (size, True) == (sum(pace.asked), max(pace.asked, default=0) <= MIB / 8)
        assert (tmp_path / "copy").read_bytes() == CONTENT[:size]


@pytest.mark.parametrize("rate", [MIB, 1 << 50])
def test_what_is_read_back_counts_too(tmp_path: Path, rate: int) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    pace = Counting(rate)
    assert copy_file(tmp_path / "source", tmp_path / "copy", bwlimit=pace, verify=True).verified
    assert 2 * MIB == sum(pace.asked)


def test_holes_count_nothing(tmp_path: Path) -> None:
    """Those of the source; what has to be read to be found zero counts."""
    source = sparse_file(tmp_path / "source", 64 * MIB)
    with source.open("r+b") as file:
        os.pwrite(file.fileno(), CONTENT, 32 * MIB)
    pace = Counting()
    result = copy_file(source, tmp_path / "copy", bwlimit=pace)
    assert (MIB, 63 * MIB) == (sum(pace.asked), result.holes)
    (tmp_path / "zeroes").write_bytes(bytes(MIB))
    pace = Counting()
    result = copy_file(tmp_path / "zeroes", tmp_path / "copy", bwlimit=pace, sparse="always")
    assert (MIB, MIB) == (sum(pace.asked), result.holes)


@pytest.mark.root
@pytest.mark.parametrize("filesystem", ["xfs", "btrfs"], indirect=True)
def test_clones_count_nothing(filesystem: Path) -> None:
    (filesystem / "tree").mkdir()
    for name, size in (("small", 5000), ("large", MIB)):
        (filesystem / "tree" / name).write_bytes(CONTENT[:size])
    pace = Counting()
    copy_file(filesystem / "tree" / "large", filesystem / "clone", bwlimit=pace, reflink="always")
    copy_tree(filesystem / "tree", filesystem / "copy", bwlimit=pace, reflink="always")
    assert [] == pace.asked


@pytest.mark.parametrize("rate", [MIB, 1 << 50])
def test_streams_count(tmp_path: Path, rate: int) -> None:
    """In pieces that are no larger than blocks."""
    (tmp_path / "source").write_bytes(CONTENT)
    os.mkfifo(tmp_path / "fifo")
    pace = Counting(rate)
    with subprocess.Popen(["cp", "source", "fifo"], cwd=tmp_path):
        copy_file(tmp_path / "fifo", tmp_path / "copy", bwlimit=pace)
    assert (MIB, True) == (sum(pace.asked), max(pace.asked) <= rate / 8)
    assert (tmp_path / "copy").read_bytes() == CONTENT


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("options", [{}, {"preserve": ["all"]}, {"verify": True}, {"sync": False}])
def test_the_files_of_a_tree_count(tmp_path: Path, cold: bool, options: dict[str, Any]) -> None:
    """Small and large ones, in memory or not; new ones, then over what is there."""
    sizes = [0, 1, 5000, 11 * KIB, 100 * KIB, 300 * KIB, MIB]
    (tmp_path / "tree" / "in").mkdir(parents=True)
    for number in range(70):
        size = sizes[number % len(sizes)]
        write = write_cold if cold else Path.write_bytes
        write(tmp_path / "tree" / "in" / str(number), CONTENT[:size])
    for _ in ("new", "over it"):
        pace = Counting(MIB)
        result = copy_tree(tmp_path / "tree", tmp_path / "copy", bwlimit=pace, **options)
        times = 2 if result.verified else 1
        assert (70, 10 * sum(sizes)) == (result.files, result.bytes)
        assert 10 * sum(sizes) * times == sum(pace.asked)
        assert max(pace.asked) <= MIB / 8
        subprocess.run(["diff", "-r", tmp_path / "tree", tmp_path / "copy"], check=True)


# --- how long it takes: no kernel is faster than the limit, so there is nothing to wait for ---


def took(action: Callable[[], object]) -> float:
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


def run(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "aiocp", *arguments], check=True)


def test_the_command_takes_its_time(tmp_path: Path) -> None:
    """8 MiB at 4 MiB a second, and the copy is whole."""
    (tmp_path / "source").write_bytes(CONTENT * 8)
    assert 2 <= took(lambda: run("--bwlimit=4M", tmp_path / "source", tmp_path / "copy"))
    subprocess.run(["cmp", tmp_path / "source", tmp_path / "copy"], check=True)


def test_all_operands_have_one_rate(tmp_path: Path) -> None:
    """Files, small ones and a tree."""
    for name in ("one", "two", "tree/a", "tree/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CONTENT[: 200 * KIB])
    (tmp_path / "to").mkdir()
    sources = [tmp_path / name for name in ("one", "two", "tree")]
    assert 800 / 1024 <= took(lambda: run("-r", "--bwlimit", "1MiB", *sources, tmp_path / "to"))
    subprocess.run(["diff", "-r", tmp_path / "tree", tmp_path / "to" / "tree"], check=True)


def test_threads_share_a_pace(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    pace = Pace(4 * MIB)

    def copy(number: int) -> None:
        copy_file(tmp_path / "source", tmp_path / str(number), bwlimit=pace)

    threads = [threading.Thread(target=copy, args=(number,)) for number in range(4)]

    def copy_all() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert 1 - 1 / 8 <= took(copy_all)  # time that was not used before may be made up for
    assert all((tmp_path / str(number)).read_bytes() == CONTENT for number in range(4))


def test_awaited_copies_share_a_rate_and_leave_the_loop_alone(tmp_path: Path) -> None:
    """The loop goes on meanwhile, and a copy that is cancelled ends."""
    (tmp_path / "source").write_bytes(CONTENT)
    (tmp_path / "small").write_bytes(CONTENT[:5000])
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    def copy(name: str, number: int, rate: int) -> Any:
        return aio.copy_file(tmp_path / name, tmp_path / str(number), bwlimit=rate)

    async def copy_all() -> None:
        ticking = asyncio.create_task(tick())
        slow = asyncio.create_task(copy("source", 9, MIN_RATE))
        await asyncio.gather(*(copy("source", number, 4 * MIB) for number in range(4)))
        await copy("small", 4, 1 << 40)  # which does not wait for the slow one
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        ticking.cancel()

    assert 1 <= took(lambda: asyncio.run(copy_all()))
    assert ticks > 10
    assert all((tmp_path / str(number)).read_bytes() == CONTENT for number in range(4))
    assert not (tmp_path / "9").exists()


def test_awaited_copies_of_different_paces_do_not_share_one(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    paces = [Counting(), Counting()]

    async def copy_all() -> None:
        names = [tmp_path / str(number) for number in range(len(paces))]
        copies = zip(names, paces, strict=True)
        await asyncio.gather(
            *(aio.copy_file(tmp_path / "source", name, bwlimit=pace) for name, pace in copies)
        )

    asyncio.run(copy_all())
    assert [MIB, MIB] == [sum(pace.asked) for pace in paces]


# --- meanwhile ---


def test_progress_moves_on(tmp_path: Path) -> None:
    """By blocks of an eighth of a second, however large they were to be."""
    (tmp_path / "source").write_bytes(CONTENT)
    told: list[int] = []
    copy_file(
        tmp_path / "source",
        tmp_path / "copy",
        bwlimit=2 * MIB,
        depth=1,
        block_size=MIB,
        progress=lambda done, _: told.append(done),
    )
    assert [256 * KIB, 512 * KIB, 768 * KIB, MIB] == told


@pytest.mark.parametrize("tree", [False, True])
def test_a_signal_ends_it_at_once(tmp_path: Path, tree: bool) -> None:
    """Not after the block that waits, which would be in four minutes."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(CONTENT)
    (tmp_path / "to").mkdir()
    source = tmp_path / "source" if tree else tmp_path / "source" / "file"
    with command("-r", "--bwlimit=4096", source, tmp_path / "to" / "copy") as process:
        wait_for(process, unnamed_in(tmp_path / "to") if not tree else r".*#\d+ \(deleted\)")
        os.kill(process.pid, signal.SIGINT)
        begun = time.monotonic()
        if tree:
            process.communicate(timeout=30)
            assert (130, True) == (process.returncode, time.monotonic() - begun < 5)
        else:
            assert signal.SIGINT == stopped(process)
    assert [] == [path for path in (tmp_path / "to").rglob("*") if path.is_file()]


def test_a_stream_ends_at_once(tmp_path: Path) -> None:
    stop = threading.Event()
    reader, writer = os.pipe()
    os.write(writer, CONTENT[: 60 * KIB])
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(Cancelled):
        copy_file(f"/dev/fd/{reader}", tmp_path / "copy", bwlimit=MIN_RATE, cancel=stop)
    os.close(reader)
    os.close(writer)
    assert [] == os.listdir(tmp_path)
