"""copy_file(): what it copies, what it says of it, and what it does with bad input."""

import errno
import os
import random
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aiocp
from aiocp import CopyResult, copy_file
from filesystems import (
    loop_device,
    make_filesystem,
    mount,
    mounted,
    scratch_directory,
    sparse_file,
    write_cold,
)

KIB, MIB = 1 << 10, 1 << 20


def fill(path: Path, size: int, seed: int = 1) -> Path:
    """Make a file of `size` random bytes that is not in memory."""
    return write_cold(path, random.Random(seed).randbytes(size))


def assert_same(source: Path, destination: Path) -> None:
    subprocess.run(["cmp", source, destination], check=True)


def listing(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return fill(tmp_path / "source", 3 * MIB + 777)


def around(*boundaries: int) -> list[int]:
    """One under, at and over each boundary."""
    return sorted({b + d for b in boundaries for d in (-1, 0, 1) if b + d >= 0})


@pytest.mark.root
@pytest.mark.parametrize("block_size", [4 * KIB, 64 * KIB, MIB])
@pytest.mark.parametrize("depth", [1, 3, 64])
def test_every_size_around_every_boundary(filesystem: Path, depth: int, block_size: int) -> None:
    """Any size arrives whole: around sector, block and depth x block, on every file system."""
    window = min(depth * block_size, 4 * MIB)
    for size in around(0, 512, 4096, block_size, window):
        source = fill(filesystem / "source", size, seed=size)
        result = copy_file(
            source, filesystem / "copy", depth=depth, block_size=block_size, reflink="never"
        )
        assert_same(source, filesystem / "copy")
        assert size == result.size == result.bytes_read == result.bytes_written
        assert result.synced
    assert listing(filesystem) == ["copy", "source"]


@pytest.mark.root
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_unaligned_tails_on_devices_of_both_sector_sizes(sector_size: int) -> None:
    """A tail that is no multiple of the sector is right on 512- and on 4096-byte sectors."""
    with mounted("ext4", 64 * MIB, sector_size=sector_size) as directory:
        for tail in (1, 511, 512, 513, 4095):
            source = fill(directory / "source", 2 * MIB + tail)
            result = copy_file(source, directory / "copy", depth=4, block_size=64 * KIB)
            assert (result.direct_read, result.direct_write) == (True, True)
            assert_same(source, directory / "copy")


@pytest.mark.root
def test_over_four_gib() -> None:
    """Offsets beyond 32 bits are right."""
    with mounted("tmpfs", 5 << 30) as directory:
        source = directory / "source"
        with source.open("wb") as file:
            for offset in (0, 2**31 - 1, 2**32 - 1, 2**32 + 4096, 2**32 + MIB):
                file.seek(offset)
                file.write(random.Random(offset).randbytes(5))
        assert copy_file(source, directory / "copy").size == 2**32 + MIB + 5
        assert_same(source, directory / "copy")


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.integers(0, 600 * KIB),
    depth=st.integers(1, 70),
    pages=st.integers(1, 40),
    direct=st.sampled_from(["auto", "never"]),
)
def test_any_size_depth_and_block_size(
    tmp_path: Path, size: int, depth: int, pages: int, direct: str
) -> None:
    """The copy equals the source for any combination; depth is reached and never exceeded."""
    source = fill(tmp_path / "source", size)
    block_size = pages * 4096
    result = copy_file(
        source,
        tmp_path / "copy",
        depth=depth,
        block_size=block_size,
        direct=direct,  # type: ignore[arg-type]
    )
    assert_same(source, tmp_path / "copy")
    blocks = 1 if direct == "auto" and size <= 256 * KIB else -(-size // block_size)
    assert min(depth, max(blocks, 1)) == result.peak_in_flight


def test_result_tells_what_happened(source: Path, tmp_path: Path) -> None:
    """The fields hold what was done; `depth` blocks were in flight."""
    result = copy_file(source, tmp_path / "copy", depth=3, block_size=64 * KIB)
    size = os.stat(source).st_size
    assert (str(source), str(tmp_path / "copy")) == (result.source, result.destination)
    assert (size, size, size) == (result.size, result.bytes_read, result.bytes_written)
    assert (3, 3, 64 * KIB) == (result.depth, result.peak_in_flight, result.block_size)
    assert (True, False) == (result.synced, result.in_place)
    assert result.elapsed > 0
    assert result.rate == pytest.approx(size / result.elapsed)


def test_direct_never_goes_through_the_page_cache(source: Path, tmp_path: Path) -> None:
    """direct="never" says so and copies all the same."""
    result = copy_file(source, tmp_path / "copy", direct="never")
    assert (False, False, "aio-buffered") == (
        result.direct_read,
        result.direct_write,
        result.method,
    )
    assert_same(source, tmp_path / "copy")


def test_longer_destination_ends_at_the_sources_size(source: Path, tmp_path: Path) -> None:
    fill(tmp_path / "copy", 5 * MIB, seed=2)
    copy_file(source, tmp_path / "copy")
    assert_same(source, tmp_path / "copy")


def test_into_a_directory_under_the_sources_name(source: Path, tmp_path: Path) -> None:
    """As shutil.copy does."""
    (tmp_path / "directory").mkdir()
    result = copy_file(source, tmp_path / "directory")
    assert str(tmp_path / "directory" / "source") == result.destination
    assert_same(source, tmp_path / "directory" / "source")


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_paths_of_every_kind(source: Path, tmp_path: Path, kind: type) -> None:
    """str, bytes and PathLike; a name that is not UTF-8."""
    target = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n")
    copy_file(kind(source), kind(target))
    assert_same(source, Path(target))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
@pytest.mark.parametrize("mode", [0o644, 0o600, 0o755, 0o444, 0o4777, 0o002])
def test_mode_is_that_of_cp(source: Path, tmp_path: Path, mode: int, umask: int) -> None:
    """A new file has the mode that cp would give it: the source's, less the umask."""
    source.chmod(mode)
    before = os.umask(umask)
    try:
        copy_file(source, tmp_path / "ours")
        subprocess.run(["cp", source, tmp_path / "theirs"], check=True)
    finally:
        os.umask(before)
    assert (tmp_path / "theirs").stat().st_mode == (tmp_path / "ours").stat().st_mode


def test_replaced_file_keeps_mode_owner_and_xattrs(source: Path, tmp_path: Path) -> None:
    """As with cp, which writes into the file."""
    copy = fill(tmp_path / "copy", 10)
    copy.chmod(0o640)
    os.setxattr(copy, "user.note", b"kept")
    if os.geteuid() == 0:
        os.chown(copy, 1234, 2345)
    before = copy.stat()
    result = copy_file(source, copy)
    after = copy.stat()
    assert not result.in_place
    assert before.st_ino != after.st_ino
    assert (before.st_mode, before.st_uid, before.st_gid) == (
        after.st_mode,
        after.st_uid,
        after.st_gid,
    )
    assert os.getxattr(copy, "user.note") == b"kept"
    assert_same(source, copy)


def test_destination_link_is_written_through(source: Path, tmp_path: Path) -> None:
    """The file that a symbolic link points to is replaced; the link stays."""
    (tmp_path / "elsewhere").mkdir()
    real = fill(tmp_path / "elsewhere" / "real", 10)
    (tmp_path / "link").symlink_to("elsewhere/real")
    copy_file(source, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_same(source, real)


def test_hard_linked_destination_is_written_in_place(source: Path, tmp_path: Path) -> None:
    """All names of the file see the copy, and the result says that it was in place."""
    fill(tmp_path / "one", 10 * MIB)
    os.link(tmp_path / "one", tmp_path / "two")
    result = copy_file(source, tmp_path / "one")
    assert result.in_place
    assert_same(source, tmp_path / "two")


def test_progress_counts_up_to_the_size(source: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    result = copy_file(
        source,
        tmp_path / "copy",
        depth=2,
        block_size=64 * KIB,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert (result.size, result.size) == calls[-1]
    assert sorted(calls) == calls
    assert len(calls) > 10


def test_what_progress_raises_stops_the_copy(source: Path, tmp_path: Path) -> None:
    """It propagates, nothing is left of the copy, and the next copy works."""

    def stop(done: int, total: int) -> None:
        if done > MIB:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        copy_file(source, tmp_path / "copy", depth=4, block_size=64 * KIB, progress=stop)
    assert listing(tmp_path) == ["source"]
    copy_file(source, tmp_path / "copy", depth=4, block_size=64 * KIB)
    assert_same(source, tmp_path / "copy")


def test_cancel_that_comes_too_late(source: Path, tmp_path: Path) -> None:
    """Once the name is there the copy is finished, not cancelled."""

    class Late:
        def is_set(self) -> bool:
            return (tmp_path / "copy").exists()

    copy_file(source, tmp_path / "copy", cancel=Late())
    assert_same(source, tmp_path / "copy")


# --- bad input -----------------------------------------------------------------------------------


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        copy_file(tmp_path / "nothing", tmp_path / "copy")
    assert errno.ENOENT == caught.value.errno
    assert (str(tmp_path / "nothing"), str(tmp_path / "copy")) == (
        caught.value.filename,
        caught.value.filename2,
    )
    assert "open source" in str(caught.value)


def test_directory_as_source(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        copy_file(tmp_path, tmp_path / "copy")


@pytest.mark.parametrize("link", [None, "symlink", "hard link", "through a directory link"])
def test_same_file(source: Path, tmp_path: Path, link: str | None) -> None:
    """Refused under whatever name, and untouched."""
    before = source.read_bytes()
    other = tmp_path / "other"
    if link is None:
        other = source
    elif link == "symlink":
        other.symlink_to(source)
    elif link == "hard link":
        os.link(source, other)
    else:
        other.symlink_to(tmp_path)
        other = other / "source"
    with pytest.raises(shutil.SameFileError) as caught:
        copy_file(source, other)
    assert (str(source), str(other)) == (caught.value.filename, caught.value.filename2)
    assert before == source.read_bytes()


@pytest.mark.parametrize(
    ("destination", "error"),
    [
        ("missing/copy", FileNotFoundError),
        ("source/copy", NotADirectoryError),
        ("new/", NotADirectoryError),
        ("x" * 256, OSError),
    ],
)
def test_destination_that_cannot_be(
    source: Path, tmp_path: Path, destination: str, error: type[OSError]
) -> None:
    with pytest.raises(error) as caught:
        copy_file(source, f"{tmp_path}/{destination}")
    assert "open destination" in str(caught.value) or "link" in str(caught.value)
    assert listing(tmp_path) == ["source"]


def test_dangling_destination_link_is_refused(source: Path, tmp_path: Path) -> None:
    """As cp refuses it."""
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="dangling"):
        copy_file(source, tmp_path / "link")
    assert listing(tmp_path) == ["link", "source"]


@pytest.mark.parametrize("depth", [0, -1, 65_537])
def test_depth_out_of_range(source: Path, tmp_path: Path, depth: int) -> None:
    with pytest.raises(ValueError, match="depth must be from 1 to 65,536"):
        copy_file(source, tmp_path / "copy", depth=depth)


@pytest.mark.parametrize("block_size", [0, -4096, 1000, 3 * MIB - 1, 2**31])
def test_block_size_out_of_range(source: Path, tmp_path: Path, block_size: int) -> None:
    with pytest.raises(ValueError, match="block size must be a multiple of 4096"):
        copy_file(source, tmp_path / "copy", block_size=block_size)


def test_direct_is_one_of_three(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="direct must be"):
        copy_file(source, tmp_path / "copy", direct="maybe")  # type: ignore[arg-type]


def test_source_that_shrinks(source: Path, tmp_path: Path) -> None:
    """An error that says so; no file that looks whole, and an old one stays."""
    old = fill(tmp_path / "copy", 100, seed=3).read_bytes()

    def shrink(done: int, total: int) -> None:
        os.truncate(source, MIB)

    with pytest.raises(aiocp.SourceChanged, match="shrank"):
        copy_file(source, tmp_path / "copy", depth=2, block_size=64 * KIB, progress=shrink)
    assert old == (tmp_path / "copy").read_bytes()
    assert listing(tmp_path) == ["copy", "source"]


def test_source_that_changes(source: Path, tmp_path: Path) -> None:
    """Other bytes at the same size are noticed by mtime."""

    def change(done: int, total: int) -> None:
        with source.open("r+b") as file:
            file.write(b"new")

    with pytest.raises(aiocp.SourceChanged, match="changed while being copied"):
        copy_file(source, tmp_path / "copy", depth=2, block_size=64 * KIB, progress=change)
    assert listing(tmp_path) == ["source"]


@pytest.mark.root
def test_read_only_file_system(source: Path) -> None:
    with mounted("ext4", 16 * MIB) as directory:
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
        with pytest.raises(OSError, match="open destination: Read-only") as caught:
            copy_file(source, directory / "copy")
        assert errno.EROFS == caught.value.errno


@pytest.mark.root
@pytest.mark.parametrize("fstype", ["ext4", "tmpfs"])
def test_full_file_system_leaves_the_old_file(fstype: str, source: Path) -> None:
    """ENOSPC names both files, and the file that was there is untouched."""
    with mounted(fstype, 4 * MIB) as directory:
        old = fill(directory / "copy", 100).read_bytes()
        big = fill(source, 5 * MIB)
        with pytest.raises(OSError, match="allocate: No space left") as caught:
            copy_file(big, directory / "copy")
        assert errno.ENOSPC == caught.value.errno
        assert old == (directory / "copy").read_bytes()
        assert {"copy"} == set(listing(directory)) - {"lost+found"}


@pytest.mark.parametrize(
    ("source_name", "destination_name"),
    [("unreadable", "new"), ("readable", "locked/new"), ("readable", "unwritable")],
)
def test_permission_denied(source_name: str, destination_name: str) -> None:
    """As an ordinary user: EACCES on either side, and nothing has changed."""
    with scratch_directory() as scratch:
        scratch.chmod(0o755)
        fill(scratch / "readable", 10).chmod(0o644)
        fill(scratch / "unreadable", 10).chmod(0o000)
        fill(scratch / "unwritable", 20).chmod(0o444)
        (scratch / "locked").mkdir(mode=0o555)
        before = (scratch / "unwritable").read_bytes()
        status = in_child(
            lambda: copy_file(scratch / source_name, scratch / destination_name), uid=65534
        )
        assert status == errno.EACCES
        assert before == (scratch / "unwritable").read_bytes()
        assert ["locked", "readable", "unreadable", "unwritable"] == listing(scratch)


def in_child(action: Callable[[], object], uid: int | None = None) -> int:
    """Run `action` in a forked child, as `uid` where root may; its errno, 0 for success."""
    child = os.fork()
    if not child:
        status = 255
        try:
            if uid is not None and os.geteuid() == 0:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            action()
            status = 0
        except OSError as error:
            status = error.errno or 255
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- what has no size ----------------------------------------------------------------------------


def test_files_of_proc_are_read_to_their_end(tmp_path: Path) -> None:
    """Their size says 0, and they are not empty."""
    result = copy_file("/proc/version", tmp_path / "copy")
    assert Path("/proc/version").read_bytes() == (tmp_path / "copy").read_bytes()
    assert ("stream", True) == (result.method, result.synced)


def test_fifo_is_read_to_its_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    data = random.Random(5).randbytes(3 * MIB + 5)
    writer = threading.Thread(target=(tmp_path / "fifo").write_bytes, args=[data])
    writer.start()
    result = copy_file(tmp_path / "fifo", tmp_path / "copy")
    writer.join()
    assert data == (tmp_path / "copy").read_bytes()
    assert len(data) == result.size


def test_fifo_as_destination(source: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "fifo").read_bytes()))
    reader.start()
    result = copy_file(source, tmp_path / "fifo")
    reader.join()
    assert [source.read_bytes()] == received
    assert (True, False) == (result.in_place, result.synced)


def test_dev_null_as_destination(source: Path) -> None:
    assert copy_file(source, "/dev/null").size == source.stat().st_size
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_pipe_by_its_descriptor(tmp_path: Path) -> None:
    """/dev/stdin and what a shell's <(...) gives."""
    reader, writer = os.pipe()
    os.write(writer, b"through a pipe")
    os.close(writer)
    copy_file(f"/dev/fd/{reader}", tmp_path / "copy")
    os.close(reader)
    assert (tmp_path / "copy").read_bytes() == b"through a pipe"


@pytest.mark.root
def test_image_to_device_and_back() -> None:
    """A device is written in place, and keeps its own bytes past the image's end."""
    with scratch_directory() as scratch:
        backing = fill(scratch / "backing", 4 * MIB, seed=8)
        before = backing.read_bytes()
        image = fill(scratch / "image", 3 * MIB + 777)
        with loop_device(backing) as device:
            result = copy_file(image, device, block_size=64 * KIB)
            assert (True, True, True) == (result.in_place, result.synced, result.direct_write)
            copy_file(device, scratch / "back", block_size=64 * KIB)
        expected = image.read_bytes() + before[3 * MIB + 777 :]
        assert expected == backing.read_bytes()
        assert expected == (scratch / "back").read_bytes()


# --- many copies, threads, forks -----------------------------------------------------------------


def test_copies_from_several_threads(tmp_path: Path) -> None:
    """Each has a context of its own, and they run at the same time."""
    sources = [fill(tmp_path / f"source{i}", 2 * MIB + i, seed=i) for i in range(8)]
    results: list[CopyResult] = []

    def copy(i: int) -> None:
        results.append(copy_file(sources[i], tmp_path / f"copy{i}", block_size=64 * KIB))

    threads = [threading.Thread(target=copy, args=[i]) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for i in range(8):
        assert_same(sources[i], tmp_path / f"copy{i}")


def test_fork_after_a_copy(source: Path, tmp_path: Path) -> None:
    """The child copies with contexts of its own, and both go on."""
    copy_file(source, tmp_path / "before")
    assert in_child(lambda: copy_file(source, tmp_path / "child")) == 0
    copy_file(source, tmp_path / "after")
    assert_same(source, tmp_path / "child")
    assert_same(source, tmp_path / "after")


@pytest.fixture
def formatted() -> Iterator[Path]:
    """A small ext4 device."""
    with (
        scratch_directory() as scratch,
        loop_device(sparse_file(scratch / "image", 32 * MIB)) as device,
    ):
        make_filesystem("ext4", device)
        yield device


@pytest.mark.root
def test_bind_mounts_of_one_file_are_the_same_file(formatted: Path) -> None:
    with scratch_directory() as scratch:
        one, two = scratch / "one", scratch / "two"
        one.mkdir()
        two.mkdir()
        with mount(formatted, one):
            fill(one / "file", 100)
            with mount(one, two, "--bind"), pytest.raises(shutil.SameFileError):
                copy_file(one / "file", two / "file")
