"""Copies that are awaited: what the synchronous ones promise, in one context and no thread."""

import asyncio
import gc
import os
import random
import subprocess
import sys
import threading
from collections import deque
from errno import ENOSPC
from pathlib import Path

import pytest

import aiocp
from aiocp import SourceChanged, VerificationFailed, aio, context
from aiocp.destination import Destination
from aiocp.slots import Slots
from aiocp.verify import Verification

KIB, MIB = 1 << 10, 1 << 20
CONTENT = random.Random(9).randbytes(3 * MIB + 777)
OPEN_FILES = Path("/proc/self/fd")


@pytest.fixture(autouse=True)
def nothing_left_open() -> object:
    gc.collect()  # of what others have left, lest it goes meanwhile
    before = sorted(os.listdir(OPEN_FILES))
    yield
    assert before == sorted(os.listdir(OPEN_FILES))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def test_a_copy_is_what_the_other_is(source: Path) -> None:
    """Bytes and result, but for the times."""
    told: list[tuple[int, int]] = []
    awaited = asyncio.run(
        aio.copy_file(source, source.with_name("awaited"), progress=lambda *done: told.append(done))
    )
    called = aiocp.copy_file(source, source.with_name("called"))
    assert source.with_name("awaited").read_bytes() == CONTENT
    same = set(called._fields) - {"destination", "elapsed", "rate", "peak_in_flight"}
    assert {name: getattr(awaited, name) for name in same} == {
        name: getattr(called, name) for name in same
    }
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize("size", [0, 1, 4096, 100 * KIB])
@pytest.mark.parametrize("options", [{}, {"sync": False}, {"verify": True}, {"in_place": True}])
def test_small_ones(tmp_path: Path, size: int, options: dict[str, bool]) -> None:
    """New, then over what is there."""
    for content in (CONTENT[:size], CONTENT[1 : size + 1]):
        (tmp_path / "source").write_bytes(content)
        result = asyncio.run(aio.copy_file(tmp_path / "source", tmp_path / "copy", **options))  # type: ignore[arg-type]
        assert (tmp_path / "copy").read_bytes() == content
        assert result.synced is options.get("sync", True)
        assert result.verified is options.get("verify", False)


def test_hundreds_share_a_context_and_take_no_thread(tmp_path: Path) -> None:
    """With no more in flight than one of them would have."""
    for number in range(200):
        (tmp_path / f"source{number}").write_bytes(CONTENT[number : number + 50 * KIB + number])

    async def copy_all() -> list[aiocp.CopyResult]:
        copies = [
            aio.copy_file(tmp_path / f"source{n}", tmp_path / f"copy{n}", depth=8, block_size=16384)
            for n in range(200)
        ]
        results = await asyncio.gather(*copies)
        assert threading.active_count() == threads
        return results

    threads = threading.active_count()
    results = asyncio.run(copy_all())
    assert {result.depth for result in results} == {8}
    assert max(result.peak_in_flight for result in results) == 8
    for n in range(200):
        assert (tmp_path / f"copy{n}").read_bytes() == (tmp_path / f"source{n}").read_bytes()


def test_what_is_read_to_its_end_is_in_nobodys_way(source: Path) -> None:
    """Empty files, and those of /proc that say that they are: not through the slots of others."""
    empty = source.with_name("empty")
    empty.touch()

    async def copy_all() -> None:
        copies = [
            aio.copy_file(path, source.with_name(f"{path.name}{n}"), depth=2, block_size=16384)
            for n in range(10)
            for path in (source, empty, Path("/proc/cpuinfo"))
        ]
        await asyncio.gather(*copies)

    asyncio.run(copy_all())
    for n in range(10):
        assert source.with_name(f"source{n}").read_bytes() == CONTENT
        assert source.with_name(f"empty{n}").read_bytes() == b""
        assert b"processor" in source.with_name(f"cpuinfo{n}").read_bytes()


def test_the_loop_goes_on_meanwhile(source: Path) -> None:
    """Something else is done between two completions."""

    async def copy() -> int:
        copying = asyncio.ensure_future(
            aio.copy_file(source, source.with_name("copy"), depth=2, block_size=4 * KIB)
        )
        turns = 0
        while not copying.done():
            await asyncio.sleep(0)
            turns += 1
        await copying
        return turns

    assert asyncio.run(copy()) > 10


