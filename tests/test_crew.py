"""What an executor can do to a copy, by executors that are told what to do.

Those of the engines themselves are tested with real clusters.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from errno import ENOEXEC, ENOMEM, EPERM
from pathlib import Path
from typing import Any

import pytest

from aiocp import (
    Cancelled,
    ExecutorFailed,
    backlog,
    copy_file,
    copy_tree,
    crew,
    ranges,
    tree_targets,
    worker,
)
from aiocp.lease import Lease
from aiocp.share import Batch, Ground, pack, unpack, version
from faults import as_nobody
from filesystems import scratch_directory

FILES = 40


class Scripted(Executor):
    """Makes each call at once; `act` is told of each, and may raise or give another result."""

    def __init__(self, act: Callable[..., Any], *, lost: type[BaseException] | None = None) -> None:
        self._act, self._lost = act, lost

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        if self._lost is not None and fn is worker.run:
            raise self._lost("gone")
        future: Future[Any] = Future()
        try:
            future.set_result(self._act(fn, *args))
        except BaseException as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future


def do(call: Callable[..., Any], *arguments: Any) -> Any:
    return call(*arguments)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_files(tmp_path / "tree")


def make_files(tree: Path) -> Path:
    for i in range(FILES):
        (tree / f"{i % 4}").mkdir(parents=True, exist_ok=True)
        (tree / f"{i % 4}/{i}").write_text(f"{i}")
    return tree


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "copy"


@pytest.fixture(autouse=True)
def _batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some ten of them."""
    monkeypatch.setattr(backlog, "LEAST_FILES", 4)
    monkeypatch.setattr(backlog, "MOST_FILES", 4)


def left(copy: Path) -> list[str]:
    """What is there besides whole files."""
    return [
        str(path)
        for path in copy.rglob("*")
        if not (path.is_dir() or path.is_symlink())
        and (".aiocp" in path.name or path.name != path.read_text())
    ]


# --- who the workers are ---


@pytest.mark.parametrize(
    ("said", "errno", "words"),
    [
        (("far:1", os.geteuid(), None), ENOEXEC, "worker far:1 has no aiocp"),
        (("far:1", os.geteuid(), "0.0.1"), ENOEXEC, "worker far:1 has aiocp 0.0.1, not "),
        (("far:1", 4711, version()), EPERM, "worker far:1 runs as user 4711, not "),
    ],
)
def test_a_worker_that_cannot_do_its_part(
    tree: Path, copy: Path, said: tuple[object, ...], errno: int, words: str
) -> None:
    """Is named, and nothing is made."""

    def answer(call: Callable[..., Any], *arguments: Any) -> Any:
        return said if call is eval else call(*arguments)

    with pytest.raises(ExecutorFailed, match=words) as caught:
        copy_tree(tree, copy, executor=Scripted(answer))
    assert (errno, str(tree), str(copy)) == (
        caught.value.errno,
        caught.value.filename,
        caught.value.filename2,
    )
    assert not copy.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"user": 4711}, "runs as user "),
        ({"source": b"/nowhere"}, "cannot open '/nowhere': No such file"),
        ({"born": (1, 2)}, "sees another "),
        ({"lease": b"/nowhere/lease"}, "does not see the coordinator's '/nowhere'"),
        ({"token": b"another"}, "sees another "),
    ],
)
def test_a_worker_that_sees_something_else(
    tree: Path, copy: Path, change: dict[str, Any], words: str
) -> None:
    """Says so before anything is copied, and the directory that was made for it goes."""

    def elsewhere(call: Callable[..., Any], message: Any) -> Any:
        if call is worker.fit:
            ground = unpack(message)
            assert isinstance(ground, Ground)
            message = pack(ground._replace(**change))
        return call(message)

    with pytest.raises(ExecutorFailed, match=words):
        copy_tree(tree, copy, executor=Scripted(elsewhere))
    assert not copy.exists()


