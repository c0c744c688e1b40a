"""Signals: waiting goes on after a handler (PEP 475), and one that raises loses no event."""

import dis
import gc
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from aiocp import libaio
from aiocp.libaio import (
    POLLIN,
    Context,
    Iocb,
    io_destroy,
    io_getevents,
    io_pgetevents,
    io_prep_poll,
    io_prep_pread,
    io_queue_run,
    io_set_callback,
    io_setup,
    io_submit,
)


@pytest.fixture
def ctx() -> Iterator[Context]:
    with io_setup(8) as ctx:
        yield ctx


@pytest.fixture
def never() -> Iterator[int]:
    """An eventfd to poll; it becomes readable when a test writes to it."""
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


@contextmanager
def handling(signum: int, handler: Callable[..., object]) -> Iterator[None]:
    previous = signal.signal(signum, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signum, previous)


def polling(fd: int) -> Iocb:
    iocb = Iocb()
    io_prep_poll(iocb, fd, POLLIN)
    return iocb


@pytest.mark.parametrize("reap", [io_getevents, io_pgetevents])
def test_waiting_goes_on_after_a_signal(ctx: Context, never: int, reap: Any) -> None:
    """The handler runs while the call waits; the call returns when there is an event."""
    arrived = itertools.count(1)

    def handler(*_: object) -> None:
        if next(arrived) == 3:
            os.eventfd_write(never, 1)

    io_submit(ctx, [polling(never)])
    with handling(signal.SIGALRM, handler):
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        (event,) = reap(ctx, 1, 1)
    assert event.res == POLLIN
    assert next(arrived) > 3


def test_a_signal_does_not_shorten_the_timeout(ctx: Context, never: int) -> None:
    """Without an event the call waits for what is left of its time."""
    arrived = []
    io_submit(ctx, [polling(never)])
    with handling(signal.SIGALRM, lambda *_: arrived.append(1)):
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        start = time.monotonic()
        assert io_getevents(ctx, 1, 1, timeout=0.2) == []
        assert time.monotonic() - start >= 0.2
    assert arrived


def test_a_signal_with_fewer_events_than_wanted(ctx: Context, never: int) -> None:
    """A signal that comes with one of two events there: the call waits for the other too."""
    ready = os.eventfd(1)
    io_submit(ctx, [polling(ready), polling(never)])
    with handling(signal.SIGALRM, lambda *_: os.eventfd_write(never, 1)):
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        assert len(io_getevents(ctx, 2, 2)) == 2
    os.close(ready)


def test_what_a_handler_raises_ends_the_wait(ctx: Context, never: int) -> None:
    """An exception in the handler propagates; the operation stays in flight."""

    def handler(*_: object) -> None:
        raise InterruptedError("from the handler")

    iocb = polling(never)
    io_submit(ctx, [iocb])
    with handling(signal.SIGALRM, handler):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(InterruptedError, match="from the handler"):
            io_getevents(ctx, 1, 1)
    os.eventfd_write(never, 1)
    assert [event.obj for event in io_getevents(ctx, 1, 1)] == [iocb]


@pytest.fixture
def pending() -> Iterator[list[int]]:
    """SIGUSR1 pending in a thread that blocks it; the list takes what the handler gets."""
    got: list[int] = []
    with handling(signal.SIGUSR1, lambda signum, _: got.append(signum)):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        signal.raise_signal(signal.SIGUSR1)
        yield got
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])


@pytest.mark.parametrize(
    ("sigmask", "expected"),
    [([], [signal.SIGUSR1]), ([signal.SIGALRM], [signal.SIGUSR1]), ([signal.SIGUSR1], [])],
)
def test_pgetevents_blocks_exactly_the_mask(
    ctx: Context, pending: list[int], sigmask: list[int], expected: list[int]
) -> None:
    """A pending signal is handled during the call if the mask does not block it, and not else."""
    assert io_pgetevents(ctx, 1, 1, timeout=0.01, sigmask=sigmask) == []
    assert pending == expected
    assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_pgetevents_without_a_mask_leaves_it(ctx: Context, pending: list[int]) -> None:
    """None: the thread's own mask."""
    assert io_pgetevents(ctx, 1, 1, timeout=0.01) == []
    assert pending == []


@pytest.mark.parametrize("signum", [0, -1, 1000])
def test_pgetevents_refuses_what_is_no_signal(ctx: Context, signum: int) -> None:
    """A number that is no signal's: ValueError."""
    with pytest.raises(ValueError, match=f"not a signal: {signum}"):
        io_pgetevents(ctx, 0, 1, sigmask=[signum])


# Where CPython looks for signals: on entering a function, at the end of a loop's turn, after a
# call of something that is not itself a Python function.
LOOKS = re.compile(r"RESUME|CALL(_KW|_FUNCTION_EX)?|.*JUMP_BACKWARD.*")


