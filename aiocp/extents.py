"""Where a file holds data and where it has holes: SEEK_DATA and SEEK_HOLE, taken as hints.

What the kernel says of a file is believed as far as it leads on. A file system that knows nothing
of holes, an answer that goes back, a file that changes meanwhile: from there on all is data, and
whether the file has changed is looked at in the end.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from errno import ENXIO
from itertools import chain
from typing import Literal

from aiocp.engine import Extent

Sparse = Literal["auto", "always", "never"]


def may_have_holes(status: os.stat_result) -> bool:
    """Whether a file has fewer blocks than its size takes: asks the kernel nothing, and is cp's."""
    return stat.S_ISREG(status.st_mode) and status.st_blocks < status.st_size // 512


def has_no_data(fd: int, status: os.stat_result) -> bool:
    """Whether a file is but a hole."""
    if not stat.S_ISREG(status.st_mode) or status.st_blocks:
        return False
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == ENXIO
    return False


def find_data(fd: int, size: int, unit: int, known: int = 0) -> Iterator[Extent]:
    """Give the extents of the first `size` bytes of a file that hold data, when they are asked for,
    from `known` on.

    They start and stop at multiples of `unit` bytes, or at `size`, and never overlap. In a file
    that has got shorter they end where it does.
    """
    while known < size:
        start, stop = _next_data(fd, known, size)
        if start >= size:
            return
        start -= start % unit
        known = min(size, -(-stop // unit) * unit)
        yield start, known - start


def _next_data(fd: int, at: int, size: int) -> Extent:
    """Where the data starts that is next from `at` on, and where it stops: always behind `at`."""
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:  # ENXIO: none up to the end
        return (size, size) if error.errno == ENXIO else (at, size)
    if start < at:
        return at, size
    try:
        stop = os.lseek(fd, start, os.SEEK_HOLE)
    except OSError:
        return start, size
    return start, stop if stop > start else size


def join(data: Iterable[Extent], gap: int) -> Iterator[Extent]:
    """Give extents as one that are less than `gap` bytes apart."""
    start = end = 0
    for next_start, length in data:
        if next_start - end >= gap:
            if start < end:
                yield start, end - start
            start = next_start
        end = next_start + length
    if start < end:
        yield start, end - start


def fill_holes(
    data: Iterable[Extent], size: int, unit: int, zero: Callable[[int, int], bool]
) -> Iterator[Extent]:
    """Give all of `size` bytes as extents but what `zero(offset, length)` makes zeroes.

    It is called with the holes between the extents `data`, in multiples of `unit` bytes, until it
    says False.
    """
    done, possible = 0, True
    for start, length in chain(data, [(size, 0)]):
        whole = start - start % unit
        if possible and done < whole:
            possible = zero(done, whole - done)
            if possible:
                done = whole
        if done < start:
            yield done, start - done
        if length:
            yield start, length
        done = start + length
