"""Large files by ranges: how they are cut, what is put together, what goes wrong.

The workers are threads here, the ranges 1 MiB; tests with real clusters have the real ones.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from errno import EIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiocp.partial
from aiocp import (
    Cancelled,
    SourceChanged,
    VerificationFailed,
    copy_file,
    copy_tree,
    range_copy,
    ranges,
)
from aiocp.errors import fail
from aiocp.ranges import RANGE, cut
from aiocp.share import Range
from aiocp.verify import Digests

MIB = 1 << 20
CONTENT = random.Random(6).randbytes(9 * MIB + 777)
BLOCK = 64 << 10


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RANGE", MIB)
    monkeypatch.setattr(aiocp.partial, "EVERY_BYTES", MIB)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "to").mkdir()
    return tmp_path / "to/copy"


def sparse_file(path: Path) -> None:
    with path.open("wb") as file:
        for at in (3 * MIB + 5, 4 * MIB - 1, 20 * MIB, 41 * MIB):
            file.seek(at)
            file.write(CONTENT[: 700 << 10])
        file.truncate(64 * MIB)


# --- how it is cut ---


@pytest.fixture
def _real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RANGE", RANGE)


@pytest.mark.usefixtures("_real")
@pytest.mark.parametrize(
    ("size", "edges"),
    [
        (2 * RANGE, [RANGE]),
        (2 * RANGE + 1, [RANGE]),  # a byte is no range
        (3 * RANGE - 1, [RANGE]),
        (3 * RANGE, [RANGE, 2 * RANGE]),
    ],
)
def test_a_dense_file_is_cut_at_each_range(size: int, edges: list[int]) -> None:
    parts = list(cut([(0, size)], 0, size))
    assert [0, *edges] == [part.start for part in parts]
    assert [*edges, size] == [part.stop for part in parts]


UNIT = RANGE // 8
extents = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), max_size=12)


@given(extents, st.integers(0, 30))
def test_parts_have_all_data_once(gaps: list[tuple[int, int]], known: int) -> None:
    """In order, without a gap between them, cut at multiples of the range, with data enough."""
    data, at = [], known
    for gap, length in gaps:
        data.append(((at + gap) * UNIT, length * UNIT))
        at += gap + length
    size = (at + 5) * UNIT
    parts = list(cut(data, known * UNIT, size))
    assert [known * UNIT, *(part.stop for part in parts)] == [*(p.start for p in parts), size]
    assert all(part.start % ranges.RANGE == 0 for part in parts[1:])
    pieces = [piece for part in parts for piece in part.extents]
    assert pieces == sorted(pieces)
    covered = {unit for start, n in pieces for unit in range(start // UNIT, (start + n) // UNIT)}
    assert sum(n for _, n in data) == sum(n for _, n in pieces) == len(covered) * UNIT
    for part in parts:
        assert all(part.start <= start <= start + n <= part.stop for start, n in part.extents)
    if len(parts) > 1:
        assert min(sum(n for _, n in part.extents) for part in parts) >= ranges.RANGE


# --- what is put together ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"verify": True},
        {"resume": True},
        {"direct": "never"},
        {"sparse": "never"},
        {"sparse": "always", "verify": True},
        {"sync": False},
        {"preserve": ["all"], "idle": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_file(
    source: Path,
    copy: Path,
    executor: ThreadPoolExecutor,
    options: dict[str, object],
    kind: str,
) -> None:
    """It is as when one process copies it, and what is told of it is, too."""
    if kind == "sparse":
        sparse_file(source)
    done: list[tuple[int, int]] = []
    call: dict[str, object] = {"block_size": BLOCK, **options}
    plain = copy_file(source, copy, **call)  # type: ignore[arg-type]
    blocks = copy.stat().st_blocks
    copy.unlink()
    report: Callable[[int, int], None] = lambda *told: done.append(told)  # noqa: E731
    result = copy_file(source, copy, executor=executor, progress=report, **call)  # type: ignore[arg-type]
    assert source.read_bytes() == copy.read_bytes()
    assert ["copy"] == os.listdir(copy.parent)
    assert abs(blocks - copy.stat().st_blocks) <= 64  # extents of the file system's own
    assert result.size == result.bytes_written + result.holes
    for name in ("size", "bytes_written", "holes", "method", "synced", "verified", "direct_read"):
        assert getattr(plain, name) == getattr(result, name), name
    assert (result.size, result.size) == done[-1]
    assert result.bytes_written == sum(worker.bytes for worker in result.workers)
    assert sum(worker.batches for worker in result.workers) > 1


def test_what_is_not_cut_is_copied_here(
    source: Path, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    """Small files, what is digested, what is written in place, and what has no size."""
    small, linked, fifo = tmp_path / "small", tmp_path / "linked", tmp_path / "fifo"
    small.write_bytes(CONTENT[: 2 * MIB - 1])
    linked.write_bytes(b"old")
    (tmp_path / "other name").hardlink_to(linked)
    os.mkfifo(fifo)
    for result in (
        copy_file(small, tmp_path / "copy", executor=executor),
        copy_file(source, tmp_path / "copy", executor=executor, checksum="xxh128"),
        copy_file(source, linked, executor=executor),
        copy_file("/proc/self/status", tmp_path / "status", executor=executor),
    ):
        assert () == result.workers
    assert CONTENT == (tmp_path / "copy").read_bytes() == (tmp_path / "other name").read_bytes()


def test_it_goes_on_where_it_was_stopped(
    source: Path, copy: Path, executor: ThreadPoolExecutor
) -> None:
    """What is resumed is not copied, and with `verify` compared all the same."""
    cancel = threading.Event()

    def stop(done: int, _: int) -> None:
        if done > 3 * MIB:
            cancel.set()

    with pytest.raises(Cancelled, match="bytes are kept"):
        copy_file(
            source, copy, resume=True, executor=executor, cancel=cancel, progress=stop, depth=2
        )
    assert not copy.exists()
    result = copy_file(source, copy, resume=True, verify=True, executor=executor)
    assert CONTENT == copy.read_bytes()
    assert ["copy"] == os.listdir(copy.parent)
    assert 0 < result.resumed < len(CONTENT)
    assert len(CONTENT) == result.resumed + result.bytes_written
    assert result.verified


def test_what_was_there_is_compared(source: Path, copy: Path, executor: ThreadPoolExecutor) -> None:
    """A block of it that has changed on the disk meanwhile is found."""
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        copy_file(
            source,
            copy,
            resume=True,
            executor=executor,
            cancel=cancel,
            progress=lambda done, _: cancel.set() if done > 4 * MIB else None,
        )
    with (copy.parent / ".copy.aiocp-partial").open("r+b") as file:
        file.write(b"something else")
    with pytest.raises(VerificationFailed, match="offset 0 "):
        copy_file(source, copy, resume=True, verify=True, executor=executor)
    assert [] == os.listdir(copy.parent)


# --- what goes wrong ---


def test_a_range_that_cannot_be_copied(
    source: Path, copy: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is the file's error, and what was there stays."""
    copy.write_bytes(b"old")
    real = range_copy.copy_range

    def failing(part: Range, cancel: object) -> object:
        if part.start == 4 * MIB:
            raise fail(EIO, f"read at offset {part.start}")
        return real(part, cancel)  # type: ignore[arg-type]

    monkeypatch.setattr(range_copy, "copy_range", failing)
    with pytest.raises(OSError, match=f"read at offset {4 * MIB}") as caught:
        copy_file(source, copy, executor=executor)
    assert (EIO, str(source), str(copy)) == (
        caught.value.errno,
        caught.value.filename,
        caught.value.filename2,
    )
    assert b"old" == copy.read_bytes()
    assert ["copy"] == os.listdir(copy.parent)