class Interrupt:
    """Raise KeyboardInterrupt in the binding, at the place number `at` where a signal could."""

    def __init__(self, at: int) -> None:
        self._left = at
        self._last: dict[FrameType, str] = {}

    def __enter__(self) -> None:
        sys._getframe().f_trace_opcodes = True  # Python 3.12 wants to see it before settrace
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != libaio.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "call" and frame.f_back is not None:
            self._last[frame.f_back] = "a Python function"
        elif event == "opcode":
            if LOOKS.fullmatch(self._last.get(frame, "")):
                self._left -= 1
                if not self._left:
                    raise KeyboardInterrupt
            self._last[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        return self._trace


def interrupted_everywhere(once: Callable[[Callable[[], Interrupt]], None]) -> None:
    """Run `once`, interrupted a place later each time, until it gets through."""
    for at in itertools.count(1):
        hit = True
        try:
            once(lambda at=at: Interrupt(at))  # type: ignore[misc]
            hit = False
        except KeyboardInterrupt:
            pass
        if not hit:
            assert at > 3
            return


@pytest.fixture
def iocbs() -> Iterator[list[Iocb]]:
    """Three reads that are done on return from io_submit."""
    fd = os.open("/dev/zero", os.O_RDONLY)
    iocbs = [Iocb() for _ in range(3)]
    for iocb in iocbs:
        io_prep_pread(iocb, fd, bytearray(1), 0)
    yield iocbs
    os.close(fd)


def test_an_interrupted_getevents_loses_no_event(ctx: Context, iocbs: list[Iocb]) -> None:
    """Wherever the exception comes, the next call gives every event, once."""

    def once(interrupt: Callable[[], Interrupt]) -> None:
        assert io_submit(ctx, iocbs) == 3
        try:
            with interrupt():
                assert [event.obj for event in io_getevents(ctx, 1, 8)] == iocbs
        except KeyboardInterrupt:
            assert [event.obj for event in io_getevents(ctx, 3, 8)] == iocbs
            raise
        finally:
            assert io_getevents(ctx, 0, 8) == []

    interrupted_everywhere(once)


def test_an_interrupted_submit_leaves_each_iocb_idle_or_in_flight(
    ctx: Context, iocbs: list[Iocb]
) -> None:
    """Wherever the exception comes, an iocb has its event, or was not submitted."""
    bad = Iocb()

    def once(interrupt: Callable[[], Interrupt]) -> None:
        try:
            with interrupt():
                assert io_submit(ctx, [*iocbs, bad]) == 3
        finally:
            events = io_getevents(ctx, 0, 8, timeout=0)
            assert [event.obj for event in events] in ([], iocbs)
            assert io_submit(ctx, [*iocbs, bad]) == 3
            assert [event.obj for event in io_getevents(ctx, 3, 8)] == iocbs

    io_prep_poll(bad, -1, POLLIN)
    interrupted_everywhere(once)


def test_an_interrupted_queue_run_calls_each_callback_once(ctx: Context, iocbs: list[Iocb]) -> None:
    """Wherever the exception comes, the next run calls the callbacks that were not."""
    called: list[Iocb] = []
    for iocb in iocbs:
        io_set_callback(iocb, lambda ctx, iocb, res, res2: called.append(iocb))

    def once(interrupt: Callable[[], Interrupt]) -> None:
        called.clear()
        io_submit(ctx, iocbs)
        try:
            with interrupt():
                io_queue_run(ctx)
        finally:
            io_queue_run(ctx)
            assert called == iocbs

    interrupted_everywhere(once)


def test_an_interrupted_prep_leaves_a_usable_iocb(ctx: Context, iocbs: list[Iocb]) -> None:
    """Wherever the exception comes, the iocb is as before or as prepared."""

    def once(interrupt: Callable[[], Interrupt]) -> None:
        iocb, buffer = iocbs[0], bytearray(5)
        before = iocb.buf
        try:
            with interrupt():
                io_prep_pread(iocb, iocb.aio_fildes, buffer, 0)
        finally:
            assert any(iocb.buf is each for each in (before, buffer))
            io_submit(ctx, [iocb])
            assert io_getevents(ctx, 1, 1)[0].res == len(iocb.buf)

    interrupted_everywhere(once)


def test_an_interrupted_destroy_has_destroyed_or_not(never: int) -> None:
    """Wherever the exception comes, the context works on or its iocbs are idle."""

    def once(interrupt: Callable[[], Interrupt]) -> None:
        ctx, iocb = io_setup(1), polling(never)
        io_submit(ctx, [iocb])
        try:
            with interrupt():
                io_destroy(ctx)
        finally:
            if not ctx.closed:
                io_destroy(ctx)
            io_prep_poll(iocb, never, POLLIN)

    interrupted_everywhere(once)


def test_an_interrupted_setup_leaves_no_context() -> None:
    """Wherever the exception comes, no AIO ring stays mapped."""

    def rings() -> int:
        gc.collect()
        return Path("/proc/self/maps").read_text().count("/[aio]")

    before = rings()

    def once(interrupt: Callable[[], Interrupt]) -> None:
        with interrupt():
            ctx = io_setup(1)
        io_destroy(ctx)

    interrupted_everywhere(once)
    assert rings() == before
