"""A small file to a name that is free, which a batch of one copies."""

import os
import subprocess
from collections.abc import Iterator
from errno import EIO
from pathlib import Path

import pytest

from aiocp import copy_file, small
from aiocp.batch import Batch
from aiocp.linux import cached_bytes
from aiocp.source import SMALL

OPEN_FILES = Path("/proc/self/fd")


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A small file; no descriptor is left open by the test."""
    path = tmp_path / "source"
    path.write_bytes(os.urandom(5000))
    before = len(list(OPEN_FILES.iterdir()))
    yield path
    assert before == len(list(OPEN_FILES.iterdir()))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that are made: what is not small, or not for them, makes none."""
    made: list[Batch] = []

    class Counted(Batch):
        def close(self) -> None:
            made.append(self)
            super().close()

    monkeypatch.setattr(small, "Batch", Counted)
    return made


@pytest.mark.parametrize("sync", [True, False])
def test_a_new_name_is_a_batch_of_one(source: Path, batches: list[Batch], sync: bool) -> None:
    """The result is what happened: read from memory and written by plain system calls."""
    told: list[tuple[int, int]] = []
    result = copy_file(
        source,
        source.with_name("copy"),
        sync=sync,
        reflink="never",
        progress=lambda *done: told.append(done),
    )
    assert source.with_name("copy").read_bytes() == source.read_bytes()
    assert [batch.placed for batch in batches] == [1]
    assert (result.method, result.size, result.synced) == ("plain", 5000, sync)
    assert (result.bytes_read, result.bytes_written, result.bytes_cached) == (5000, 5000, 5000)
    assert told == [(5000, 5000)]


def test_what_is_not_in_memory_is_not_counted_as_such(source: Path) -> None:
    """Nor does it stay there."""
    with source.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    result = copy_file(source, source.with_name("copy"), reflink="never")
    assert (result.bytes_read, result.bytes_cached) == (5000, 0)
    with source.open("rb") as file:
        assert cached_bytes(file.fileno(), 0, 0) == (0, False)


def test_others_copy_what_is_there_or_large(source: Path, batches: list[Batch]) -> None:
    """Over a file, and one byte too many."""
    source.with_name("copy").write_bytes(b"old")
    copy_file(source, source.with_name("copy"))
    source.with_name("large").write_bytes(bytes(SMALL + 1))
    copy_file(source.with_name("large"), source.with_name("large copy"))
    assert not batches
    copy_file(source, source.with_name("other"))
    assert len(batches) == 1


@pytest.mark.root
@pytest.mark.parametrize("acl", ["u::rwx,g::rx,o::-", "u::rwx,u:1234:rw,g::rx,m::rwx,o::r"])
def test_a_default_acl_is_what_cp_makes_of_it(source: Path, acl: str) -> None:
    """It comes before the umask."""
    directory = source.with_name("directory")
    directory.mkdir()
    subprocess.run(["setfacl", "-d", "-m", acl, directory], check=True)
    copy_file(source, directory / "copy")
    subprocess.run(["cp", source, directory / "by cp"], check=True)

    def acls(name: str) -> bytes:
        path = directory / name
        return subprocess.run(["getfacl", "-ncE", path], check=True, stdout=subprocess.PIPE).stdout

    assert acls("copy") == acls("by cp")


def test_what_progress_raises_leaves_nothing(source: Path) -> None:
    """The name is not there yet when it is told."""

    def stop(done: int, total: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        copy_file(source, source.with_name("copy"), progress=stop)
    assert os.listdir(source.parent) == ["source"]


def test_names_up_to_the_longest(source: Path, batches: list[Batch]) -> None:
    """A batch takes 255 bytes: none more are cut off."""
    copy_file(source, source.with_name("x" * 255))
    assert len(batches) == 1
    with pytest.raises(OSError, match="name too long"):
        copy_file(source, source.with_name("x" * 256))
    assert sorted(os.listdir(source.parent)) == ["source", "x" * 255]


def test_a_failed_sync_is_told_and_not_tried_again(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing gets the name."""
    syncs = []

    def fail(fd: int) -> None:
        syncs.append(fd)
        raise OSError(EIO, os.strerror(EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="sync: Input/output error") as raised:
        copy_file(source, source.with_name("copy"))
    assert raised.value.filename == str(source)
    assert len(syncs) == 1
    assert os.listdir(source.parent) == ["source"]


def test_a_name_that_is_taken_meanwhile_stays(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is somebody's else, and what it was."""
    copy = source.with_name("copy")
    place = Batch.place

    def take_and_place(self: Batch) -> Batch:
        copy.write_bytes(b"mine")
        return place(self)

    monkeypatch.setattr(Batch, "place", take_and_place)
    with pytest.raises(FileExistsError, match="link: File exists"):
        copy_file(source, copy)
    assert copy.read_bytes() == b"mine"