def test_what_is_on_the_disk_is_something_else(
    source: Path, copy: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Digests.add

    def other(digests: object, offset: int, block: memoryview) -> None:
        seen = bytes(len(block)) if offset == 5 * MIB else block
        real(digests, offset, memoryview(seen))  # type: ignore[arg-type]

    monkeypatch.setattr(Digests, "add", other)
    with pytest.raises(VerificationFailed, match=f"offset {5 * MIB}"):
        copy_file(source, copy, verify=True, executor=executor)
    assert [] == os.listdir(copy.parent)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_source_that_changes(
    source: Path, copy: Path, executor: ThreadPoolExecutor, *, allowed: bool
) -> None:
    def change(done: int, _: int) -> None:
        os.utime(source, ns=(done, done))

    options = {"executor": executor, "progress": change, "allow_changed": allowed}
    if allowed:
        copy_file(source, copy, **options)  # type: ignore[arg-type]
        assert CONTENT == copy.read_bytes()
    else:
        with pytest.raises(SourceChanged):
            copy_file(source, copy, **options)  # type: ignore[arg-type]
        assert [] == os.listdir(copy.parent)


def test_another_source_under_its_name(
    source: Path, copy: Path, executor: ThreadPoolExecutor
) -> None:
    """Workers open it by its name, and must not mix two files, whatever is allowed."""

    def replace(*_: int) -> None:
        other = source.with_name("other")
        other.write_bytes(bytes(len(CONTENT)))
        other.replace(source)

    with pytest.raises(SourceChanged, match="replaced"):
        copy_file(source, copy, executor=executor, progress=replace, allow_changed=True, depth=1)
    assert [] == os.listdir(copy.parent)


def test_another_file_under_the_temporary_name(
    source: Path, copy: Path, executor: ThreadPoolExecutor
) -> None:
    """Nobody can have the workers write into what he has put there."""
    secret = source.with_name("secret")
    secret.write_bytes(b"keep")

    def plant(*_: int) -> None:
        for name in os.listdir(copy.parent):
            if name.startswith(".copy.aiocp-"):
                os.unlink(copy.parent / name)
                os.symlink(secret, copy.parent / name)

    with pytest.raises(OSError, match="open destination"):
        copy_file(source, copy, executor=executor, progress=plant, depth=1)
    assert b"keep" == secret.read_bytes()
    assert not copy.exists()
    for name in os.listdir(copy.parent):
        with suppress(OSError):
            os.unlink(copy.parent / name)


def test_large_files_of_a_tree(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    """Next to small ones, with several names, over what is there, by what a link leads to."""
    tree, to = tmp_path / "tree", tmp_path / "to"
    (tree / "below").mkdir(parents=True)
    (tree / "large").write_bytes(CONTENT)
    (tree / "below/other name").hardlink_to(tree / "large")
    sparse_file(tree / "below/sparse")
    (tree / "over").write_bytes(CONTENT)
    (tree / "by link").write_bytes(CONTENT)
    (tree / "small").write_bytes(b"small")
    to.mkdir()
    (to / "over").write_bytes(b"old")
    (tmp_path / "behind").write_bytes(b"old")
    (to / "by link").symlink_to(tmp_path / "behind")
    result = copy_tree(tree, to, preserve=["links"], executor=executor, verify=True)
    for name in ("large", "below/other name", "below/sparse", "over", "by link", "small"):
        assert (tree / name).read_bytes() == (to / name).read_bytes(), name
    assert os.path.samefile(to / "large", to / "below/other name")
    assert (to / "by link").is_symlink()
    assert (5 + 1, True) == (result.files, result.verified)
    assert result.bytes == result.holes + sum(worker.bytes for worker in result.workers)