def test_a_worker_that_comes_later(tree: Path, copy: Path) -> None:
    """And was not asked, looks by itself: nothing that it would have to do is done."""

    def late(call: Callable[..., Any], message: Any) -> Any:
        if call is worker.fit:
            return "not asked"
        if call is worker.run:
            batch = unpack(message)
            assert isinstance(batch, Batch)
            message = pack(batch._replace(ground=batch.ground._replace(born=(1, 2))))
        return call(message)

    with pytest.raises(ExecutorFailed, match="sees another "):
        copy_tree(tree, copy, executor=Scripted(late))
    assert [] == [path for path in copy.rglob("*") if path.is_file()]


def test_a_message_of_another_version(tree: Path, copy: Path) -> None:
    def newer(call: Callable[..., Any], message: Any) -> Any:
        return call(b"9" + message if call is worker.run else message)

    with pytest.raises(ExecutorFailed, match="not the coordinator's"):
        copy_tree(tree, copy, executor=Scripted(newer))
    assert [] == left(copy)


# --- what becomes of a part ---


def test_an_executor_that_breaks(tree: Path, copy: Path) -> None:
    """Ends the copy, with what it has raised; what is there is whole."""
    done = 0

    def breaks(call: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal done
        done += call is worker.run
        if done > 3:
            raise BrokenExecutor("a worker was killed")
        return call(*arguments)

    with pytest.raises(ExecutorFailed, match="BrokenExecutor: a worker was killed") as caught:
        copy_tree(tree, copy, executor=Scripted(breaks))
    assert isinstance(caught.value.__cause__, BrokenExecutor)
    assert [] == left(copy)
    assert 0 < len([path for path in copy.rglob("*") if path.is_file()]) < FILES


def test_an_executor_that_takes_nothing_more(tree: Path, copy: Path) -> None:
    executor = Scripted(do, lost=RuntimeError)
    with pytest.raises(ExecutorFailed, match="RuntimeError: gone"):
        copy_tree(tree, copy, executor=executor)
    assert [] == left(copy)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (ValueError, ("lost too often",)),
        (ConnectionError, ("closed",)),
        (OSError, (ENOMEM, "no memory")),
    ],
)
def test_a_part_that_fails(
    tree: Path, copy: Path, kind: type[Exception], words: tuple[Any, ...]
) -> None:
    """Is an error of each file that was in it; the others are copied."""
    done = 0

    def fails(call: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal done
        done += call is worker.run
        if call is worker.run and done == 3:
            raise kind(*words)
        return call(*arguments)

    errors: list[OSError] = []
    result = copy_tree(tree, copy, executor=Scripted(fails), on_error=errors.append)
    assert FILES == result.files + len(errors)
    assert len({error.filename for error in errors}) == len(errors) >= 4
    for error in errors:
        assert words[-1] in str(error.strerror)
        assert not os.path.exists(error.filename2)
    assert [] == left(copy)


@pytest.mark.parametrize("times", [2, 3])
def test_a_part_that_is_done_again(tree: Path, copy: Path, times: int) -> None:
    """As by an executor whose worker was lost when all was done, but for the answer."""

    def again(call: Callable[..., Any], *arguments: Any) -> Any:
        for _ in range(times - 1):
            call(*arguments)
        return call(*arguments)

    (tree / "link").symlink_to("nowhere")
    result = copy_tree(tree, copy, executor=Scripted(again), preserve=["all"])
    assert (FILES, 1, ()) == (result.files, result.links, result.errors)
    assert [] == left(copy)


@pytest.mark.root
def test_it_is_done_again_by_an_ordinary_user() -> None:
    """Who may not open the files that he has made read-only; those that were there are refused, as
    by cp."""

    def again(call: Callable[..., Any], *arguments: Any) -> Any:
        call(*arguments)
        return call(*arguments)

    with scratch_directory() as scratch:
        tree, copy = make_files(scratch / "tree"), scratch / "copy"
        (copy / "1").mkdir(parents=True)
        (copy / "1/1").write_text("old")
        for path in [scratch, *scratch.rglob("*")]:
            os.chown(path, 65534, 65534)
            path.chmod(0o755 if path.is_dir() else 0o444)

        def copied() -> bool:
            errors: list[OSError] = []
            copy_tree(tree, copy, executor=Scripted(again), on_error=errors.append)
            return [str(copy / "1/1")] == [error.filename2 for error in errors]

        assert as_nobody(copied)
        assert [str(copy / "1/1")] == left(copy)
        assert FILES == len([path for path in copy.rglob("*") if path.is_file()])


@pytest.mark.parametrize("elsewhere", [False, True])
def test_who_syncs_the_names(
    tree: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, *, elsewhere: bool
) -> None:
    """A file system that is synced as a whole here, in the end, is only if it is of this kernel:
    a worker can have it on its disk, and this process on NFS."""
    monkeypatch.setattr(tree_targets, "_syncs_together", lambda fd: True)
    copies = 0

    def act(call: Callable[..., Any], message: Any) -> Any:
        nonlocal copies
        batch = unpack(message) if call is worker.run else None
        if isinstance(batch, Batch):
            copies += 1
            if elsewhere:
                message = pack(batch._replace(synced_by=b"another kernel"))
        return call(message)

    result = copy_tree(tree, copy, executor=Scripted(act))
    names = copies if elsewhere else 0
    assert copies > 1
    assert copies + names + 1 == result.syncs


def test_the_lease_is_gone(tree: Path, copy: Path) -> None:
    """Whoever removes it has the workers stop, and that is no success."""

    def lost(call: Callable[..., Any], *arguments: Any) -> Any:
        if call is worker.run:
            for path in copy.glob(".aiocp-*"):
                path.unlink()
        return call(*arguments)

    with pytest.raises(ExecutorFailed, match="lease is gone"):
        copy_tree(tree, copy, executor=Scripted(lost))
    assert [] == left(copy)


# --- how it is stopped ---


def test_a_cancelled_copy(tree: Path, copy: Path) -> None:
    """Stops the workers, which see that the lease is gone, and is not waited for in vain."""
    cancel, stopped = threading.Event(), []

    def act(call: Callable[..., Any], *arguments: Any) -> Any:
        if call is worker.run:
            cancel.set()
            batch = unpack(*arguments)
            assert isinstance(batch, Batch)
            gone = Lease(batch.ground.lease)
            while not gone.is_set():
                pass
            stopped.append(batch)
        return call(*arguments)

    with ThreadPoolExecutor(2) as pool:
        late = Later(pool, act)
        with pytest.raises(Cancelled):
            copy_tree(tree, copy, executor=late, cancel=cancel)
    assert stopped
    assert [] == [path for path in copy.rglob("*") if path.is_file()]


class Later(Executor):
    """Has a pool do what `act` makes of each call."""

    _max_workers = 2

    def __init__(self, pool: Executor, act: Callable[..., Any]) -> None:
        self._pool, self._act = pool, act

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        return self._pool.submit(self._act, fn, *args)


def test_workers_that_never_answer(tree: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are waited for only so long, when they are asked and when the copy is stopped."""
    monkeypatch.setattr(crew, "_SETTLE", 0.1)
    cancel, end = threading.Event(), threading.Event()

    def silent(call: Callable[..., Any], *arguments: Any) -> Any:
        cancel.set()
        end.wait()

    def mute(call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments) if call is not worker.run else silent(call, *arguments)

    for act in (silent, mute):
        cancel.clear()
        with ThreadPoolExecutor(4) as pool:
            with pytest.raises(Cancelled):
                copy_tree(tree, copy, executor=Later(pool, act), cancel=cancel)
            end.set()
        end.clear()
        assert [] == left(copy)


def test_no_rate_for_many() -> None:
    with ThreadPoolExecutor(1) as pool:
        for function in (copy_file, copy_tree):
            with pytest.raises(ValueError, match="bwlimit"):
                function("a", "b", executor=pool, bwlimit=1 << 20)


@pytest.fixture
def _tiny_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RANGE", 1 << 20)


@pytest.mark.usefixtures("_tiny_ranges")
def test_a_large_file_when_the_executor_breaks(tmp_path: Path) -> None:
    """Is not there, nor anything of it."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom(5 << 20))
    copy.write_bytes(b"old")
    done = 0

    def breaks(call: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal done
        done += call is worker.run
        if done > 2:
            raise BrokenExecutor
        return call(*arguments)

    with pytest.raises(ExecutorFailed, match="BrokenExecutor"):
        copy_file(source, copy, executor=Scripted(breaks))
    assert b"old" == copy.read_bytes()
    assert ["copy", "source"] == sorted(os.listdir(tmp_path))
