"""The engine's lean path over libaio: slots that allocate nothing per block.

Beside `aiocp.libaio`, which is the whole of libaio for Python programs, made safe whatever they do,
this is the little of it that the engine needs, made fast: some 2 us a block. A module of its own,
so that copying a file does not load the whole.
"""

import math
import os
from functools import partial
from typing import Any

from aiocp._libaio import ffi, lib

# cffi builds a type when it is first used, and aborts when two threads do: build them now
_BUILT = [ffi.typeof(f"struct {name}").fields for name in ("aiocp_slots", "timespec")]


class Slots:
    """One AIO context with `nr` slots: an iocb, an iovec and a block of buffer each.

    The engine's lean path: nothing is allocated per block, and the methods called once per block
    are the C functions of `struct aiocp_slots` bound to it, unchecked: a slot must be below `nr`
    and queued or in flight once, `skip + length` within the block. All counts live in the struct.

    `skip(slot, start, stop, unit, zero)` passes over what is all zeroes (1), or not all (0), in a
    slot's block, in units of so many bytes, and returns where it came to, `stop` at most.

    `perform` does the first of the queue with the plain system call, in place of `submit`: 1
    completion, or -EINTR. `unmap` gives the buffers' memory back; `close` does too, and destroys
    the context, which waits for what is in flight. Not to be used in a forked child (compare
    `pid`), where the buffers are not mapped.
    """

    __slots__ = (
        "_getevents",
        "_res",
        "_slot",
        "_slots",
        "_zero",
        "close",
        "drain",
        "perform",
        "pid",
        "prep_cached",
        "prep_fdsync",
        "prep_fsync",
        "prep_preadv",
        "prep_pwritev",
        "skip",
        "submit",
        "unmap",
    )

    def __init__(self) -> None:
        # From here on the struct is freed, and what it holds with it, whatever is raised.
        slots: Any = ffi.gc(lib.slots_new(), lib.slots_free)
        if not slots:
            raise MemoryError
        self._slots = slots
        self._zero = ffi.new("struct timespec *")
        self.pid = os.getpid()
        self.prep_preadv = partial(lib.slots_prep_preadv, slots)
        self.prep_cached = partial(lib.slots_prep_cached, slots)
        self.prep_pwritev = partial(lib.slots_prep_pwritev, slots)
        self.prep_fsync = partial(lib.slots_prep_fsync, slots)
        self.prep_fdsync = partial(lib.slots_prep_fdsync, slots)
        self.skip = partial(lib.slots_skip, slots)
        self.submit = partial(lib.slots_submit, slots)
        self.perform = partial(lib.slots_perform, slots)
        self.unmap = partial(lib.slots_unmap, slots)
        self.drain = partial(lib.slots_drain, slots)
        self.close = partial(lib.slots_close, slots)
        self._getevents = partial(lib.slots_getevents, slots)

    def setup(self, maxevents: int) -> None:
        """Create the context, or raise as `io_setup` does: without one, only `perform` works."""
        _check(lib.slots_setup(self._slots, maxevents))

    def resize(self, nr: int, block_size: int) -> None:
        """Have `nr` slots, or more, the first `nr` with a block of `block_size` bytes each.

        Raises `OSError`: EBUSY while anything is in flight, ENOMEM.
        """
        _check(lib.slots_resize(self._slots, nr, block_size))
        self._slot, self._res = self._slots.slot, self._slots.res

    @property
    def nr(self) -> int:
        return int(self._slots.nr)

    @property
    def maxevents(self) -> int:
        return int(self._slots.maxevents)

    @property
    def block_size(self) -> int:
        return int(self._slots.block_size)

    @property
    def in_flight(self) -> int:
        return int(self._slots.in_flight)

    @property
    def queued(self) -> int:
        return int(self._slots.queued)

    @property
    def peak(self) -> int:
        return int(self._slots.peak)

    @property
    def mapped(self) -> int:
        """Bytes of buffer."""
        return int(self._slots.mapped)

    def notify(self, eventfd: int) -> None:
        """Have a descriptor of eventfd(2) told of each completion; -1: none."""
        self._slots.eventfd = eventfd

    @property
    def idle(self) -> bool:
        """Whether what is submitted is of the idle class of I/O priority, whatever that of the
        thread is; False after it was asked for and refused."""
        return bool(self._slots.idle)

    @idle.setter
    def idle(self, wanted: bool) -> None:
        self._slots.idle = wanted

    def getevents(self, min_nr: int, timeout: float | None) -> int:
        """Reap; the number of completions, or a negative errno. `timeout` in seconds."""
        if timeout is None:
            left = ffi.NULL
        elif not timeout:
            left = self._zero
        else:
            left = ffi.new("struct timespec *", divmod(math.ceil(timeout * 1e9), 1_000_000_000))
        result: int = self._getevents(min_nr, left)
        return result

    def completions(self, n: int) -> list[tuple[int, int]]:
        """The `n` completions just reaped, as (slot, res)."""
        return list(zip(ffi.unpack(self._slot, n), ffi.unpack(self._res, n), strict=True))

    def buffer(self, slot: int, start: int = 0, length: int | None = None) -> Any:
        """The block of `slot` from `start` on, not to be used past a `resize` or `close`."""
        size = self._slots.block_size
        if length is None:
            length = size - start
        within = 0 <= slot and (slot + 1) * size <= self._slots.mapped
        if not (within and 0 <= start <= start + length <= size):
            raise ValueError(f"no bytes {start} to {start + length} in slot {slot}")
        return ffi.buffer(self._slots.buffers + slot * size + start, length)


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
