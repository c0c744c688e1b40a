"""What becomes of a copy by many when one of them goes: a worker, the scheduler, the coordinator.

A copy is caught in its middle by a read that its source's file system holds.
"""

import faulthandler
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from errno import EIO
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest

import aiocp.partial
from aiocp import Cancelled, ExecutorFailed, SourceChanged, lease, ranges
from clusters import Cluster, Odd, cluster, nursery
from engines import TIMEOUT, Engine, copy, copy_one, on_dask
from faulty_fuse import FaultyDirectory, Rule, faulty_directory
from filesystems import GIB, sparse_file
from trees import MIB, snapshot

if TYPE_CHECKING:
    from distributed import Client, Scheduler

pytestmark = [
    pytest.mark.root,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def far() -> Iterator[FaultyDirectory]:
    """A file system with a tree of 600 files in three directories, and a large one, "held", that
    the first to read it has to wait for."""
    with faulty_directory("--threads") as directory:  # a coordinator may still walk the source
        source = directory.backing / "source"
        for i in range(600):
            (source / str(i % 3)).mkdir(parents=True, exist_ok=True)
            (source / str(i % 3) / str(i)).write_bytes(b"%d" % i * i)
        (source / "1" / "held").write_bytes(os.urandom(5 * MIB + 777))
        directory.fail(Rule("read", hold=True, name="held", times=1))
        yield directory


@pytest.fixture
def source(far: FaultyDirectory) -> Path:
    return far.mount_point / "source"


@pytest.fixture
def to(tmp_path: Path) -> Path:
    """A directory that has nothing but what was copied."""
    (tmp_path / "to").mkdir()
    return tmp_path / "to"


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files of megabytes cut, too."""
    monkeypatch.setattr(ranges, "RANGE", MIB)


@contextmanager
def running(action: Callable[..., Any], *arguments: object) -> "Iterator[Future[Any]]":
    """Do something in a thread, which is waited for."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(action, *arguments)


@contextmanager
def command(*arguments: str | Path) -> "Iterator[subprocess.Popen[str]]":
    """Run the command; kill it if it is still there in the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "aiocp", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def attentive(monkeypatch: pytest.MonkeyPatch, dask: Cluster) -> Iterator[None]:
    """Have workers look at the lease at each step, not only twice a second."""
    monkeypatch.setattr(lease, "_LOOK_EVERY", 0.0)  # of those forked from this process
    with dask.client() as client:
        before = client.run(look_every, 0.0)
        yield
        client.run(look_every, next(iter(before.values())))


def look_every(seconds: float) -> float:
    """Runs in a worker: how often it is to look; how often it was."""
    before, lease._LOOK_EVERY = lease._LOOK_EVERY, seconds
    return before


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not happened():
        if time.monotonic() > deadline:
            faulthandler.dump_traceback(all_threads=True)
            raise AssertionError("it has not happened")
        time.sleep(0.001)


def until_no_lease(to: Path) -> None:
    """Wait until the copy to a directory is over, but for what workers are about."""
    wait_until(lambda: not any(to.rglob(".aiocp-*")))


def opened_by(pids: Iterable[int], name: str) -> int:
    """Which of these processes has a file of that name open."""
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                if os.path.basename(os.readlink(fd)) == name:
                    return pid
    raise AssertionError(f"nobody has {name} open")


def assert_nothing_is_incomplete(source: Path, to: Path, left: Path | None = None) -> None:
    """What is there is whole, and there is nothing else, but for the lease."""
    found, expected = snapshot(to), snapshot(source)
    if left is not None:
        del found[b"/" + os.fsencode(left.name)]
    assert found.keys() <= expected.keys()
    files = [path for path, (_, content) in found.items() if content is not None]
    assert [] == [path for path in files if found[path] != expected[path]]


# --- a worker ------------------------------------------------------------------------------------


def test_a_worker_of_dask_is_killed(
    far: FaultyDirectory, source: Path, to: Path, dask: Cluster
) -> None:
    """What it had in hand is done by another, and nothing is told or counted twice."""
    try:
        with (
            dask.executor() as executor,
            running(copy, executor, source, to / "copy", {}) as copied,
        ):
            with far.held():
                dask.kill(opened_by([node.pid for node in dask.workers], "held"))
            done = copied.result()
    finally:
        dask.restore(4)
    assert [] == done.errors
    assert snapshot(far.backing / "source") == snapshot(to / "copy")
    assert ["copy"] == os.listdir(to)
    assert 601 == done.result.files == sum(one.files for one in done.result.workers)
    told = [one.source for one in done.told]
    assert len(told) == len(set(told)) == 605


@pytest.mark.usefixtures("small_ranges")
def test_a_worker_of_dask_is_killed_in_a_range(
    far: FaultyDirectory, source: Path, to: Path, dask: Cluster
) -> None:
    """Another writes it into the same file."""
    try:
        with (
            dask.executor() as executor,
            running(copy_one, executor, source / "1" / "held", to / "copy", {}) as copied,
        ):
            with far.held():
                dask.kill(opened_by([node.pid for node in dask.workers], "held"))
            copied.result()
    finally:
        dask.restore(4)
    held = far.backing / "source" / "1" / "held"
    assert held.read_bytes() == (to / "copy").read_bytes()
    assert ["copy"] == os.listdir(to)


@pytest.mark.parametrize("of_one", [False, True], ids=["tree", "file"])
def test_a_process_of_a_pool_is_killed(
    far: FaultyDirectory,
    source: Path,
    to: Path,
    of_one: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which has no other to do it: the copy fails, and says of what."""
    if of_one:
        monkeypatch.setattr(ranges, "RANGE", MIB)
    action, source = (copy_one, source / "1" / "held") if of_one else (copy, source)
    with (
        ProcessPoolExecutor(4, mp_context=get_context("fork")) as executor,
        running(action, executor, source, to / "copy", {}) as copied,
    ):
        with far.held():
            os.kill(opened_by(executor._processes, "held"), signal.SIGKILL)
        with pytest.raises(ExecutorFailed, match="BrokenProcessPool") as raised:
            copied.result()
    assert isinstance(raised.value.__cause__, BrokenProcessPool)
    if of_one:
        assert [] == os.listdir(to)
    else:
        assert_nothing_is_incomplete(far.backing / "source", to / "copy")


def test_a_part_whose_workers_are_lost_too_often(
    far: FaultyDirectory, source: Path, to: Path, dask: Cluster
) -> None:
    """Is an error of each of its files, and the others are copied."""
    try:
        with dask.client() as client, allowed_failures(client, 0):
            executor = client.get_executor(pure=False)
            with running(copy, executor, source, to / "copy", {}) as copied:
                with far.held():
                    dask.kill(opened_by([node.pid for node in dask.workers], "held"))
                done = copied.result()
    finally:
        dask.restore(4)
    assert f"{source}/1/held" in [error.filename for error in done.errors]
    for error in done.errors:
        assert isinstance(error, ExecutorFailed)
        assert type(error.__cause__).__name__ == "KilledWorker"
    assert 601 == done.result.files + len(done.errors)
    assert_nothing_is_incomplete(far.backing / "source", to / "copy")


@contextmanager
def allowed_failures(client: "Client", number: int) -> Iterator[None]:
    """Have the scheduler allow so many workers to die of one task."""
    before = client.run_on_scheduler(allow_failures, number)
    try:
        yield
    finally:
        client.run_on_scheduler(allow_failures, before)


def allow_failures(number: int, dask_scheduler: "Scheduler") -> int:
    """Runs in the scheduler; how many it allowed before."""
    before: int = dask_scheduler.allowed_failures
    dask_scheduler.allowed_failures = number
    return before


# --- a file, by ranges ---------------------------------------------------------------------------


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize("start", [0, 3 * MIB])
def test_a_range_that_cannot_be_read(
    far: FaultyDirectory, source: Path, to: Path, dask: Cluster, start: int
) -> None:
    """Is the error that it is without ranges, and nothing is left."""
    far.fail(Rule("read", EIO, name="held", start=start, end=start + 1))
    words = []
    for engine in (on_dask(dask), partial(call, None)):
        with pytest.raises(OSError, match="read") as raised:
            engine(copy_one, source / "1" / "held", to / "copy", {})
        words.append(str(raised.value))
        assert [] == os.listdir(to)
    assert words[0] == words[1]


@pytest.mark.usefixtures("small_ranges")
def test_a_range_that_could_not_be_read_is_gone_on_with(
    far: FaultyDirectory, source: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although ranges behind it were copied."""
    monkeypatch.setattr(aiocp.partial, "EVERY_BYTES", MIB)
    far.fail(Rule("read", EIO, name="held", start=2 * MIB, end=2 * MIB + 1))
    how = {"resume": True}
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as executor:
        with pytest.raises(OSError, match="read"):
            copy_one(executor, source / "1" / "held", to / "copy", how)
        far.fail()
        result = copy_one(executor, source / "1" / "held", to / "copy", how)
    assert MIB <= result.resumed <= 2 * MIB
    assert (far.backing / "source" / "1" / "held").read_bytes() == (to / "copy").read_bytes()


def call(executor: None, function: Callable[..., Any], *arguments: object) -> Any:
    return function(executor, *arguments)


@pytest.mark.usefixtures("small_ranges")
def test_a_source_that_changes_meanwhile(
    far: FaultyDirectory, source: Path, to: Path, dask: Cluster
) -> None:
    with running(on_dask(dask), copy_one, source / "1" / "held", to / "copy", {}) as copied:
        with far.held():
            os.utime(far.backing / "source" / "1" / "held")
        with pytest.raises(SourceChanged):
            copied.result()
    assert [] == os.listdir(to)


@pytest.mark.usefixtures("small_ranges")
def test_the_coordinator_is_killed(
    far: FaultyDirectory, source: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What there is of the file by then is gone on with."""
    monkeypatch.setattr(aiocp.partial, "EVERY_BYTES", MIB)
    far.fail(Rule("read", hold=True, name="held", start=4 * MIB, times=1))
    action = (copy_one, source / "1" / "held", to / "copy", {"resume": True})
    with nursery() as process, cluster(process, 1) as one:  # which takes range after range
        coordinator = get_context("fork").Process(target=on_dask(one), args=action)
        coordinator.start()
        try:
            with far.held():
                wait_until((to / ".copy.aiocp-journal").exists)
                coordinator.kill()
        finally:
            coordinator.kill()
            coordinator.join()
        one.settle()
        assert not (to / "copy").exists()
        result = on_dask(one)(*action)
    assert MIB <= result.resumed < result.size
    assert (far.backing / "source" / "1" / "held").read_bytes() == (to / "copy").read_bytes()
    assert ["copy"] == os.listdir(to)


# --- the scheduler -------------------------------------------------------------------------------


def test_the_scheduler_is_killed(far: FaultyDirectory, source: Path, to: Path) -> None:
    """One line says so."""
    with nursery() as process, cluster(process, 2) as doomed:
        how = ("--dask", doomed.scheduler.address, "-r")
        with command(*how, source, to / "copy") as copying:
            with far.held():
                os.kill(doomed.scheduler.pid, signal.SIGKILL)
            stdout, stderr = copying.communicate(timeout=60)
    assert (1, "") == (copying.returncode, stdout)
    assert re.fullmatch(r"aiocp: .*executor failed.*\n", stderr), stderr
    assert_nothing_is_incomplete(far.backing / "source", to / "copy")


def test_a_scheduler_that_has_no_aiocp(to: Path, tmp_path: Path) -> None:
    """It loads what it schedules, so this is said before anything is copied."""
    (tmp_path / "source").mkdir()
    for name in ("one", "other"):
        (tmp_path / "source" / name).write_bytes(b"file")
    with (
        nursery() as process,
        process.node(None, Odd(version="")) as scheduler,
        process.node(scheduler),
        command("--dask", scheduler.address, "-r", tmp_path / "source", to / "copy") as copying,
    ):
        stdout, stderr = copying.communicate(timeout=60)
    assert (1, "") == (copying.returncode, stdout)
    assert re.fullmatch(r"aiocp: .*the executor failed: .*different environments.*\n", stderr), (
        stderr
    )
    assert [] == os.listdir(to)


# --- the coordinator -----------------------------------------------------------------------------


def test_the_command_is_killed(far: FaultyDirectory, source: Path, to: Path, dask: Cluster) -> None:
    """What is there is whole, and the same command with --resume does the rest."""
    how = ("--dask", dask.scheduler.address, "-rT", "--resume", "-p")
    with command(*how, source, to / "copy") as copying, far.held():
        copying.kill()
    dask.settle()
    (left,) = (to / "copy").rglob(".aiocp-*")  # the lease, that nobody was left to take away
    assert_nothing_is_incomplete(far.backing / "source", to / "copy", left)
    with command(*how, source, to / "copy") as copying:
        assert ("", "") == copying.communicate(timeout=60)
    assert 0 == copying.returncode
    assert snapshot(far.backing / "source") == snapshot(to / "copy")


@pytest.mark.usefixtures("attentive")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_is_stopped(
    far: FaultyDirectory, source: Path, to: Path, dask: Cluster, number: signal.Signals
) -> None:
    """So are the workers, nothing of the copy is left but what is whole."""
    how = ("--dask", dask.scheduler.address, "-r")
    with command(*how, source, to / "copy") as copying:
        with far.held():
            copying.send_signal(number)
            until_no_lease(to)
        stdout, stderr = copying.communicate(timeout=60)
    assert (128 + number, "") == (copying.returncode, stdout)
    assert re.fullmatch(rf"aiocp: stopped by {number.name}: .*\n", stderr), stderr
    dask.settle()
    assert_nothing_is_incomplete(far.backing / "source", to / "copy")
    assert not (to / "copy" / "1" / "held").exists()


@pytest.mark.usefixtures("small_ranges", "attentive")
@pytest.mark.parametrize("of_one", [False, True], ids=["tree", "file"])
@pytest.mark.parametrize("engine", ["dask", "processes"], indirect=True)
def test_cancel(far: FaultyDirectory, source: Path, to: Path, engine: Engine, of_one: bool) -> None:
    """With any executor it reaches the workers."""
    cancel = Event()
    action, source = (copy_one, source / "1" / "held") if of_one else (copy, source)
    with running(engine, action, source, to / "copy", {"cancel": cancel}) as copied:
        with far.held():
            cancel.set()
            until_no_lease(to)
        with pytest.raises(Cancelled):
            copied.result()
    if of_one:
        assert [] == os.listdir(to)
    else:
        assert_nothing_is_incomplete(far.backing / "source", to / "copy")
        assert not (to / "copy" / "1" / "held").exists()


# --- workers that are not fit --------------------------------------------------------------------


@pytest.fixture
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Odd:
    """What is told of as the parameter."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "large").touch()
    other = str(tmp_path / "other")
    odd = {
        "version": Odd(version="0.0.7"),
        "none": Odd(version=""),
        "user": Odd(uid=65534),
        "source": Odd(mounts=[(other, f"{tmp_path}/source")]),
        "destination": Odd(mounts=[(other, f"{tmp_path}/to")]),
    }
    return odd[request.param]


UNFIT = {
    "version": "has aiocp 0.0.7, not ",
    "none": "has no aiocp",
    "user": "runs as user 65534, not 0",
    "source": "sees another '.*/source.*'",
    "destination": "does not see the coordinator's '.*/to.*'",
}
HAVE_MOUNTS = ("source", "destination")


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        pytest.param(*case, marks=[pytest.mark.alone] if case[0] in HAVE_MOUNTS else [])
        for case in UNFIT.items()
    ],
    indirect=["odd"],
    ids=UNFIT,
)
@pytest.mark.parametrize("by", ["copy_tree", "copy_file", "command"])
def test_one_that_is_not_fit_is_named(
    tmp_path: Path, to: Path, dask: Cluster, odd: Odd, said: str, by: str
) -> None:
    """Before anything is copied, and nothing is left at the destination."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"file")
    sparse_file(source / "large", GIB)
    with dask.another(odd) as node:
        words = f"worker {node.name} {said}"
        if by == "command":
            how = ("--dask", dask.scheduler.address, "-r")
            with command(*how, source, to) as copying:
                stdout, stderr = copying.communicate(timeout=60)
            assert (1, "") == (copying.returncode, stdout)
            assert re.fullmatch(f"aiocp: .*{words}.*\n", stderr), stderr
        else:
            one = (copy_one, source / "large", to / "copy", {"sparse": "never"})
            action = one if by == "copy_file" else (copy, source, to, {})
            with pytest.raises(ExecutorFailed, match=words):
                on_dask(dask)(*action)
    assert [] == os.listdir(to)


@pytest.mark.usefixtures("attentive")
def test_a_lease_that_is_taken_away(
    far: FaultyDirectory, source: Path, to: Path, dask: Cluster
) -> None:
    """Stops the workers; the copy fails."""
    with running(on_dask(dask), copy, source, to / "copy", {}) as copied:
        with far.held():
            (found,) = to.rglob(".aiocp-*")
            found.unlink()
        with pytest.raises(ExecutorFailed, match="lease is gone"):
            copied.result()
    assert_nothing_is_incomplete(far.backing / "source", to / "copy")
