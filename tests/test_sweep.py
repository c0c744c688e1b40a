"""Which depth and block size is recommended, on devices that are made up, with their own time."""

import random
from collections.abc import Callable
from statistics import median

import pytest

from aiocp.sweep import (
    CLOSE,
    MOST_MEMORY,
    Point,
    cells,
    plan,
    recommend,
    sweep,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FILE = 256 * MIB

Rate = Callable[[int, int], float]


class Device:
    """Moves bytes at a rate that depends on depth and block size; time passes only by that."""

    def __init__(self, rate: Rate, granted: int = 65536) -> None:
        self.rate, self.granted = rate, granted
        self.now = 0.0
        self.moved: list[tuple[int, int, int]] = []

    def clock(self) -> float:
        return self.now

    def measure(self, depth: int, block: int, amount: int, seconds: float) -> float | None:
        if depth > self.granted:
            return None
        rate = self.rate(depth, block)
        # what is in flight when the time is over is moved too
        moved = max(depth * block, min(amount, int(rate * seconds)))
        self.moved.append((depth, block, moved))
        self.now += moved / rate
        return rate

    def sweep(self, size: int = FILE, seconds: float = 4.0) -> list[Point]:
        return sweep(self.measure, size, seconds, clock=self.clock)


def latency(seconds: float, most: float) -> Rate:
    """What is waited for takes so long, up to the most the device can do; more memory always has
    something of it, but little."""
    return lambda depth, block: min(most, depth * block / seconds) * (1 + depth * block / 4e9)


@pytest.mark.parametrize(
    ("seconds", "most", "memory"),
    [
        (0.0001, 5e9, 1 * MIB),  # 500 KB are on their way
        (0.001, 1e9, 1 * MIB),
        (0.001, 3e9, 4 * MIB),
        (0.01, 1e9, 16 * MIB),
        (0.01, 6e9, 64 * MIB),
    ],
)
def test_the_least_memory_that_keeps_the_device_busy(
    seconds: float, most: float, memory: int
) -> None:
    """It holds what the device takes in its latency, and not more than a step beyond."""
    points = Device(latency(seconds, most)).sweep()
    recommended = recommend(points)
    assert recommended is not None
    assert memory == recommended.memory == recommended.depth * recommended.block_size
    assert not recommended.flat
    assert recommended.rate >= CLOSE * recommended.best


@pytest.mark.parametrize("rate", [2e6, 2e7, 2e8, 2e9, 2e10])
def test_where_all_are_the_same_there_is_nothing_to_choose(rate: float) -> None:
    """Any point will do, so the one with the least memory is taken; on slow devices too."""
    recommended = recommend(Device(lambda *_: rate).sweep())
    assert recommended is not None
    assert recommended.flat
    assert 64 * KIB == recommended.memory


def test_of_the_same_memory_what_is_faster() -> None:
    points = [Point(16, 64 * KIB, 1e9), Point(4, 256 * KIB, 1.01e9), Point(1, MIB, 0.99e9)]
    assert (4, 256 * KIB) == recommend(points)[:2]  # type: ignore[index]


def test_nothing_measured_recommends_nothing() -> None:
    assert recommend([]) is None


@pytest.mark.parametrize("rate", [1e6, 1e7, 1e8, 1e9, 1e10])
@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_it_keeps_to_its_time(rate: float, seconds: float) -> None:
    """About: what is in flight when it is over is waited for."""
    device = Device(latency(0.0005, rate))
    points = device.sweep(seconds=seconds)
    assert points
    assert device.now <= 2 * seconds + 8 * MIB / rate


def test_points_are_more_than_the_filling_of_their_memory() -> None:
    device = Device(lambda *_: 1.5e9)
    device.sweep()
    assert all(moved >= 2 * depth * block for depth, block, moved in device.moved)


def test_each_is_measured_twice_at_least_where_there_is_time() -> None:
    device = Device(lambda *_: 1e9)
    points = device.sweep()
    for point in points:
        assert [each[:2] for each in device.moved].count((point.depth, point.block_size)) >= 2


def test_those_near_the_best_are_measured_again() -> None:
    device = Device(lambda depth, _: 1e9 if depth == 16 else 0.5e9)
    device.sweep(seconds=20)
    times = [depth == 16 for depth, _, _ in device.moved]
    assert sum(times) > len(times) / 2


def test_the_median_of_the_rounds_counts() -> None:
    """Whatever is far off, in either direction."""
    rates: dict[tuple[int, int], list[float]] = {}
    rng = random.Random(1)

    def rate(depth: int, block: int) -> float:
        rates.setdefault((depth, block), []).append(rng.uniform(0.9e9, 1e9))
        return rates[depth, block][-1]

    points = Device(rate).sweep(seconds=20)
    first = next(iter(rates))  # which was measured once more, before all others
    rates[first] = rates[first][1:]
    assert {cell: median(each) for cell, each in rates.items()} == {
        (point.depth, point.block_size): point.rate for point in points
    }


@pytest.mark.parametrize("seed", range(20))
def test_what_disturbs_for_a_while_decides_nothing(seed: int) -> None:
    """One of five measurements takes up to three times as long."""
    rng = random.Random(seed)
    usual = latency(0.001, 1e9)

    def disturbed(depth: int, block: int) -> float:
        return usual(depth, block) / (rng.uniform(1, 3) if rng.random() < 0.2 else 1)

    recommended = recommend(Device(disturbed).sweep(seconds=12))
    assert recommended is not None
    assert usual(recommended.depth, recommended.block_size) >= 0.8 * 1e9


def test_depth_that_is_not_granted_is_left_out() -> None:
    """fs.aio-max-nr is exhausted but for some."""
    for granted in (1, 4, 20):
        points = Device(lambda *_: 1e9, granted).sweep()
        assert {depth for depth in (1, 4, 16) if depth <= granted} == {
            each.depth for each in points
        }


@pytest.mark.parametrize("size", [0, 4096, 64 * KIB, MIB, 10 * MIB, FILE, GIB])
def test_no_point_takes_more_than_there_is(size: int) -> None:
    """Half of the file, and never more than what a copy takes by default."""
    every = cells(size)
    assert every
    assert all(
        depth * block <= max(64 * KIB, min(MOST_MEMORY, size // 2)) for depth, block in every
    )
    assert [depth * block for depth, block in every] == sorted(d * b for d, b in every)


def test_slow_devices_have_less_in_flight() -> None:
    """100 KB/s cannot fill 64 MiB in a few seconds; what is left out is what takes the most."""
    fast, slow = (list(plan(cells(FILE), rate, 4.0)) for rate in (1e10, 1e7))
    assert cells(FILE) == fast
    assert fast[: len(slow)] == slow
    assert max(depth * block for depth, block in slow) <= 10 * MIB
