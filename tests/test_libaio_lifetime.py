"""The binding cannot be made to crash: lifetimes, garbage collection, forks, threads."""

import gc
import mmap
import os
import random
import subprocess
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aiocp.libaio import (
    POLLIN,
    Context,
    Event,
    Iocb,
    io_cancel,
    io_destroy,
    io_getevents,
    io_prep_poll,
    io_prep_pread,
    io_prep_preadv,
    io_queue_run,
    io_set_callback,
    io_setup,
    io_submit,
)

BLOCK = 1 << 20


class Data:
    """An object that can be watched."""


class Buffer(bytearray):
    """A buffer that can be watched."""


@pytest.fixture
def zero() -> Iterator[int]:
    """A descriptor to read from, at once and for ever."""
    fd = os.open("/dev/zero", os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def never() -> Iterator[int]:
    """An eventfd to poll; it becomes readable when a test writes to it."""
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def polling(fd: int) -> Iocb:
    iocb = Iocb()
    io_prep_poll(iocb, fd, POLLIN)
    return iocb


def aio_rings() -> int:
    """How many AIO rings the kernel has mapped into this process."""
    return Path("/proc/self/maps").read_text().count("/[aio]")


# What is held


def test_the_context_holds_what_is_in_flight(zero: int) -> None:
    """Iocb, buffers and data live until their event is reaped, and no longer."""
    with io_setup(1) as ctx:
        iocb, buffers, data = Iocb(), [Buffer(b"12"), Buffer(b"345")], Data()
        io_prep_preadv(iocb, zero, buffers, 0)
        iocb.data = data
        watched = [weakref.ref(thing) for thing in (iocb, *buffers, data)]
        io_submit(ctx, [iocb])
        del iocb, buffers, data
        gc.collect()
        assert all(thing() for thing in watched)
        (event,) = io_getevents(ctx, 1, 1)
        assert event.obj.buf == (bytes(2), bytes(3))
        assert [event.obj, *event.obj.buf, event.data] == [thing() for thing in watched]
        del event
        gc.collect()
        assert not any(thing() for thing in watched)


def test_a_buffer_in_use_cannot_be_resized(zero: int) -> None:
    """BufferError from the prep until the event is reaped, or something else is prepared."""
    with io_setup(1) as ctx:
        iocb, buffer = Iocb(), bytearray(8)
        io_prep_pread(iocb, zero, buffer, 0)
        with pytest.raises(BufferError):
            buffer.clear()
        io_submit(ctx, [iocb])
        with pytest.raises(BufferError):
            buffer.clear()
        events = io_getevents(ctx, 1, 1)
        assert events[0].obj is iocb
        buffer += b"more"
        io_prep_pread(iocb, zero, buffer, 0)
        with pytest.raises(BufferError):
            buffer.clear()
        io_prep_poll(iocb, zero, POLLIN)
        buffer.clear()


def test_a_mapping_in_use_cannot_be_closed(zero: int) -> None:
    """BufferError on closing a mmap that the kernel is to fill."""
    iocb, mapping = Iocb(), mmap.mmap(-1, 4096)
    io_prep_pread(iocb, zero, mapping, 0)
    with pytest.raises(BufferError):
        mapping.close()
    del iocb
    mapping.close()


def test_destroying_lets_go(zero: int, never: int) -> None:
    """After io_destroy every iocb is idle, polls included, and nothing is held any more."""
    ctx = io_setup(2)
    iocb, buffer, poll = Iocb(), bytearray(1), polling(never)
    io_prep_pread(iocb, zero, buffer, 0)
    assert io_submit(ctx, [iocb, poll]) == 2
    io_destroy(ctx)
    io_prep_poll(poll, never, POLLIN)
    io_prep_poll(iocb, never, POLLIN)
    buffer.clear()
    watched = weakref.ref(iocb)
    del iocb
    assert watched() is None


def test_destroying_waits_for_what_is_in_flight(tmp_path: Path) -> None:
    """When io_destroy returns the kernel writes to no buffer any more."""
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * BLOCK * 4)
    fd = open_direct(path)
    for _ in range(5):
        ctx, iocbs = io_setup(4), [Iocb() for _ in range(4)]
        buffers = [mmap.mmap(-1, BLOCK) for _ in iocbs]
        for number, (iocb, buffer) in enumerate(zip(iocbs, buffers, strict=True)):
            io_prep_pread(iocb, fd, buffer, number * BLOCK)
        assert io_submit(ctx, iocbs) == 4
        io_destroy(ctx)
        assert all(buffer[:] == b"\xff" * BLOCK for buffer in buffers)
    os.close(fd)


