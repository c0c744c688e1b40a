"""Measure the memory that copies of trees take: it is not to grow with the number of files.

Each tree is copied by a process of its own, and its peak read: getrusage(2). Only hard links may
cost something, for each file with several names; what a copy of a tenth takes is taken off.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

KIB = 1 << 10
FILES = 100_000
IN_A_DIRECTORY = 1000
EACH = {"with two names": 100}  # bytes that each file may cost; no other may cost any
SLACK = 1024 * KIB  # bytes, for what differs from one run to the next

COPY = """
import resource, sys
from aiocp import copy_tree
copy_tree(*sys.argv[1:], preserve="links", sync=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def make_files(top: Path, files: int) -> None:
    """A thousand files in each directory."""
    for i in range(files):
        directory = top / str(i // IN_A_DIRECTORY)
        if i % IN_A_DIRECTORY == 0:
            directory.mkdir()
        (directory / f"file{i}").touch()


def make_wide(top: Path, files: int) -> None:
    """All files in one directory."""
    for i in range(files):
        (top / f"file{i}").touch()


def make_links(top: Path, files: int) -> None:
    """Each file with a second name in another directory, which comes when all have been copied."""
    for name in ("one", "two"):
        (top / name).mkdir()
    make_files(top / "one", files)
    for i in range(0, files, IN_A_DIRECTORY):
        (top / "two" / str(i // IN_A_DIRECTORY)).mkdir()
    for path in (top / "one").glob("*/*"):
        os.link(path, top / "two" / path.relative_to(top / "one"))


def make_directories(top: Path, files: int) -> None:
    """A directory for each file, a thousand of them in each directory."""
    for i in range(files):
        directory = top / str(i // IN_A_DIRECTORY) / str(i)
        directory.mkdir(parents=True)
        (directory / "file").touch()


TREES: dict[str, Callable[[Path, int], None]] = {
    "in many directories": make_files,
    "in one directory": make_wide,
    "in one directory each": make_directories,
    "with two names": make_links,
}


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory in memory, if there is one; removed faster than by Python."""
    shm = Path("/dev/shm")
    directory = tempfile.mkdtemp(dir=shm if shm.is_dir() else None)
    try:
        yield Path(directory)
    finally:
        subprocess.run(["rm", "-rf", directory], check=True)


def peak(make: Callable[[Path, int], None], files: int) -> int:
    """The most memory that a copy takes, in bytes."""
    with scratch() as directory:
        (directory / "source").mkdir()
        make(directory / "source", files)
        command: list[str | Path] = [sys.executable, "-c", COPY]
        command += [directory / "source", directory / "copy"]
        return int(subprocess.check_output(command)) * KIB


def main() -> int:
    """Print a row for each kind of tree; 1 if one takes more than is allowed."""
    files = int(sys.argv[1]) if sys.argv[1:] else FILES
    too_much = False
    for name, make in TREES.items():
        few, many = peak(make, files // 10), peak(make, files)
        each = (many - few) / (files - files // 10)
        allowed = EACH.get(name, 0) * files + SLACK
        too_much |= many - few > allowed
        print(
            f"{files:,} files {name}: {many / KIB:,.0f} KiB, {each:.0f} bytes more for each file"
            f"{'' if many - few <= allowed else ', too much'}",
            flush=True,
        )
    return int(too_much)


if __name__ == "__main__":
    sys.exit(main())
