"""--idle: who has the idle class of I/O priority, by what the kernel and ionice(1) say of it."""

import asyncio
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from errno import EPERM
from pathlib import Path

import pytest
from aiocp._libaio import ffi, lib

from aiocp import aio, copy_file, copy_tree, priority
from aiocp.context import Context
from aiocp.priority import lowered
from aiocp.slots import Slots
from aiocp.stage import Stage
from filesystems import unavailable, write_cold

MIB = 1 << 20
IDLE = 3 << 13  # IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)
CONTENT = random.Random(12).randbytes(3 * MIB + 777)


def ionice(thread: int | None = None) -> str:
    """What class a thread is of, by default this one."""
    which = str(threading.get_native_id() if thread is None else thread)
    try:
        return subprocess.check_output(["ionice", "-p", which], text=True).strip()
    except FileNotFoundError:
        unavailable("ionice is not installed")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_cold(tmp_path / "source", CONTENT)


@pytest.fixture
def slots() -> Iterator[Slots]:
    slots = Slots()
    slots.setup(4)
    slots.resize(4, 4096)
    yield slots
    slots.close()


def submitted(slots: Slots, fd: int) -> list[tuple[int, int]]:
    """Priority and flags in the iocb of a read, a write and both syncs that the kernel took."""
    slots.prep_preadv(0, fd, 0, 4096, 0)
    slots.prep_pwritev(1, fd, 0, 4096, 0)
    slots.prep_fsync(2, fd)
    slots.prep_fdsync(3, fd)
    assert 4 == slots.submit()
    done = slots.completions(slots.getevents(4, None))
    assert [4096, 4096, 0, 0] == [res for _, res in sorted(done)]
    iocbs = slots._slots.iocbs
    return [
        (iocbs[n].aio_reqprio, lib.iocb_common(ffi.addressof(iocbs[n])).flags) for n in range(4)
    ]


def test_what_the_kernel_is_given(slots: Slots, source: Path) -> None:
    """IOCB_FLAG_IOPRIO (2) and the class, with the eventfd (IOCB_FLAG_RESFD, 1) or without; and
    nothing again where the slots are used by who is not idle."""
    eventfd = os.eventfd(0)
    fd = os.open(source, os.O_RDWR)
    assert [(0, 0)] * 4 == submitted(slots, fd)
    slots.idle = True
    assert [(IDLE, 2)] * 4 == submitted(slots, fd)
    slots.notify(eventfd)
    assert [(IDLE, 3)] * 4 == submitted(slots, fd)
    slots.idle = False
    assert [(0, 1)] * 4 == submitted(slots, fd)
    os.close(fd)
    os.close(eventfd)


def test_a_context_of_the_pool_has_nothing_of_its_last_user() -> None:
    Context(4, 4096, idle=True).close()
    with Context(4, 4096) as used:
        assert not used._slots.idle


def strace(options: list[str], *arguments: str | Path) -> tuple[str, str]:
    """Run `aiocp --debug ARGUMENTS` under strace; its standard output and the trace."""
    log = Path(arguments[-1]).parent / "strace.log"
    traced = [sys.executable, "-m", "aiocp", "--debug", *arguments]
    command = ["strace", "-f", "-v", "-o", log, *options, *traced]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        unavailable("strace is not installed")
    assert done.returncode == 0, done.stderr
    trace = log.read_text()
    log.unlink()
    return done.stdout, trace


@pytest.mark.root
def test_every_read_and_write_is_idle(source: Path, tmp_path: Path) -> None:
    _, trace = strace(["-e", "trace=io_submit"], "--idle", source, tmp_path / "copy")
    assert trace.count("IOCB_CMD_P") >= 8
    assert trace.count("IOCB_CMD_P") == trace.count("aio_flags=IOCB_FLAG_IOPRIO")
    assert trace.count("IOCB_CMD_") == trace.count("=IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)")
    assert (tmp_path / "copy").read_bytes() == CONTENT
    _, trace = strace(["-e", "trace=io_submit,ioprio_set"], source, tmp_path / "copy")
    assert "IOPRIO" not in trace


