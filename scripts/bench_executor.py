"""A copy through the workers of an executor on this machine, timed from inside.

    bench_executor.py [--engine pool|dask] [--workers N] [--as-if N] [--told]
                      [--depth N] [--latency SECONDS] SRC DST

Without an engine it is the plain copy of one process. The clock runs when the workers are there and
have copied something. With a latency DST is on tests/slow_fuse.py, which is that far away while it
runs. `--as-if` has the executor say that it has more workers than it has, and counts what it costs
the coordinator. Says in JSON how many seconds it took, what each worker did, and what a file cost.
"""

import argparse
import json
import os
import pickle
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from aiocp import CopyResult, Outcome, TreeResult, copy_file, copy_tree, worker
from bench_sources import KIB

TESTS = Path(__file__).resolve().parent.parent / "tests"


class Counted(Executor):
    """An executor that says it has so many workers, and what it is given for them and gives back:
    `asked` before the first byte, in `parts` of the copy. `counting` are the seconds it takes."""

    def __init__(self, executor: Executor, workers: int) -> None:
        self._executor, self.num_workers = executor, workers
        self.asked, self.parts = Counter[str](), Counter[str]()
        self.counting = 0.0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        counts = self.parts if fn is worker.run else self.asked
        self._count(counts, "sent", (fn, args, kwargs))
        future = self._executor.submit(fn, *args, **kwargs)
        future.add_done_callback(lambda done: self._count(counts, "received", done.result()))
        return future

    def _count(self, counts: Counter[str], way: str, message: object) -> None:
        begun = time.thread_time()
        counts["messages"] += 1
        counts[way] += len(pickle.dumps(message))
        self.counting += time.thread_time() - begun

    def cost(self, copy: Callable[[], object]) -> float:
        """The seconds that a copy keeps this process busy, but for the counting."""
        self.asked.clear()
        self.parts.clear()
        self.counting, begun = 0.0, time.process_time()
        copy()
        return time.process_time() - begun - self.counting


@contextmanager
def pool(workers: int) -> Iterator[Executor]:
    with ProcessPoolExecutor(workers, get_context("spawn")) as executor:
        yield executor


@contextmanager
def dask(workers: int) -> Iterator[Executor]:
    from distributed import Client, LocalCluster

    with (
        tempfile.TemporaryDirectory(prefix="aiocp-bench-") as scratch,
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=None,
            dashboard_address=None,
            local_directory=scratch,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client.get_executor(pure=False)


ENGINES = {"pool": pool, "dask": dask}


def warm_up(seconds: float) -> None:
    """Have a worker load what it needs; it keeps busy, so that each of them is asked."""
    import aiocp.part_tree
    import aiocp.range_copy  # noqa: F401

    time.sleep(seconds)


@contextmanager
def far(copy: Path, latency: float) -> Iterator[None]:
    """Have the file system of a copy to come far away."""
    sys.path.append(str(TESTS))
    from slow_fuse import move

    mount_point = next(above for above in copy.resolve().parents if os.path.ismount(above))
    move(mount_point, latency)
    try:
        yield
    finally:
        move(mount_point, 0.0)


def copied(source: Path, to: Path, **options: Any) -> CopyResult | TreeResult:
    """Copy a file or a tree."""
    if source.is_dir():
        return copy_tree(source, to, **options)
    return copy_file(source, to, **options)


def hear(_: Outcome) -> None:
    """Is told of every entry."""


def measure(options: argparse.Namespace, executor: Executor | None) -> dict[str, Any]:
    """Copy something small, then what is to be copied."""
    more: dict[str, Any] = {"depth": options.depth, "reflink": "never", "executor": executor}
    if options.told:
        more["on_entry"] = hear
    with tempfile.TemporaryDirectory(prefix="aiocp-bench-", dir=options.copy.parent) as name:
        tiny = Path(name, "tiny")
        tiny.mkdir()
        (tiny / "file").write_bytes(bytes(4 * KIB))
        copied(tiny, tiny.with_name("copy"), **more)
        if isinstance(executor, Counted):
            once = executor.cost(partial(copied, tiny, tiny.with_name("again"), **more))
            cpu = executor.cost(partial(copied, options.source, options.copy, **more)) - once
            files = sum(len(names) for _, _, names in os.walk(options.source))
            parts = {key: count / files for key, count in executor.parts.items()}
            return {
                "once": {**executor.asked, "cpu": once},
                "each": {**parts, "cpu": cpu / files},
            }
    with far(options.copy, options.latency) if options.latency else nullcontext():
        begun = time.perf_counter()
        result = copied(options.source, options.copy, **more)
        elapsed = time.perf_counter() - begun
    return {"elapsed": elapsed, "workers": [one._asdict() for one in result.workers]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_executor.py")
    add = parser.add_argument
    add("--engine", choices=ENGINES)
    add("--workers", type=int, default=1)
    add("--as-if", type=int, default=0)
    add("--told", action="store_true")
    add("--depth", type=int, default=64)
    add("--latency", type=float, default=0.0)
    add("source", type=Path)
    add("copy", type=Path)
    options = parser.parse_args()
    if options.engine is None:
        print(json.dumps(measure(options, None)))
        return
    with ENGINES[options.engine](options.workers) as executor:
        list(executor.map(warm_up, [0.2] * options.workers))
        counted = Counted(executor, options.as_if) if options.as_if else executor
        told = measure(options, counted)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
