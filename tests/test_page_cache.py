"""Sources in the page cache: read from there, and nothing is added to what is there."""

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from errno import ENOSYS, EPERM
from pathlib import Path

import pytest

from aiocp import SourceChanged, copy_file
from aiocp.linux import cached_bytes
from aiocp.page_cache import PageCache
from faults import in_child, refuse
from filesystems import forget

MIB = 1 << 20
SIZE = 8 * MIB + 777
PAGES = 8 * MIB + 4096  # as many bytes as its pages have


def make(path: Path, *, synced: bool = True) -> bytes:
    """A file that is all in memory, on the disk as well if `synced`."""
    content = random.Random(1).randbytes(SIZE)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if synced:
            os.fsync(file.fileno())
    return content


def cached(path: Path, offset: int = 0, length: int = 0) -> int:
    with path.open("rb") as file:
        return cached_bytes(file.fileno(), offset, length)[0]


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def directory(request: pytest.FixtureRequest, mount_point: Callable[[str], Path]) -> Iterator[Path]:
    """An empty directory on a file system that is not itself memory."""
    path = Path(tempfile.mkdtemp(dir=mount_point(request.param)))
    yield path
    shutil.rmtree(path)


@pytest.mark.root
@pytest.mark.parametrize("synced", [True, False])
def test_a_source_in_memory_is_read_from_there(directory: Path, synced: bool) -> None:
    """Also what is still to be written back, for which a direct read would wait."""
    content = make(directory / "source", synced=synced)
    assert PAGES <= cached(directory / "source")
    result = copy_file(directory / "source", directory / "copy", reflink="never")
    assert content == (directory / "copy").read_bytes()
    assert (SIZE, SIZE) == (result.bytes_read, result.bytes_cached)
    assert result.direct_read


@pytest.mark.root
def test_a_source_on_the_disk_stays_there(directory: Path) -> None:
    content = make(directory / "source")
    forget(directory / "source", 0, 0)
    result = copy_file(directory / "source", directory / "copy", reflink="never")
    assert 0 == result.bytes_cached == cached(directory / "source")
    assert content == (directory / "copy").read_bytes()


@pytest.mark.root
def test_of_half_a_source_in_memory_the_other_half_is_read_directly(directory: Path) -> None:
    """And nothing is brought into memory, or put out of it."""
    content = make(directory / "source")
    forget(directory / "source", 0, 4 * MIB)
    before = cached(directory / "source")
    assert 0 < before < PAGES
    result = copy_file(directory / "source", directory / "copy", reflink="never")
    assert before == cached(directory / "source")
    assert 3 * MIB <= result.bytes_cached <= before
    assert content == (directory / "copy").read_bytes()


@pytest.mark.root
def test_single_pages_in_memory_change_nothing(directory: Path) -> None:
    content = make(directory / "source")
    forget(directory / "source", 0, 0)
    with (directory / "source").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for offset in range(0, SIZE, 300_000):
            os.pread(file.fileno(), 1, offset)
    before = cached(directory / "source")
    assert 0 < before < PAGES
    result = copy_file(directory / "source", directory / "copy", reflink="never")
    assert 0 == result.bytes_cached
    assert before == cached(directory / "source")
    assert content == (directory / "copy").read_bytes()


@pytest.mark.root
@pytest.mark.parametrize("depth", [1, 64])
def test_what_goes_out_of_memory_before_it_is_read_is_read_directly(
    directory: Path, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel answers EAGAIN, or with less than was asked for."""
    content = make(directory / "source")

    def has(self: PageCache, offset: int, length: int) -> bool:
        if offset == 4 * MIB:
            forget(directory / "source", 0, 0)
        return True

    monkeypatch.setattr(PageCache, "has", has)
    result = copy_file(directory / "source", directory / "copy", depth=depth, reflink="never")
    assert result.bytes_cached < SIZE
    assert content == (directory / "copy").read_bytes()


@pytest.mark.root
@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1])
def test_every_end(directory: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    (directory / "source").write_bytes(content)
    result = copy_file(directory / "source", directory / "copy", reflink="never")
    assert (size, size) == (result.bytes_read, result.bytes_cached)
    assert content == (directory / "copy").read_bytes()


@pytest.mark.root
def test_holes_in_memory(directory: Path) -> None:
    """They are holes in the copy, and what is between them is read from memory."""
    with (directory / "source").open("wb") as file:
        for offset in range(0, SIZE, MIB):
            file.seek(offset)
            file.write(b"data" * 30_000)
        file.truncate(SIZE)
        file.flush()
        os.fsync(file.fileno())
    result = copy_file(directory / "source", directory / "copy", reflink="never")
    assert 0 < result.bytes_cached == result.bytes_read < SIZE
    assert (directory / "source").read_bytes() == (directory / "copy").read_bytes()


@pytest.mark.root
def test_direct_io_that_is_a_must_reads_nothing_from_memory(directory: Path) -> None:
    content = make(directory / "source")
    result = copy_file(directory / "source", directory / "copy", reflink="never", direct="always")
    assert 0 == result.bytes_cached
    assert content == (directory / "copy").read_bytes()


@pytest.mark.root
@pytest.mark.parametrize("errno", [ENOSYS, EPERM])
def test_a_kernel_that_does_not_say_what_it_has_in_memory(directory: Path, errno: int) -> None:
    """Older than Linux 6.5, or under an older seccomp profile."""
    content = make(directory / "source")

    def without() -> None:
        refuse("cachestat", errno)
        result = copy_file(directory / "source", directory / "copy", reflink="never")
        assert 0 == result.bytes_cached

    assert in_child(without) is None
    assert content == (directory / "copy").read_bytes()


@pytest.mark.root
def test_a_source_that_shrinks_in_memory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(directory / "source")

    def has(self: PageCache, offset: int, length: int) -> bool:
        os.truncate(directory / "source", 3 * MIB)
        return True

    monkeypatch.setattr(PageCache, "has", has)
    with pytest.raises(SourceChanged, match="shrank"):
        copy_file(directory / "source", directory / "copy", reflink="never")
    assert ["source"] == os.listdir(directory)
