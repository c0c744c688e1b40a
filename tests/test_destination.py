"""Where the bytes go: replaced or in place, devices, links, and what an existing file keeps."""

import errno
import os
import random
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aiocp import SourceChanged, copy_file
from aiocp.destination import Destination
from aiocp.linux import File
from faults import as_nobody
from filesystems import (
    loop_device,
    make_filesystem,
    mount,
    scratch_directory,
    sparse_file,
    unavailable,
)

KIB, MIB = 1 << 10, 1 << 20


def fill(path: Path, size: int, seed: int = 1) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return fill(tmp_path / "source", MIB + 777)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return fill(tmp_path / "copy", 2 * MIB, seed=2)


def test_in_place_keeps_the_inode(source: Path, copy: Path) -> None:
    """The file is written under its name, cut to size, and the result says so."""
    before = copy.stat()
    result = copy_file(source, copy, in_place=True)
    assert (result.in_place, result.synced) == (True, True)
    assert before.st_ino == copy.stat().st_ino
    assert before.st_mode == copy.stat().st_mode
    assert source.read_bytes() == copy.read_bytes()


def test_in_place_of_nothing_is_a_new_file(source: Path, tmp_path: Path) -> None:
    """There is nothing to write into, so the name appears when the bytes are there."""
    seen = []
    result = copy_file(
        source,
        tmp_path / "new",
        in_place=True,
        progress=lambda done, total: seen.append((tmp_path / "new").exists()),
    )
    assert not result.in_place
    assert not any(seen)
    assert source.read_bytes() == (tmp_path / "new").read_bytes()


def test_an_error_in_place_says_that_the_file_is_incomplete(source: Path, copy: Path) -> None:
    def shrink(done: int, total: int) -> None:
        os.truncate(source, 5000)

    with pytest.raises(SourceChanged, match="written in place, it is incomplete now"):
        copy_file(source, copy, in_place=True, depth=1, block_size=4096, progress=shrink)


def test_no_sync_says_so(source: Path, tmp_path: Path) -> None:
    assert not copy_file(source, tmp_path / "new", sync=False).synced


def test_changed_source_can_be_allowed(source: Path, tmp_path: Path) -> None:
    """What it grew by is not copied; the size is that of the open."""
    size = source.stat().st_size

    def grow(done: int, total: int) -> None:
        with source.open("ab") as file:
            file.write(b"more")

    result = copy_file(
        source,
        tmp_path / "copy",
        depth=1,
        block_size=64 * KIB,
        allow_changed=True,
        progress=grow,
    )
    assert size == result.size == (tmp_path / "copy").stat().st_size
    assert source.read_bytes()[:size] == (tmp_path / "copy").read_bytes()


