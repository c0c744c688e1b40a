"""One AIO context with its slots' iocbs, iovecs and buffers, and the pool it is reused from.

What the kernel's AIO refuses is done by the plain system call, whose answer then stands: where
io_setup is refused (no AIO in this kernel, a seccomp profile, fs.aio-max-nr) that is everything.
"""

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from errno import EAGAIN, EINTR, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM
from typing import Protocol, Self

from aiocp.errors import operation
from aiocp.slots import Slots

# what io_setup and io_submit answer where there is no AIO to be had
_REFUSALS = (ENOSYS, EPERM, EOPNOTSUPP, EAGAIN, ENOMEM)

# idle contexts are kept, because destroying one takes 30 ms; their buffers up to this many bytes
_KEEP_CONTEXTS = 16
_KEEP_BYTES = 128 << 20

_idle: deque[Slots] = deque()


class Context:
    """`depth` slots for the engine: prep, submit, reap; close when done.

    `depth` is what fs.aio-max-nr allowed, at most what was asked. Without `aio` operations are done
    by plain system calls: for syncs only, as the end of an AIO context takes 33 ms. With `idle` AIO
    is of the idle class of I/O priority, whatever that of the thread is. `kept` are contexts of the
    caller that are not in use, as this is when it is closed; `release` gives them to the pool.
    """

    def __init__(
        self,
        depth: int,
        block_size: int,
        *,
        aio: bool = True,
        idle: bool = False,
        kept: deque[Slots] | None = None,
    ) -> None:
        self.block_size = block_size
        self._idle = idle
        self._kept = kept
        self._taken = 0  # operations that the kernel took
        self._performed = 0  # operations done by plain system calls instead
        self._refusal = 0  # why, the errno that io_submit gave last
        self._slots = self._acquire(depth) if aio else Slots()
        self.depth = min(depth, self._slots.maxevents or depth)
        self._asked = depth
        self._slots.idle = idle
        with operation("allocate buffers"):
            self._slots.resize(self.depth, block_size)
        self.prep_read = self._slots.prep_preadv
        self.prep_read_cached = self._slots.prep_cached
        self.prep_write = self._slots.prep_pwritev
        self.prep_fsync = self._slots.prep_fsync
        self.prep_fdsync = self._slots.prep_fdsync

    def _acquire(self, depth: int) -> Slots:
        """An idle context that is large enough, else a new one as large as the kernel grants."""
        slots = _pop(self._kept) or _pop(_idle) or Slots()
        if slots.maxevents >= depth:
            return slots
        slots.close()
        slots = Slots()
        granted = depth
        while granted:
            try:
                slots.setup(granted)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                self._refusal = error.errno or 0
                if error.errno != EAGAIN:
                    break
                if _idle:
                    _idle.pop().close()
                else:
                    granted //= 2
            else:
                break
        return slots

    @property
    def in_flight(self) -> int:
        """How many operations the kernel has."""
        return self._slots.in_flight

    @property
    def peak_in_flight(self) -> int:
        """The most operations that were in flight at once."""
        return self._slots.peak

    @property
    def plain(self) -> bool:
        """Whether AIO was refused, so that operations were done by plain system calls."""
        return not self._slots.maxevents or self._performed > self._taken

    def notes(self) -> Iterator[str]:
        """What could not be had as asked, and why."""
        if self.depth < self._asked:
            yield f"depth {self.depth} instead of {self._asked}: fs.aio-max-nr is exhausted"
        if self._performed and self._refusal:
            why = os.strerror(self._refusal)
            yield f"{self._performed} operations by plain system calls, AIO was refused: {why}"
        if self._idle and not self._slots.idle:
            yield "AIO takes no priority: idle only as far as the thread is"

    def pad(self, slot: int, start: int, padding: bytes) -> None:
        """Put `padding` into the slot's block at `start`."""
        self._slots.buffer(slot, start, len(padding))[:] = padding

    def next_data(self, slot: int, start: int, stop: int, unit: int) -> tuple[int, int]:
        """The first stretch of the slot's block, from `start` up to `stop`, whose units of `unit`
        bytes are none of them all zeroes: where it starts and stops, both `stop` if there is none.
        """
        start = self._slots.skip(slot, start, stop, unit, 1)
        return start, self._slots.skip(slot, start, stop, unit, 0)

    def memory(self, slot: int, length: int) -> memoryview:
        """The first bytes of a slot's block."""
        return memoryview(self._slots.buffer(slot, 0, length))

    def submit(self) -> None:
        """Hand the queue to the kernel; what it does not take now stays queued for the next time.

        EAGAIN (no request free) ends when completions are reaped. Any other refusal is of the
        queue's first iocb; that is left to `reap` too, which performs it when nothing is in flight.
        """
        slots = self._slots
        while slots.queued and slots.maxevents:
            taken = slots.submit()
            if taken > 0:
                self._taken += taken
            elif taken != -EINTR:
                self._refusal = -taken
                return

    def reap(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """Wait for at least one completion and return all there are, as (slot, res).

        With a timeout, in seconds: none if there is none by then, or a signal has come.
        """
        slots = self._slots
        while slots.in_flight:
            count = slots.getevents(1, timeout)
            if count > 0:
                return slots.completions(count)
            if count != -EINTR and count != 0:
                raise OSError(-count, f"reap: {os.strerror(-count)}")
            if timeout is not None:
                return []
        while slots.queued:
            if slots.perform() > 0:
                self._performed += 1
                return slots.completions(1)
        if timeout is not None:
            time.sleep(timeout)
        return []

    def notify(self, eventfd: int) -> None:
        """Have a descriptor of eventfd(2) told of each completion that is to be reaped."""
        self._slots.notify(eventfd)

    def reap_now(self) -> list[tuple[int, int]]:
        """Return the completions that there are, without waiting for any that is in flight."""
        slots = self._slots
        if not slots.in_flight:
            return self.reap()  # what the kernel refuses is performed
        count = slots.getevents(0, 0)
        return slots.completions(count) if count > 0 else []

    @property
    def refused(self) -> bool:
        """Whether all that is begun is queued, and only to be performed: nothing will be told."""
        return bool(self._slots.queued) and not self._slots.in_flight

    def close(self) -> None:
        """Wait for what is in flight, drop what is queued, give the context back to the pool."""
        slots = self._slots
        slots.drain()
        slots.notify(-1)
        if self._kept is None:
            release(slots)
        else:
            self._kept.append(slots)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Contexts(Protocol):
    """What has a context at hand."""

    def __call__(
        self, depth: int, block_size: int, *, idle: bool
    ) -> AbstractContextManager[Context]: ...


def release(slots: Slots) -> None:
    """Give idle slots to the pool, or close them if there are enough."""
    if slots.pid != os.getpid():
        return
    if len(_idle) >= _KEEP_CONTEXTS or not slots.maxevents:
        slots.close()
        return
    if slots.mapped + sum(idle.mapped for idle in tuple(_idle)) > _KEEP_BYTES:
        slots.unmap()
    _idle.append(slots)


def _pop(idle: deque[Slots] | None) -> Slots | None:
    """The slots that were used last, but for those of the process that has forked this one."""
    while idle:
        with suppress(IndexError):  # another thread has taken them
            if (slots := idle.pop()).pid == os.getpid():
                return slots
    return None


def _forget() -> None:
    """In a forked child: the idle contexts are the parent's."""
    _idle.clear()


os.register_at_fork(after_in_child=_forget)
