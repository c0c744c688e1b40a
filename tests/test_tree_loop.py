"""Trees that are awaited: what the synchronous copy promises, and the loop goes on meanwhile."""

import asyncio
import errno
import gc
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import aiocp
import tree_crash
from aiocp import aio, context, placing, tree_loop, tree_targets
from aiocp.slots import Slots
from test_leaks import contexts, descriptors
from trees import KIB, differences, everything, snapshot

RNG = random.Random(11)


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    """No descriptor and no thread is left, and no context but idle ones."""
    before, threads = descriptors(), threading.active_count()
    yield
    gc.collect()
    assert before == descriptors()
    assert threads == threading.active_count()
    assert contexts() == len(context._idle)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small and large files, empty ones, links of both kinds, a FIFO, directories."""
    top = tmp_path_factory.mktemp("trees") / "source"
    for directory in ("", "one", "one/two", "empty"):
        (top / directory).mkdir()
        for i in range(0 if directory == "empty" else 80):
            (top / directory / f"file{i}").write_bytes(RNG.randbytes(i * 97))
    for name in ("large", "one/large"):
        (top / name).write_bytes(RNG.randbytes(700 * KIB + 13))
    (top / "one" / "link").symlink_to("nowhere")
    (top / "one" / "hard").hardlink_to(top / "file7")
    os.mkfifo(top / "fifo")
    for i, path in enumerate(sorted(top.rglob("*"))):
        os.utime(path, (i, i), follow_symlinks=False)
    return top


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preserve": ["all"]},
        {"sync": False},
        {"verify": True},
        {"depth": 1, "block_size": 4096},
        {"link": "hard"},
        {"sparse": "always", "reflink": "never"},
        {"bwlimit": 40 << 20, "idle": True},
        {"checksum": "sha256"},
    ],
    ids=str,
)
def test_a_copy_is_what_the_other_is(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any
) -> None:
    """What is copied, what is told and the result, but for the times; then over what is there."""
    monkeypatch.setattr(tree_targets, "dirty_bytes", lambda: 0)  # whatever else is on this machine
    told: dict[str, Counter[str]] = {"awaited": Counter(), "called": Counter()}

    def tell(which: str) -> Callable[[aiocp.Outcome], None]:
        root = str(tmp_path / which)
        return lambda outcome: told[which].update([outcome.destination.removeprefix(root)])

    for _ in range(1 if options.get("link") else 2):
        awaited = asyncio.run(
            aio.copy_tree(source, tmp_path / "awaited", on_entry=tell("awaited"), **options)
        )
        called = aiocp.copy_tree(source, tmp_path / "called", on_entry=tell("called"), **options)
        assert everything(tmp_path / "called") == everything(tmp_path / "awaited")
        if "preserve" in options:
            assert differences(source, tmp_path / "awaited") == ""
        same = set(called._fields) - {"destination", "elapsed", "peak_in_flight", "syncs"}
        assert {name: getattr(awaited, name) for name in same} == {
            name: getattr(called, name) for name in same
        }
        assert bool(awaited.syncs) == bool(called.syncs)
        assert told["called"] == told["awaited"]


def test_several_at_once_with_files(source: Path, tmp_path: Path) -> None:
    """Each is whole."""

    async def copy_all() -> None:
        trees = [aio.copy_tree(source, tmp_path / f"tree{n}", depth=8) for n in range(4)]
        files = [aio.copy_file(source / "large", tmp_path / f"file{n}") for n in range(4)]
        copies: list[Awaitable[object]] = [*trees, *files]
        await asyncio.gather(*copies)

    asyncio.run(copy_all())
    for n in range(4):
        assert snapshot(source) == snapshot(tmp_path / f"tree{n}")
        assert (tmp_path / f"file{n}").read_bytes() == (source / "large").read_bytes()


@contextmanager
def few_descriptors(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_those_that_have_no_descriptors_wait(source: Path, tmp_path: Path) -> None:
    """One after the other then, and one that is cancelled while it waits is not begun."""

    async def copy_all() -> None:
        copies = [
            asyncio.ensure_future(aio.copy_tree(source, tmp_path / f"tree{n}")) for n in range(5)
        ]
        await asyncio.sleep(0)
        copies[4].cancel()
        results = await asyncio.gather(*copies, return_exceptions=True)
        assert isinstance(results[4], asyncio.CancelledError)
        assert all(isinstance(result, aiocp.TreeResult) for result in results[:4])

    with few_descriptors(400):
        asyncio.run(copy_all())
    assert sorted(os.listdir(tmp_path)) == [f"tree{n}" for n in range(4)]
    for n in range(4):
        assert snapshot(source) == snapshot(tmp_path / f"tree{n}")


def test_the_loop_goes_on_meanwhile(tmp_path: Path) -> None:
    """Also where nothing is transferred: a turn does not last until the walk is over."""
    (tmp_path / "links").mkdir()
    for i in range(3000):
        (tmp_path / "links" / str(i)).symlink_to("nowhere")

    async def copy() -> set[int]:
        turns, seen = 0, set()
        copying = asyncio.ensure_future(
            aio.copy_tree(tmp_path / "links", tmp_path / "copy", on_entry=lambda _: seen.add(turns))
        )
        while not copying.done():
            await asyncio.sleep(0)
            turns += 1
        await copying
        return seen

    assert len(asyncio.run(copy())) > 3


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_sync_does_not_hold_up_the_loop(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """That of the file system lasts here until the loop has done something else meanwhile; also
    where the task is cancelled by then, and waits for it."""
    begun, reached = threading.Event(), threading.Event()
    waited: list[bool] = []

    def sync(fd: int) -> None:
        begun.set()
        waited.append(reached.wait(20))

    monkeypatch.setattr(placing, "sync_filesystem", sync)

    async def copy() -> None:
        copying = asyncio.ensure_future(aio.copy_tree(source, tmp_path / "copy", link="hard"))
        while not begun.is_set():
            await asyncio.sleep(0)
        if cancelled:
            copying.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not copying.done()
        reached.set()
        with suppress(asyncio.CancelledError):
            await copying
        assert copying.cancelled() == cancelled

    asyncio.run(copy())
    assert waited == [True]


def test_errors_are_those_of_the_other(source: Path, tmp_path: Path) -> None:
    """A root that is none, a value that cannot be, an entry that cannot be copied."""
    with pytest.raises(FileNotFoundError, match="open source") as raised:
        asyncio.run(aio.copy_tree(source / "none", tmp_path / "copy"))
    assert raised.value.filename2 == str(tmp_path / "copy")
    with pytest.raises(ValueError, match="depth must be"):
        asyncio.run(aio.copy_tree(source, tmp_path / "copy", depth=0))
    (tmp_path / "copy" / "file3").mkdir(parents=True)
    with pytest.raises(ExceptionGroup) as group:
        asyncio.run(aio.copy_tree(source, tmp_path / "copy"))
    [error] = group.value.exceptions
    assert isinstance(error, OSError)
    assert (error.errno, error.filename2) == (errno.EISDIR, str(tmp_path / "copy" / "file3"))
    assert isinstance(group.value.result, aiocp.TreeResult)  # type: ignore[attr-defined]
    told: list[OSError] = []
    result = asyncio.run(aio.copy_tree(source, tmp_path / "copy", on_error=told.append))
    assert tuple(told) == result.errors
    assert len(told) == 1


def test_what_is_called_may_raise(source: Path, tmp_path: Path) -> None:
    """It stops the copy, and comes out of it."""

    def stop(*_: object) -> bool:
        raise RuntimeError("enough")

    for name in ("exclude", "replace", "on_entry", "progress"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file1").touch()
        options: dict[str, Any] = {name: stop}
        with pytest.raises(RuntimeError, match="enough"):
            asyncio.run(aio.copy_tree(source, tmp_path / name, **options))


@pytest.mark.root
def test_cancelled_at_any_moment(tmp_path: Path) -> None:
    """Whole names; another tree of the loop goes on."""
    rng = random.Random(3)
    trees = tree_crash.Trees(tmp_path, 60)
    copy = tmp_path / "copy"
    ends: Counter[str] = Counter()

    async def cancel(after: int, **options: Any) -> None:
        left = [after]
        task: asyncio.Task[aiocp.TreeResult]

        def count(*_: object) -> bool:
            left[0] -= 1
            if not left[0]:
                task.cancel()
            return False

        watch: dict[str, Any] = {
            "exclude": count,
            "progress": count,
            "on_entry": count,
        }
        watched = rng.choice(list(watch))
        copying = aio.copy_tree(
            trees.source, copy, preserve="all", depth=4, **{watched: watch[watched]}, **options
        )
        task = asyncio.ensure_future(copying)
        other = asyncio.ensure_future(aio.copy_tree(trees.source, tmp_path / "other"))
        with suppress(asyncio.CancelledError):
            await task
        await other

    for number in range(24):
        trees.prepare(copy, over=bool(number % 2))
        options = [{}, {"verify": True}, {"sync": False}][number % 3]
        asyncio.run(cancel(rng.randint(1, 40), **options))
        assert [] == trees.judge(copy, -9, over=bool(number % 2))
        ends[trees.found(copy)] += 1
        assert snapshot(trees.source) == snapshot(tmp_path / "other")
        shutil.rmtree(tmp_path / "other")
    assert ends["part"] > 5


def test_cancelled_at_any_turn(source: Path, tmp_path: Path) -> None:
    """By itself, after so many turns of the loop, and again while it is being cancelled."""

    async def cancel(after: int) -> bool:
        copying = asyncio.ensure_future(aio.copy_tree(source, tmp_path / "copy", depth=3))
        for _ in range(after):
            await asyncio.sleep(0)
        ended = not copying.cancel()
        await asyncio.sleep(0)
        copying.cancel()
        with suppress(asyncio.CancelledError):
            await copying
        assert not tree_loop._trees.get(asyncio.get_running_loop())
        return ended

    for after in [*range(12), 20, 40, 80, 160]:
        asyncio.run(cancel(after))
        for path in (tmp_path / "copy").rglob("*"):
            if path.is_file() and not path.is_symlink():
                whole = source / path.relative_to(tmp_path / "copy")
                assert whole.read_bytes() == path.read_bytes()
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)


def test_fifos_are_read_in_a_thread(source: Path, tmp_path: Path) -> None:
    """With copy_contents; all that is called is called by the loop, and a cancelled task ends."""
    (tmp_path / "fifos").mkdir()
    os.mkfifo(tmp_path / "fifos" / "fifo")
    (tmp_path / "fifos" / "not this").touch()
    writer = threading.Thread(
        target=(tmp_path / "fifos" / "fifo").write_bytes, args=(b"x" * 100_000,)
    )
    writer.start()
    loop = threading.get_ident()
    callers: list[int] = []

    def called(path: bytes, _: object) -> bool:
        callers.append(threading.get_ident())
        return path == b"not this"

    asyncio.run(
        aio.copy_tree(tmp_path / "fifos", tmp_path / "copy", copy_contents=True, exclude=called)
    )
    writer.join()
    assert os.listdir(tmp_path / "copy") == ["fifo"]
    assert (tmp_path / "copy" / "fifo").read_bytes() == b"x" * 100_000
    assert set(callers) == {loop}

    async def cancel() -> None:
        copying = asyncio.ensure_future(
            aio.copy_tree(tmp_path / "fifos", tmp_path / "none", copy_contents=True)
        )
        while not (tmp_path / "none").exists():
            await asyncio.sleep(0.01)
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying

    asyncio.run(cancel())


def refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, "refused")


def no_thread(*_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_without_aio_and_without_threads(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is performed, in the loop."""
    for number, (owner, name, refusal) in enumerate(
        [(Slots, "setup", refuse), (threading.Thread, "start", no_thread)]
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refusal)
            patch.setattr(context, "_idle", deque())
            asyncio.run(aio.copy_tree(source, tmp_path / f"copy{number}", depth=4))
        assert snapshot(source) == snapshot(tmp_path / f"copy{number}")