def open_direct(path: Path) -> int:
    """A descriptor whose reads are truly in flight, where the file system has direct I/O."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return os.open(path, os.O_RDONLY)


# Garbage collection


def test_a_dropped_context_is_destroyed_with_a_warning() -> None:
    """Dropping a context destroys it, with the warning that a dropped file gives."""
    rings = aio_rings()
    ctx = io_setup(1)
    with pytest.warns(ResourceWarning, match="context not destroyed"):
        del ctx
    assert aio_rings() == rings


def test_iocbs_outlive_a_dropped_context(never: int) -> None:
    """What was in flight on a context that is dropped can be prepared again."""
    iocb = polling(never)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        ctx = io_setup(1)
        io_submit(ctx, [iocb])
        del ctx
    io_prep_poll(iocb, never, POLLIN)


def test_a_dropped_context_that_was_destroyed_is_silent() -> None:
    """No warning for a context that was destroyed."""
    ctx = io_setup(1)
    io_destroy(ctx)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del ctx


@pytest.mark.parametrize("cycle", [False, True])
def test_everything_dropped_with_io_in_flight(tmp_path: Path, cycle: bool) -> None:
    """Context, iocbs and buffers dropped at once: the kernel writes into nobody else's memory."""
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * BLOCK * 8)
    fd = open_direct(path)
    watched = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(10):
            ctx, iocbs = io_setup(8), [Iocb() for _ in range(8)]
            for number, iocb in enumerate(iocbs):
                io_prep_pread(iocb, fd, bytearray(BLOCK), number * BLOCK)
                iocb.data = (ctx, iocbs) if cycle else None
            assert io_submit(ctx, iocbs) == 8
            watched.append(weakref.ref(ctx))
            del ctx, iocbs, iocb
            gc.collect()
            others = [bytearray(BLOCK) for _ in range(16)]
            assert not any(map(any, others))
    assert not any(thing() for thing in watched)
    os.close(fd)


def test_dropped_iocbs_are_reaped(zero: int) -> None:
    """Iocbs and buffers dropped in flight, the context kept: every event comes, with its data."""
    with io_setup(64) as ctx:
        for _ in range(20):
            for number in range(64):
                iocb = Iocb()
                io_prep_pread(iocb, zero, bytearray(b"x" * 4096), 0)
                iocb.data = number
                io_submit(ctx, [iocb])
                del iocb
            gc.collect()
            events = io_getevents(ctx, 64, 64)
            assert sorted(event.data for event in events) == list(range(64))
            assert all(event.obj.buf == bytes(4096) for event in events)


EXIT = """
import os
from aiocp import libaio
from aiocp.libaio import *
ctx, iocb, other = io_setup(2), Iocb(), Iocb()
io_prep_poll(iocb, os.eventfd(0), POLLIN)
io_prep_pread(other, os.open("/dev/zero", os.O_RDONLY), bytearray(1 << 20), 0)
io_submit(ctx, [iocb, other])
iocb.__class__.cycle = ctx if {cycle} else None
"""


