"""What all tests share: the file systems they run on, that CI never skips one of root's, and that
with several processes (`-n`) no other test runs beside one that is to be alone."""

import fcntl
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from clusters import Cluster, cluster, nursery
from engines import Engine, on_dask, on_mpi, on_processes
from filesystems import MUST_RUN, clean_up, mounted


@pytest.fixture(scope="session")
def mount_point() -> Iterator[Callable[[str], Path]]:
    """Give the mount point of a file system by its type, mounted when first asked for."""
    points: dict[str, Path] = {}
    with ExitStack() as stack:

        def mount_once(fstype: str) -> Path:
            if fstype not in points:
                points[fstype] = stack.enter_context(mounted(fstype))
            return points[fstype]

        yield mount_once


@pytest.fixture(params=["ext4", "xfs", "btrfs", "tmpfs"])
def filesystem(
    request: pytest.FixtureRequest, mount_point: Callable[[str], Path]
) -> Iterator[Path]:
    """An empty directory on each of ext4, XFS, Btrfs (on loop devices, 1 GiB) and tmpfs."""
    directory = Path(tempfile.mkdtemp(dir=mount_point(request.param)))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def dask() -> Iterator[Cluster]:
    """A scheduler and four workers; a test that takes one away gives one back."""
    with nursery() as process, cluster(process) as running:
        yield running


@pytest.fixture(params=["dask", "mpi", "processes"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each of those that aiocp is for."""
    if request.param == "dask":
        return on_dask(request.getfixturevalue("dask"))
    return on_mpi if request.param == "mpi" else on_processes


@pytest.fixture(scope="session")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Two files that all processes of a run have their locks on: of a queue, and of the room."""
    top = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose own directory is in that of the run
        top = top.parent
    with (top / "queue").open("ab") as queue, (top / "room").open("ab") as room:
        yield queue.fileno(), room.fileno()


@pytest.fixture(autouse=True)
def room(request: pytest.FixtureRequest, doors: tuple[int, int]) -> Iterator[None]:
    """Room to run in: among others, or alone, as whoever measures has to be, or has a view of the
    mounts in which stays mounted what others take down. Who waits for it waits in the queue, so
    that one who is to be alone is not passed by others for ever."""
    queue, room = doors
    fcntl.flock(queue, fcntl.LOCK_EX)
    alone = request.node.get_closest_marker("alone")
    fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
    fcntl.flock(queue, fcntl.LOCK_UN)
    yield
    fcntl.flock(room, fcntl.LOCK_UN)


def pytest_sessionstart() -> None:
    clean_up()


def pytest_unconfigure() -> None:
    clean_up(own=True)


def pytest_collection_finish() -> None:
    """Have no collection of garbage, here or in a forked child, go through thousands of tests."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where CI runs as root, a test that needs root fails when it is skipped."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if MUST_RUN and skipped and item.get_closest_marker("root"):
        report.outcome = "failed"
    return report