def test_under_uvloop(source: Path, tmp_path: Path) -> None:
    """In a process of its own: it keeps descriptors open."""
    pytest.importorskip("uvloop")
    program = (
        "import asyncio, sys, uvloop\n"
        "from aiocp import aio\n"
        "async def copy():\n"
        "    trees = [aio.copy_tree(sys.argv[1], to) for to in sys.argv[2:]]\n"
        "    print(*(result.files for result in await asyncio.gather(*trees)))\n"
        "uvloop.run(copy())\n"
    )
    copies = [tmp_path / "one", tmp_path / "two"]
    done = subprocess.run(
        [sys.executable, "-c", program, source, *copies], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    for copy in copies:
        assert snapshot(source) == snapshot(copy)


def test_a_sync_that_fails_gives_no_names(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is an error, and so is what was to be durable by it; directories stay."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(placing, "sync_filesystem", fail)
    monkeypatch.setattr(tree_targets, "dirty_bytes", lambda: 0)  # whatever else is on this machine
    with pytest.raises(ExceptionGroup) as group:
        asyncio.run(aio.copy_tree(source, tmp_path / "copy", reflink="never"))
    errors = [error for error in group.value.exceptions if isinstance(error, OSError)]
    assert {error.errno for error in errors} == {errno.EIO}
    whole = {path.name for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert whole <= {"large"}  # which have a sync of their own
    assert len(errors) > 240
