"""Which depth and which block size: measure some of each, and recommend.

Every point moves an amount of its own, so that a point with much memory is more than the filling of
it. The points are measured in rounds, each in another order, so that what changes on the machine
meanwhile hits one as well as the other, and the median counts: the best round would flatter points
with little in flight, which suffer most where others use the disk as well. From the third round on
only those near the best are measured: the others are out of the question.
"""

import random
import time
from collections.abc import Callable, Iterator
from itertools import count
from statistics import median
from typing import NamedTuple

KIB, MIB = 1 << 10, 1 << 20

DEPTHS = (1, 4, 16, 64, 256)
BLOCK_SIZES = (64 * KIB, 256 * KIB, MIB, 4 * MIB)
MOST_MEMORY = 64 * MIB  # as much as the default takes

# A point moves at least so many times the memory that it has
_TIMES = 2

# How many rounds the time is meant for
_ROUNDS = 3

# What is as good as the best. Too much memory costs less than too little
CLOSE = 0.95

# What may still turn out to be, after the first rounds
_NEAR = 0.75

Cell = tuple[int, int]  # depth, block size

# what measures a point: depth, block size, bytes to move, seconds to end after; bytes per second,
# None where it cannot be had
Measure = Callable[[int, int, int, float], float | None]


class Point(NamedTuple):
    """What was measured: `rate` is the median in bytes per second."""

    depth: int
    block_size: int
    rate: float

    @property
    def memory(self) -> int:
        """Bytes of buffers."""
        return self.depth * self.block_size


class Recommendation(NamedTuple):
    """The point with the least memory whose rate is close to `best`, the highest.

    `flat` tells that all points are as close, so that there is nothing to be chosen.
    """

    depth: int
    block_size: int
    memory: int
    rate: float
    best: float
    flat: bool


def sweep(
    measure: Measure,
    size: int,
    seconds: float,
    *,
    memory: int = MOST_MEMORY,
    clock: Callable[[], float] = time.monotonic,
) -> list[Point]:
    """Measure what `size` bytes of data, so much memory for buffers and `seconds` allow.

    The points with the least memory come first.
    """
    end = clock() + seconds
    every = cells(size, memory)
    # one in the middle, not counted, tells how much the others can move
    rate = None
    for cell in (every[len(every) // 2], every[0]):
        rate = rate or measure(*cell, size, seconds / 8)
    if not rate:
        return []
    amounts = plan(every, rate, end - clock())
    rates: dict[Cell, list[float]] = {cell: [] for cell in amounts}
    for cell in _rounds(rates):
        expected, now = amounts[cell] / rate, clock()
        # each once, unless it is slower by far than it seemed
        if (any(rates.values()) and now > end + seconds) or (rates[cell] and now + expected > end):
            break
        one = measure(*cell, min(amounts[cell], size), 2 * expected)
        rates[cell].append(one or 0.0)
    points = [Point(*cell, _typical(each)) for cell, each in rates.items()]
    return [point for point in points if point.rate]


def _typical(rates: list[float]) -> float:
    return median(rates) if rates else 0.0


def _rounds(rates: dict[Cell, list[float]]) -> Iterator[Cell]:
    shuffle = random.Random(1).shuffle
    for number in count():
        typical = {cell: _typical(each) for cell, each in rates.items()}
        near = _NEAR * max(typical.values())
        order = [cell for cell in typical if number < 2 or typical[cell] >= near]
        shuffle(order)
        yield from order


def cells(size: int, memory: int = MOST_MEMORY) -> list[Cell]:
    """Depths and block sizes that can be measured with `size` bytes, the least memory first."""
    most = min(memory, size // 2)
    every = [(depth, block) for depth in DEPTHS for block in BLOCK_SIZES if depth * block <= most]
    # of the same memory the default's block size first: the last are left out where time is short
    in_order = sorted(every, key=lambda cell: (cell[0] * cell[1], cell[1] != MIB))
    return in_order or [(1, min(BLOCK_SIZES))]


def plan(every: list[Cell], rate: float, seconds: float) -> dict[Cell, int]:
    """How many bytes each point is to move, so that a round takes its part of the time.

    On a slow device those with the most memory are left out: they could not be measured.
    """
    round_bytes = rate * seconds / _ROUNDS
    left = list(every)
    while True:
        least = int(round_bytes / len(left) / 2)
        amounts = {cell: max(least, _TIMES * cell[0] * cell[1]) for cell in left}
        if len(left) == 1 or sum(amounts.values()) <= round_bytes:
            return amounts
        left.pop()


def recommend(points: list[Point]) -> Recommendation | None:
    """The least memory that is as good as the best: of the same memory what is faster."""
    if not points:
        return None
    best = max(point.rate for point in points)
    good = [point for point in points if point.rate >= CLOSE * best]
    chosen = min(good, key=lambda point: (point.memory, -point.rate))
    flat = len(good) == len(points)
    return Recommendation(*chosen[:2], chosen.memory, chosen.rate, best, flat)