def test_shrunk_source_is_never_allowed(source: Path, tmp_path: Path) -> None:
    """Not even by a byte."""

    def shrink(done: int, total: int) -> None:
        os.truncate(source, total - 1)

    with pytest.raises(SourceChanged, match="shrank"):
        copy_file(
            source,
            tmp_path / "copy",
            depth=2,
            block_size=64 * KIB,
            allow_changed=True,
            progress=shrink,
        )
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_source_swapped_between_look_and_open(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file under the name is noticed by its inode."""
    fill(tmp_path / "other", 100)
    from aiocp import source as module

    open_ = module._open

    def swap(*arguments: Any) -> object:
        os.rename(tmp_path / "other", source)
        return open_(*arguments)

    monkeypatch.setattr(module, "_open", swap)
    with pytest.raises(SourceChanged, match="replaced while being opened"):
        copy_file(source, tmp_path / "copy")
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_a_name_taken_meanwhile_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    """A file that appears at a new destination during the copy is somebody's; it stays."""

    def appear(done: int, total: int) -> None:
        (tmp_path / "copy").write_bytes(b"somebody's")

    with pytest.raises(FileExistsError):
        copy_file(source, tmp_path / "copy", progress=appear)
    assert (tmp_path / "copy").read_bytes() == b"somebody's"
    assert sorted(os.listdir(tmp_path)) == ["copy", "source"]


@pytest.mark.parametrize("length", [240, 250, 255])
def test_long_names_have_room_for_the_temporary(source: Path, tmp_path: Path, length: int) -> None:
    """A name of NAME_MAX bytes can be created and replaced."""
    copy = tmp_path / ("x" * length)
    for _ in range(2):
        copy_file(source, copy)
        assert source.read_bytes() == copy.read_bytes()


@pytest.mark.root
def test_acl_is_kept(source: Path, copy: Path) -> None:
    """A replaced file keeps its access ACL, mask and all."""
    set_acl("u:1234:rw,g:2345:r,m::rw", copy)
    before = get_acl(copy)
    copy_file(source, copy)
    assert before == get_acl(copy)
    assert "user:1234:rw-" in before


@pytest.mark.root
def test_new_file_in_a_directory_with_a_default_acl(source: Path, tmp_path: Path) -> None:
    """The default ACL takes the umask's place, as when cp creates the file."""
    directory = tmp_path / "directory"
    directory.mkdir()
    set_acl("d:u:1234:rw,d:g::r,d:o::-,d:m::rw", directory)
    for mode in (0o644, 0o600, 0o777):
        source.chmod(mode)
        subprocess.run(["cp", source, directory / "theirs"], check=True)
        copy_file(source, directory / "ours")
        ours, theirs = (get_acl(directory / name) for name in ("ours", "theirs"))
        assert theirs == ours
        for path in directory.iterdir():
            path.unlink()


@pytest.mark.root
def test_replaced_file_in_a_directory_with_a_default_acl(source: Path, tmp_path: Path) -> None:
    """The new file has the old one's ACL, none, not the directory's default."""
    copy = fill(tmp_path / "copy", 10)
    set_acl("d:u:1234:rw", tmp_path)
    before = get_acl(copy)
    copy_file(source, copy)
    assert before == get_acl(copy)


def set_acl(acl: str, path: Path) -> None:
    try:
        subprocess.run(["setfacl", "-m", acl, path], check=True)
    except FileNotFoundError:
        unavailable("setfacl is not installed")


def get_acl(path: Path) -> str:
    command: list[str | Path] = ["getfacl", "--omit-header", "--numeric", "--no-effective", path]
    return subprocess.check_output(command, text=True)


@pytest.mark.root
def test_directory_that_we_may_write_but_not_read() -> None:
    """Such a directory cannot be opened for its sync; the file system is synced instead."""
    with scratch_directory() as scratch:
        scratch.chmod(0o755)
        source = fill(scratch / "source", 100)
        source.chmod(0o644)
        copy = scratch / "drop" / "copy"
        copy.parent.mkdir()
        copy.parent.chmod(0o733)
        assert as_nobody(lambda: copy_file(source, copy).synced)
        assert source.read_bytes() == copy.read_bytes()


@pytest.mark.root
def test_file_of_another_owner_is_written_in_place() -> None:
    """A new file could not be given its owner, so the old one is written, as cp writes it."""
    with scratch_directory() as scratch:
        scratch.chmod(0o777)
        source, copy = fill(scratch / "source", 100), fill(scratch / "copy", 200)
        source.chmod(0o644)
        copy.chmod(0o666)
        assert as_nobody(lambda: copy_file(source, copy).in_place)
        assert source.read_bytes() == copy.read_bytes()
        assert copy.stat().st_uid == 0


@pytest.mark.parametrize("replaced", [False, True])
def test_file_system_that_takes_no_modes(
    source: Path, copy: Path, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vfat gives a new file the mode of the mount, and EPERM to fchmod: that is no error."""

    def create(self: Destination) -> File:
        return File.open(b".", os.O_TMPFILE | os.O_RDWR, 0o755, dir_fd=self.directory.fileno())

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "vfat")

    if not replaced:
        copy.unlink()
    monkeypatch.setattr(Destination, "_create_new", create)
    monkeypatch.setattr(os, "fchmod", refuse)
    monkeypatch.setattr(os, "chmod", refuse)
    assert not copy_file(source, copy).in_place
    assert source.read_bytes() == copy.read_bytes()


# --- devices -------------------------------------------------------------------------------------


@pytest.mark.root
def test_device_that_is_too_small() -> None:
    """Refused before a byte is written, with both sizes."""
    with scratch_directory() as scratch:
        image = fill(scratch / "image", 2 * MIB)
        backing = sparse_file(scratch / "backing", MIB)
        with loop_device(backing) as device:
            with pytest.raises(OSError, match="device has 1048576 bytes, source 2097152") as caught:
                copy_file(image, device)
            assert errno.ENOSPC == caught.value.errno
        assert bytes(MIB) == backing.read_bytes()


@pytest.mark.root
def test_mounted_device_is_refused_unless_forced() -> None:
    with scratch_directory() as scratch:
        backing = sparse_file(scratch / "backing", 16 * MIB)
        (scratch / "mnt").mkdir()
        image = fill(scratch / "image", 4096)
        with loop_device(backing) as device:
            make_filesystem("ext4", device)
            with mount(device, scratch / "mnt"):
                before = backing.read_bytes()[8 * MIB :]
                with pytest.raises(OSError, match="mounted or in use, and not forced") as caught:
                    copy_file(image, device)
                assert errno.EBUSY == caught.value.errno
                assert before == backing.read_bytes()[8 * MIB :]
            with mount(device, scratch / "mnt", "-o", "ro"):
                assert copy_file(image, device, force=True).in_place
        assert image.read_bytes() == backing.read_bytes()[:4096]


@pytest.mark.root
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_device_to_device(sector_size: int) -> None:
    with scratch_directory() as scratch:
        one = fill(scratch / "one", 3 * MIB)
        two = sparse_file(scratch / "two", 4 * MIB)
        with loop_device(one, sector_size) as source, loop_device(two, sector_size) as device:
            result = copy_file(source, device, block_size=64 * KIB)
            assert (3 * MIB, True, True) == (result.size, result.direct_read, result.direct_write)
            assert stat.S_ISBLK(device.stat().st_mode)
        assert one.read_bytes() + bytes(MIB) == two.read_bytes()


@pytest.mark.root
@pytest.mark.parametrize("tail", [1, 511, 777, 4095])
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_device_keeps_its_bytes_after_an_unaligned_image(tail: int, sector_size: int) -> None:
    with scratch_directory() as scratch:
        image = fill(scratch / "image", 64 * KIB + tail)
        backing = fill(scratch / "backing", MIB, seed=5)
        before = backing.read_bytes()
        with loop_device(backing, sector_size) as device:
            copy_file(image, device, depth=4, block_size=16 * KIB)
        assert image.read_bytes() + before[64 * KIB + tail :] == backing.read_bytes()


@pytest.mark.root
def test_stream_to_a_device() -> None:
    """A pipe has no size; what it gives is written from the device's start."""
    with scratch_directory() as scratch:
        backing = sparse_file(scratch / "backing", MIB)
        with loop_device(backing) as device:
            reader, writer = os.pipe()
            os.write(writer, b"image" * 1000)
            os.close(writer)
            assert copy_file(f"/dev/fd/{reader}", device).synced
            os.close(reader)
        assert backing.read_bytes().startswith(b"image" * 1000)
