"""Trees with few descriptors, and stopped in the middle: whole names, no litter, nothing held."""

import errno
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import tree_crash
from aiocp import Cancelled, context, copy_tree
from filesystems import scratch_directory
from test_leaks import contexts, descriptors, every_bytecode
from trees import KIB, Facts, complaints, facts, flaws

AIOCP = [sys.executable, "-m", "aiocp"]


def make(root: Path, seed: int) -> None:
    """A tree with a directory in a directory and so on, hard links and links between them."""
    rng = random.Random(seed)
    directory = root
    for _ in range(25):
        directory.mkdir()
        for i in range(6):
            (directory / f"file{i}").write_bytes(rng.randbytes(rng.randint(0, 5000)))
        (directory / "link").symlink_to(f"file{seed}")
        (directory / "hard").hardlink_to(root / "file1")
        directory /= "deeper"
    (root / "large").write_bytes(rng.randbytes(400 * KIB))
    for i, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, (seed, 1000 * seed + i), follow_symlinks=False)


class Trees:
    """A source, what else may be at the destination, and the destination."""

    def __init__(self, top: Path) -> None:
        self.source, self.before, self.copy = top / "source", top / "before", top / "copy"
        make(self.source, 1)
        make(self.before, 2)
        self.new, self.old = facts(self.source), facts(self.before)

    def prepare(self, *, over: bool) -> Facts:
        """Have nothing at the destination, or the other tree; what is there now."""
        shutil.rmtree(self.copy, ignore_errors=True)
        if over:
            subprocess.run(["cp", "-a", self.before, self.copy], check=True)
        return self.old if over else {}


@pytest.fixture(scope="module")
def trees() -> Iterator[Trees]:
    with scratch_directory() as scratch:
        yield Trees(scratch)


@pytest.mark.parametrize("over", [False, True], ids=["new", "over another"])
@pytest.mark.parametrize("limit", [16, 24, 32, 40, 64, 128])
def test_few_descriptors(trees: Trees, limit: int, over: bool) -> None:
    """Everything is copied, or what is not is said, and that there were too few."""
    old = trees.prepare(over=over)
    done = subprocess.run(
        ["prlimit", f"--nofile={limit}", *AIOCP, "-aT", trees.source, trees.copy],
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = complaints(done.stderr, trees.source, trees.copy)
    assert done.returncode == bool(said)
    assert set(said.values()) <= {os.strerror(errno.EMFILE)}
    assert [] == list(flaws(trees.new, old, facts(trees.copy), said))
    assert not said or limit < 128


def test_few_descriptors_where_not_all_is_in_memory(tmp_path: Path) -> None:
    """Those of a batch that are, are open until the others are read: not of too many batches, also
    where a disk is so slow that nothing has completed until it is waited for."""
    (tmp_path / "source").mkdir()
    for i in range(3000):
        with (tmp_path / "source" / str(i)).open("wb") as file:
            file.write(b"x" * 5000)
            if i % 10 == 0:
                os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    program = (
        "import sys; from aiocp import context, copy_tree\n"
        "context.Context.reap_now = lambda self: []\n"
        "copy_tree(*sys.argv[1:])\n"
    )
    done = subprocess.run(
        [
            *("prlimit", "--nofile=500", sys.executable, "-c", program),
            *(tmp_path / "source", tmp_path / "copy"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert facts(tmp_path / "source").keys() == facts(tmp_path / "copy").keys()


@pytest.mark.root
def test_cancelled_at_any_moment(tmp_path: Path) -> None:
    """Whether a name is looked at then or bytes have moved: whole names, and nothing is held."""
    rng = random.Random(1)
    trees = tree_crash.Trees(tmp_path, 60)
    copy = tmp_path / "copy"
    before, threads = descriptors(), threading.active_count()
    ends: Counter[str] = Counter()
    for number in range(24):
        trees.prepare(copy, over=bool(number % 2))
        cancel = threading.Event()
        left = [rng.randint(1, 40 if number % 3 else 8)]

        def count(*_: object, left: list[int] = left, cancel: threading.Event = cancel) -> bool:
            left[0] -= 1
            if not left[0]:
                cancel.set()
            return False

        watch: dict[str, Any] = {"exclude": count} if number % 3 else {"progress": count}
        with suppress(Cancelled):
            copy_tree(trees.source, copy, preserve="all", depth=4, cancel=cancel, **watch)
        assert [] == trees.judge(copy, -signal.SIGKILL, over=bool(number % 2))
        ends[trees.found(copy)] += 1
        assert (before, threads) == (descriptors(), threading.active_count())
    assert ends["part"] > 5


def test_cancelled_where_nothing_is_transferred(tmp_path: Path) -> None:
    """Links are made by the walk itself: it stops too."""
    (tmp_path / "source").mkdir()
    for i in range(3000):
        (tmp_path / "source" / str(i)).symlink_to("nowhere")
    cancel = threading.Event()

    def count(path: bytes, is_directory: bool) -> bool:
        if path == b"7":
            cancel.set()
        return False

    with pytest.raises(Cancelled):
        copy_tree(tmp_path / "source", tmp_path / "copy", exclude=count, cancel=cancel)
    assert len(os.listdir(tmp_path / "copy")) < 3000


@pytest.mark.root
def test_interrupted_at_any_moment(tmp_path: Path) -> None:
    """^C: status 130, a line that says so, whole names, no litter; or it was done before."""
    rng = random.Random(2)
    trees = tree_crash.Trees(tmp_path, 100)
    copy = tmp_path / "copy"
    busy = tree_crash.lasts(trees, copy, over=True)
    statuses = set()
    for number in range(16):
        trees.prepare(copy, over=bool(number % 2))
        child = trees.start(copy)
        child.wait_until(0.01 + rng.random() * busy)
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGINT)
        statuses.add(status := child.end())
        said, name = trees.stderr.read_text(), str(trees.source)
        stopped = f"aiocp: stopped by SIGINT: {name!r} was not copied as a whole\n"
        assert (status, said) in ((0, ""), (130, stopped), (130, ""))  # before it has begun
        assert [] == trees.judge(copy, -signal.SIGKILL if status else 0, over=bool(number % 2))
    assert 130 in statuses


@pytest.mark.root
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file of Python's
def test_an_exception_at_any_bytecode(tmp_path: Path) -> None:
    """Whole names, no litter, no descriptor, context or thread left; the next copy works."""
    trees = tree_crash.Trees(tmp_path, 12)
    copy = tmp_path / "copy"

    def action() -> None:
        copy_tree(trees.source, copy, preserve="all", depth=4, block_size=64 * KIB)

    trees.prepare(copy, over=True)
    action()
    before, threads = descriptors(), threading.active_count()
    for at in every_bytecode(action, 30):
        assert [] == trees.judge(copy, -signal.SIGKILL, over=True), at
        gc.collect()  # what was open where it was interrupted goes with its last reference
        assert (before, threads) == (descriptors(), threading.active_count()), at
        trees.prepare(copy, over=True)
    assert contexts() == len(context._idle)
    action()
    assert [] == trees.judge(copy, 0, over=True)
