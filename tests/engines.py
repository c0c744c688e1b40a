"""What runs the parts of a copy by many: Dask's workers, MPI's, processes of the caller's own.

An engine is called with a function and its arguments, before which the function gets an executor;
it gives what the function returns. MPI runs it in a process of its own (this file, run as a
program under mpiexec), so both have to be such that can be pickled.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from aiocp import CopyResult, Outcome, TreeResult, copy_file, copy_tree
from clusters import Cluster
from filesystems import unavailable

WORKERS = 4
TIMEOUT = 100  # seconds

Engine = Callable[..., Any]


def on_processes(function: Callable[..., Any], *arguments: object) -> Any:
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("fork")) as executor:
        return function(executor, *arguments)


def on_dask(cluster: Cluster) -> Engine:
    def engine(function: Callable[..., Any], *arguments: object) -> Any:
        with cluster.executor() as executor:
            return function(executor, *arguments)

    return engine


def on_mpi(function: Callable[..., Any], *arguments: object) -> Any:
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists() or find_spec("mpi4py") is None:
        unavailable("mpi4py and mpich are not installed")
    with tempfile.NamedTemporaryFile() as file:
        pickle.dump((function, arguments), file)
        file.flush()
        command: list[str | Path] = [mpiexec, "-n", str(WORKERS), sys.executable]
        command += ["-m", "mpi4py.futures", __file__, file.name]
        path = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
        assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
        return pickle.loads(Path(file.name).read_bytes())


class Twice(Executor):
    """Runs each part twice, as an engine does that took the first worker for lost: one `after` the
    other, or both at once, which then have different workers."""

    def __init__(self, of: Executor, *, after: bool) -> None:
        self._of, self._after = of, after
        self._threads = ThreadPoolExecutor(100)

    def submit(self, function: Callable[..., Any], /, *given: Any, **more: Any) -> "Future[Any]":
        first = self._of.submit(function, *given, **more)
        if self._after:
            wait([first])
        second = self._of.submit(function, *given, **more)
        return self._threads.submit(_both, first, second)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown()


def _both(first: "Future[Any]", second: "Future[Any]") -> Any:
    wait([first, second])
    first.result()
    return second.result()


class Copied(NamedTuple):
    """What was said of a copy."""

    result: TreeResult
    told: list[Outcome]
    errors: list[OSError]


def copy(executor: Executor | None, source: Path, destination: Path, how: Any) -> Copied:
    """Copy a tree, by workers or without."""
    told: list[Outcome] = []
    errors: list[OSError] = []
    result = copy_tree(
        source,
        destination,
        executor=executor,
        on_entry=told.append,
        on_error=errors.append,
        **how,
    )
    return Copied(result, told, errors)


def copy_one(executor: Executor | None, source: Path, destination: Path, how: Any) -> CopyResult:
    """Copy a file, by workers or without."""
    return copy_file(source, destination, executor=executor, **how)


def main(path: str) -> None:
    """At MPI's first process; the others are the workers."""
    from mpi4py.futures import MPIPoolExecutor

    with open(path, "rb") as file:
        function, arguments = pickle.load(file)
    with MPIPoolExecutor() as executor:
        answer = function(executor, *arguments)
    with open(path, "wb") as file:
        pickle.dump(answer, file)


if __name__ == "__main__":
    main(sys.argv[1])
