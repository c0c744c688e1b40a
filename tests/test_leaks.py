"""Nothing is left behind: not by ten thousand copies, not by an exception at any bytecode."""

import gc
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import aiocp
from aiocp import Cancelled, context, copy_file, copy_tree
from aiocp.destination import Destination
from trees import differences

KIB, MIB = 1 << 10, 1 << 20
PACKAGE = str(Path(aiocp.__file__).parent)


def contexts() -> int:
    """How many AIO contexts this process has: each maps its ring."""
    return Path("/proc/self/maps").read_text().count("[aio]")


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def resident() -> int:
    """Bytes of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def descriptors() -> set[str]:
    return {f"{fd}:{os.readlink(f'/proc/self/fd/{fd}')}" for fd in open_fds()}


def open_fds() -> list[int]:
    fds = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            os.fstat(int(name))
            fds.append(int(name))
    return fds


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(random.Random(1).randbytes(20 * KIB + 7))
    return tmp_path / "source"


@pytest.fixture
def old(tmp_path: Path) -> bytes:
    """An existing destination's bytes."""
    (tmp_path / "copy").write_bytes(b"old" * 1000)
    return b"old" * 1000


class Tracer:
    """Raises KeyboardInterrupt before the `at`-th bytecode that runs inside the package."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> "Tracer | None":
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            self.seen += 1
            if self.seen == self.at:
                raise KeyboardInterrupt
        return self

    def run(self, action: Callable[[], object]) -> bool:
        """Run `action` under this trace; whether it was interrupted."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            action()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


def every_bytecode(action: Callable[[], object], samples: int) -> Iterator[int]:
    """Interrupt `action` at each bytecode, or at `samples` of them; yield after each."""
    count = Tracer(0)
    assert not count.run(action)
    step = max(1, count.seen // samples)
    for at in range(1, count.seen, step):
        Tracer(at).run(action)
        yield at


@pytest.mark.parametrize("temporary", ["unnamed", "named"])
@pytest.mark.parametrize("samples", [400])
def test_keyboard_interrupt_at_any_bytecode(
    tmp_path: Path,
    source: Path,
    old: bytes,
    temporary: str,
    samples: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Old or new bytes; no descriptor, no context, no temporary is left; the next copy works."""
    if temporary == "named":
        monkeypatch.setattr(Destination, "_create_new", _create_named)
    new = source.read_bytes()

    def copy() -> None:
        copy_file(source, tmp_path / "copy", depth=3, block_size=4 * KIB)

    copy()
    before = descriptors()
    for at in every_bytecode(copy, samples):
        assert (tmp_path / "copy").read_bytes() in (old, new), at
        assert sorted(os.listdir(tmp_path)) == ["copy", "source"], at
        assert before == descriptors(), at
        (tmp_path / "copy").write_bytes(old)
    gc.collect()
    assert contexts() == len(context._idle)
    copy()
    assert new == (tmp_path / "copy").read_bytes()


# one that was made and has not reached its `with` closes itself, but says so
@pytest.mark.filterwarnings("ignore:unclosed scandir iterator:ResourceWarning")
@pytest.mark.parametrize("samples", [150])
def test_keyboard_interrupt_at_any_bytecode_of_a_tree(tmp_path: Path, samples: int) -> None:
    """Every name is whole; no descriptor, context or thread is left; the next copy works."""
    rng = random.Random(4)
    tree = tmp_path / "tree"
    for directory in ("", "one", "one/two"):
        (tree / directory).mkdir(parents=True)
        for i in range(5):
            (tree / directory / f"{i}").write_bytes(rng.randbytes(i * 3000))
        (tree / directory / "large").write_bytes(rng.randbytes(300 * KIB))
    (tree / "one" / "link").symlink_to("2")
    (tree / "one" / "hard").hardlink_to(tree / "2")

    def copy() -> None:
        copy_tree(tree, tmp_path / "copy", depth=3, block_size=64 * KIB, preserve=["all"])

    copy()
    before = descriptors()
    for at in every_bytecode(copy, samples):
        for path in (tmp_path / "copy").rglob("*"):
            if path.is_file():
                source = tree / path.relative_to(tmp_path / "copy")
                assert source.read_bytes() == path.read_bytes(), at
        gc.collect()  # a thread that was being made ends when nobody has it
        for thread in threading.enumerate():
            if thread.name.startswith("aiocp"):
                thread.join(60)
                assert not thread.is_alive(), at
        assert before == descriptors(), at
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    assert contexts() == len(context._idle)
    copy()
    assert differences(tree, tmp_path / "copy") == ""


def _create_named(self: Destination) -> Any:
    from aiocp.linux import File, temporary_name

    directory = self.directory.fileno()
    return File.create_named(temporary_name(self.name), os.O_RDWR, dir_fd=directory)


def test_cancel_leaves_nothing(tmp_path: Path, source: Path, old: bytes) -> None:
    """`cancel` raises Cancelled; the old file stays, nothing is held, the next copy works."""
    cancel = threading.Event()
    before = descriptors()

    def progress(done: int, total: int) -> None:
        cancel.set()

    with pytest.raises(Cancelled):
        copy_file(
            source, tmp_path / "copy", depth=1, block_size=4096, progress=progress, cancel=cancel
        )
    assert old == (tmp_path / "copy").read_bytes()
    assert before == descriptors()
    with pytest.raises(Cancelled):
        copy_file(source, tmp_path / "copy", cancel=cancel)
    cancel.clear()
    copy_file(source, tmp_path / "copy", cancel=cancel)
    assert source.read_bytes() == (tmp_path / "copy").read_bytes()


def test_cancel_ends_the_wait_for_a_pipe(tmp_path: Path, source: Path) -> None:
    """A FIFO without a writer, or without a reader, is waited for until `cancel` is set."""
    os.mkfifo(tmp_path / "fifo")
    for src, dst in ((tmp_path / "fifo", tmp_path / "copy"), (source, tmp_path / "fifo")):
        cancel = threading.Event()
        timer = threading.Timer(0.2, cancel.set)
        timer.start()
        with pytest.raises(Cancelled):
            copy_file(src, dst, cancel=cancel)
        timer.join()
    assert sorted(os.listdir(tmp_path)) == ["fifo", "source"]


PROGRAM = """
import gc, os, sys
sys.path.insert(0, {tests!r})
from test_leaks import contexts, descriptors, mappings, resident
from aiocp import copy_file

def copies(count):
    for i in range(count):
        copy_file("source", f"copy{{i % 7}}", sync=False)
        if {failing}:
            try:
                copy_file("missing" if i % 4 else "source", "nowhere/copy")
            except OSError:
                pass

copies(200)
gc.collect()
before = descriptors(), contexts(), mappings(), resident()
copies({count})
gc.collect()
after = descriptors(), contexts(), mappings(), resident()
assert before[:2] == after[:2], (before, after)
assert after[2] - before[2] <= 4, (before[2], after[2])
assert after[3] - before[3] < 1 << 20, (before[3], after[3])
"""


@pytest.mark.root
@pytest.mark.parametrize("failing", [False, True])
def test_ten_thousand_copies_in_one_process(
    mount_point: Callable[[str], Path], failing: bool
) -> None:
    """Descriptors, fs.aio-nr, mappings and memory are where they were; also with -X dev -W error
    and every second one failing."""
    directory = mount_point("tmpfs")
    (directory / "source").write_bytes(random.Random(1).randbytes(20 * KIB + 7))
    program = PROGRAM.format(tests=str(Path(__file__).parent), failing=failing, count=10_000)
    command = [sys.executable, "-W", "error", *(["-X", "dev"] if failing else []), "-c", program]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)
