"""A rate for all that is moved: bytes are paid for, in time, before they are moved.

All there is of it is the moment up to which the bytes that were asked for are paid. Whoever moves
some puts it off by what they cost, and begins when it has come: in the order of asking, smoothly,
and never faster than the rate.
"""

import time
from collections.abc import Callable
from threading import Lock

from aiocp.errors import Cancel, look

MIN_RATE = 4096  # bytes per second

# Time that was not used, as a busy machine wakes us late, is made up for as far as this, in
# seconds; no block costs more. So what comes at once is at most a quarter of a second's bytes.
_CREDIT = 1 / 8
_BLOCK_UNIT = 4096
_LOOK_EVERY = 0.05  # seconds that one waits before `cancel` is looked at again


def check_rate(rate: int) -> None:
    """Raise ValueError unless this is a rate."""
    if rate < MIN_RATE:
        raise ValueError(f"bwlimit must be at least {MIN_RATE} bytes per second, not {rate}")


class Pace:
    """`rate` bytes per second, for all copies and all threads that share it.

    Each block that a copy reads counts when it is begun: once if it is written then or turns out to
    be zeroes that are to be a hole, and once more if it is read back to be verified. Holes that are
    not read count nothing, nor do blocks that are shared.
    """

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Raises ValueError for a rate of less than 4096."""
        check_rate(rate)
        self.rate = rate
        self._clock, self._sleep = clock, sleep
        self._paid = clock()
        self._lock = Lock()

    def block_size(self, asked: int) -> int:
        """The largest size of a block, up to that asked for, that is soon paid for."""
        soon = int(self.rate * _CREDIT) // _BLOCK_UNIT * _BLOCK_UNIT
        return min(asked, max(soon, _BLOCK_UNIT))

    def reserve(self, length: int) -> float:
        """Ask for so many bytes; when they may be moved, for `left`."""
        with self._lock:
            self._paid = max(self._paid, self._clock() - _CREDIT) + length / self.rate
            return self._paid

    def left(self, due: float) -> float:
        """For how many seconds to wait before asking again whether it is that time: 0 if it is."""
        return min(max(due - self._clock(), 0), _LOOK_EVERY)

    def wait(self, length: int, cancel: Cancel | None) -> None:
        """Wait until so many bytes are paid for. Raises Cancelled."""
        due = self.reserve(length)
        while left := self.left(due):
            look(cancel)
            self._sleep(left)