def test_a_task_that_is_cancelled_leaves_nothing(source: Path) -> None:
    """The other goes on; the old file is still there."""
    copy, other = source.with_name("copy"), source.with_name("other")
    copy.write_bytes(b"old")

    async def cancel() -> None:
        reached = asyncio.Event()
        copying = asyncio.ensure_future(
            aio.copy_file(
                source, copy, depth=4, block_size=4 * KIB, progress=lambda *_: reached.set()
            )
        )
        more = asyncio.ensure_future(aio.copy_file(source, other, depth=4, block_size=4 * KIB))
        await reached.wait()
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying
        await more

    asyncio.run(cancel())
    assert copy.read_bytes() == b"old"
    assert other.read_bytes() == CONTENT
    assert sorted(os.listdir(source.parent)) == ["copy", "other", "source"]


def test_what_progress_raises_stops_the_copy(source: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise RuntimeError(f"{done} of {total}")

    with pytest.raises(RuntimeError, match=f" of {len(CONTENT)}"):
        asyncio.run(aio.copy_file(source, source.with_name("copy"), progress=stop))
    assert os.listdir(source.parent) == ["source"]


def test_errors_are_those_of_the_other(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = source.with_name("copy")
    with pytest.raises(FileNotFoundError, match="open source") as raised:
        asyncio.run(aio.copy_file(source.with_name("missing"), copy))
    assert raised.value.filename2 == str(copy)
    with pytest.raises(ValueError, match="depth must be"):
        asyncio.run(aio.copy_file(source, copy, depth=0))

    def size(self: Destination, length: int) -> None:
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Destination, "size", size)
        with pytest.raises(OSError, match="No space left"):
            asyncio.run(aio.copy_file(source, copy, reflink="never"))
    saw = Verification.saw
    with monkeypatch.context() as patch:
        patch.setattr(Verification, "saw", lambda self, at, block: saw(self, at, block[:-1]))
        with pytest.raises(VerificationFailed):
            asyncio.run(aio.copy_file(source, copy, verify=True, reflink="never"))
    with pytest.raises(SourceChanged):
        asyncio.run(
            aio.copy_file(
                source,
                copy,
                depth=1,
                block_size=64 * KIB,
                reflink="never",
                progress=lambda *_: os.truncate(source, 5000),
            )
        )
    assert os.listdir(source.parent) == ["source"]


def test_a_stream_is_copied_in_a_thread(tmp_path: Path) -> None:
    """Which ends when the task is cancelled, although nothing comes."""
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=(tmp_path / "fifo").write_bytes, args=(CONTENT,))
    writer.start()
    result = asyncio.run(aio.copy_file(tmp_path / "fifo", tmp_path / "copy"))
    writer.join()
    assert (result.method, (tmp_path / "copy").read_bytes()) == ("stream", CONTENT)

    async def cancel() -> None:
        copying = asyncio.ensure_future(aio.copy_file(tmp_path / "fifo", tmp_path / "none"))
        await asyncio.sleep(0.05)
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying

    end = os.open(tmp_path / "fifo", os.O_RDWR)
    asyncio.run(cancel())
    os.close(end)
    assert not (tmp_path / "none").exists()


def test_without_aio_it_is_performed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel refuses contexts."""

    def refuse(self: Slots, maxevents: int) -> None:
        raise PermissionError(1, "refused")

    monkeypatch.setattr(Slots, "setup", refuse)
    monkeypatch.setattr(context, "_idle", deque())
    result = asyncio.run(aio.copy_file(source, source.with_name("copy"), reflink="never"))
    assert result.method == "plain"
    assert source.with_name("copy").read_bytes() == CONTENT


def test_an_idle_loop_keeps_nothing(source: Path) -> None:
    """One after the other in one loop: each makes its driver, the context is one."""

    async def copy() -> None:
        for number in range(3):
            await aio.copy_file(source, source.with_name(f"copy{number}"))
            assert not aio._drivers[asyncio.get_running_loop()]

    asyncio.run(copy())


def test_under_uvloop(source: Path) -> None:
    """In a process of its own: it keeps descriptors open."""
    pytest.importorskip("uvloop")
    program = (
        "import sys, uvloop\n"
        "from aiocp import aio\n"
        "print(uvloop.run(aio.copy_file(*sys.argv[1:], depth=2, block_size=65536)).method)\n"
    )
    copy = source.with_name("copy")
    done = subprocess.run(
        [sys.executable, "-c", program, source, copy], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert copy.read_bytes() == CONTENT
