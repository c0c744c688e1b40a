"""Programs that the benchmark times from inside: many copies by library calls.

    bench_library.py PROGRAM SRC DST [TIMES]

They say in JSON how many seconds the copies took, without start-up.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from aiocp import copy_file


def loop(
    copy: Callable[[Path, Path], object], source: Path, copies: Path, times: int
) -> dict[str, float]:
    """Copy one file again and again, to new ones."""
    copies.mkdir()
    names = [copies / f"copy{number}" for number in range(times)]
    begun = time.perf_counter()
    for name in names:
        copy(source, name)
    return {"elapsed": time.perf_counter() - begun}


def many(
    run: Callable[[Callable[[Path], float], list[Path]], Iterable[float]],
    source: Path,
    copies: Path,
) -> dict[str, float]:
    """Copy all files of a directory as `run` does it; also when the first and the last was done,
    and the least that one had in flight at its best."""
    copies.mkdir()
    in_flight = []

    def copy(file: Path) -> float:
        in_flight.append(copy_file(file, copies / file.name, reflink="never").peak_in_flight)
        return time.perf_counter()

    begun = time.perf_counter()
    done = [at - begun for at in run(copy, sorted(source.iterdir()))]
    return {
        "elapsed": max(done),
        "first": min(done),
        "last": max(done),
        "least_in_flight": min(in_flight),
    }


def at_once(copy: Callable[[Path], float], files: list[Path]) -> Iterable[float]:
    """Every file in a thread of its own."""
    with ThreadPoolExecutor(len(files)) as threads:
        return list(threads.map(copy, files))


PROGRAMS: dict[str, Callable[..., dict[str, float]]] = {
    "loop-aiocp": partial(loop, partial(copy_file, sync=False, reflink="never")),
    "loop-shutil": partial(loop, shutil.copy),
    "many-at-once": partial(many, at_once),
    "many-in-turn": partial(many, map),
}


if __name__ == "__main__":
    program, source, copies, *times = sys.argv[1:]
    print(json.dumps(PROGRAMS[program](Path(source), Path(copies), *map(int, times))))