@pytest.mark.root
def test_where_aio_takes_no_priority_it_goes_without(source: Path, tmp_path: Path) -> None:
    """From the first refusal on, through AIO all the same, and the notes say so."""
    said, trace = strace(
        ["-e", "trace=io_submit", "-e", "inject=io_submit:error=EINVAL:when=1"],
        "--idle",
        source,
        tmp_path / "copy",
    )
    assert "\n  AIO takes no priority: idle only as far as the thread is\n" in said
    assert "aio-direct" in said
    first, *rest = [line for line in trace.splitlines() if "io_submit(" in line]
    assert "IOPRIO_CLASS_IDLE" in first
    assert rest
    assert not any("IOPRIO" in line for line in rest)
    assert (tmp_path / "copy").read_bytes() == CONTENT


@pytest.mark.root
def test_where_the_thread_gets_no_priority_the_notes_say_so(source: Path, tmp_path: Path) -> None:
    said, _ = strace(
        ["-e", "trace=ioprio_set", "-e", "inject=ioprio_set:error=EPERM"],
        "--idle",
        source,
        tmp_path / "copy",
    )
    assert "\n  not idle: Operation not permitted\n" in said


def test_the_thread_is_idle_meanwhile_and_what_it_was_afterwards(tmp_path: Path) -> None:
    """Also where the copy fails; only the thread that copies, and those that it starts."""
    before = ionice()
    others = threading.get_native_id()
    seen: list[str] = []

    def copy() -> None:
        seen.append(ionice())
        (tmp_path / "small").write_bytes(b"x")
        copy_file(tmp_path / "small", tmp_path / "copy", idle=True, progress=look)
        seen.append(ionice())
        with pytest.raises(FileNotFoundError):
            copy_file(tmp_path / "nothing", tmp_path / "copy", idle=True)
        seen.append(ionice())

    def look(*_: int) -> None:
        seen.extend([ionice(), ionice(others)])

    thread = threading.Thread(target=copy)
    thread.start()
    thread.join()
    assert [before, "idle", before, before, before] == seen


def test_threads_beside_a_tree_inherit_it(tmp_path: Path) -> None:
    """Those that open small files and put them in place."""
    (tmp_path / "tree").mkdir()
    for number in range(10):
        (tmp_path / "tree" / str(number)).write_bytes(b"x" * 5000)
    seen: list[str] = []

    def look(*_: object) -> None:
        beside = [one for one in threading.enumerate() if one.name.startswith("aiocp-")]
        seen.extend(ionice(one.native_id) for one in beside)

    before = ionice()
    copy_tree(tmp_path / "tree", tmp_path / "copy", idle=True, on_entry=look)
    assert {"idle"} == set(seen)
    assert before == ionice()
    seen.clear()
    copy_tree(tmp_path / "tree", tmp_path / "copy", on_entry=look)
    assert {before} == set(seen)


def test_a_stage_is_as_idle_as_its_owner() -> None:
    with lowered(idle=True):
        stage: Stage[str] = Stage("test")
        stage.give(ionice)
    assert "idle" == stage.take()
    stage.close()


def test_a_thread_that_may_not_copies_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: int) -> int:
        raise OSError(EPERM, os.strerror(EPERM))

    monkeypatch.setattr(priority, "set_io_priority", refused)
    (tmp_path / "source").write_bytes(CONTENT)
    result = copy_file(tmp_path / "source", tmp_path / "copy", idle=True)
    assert ("not idle: Operation not permitted",) == result.notes
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_an_awaited_copy_leaves_the_thread_of_the_loop_alone(source: Path, tmp_path: Path) -> None:
    """Its AIO is idle."""
    idle: list[bool] = []
    before = ionice()

    async def copy() -> None:
        def look(*_: int) -> None:
            (driver,) = next(iter(aio._drivers.values())).values()
            idle.append(driver.context._slots.idle)
            assert before == ionice()

        await aio.copy_file(source, tmp_path / "copy", idle=True, progress=look)

    asyncio.run(copy())
    assert {True} == set(idle)
    assert (tmp_path / "copy").read_bytes() == CONTENT