@pytest.mark.parametrize("cycle", [False, True])
def test_exit_with_io_in_flight(cycle: bool) -> None:
    """A program that ends with a live context ends well, with nothing worse than the warning."""
    process = subprocess.run(
        [sys.executable, "-X", "dev", "-c", EXIT.format(cycle=cycle)],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert all("ResourceWarning" in line for line in process.stderr.splitlines()[:1])
    assert "Error" not in process.stderr


# Fork


def in_child(check: Callable[[], None]) -> None:
    """Run `check` in a forked child; fails if it raises there."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            check()
            status = 0
        except BaseException:  # noqa: BLE001 - the child ends here, whatever it is
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_forked_child_may_not_use_its_parents_context(zero: int, never: int) -> None:
    """Every function raises a RuntimeError that names the owner; the parent goes on undisturbed."""
    ctx, iocb, idle = io_setup(2), polling(never), polling(never)
    io_submit(ctx, [iocb])
    parent = os.getpid()

    def check() -> None:
        calls: list[Callable[[], object]] = [
            lambda: io_submit(ctx, [idle]),
            lambda: io_getevents(ctx, 0, 1, timeout=0),
            lambda: io_cancel(ctx, iocb),
            lambda: io_queue_run(ctx),
            lambda: io_destroy(ctx),
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match=f"belongs to process {parent}"):
                call()
        with io_setup(1) as own:
            io_submit(own, [idle])
            os.eventfd_write(never, 1)
            assert io_getevents(own, 1, 1) == [Event(None, idle, POLLIN, 0)]

    in_child(check)
    assert io_getevents(ctx, 1, 1) == [Event(None, iocb, POLLIN, 0)]
    io_destroy(ctx)


def test_dropping_a_context_in_a_forked_child_does_nothing(never: int) -> None:
    """No warning and no io_destroy in the child; the context stays the parent's."""
    holder = [io_setup(1)]
    iocb = polling(never)
    io_submit(holder[0], [iocb])

    def check() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            holder.clear()
            gc.collect()

    in_child(check)
    os.eventfd_write(never, 1)
    assert io_getevents(holder[0], 1, 1) == [Event(None, iocb, POLLIN, 0)]
    io_destroy(holder[0])


# Threads


@pytest.fixture
def restless() -> Iterator[None]:
    """Have threads switch as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def run_threads(*targets: Callable[[], object]) -> None:
    """Run all at the same time; raises what one of them raises."""
    errors: list[BaseException] = []

    def guarded(target: Callable[[], object]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.usefixtures("restless")
def test_threads_share_a_context(zero: int) -> None:
    """Threads submit and reap on one context: every event comes once, to one of them."""
    rounds, width = 100, 4
    got: list[int] = []

    def work(first: int) -> None:
        for number in range(first, first + rounds * width, width):
            iocbs = [Iocb() for _ in range(width)]
            for data, iocb in enumerate(iocbs, number):
                io_prep_pread(iocb, zero, bytearray(64), 0)
                iocb.data = data
            while iocbs:
                with suppress(BlockingIOError):
                    del iocbs[: io_submit(ctx, iocbs)]
                got.extend(event.data for event in io_getevents(ctx, 0, 3, timeout=0))

    with io_setup(8) as ctx:
        step = rounds * width
        run_threads(*(lambda first=first: work(first) for first in range(0, 4 * step, step)))
        got.extend(event.data for event in io_getevents(ctx, 0, 10_000, timeout=0))
    assert sorted(got) == list(range(4 * step))


@pytest.mark.usefixtures("restless")
def test_threads_fight_over_one_iocb(zero: int) -> None:
    """Whatever threads do to the same iocb, each submission taken has one event."""
    taken, events = [], []
    iocb = Iocb()

    def work(seed: int) -> None:
        choose = random.Random(seed).choice

        def prepare() -> None:
            io_prep_pread(iocb, zero, bytearray(choose((1, 5000))), 0)

        def submit() -> None:
            taken.append(io_submit(choose((ctx, other)), [iocb]))

        def reap() -> None:
            events.extend(io_getevents(choose((ctx, other)), 0, 2, timeout=0))

        def change() -> None:
            iocb.nbytes = choose((1, 2))

        for _ in range(2000):
            with suppress(ValueError):
                choose((prepare, submit, reap, change))()

    with io_setup(8) as ctx, io_setup(8) as other:
        run_threads(*(lambda seed=seed: work(seed) for seed in range(3)))
        for each in (ctx, other):
            events.extend(io_getevents(each, 0, 10_000, timeout=0))
    assert taken
    assert len(events) == sum(taken)
    assert {event.obj for event in events} == {iocb}


def inside(ctx: Context) -> None:
    """Wait until a thread is inside a call on the context."""
    while not ctx._c.calls:
        os.sched_yield()


def test_destroying_while_a_thread_waits_is_refused(never: int) -> None:
    """io_destroy with a thread inside a call: RuntimeError, and the thread is not disturbed."""
    ctx, iocb, got = io_setup(1), polling(never), []
    io_submit(ctx, [iocb])
    thread = threading.Thread(target=lambda: got.extend(io_getevents(ctx, 1, 1)))
    thread.start()
    inside(ctx)
    with pytest.raises(RuntimeError, match="another thread"):
        io_destroy(ctx)
    os.eventfd_write(never, 1)
    thread.join()
    assert got == [Event(None, iocb, POLLIN, 0)]
    io_destroy(ctx)


@pytest.mark.usefixtures("restless")
def test_destroying_while_threads_work(zero: int) -> None:
    """Each of the other threads' calls succeeds or says that the context was destroyed."""
    for _ in range(10):
        ctx = io_setup(8)

        def work(ctx: Context = ctx) -> None:
            with suppress(ValueError):
                while True:
                    iocb = Iocb()
                    io_prep_pread(iocb, zero, bytearray(64), 0)
                    io_submit(ctx, [iocb])
                    io_getevents(ctx, 0, 8, timeout=0)
            assert ctx.closed

        def destroy(ctx: Context = ctx) -> None:
            inside(ctx)
            while not ctx.closed:
                with suppress(RuntimeError):
                    io_destroy(ctx)

        run_threads(work, work, destroy)


def test_a_callback_may_destroy_the_context(zero: int) -> None:
    """The callback that destroys ends io_queue_run with the ValueError of a destroyed context."""
    ctx, iocb = io_setup(1), Iocb()
    io_prep_pread(iocb, zero, bytearray(1), 0)
    io_set_callback(iocb, lambda ctx, *_: io_destroy(ctx))
    io_submit(ctx, [iocb])
    with pytest.raises(ValueError, match="destroyed"):
        io_queue_run(ctx)
