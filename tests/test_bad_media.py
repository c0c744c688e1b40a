"""Disks and file systems that fail: what is read, written or synced wrongly is never a copy.

Bad sectors are a loop device whose backing file was cut; disks that fail to write or to flush, and
file systems that fail at any call, are those of faulty_fuse.py.
"""

import errno
import fcntl
import os
import random
import re
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import aiocp
from aiocp import copy_file
from aiocp.direct import Direct
from faulty_fuse import FaultyDevice, FaultyDirectory, Rule, faulty_device, faulty_directory
from filesystems import (
    forget,
    loop_device,
    make_filesystem,
    mount,
    run,
    scratch_directory,
    sparse_file,
)

KIB, MIB = 1 << 10, 1 << 20
SIZE = 300 * KIB + 777  # of most sources, in blocks of 64 KiB
OLD = b"the old file"
HOW: list[Direct] = ["auto", "never"]
TEMPORARY = r"\.copy\.aiocp-[0-9a-f]{16}"

pytestmark = pytest.mark.root


def some_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(some_bytes(SIZE))
    return tmp_path / "source"


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run aiocp with blocks of 64 KiB."""
    return subprocess.run(
        [sys.executable, "-m", "aiocp", "--block-size=64K", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


# --- bad sectors: a loop device whose backing file was cut ---------------------------------------


@contextmanager
def cut(backing: Path, at: int) -> Iterator[None]:
    """Have the device over `backing` fail to read from byte `at` on, for a while."""
    size = backing.stat().st_size
    os.truncate(backing, at)
    try:
        yield
    finally:
        os.truncate(backing, size)


@pytest.mark.parametrize("bad", [0, 3 * 64 * KIB, MIB - 64 * KIB])
def test_source_device_that_cannot_be_read(bad: int, tmp_path: Path) -> None:
    """EIO names the offset, the exit status is 1, and there is no destination."""
    with scratch_directory() as scratch:
        backing = scratch / "backing"
        backing.write_bytes(some_bytes(MIB))
        with loop_device(backing) as device, cut(backing, bad):
            done = command("--depth=1", device, tmp_path / "copy")
    assert (1, "") == (done.returncode, done.stdout)
    assert f": read at offset {bad}: Input/output error\n" in done.stderr
    assert [] == os.listdir(tmp_path)


@contextmanager
def file_with_a_bad_sector(fstype: str, bad: int) -> Iterator[Path]:
    """A file of 1 MiB + 777 bytes on a new file system, unreadable from its byte `bad` on."""
    with scratch_directory() as scratch:
        backing, directory = sparse_file(scratch / "backing", 320 * MIB), scratch / "mnt"
        directory.mkdir()
        with loop_device(backing) as device:
            make_filesystem(fstype, device)
            with mount(device, directory):
                file = directory / "file"
                with file.open("wb") as opened:
                    os.posix_fallocate(opened.fileno(), 0, MIB + 777)  # in one extent
                    opened.write(some_bytes(MIB + 777))
                run("sync", "--file-system", directory)
                forget(file)
                with cut(backing, position(file, bad)):
                    yield file


def position(file: Path, offset: int) -> int:
    """Where in its device a byte of a file is."""
    fibmap, figetbsz = 1, 2
    with file.open("rb") as opened:
        block_size: int = struct.unpack("i", fcntl.ioctl(opened, figetbsz, bytes(4)))[0]
        block = struct.pack("i", offset // block_size)
        number: int = struct.unpack("i", fcntl.ioctl(opened, fibmap, block))[0]
    return number * block_size + offset % block_size


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_source_file_that_cannot_be_read(fstype: str, tmp_path: Path) -> None:
    """The offset is that in the file, not in the device; the old destination stays."""
    (tmp_path / "copy").write_bytes(OLD)
    with file_with_a_bad_sector(fstype, 5 * 64 * KIB) as file:
        done = command("--depth=4", file, tmp_path / "copy")
    assert done.returncode == 1
    assert ": read at offset 327680: Input/output error\n" in done.stderr
    assert OLD == (tmp_path / "copy").read_bytes()
    assert ["copy"] == os.listdir(tmp_path)


# --- a disk that fails to write and to flush -----------------------------------------------------


def test_destination_device_that_cannot_be_written(source: Path) -> None:
    """EIO names the offset, and that the device has a part of the copy now."""
    with faulty_device(MIB) as device:
        device.disk.fail(Rule("write", errno.EIO, start=3 * 64 * KIB, end=4 * 64 * KIB))
        done = command("--depth=1", source, device.path)
        assert device.disk.served("fsync") == 0
    assert done.returncode == 1
    assert ": write at offset 196608: Input/output error; written in place" in done.stderr


def test_destination_device_that_cannot_be_flushed(source: Path) -> None:
    """All is written, and the sync fails: that is asked once, and the exit status is 1."""
    with faulty_device(MIB) as device:
        device.disk.fail(Rule("fsync", errno.EIO, times=1))
        done = command(source, device.path)
    assert done.returncode == 1
    assert ": sync: Input/output error" in done.stderr


@contextmanager
def on_faulty_device(fstype: str, old: bool) -> Iterator[tuple[FaultyDevice, Path, Path]]:
    """A device with a file system on it, mounted; the directory of an `old` destination."""
    with faulty_device(320 * MIB) as device, scratch_directory() as scratch:
        mount_point = scratch / "mnt"
        mount_point.mkdir()
        make_filesystem(fstype, device.path)
        with mount(device.path, mount_point):
            directory = mount_point / "directory"
            directory.mkdir()
            if old:
                (directory / "copy").write_bytes(OLD)
            run("sync", "--file-system", mount_point)
            yield device, mount_point, directory


def found_later(device: FaultyDevice, mount_point: Path, directory: Path) -> dict[str, bytes]:
    """What the directory holds when the disk has been repaired and mounted anew."""
    run("umount", mount_point)
    device.disk.fail()
    run("mount", device.path, mount_point)
    return {name: (directory / name).read_bytes() for name in os.listdir(directory)}


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize(("broken", "direct"), [("fsync", "auto"), ("write", "never")])
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_disk_that_breaks_before_the_sync(
    fstype: str, broken: str, direct: Direct, old: bool, source: Path
) -> None:
    """With the last block written the disk fails: an error at the sync, and the old file or none.

    Without direct I/O the blocks are in the page cache only, and it is their writeback that fails.
    """
    with on_faulty_device(fstype, old) as (device, mount_point, directory):

        def breaks(done: int, total: int) -> None:
            if done == total:
                device.disk.fail(Rule(broken, errno.EIO))

        with pytest.raises(OSError, match=r"^.Errno .*] sync: ") as caught:
            copy_file(source, directory / "copy", direct=direct, progress=breaks)
        assert caught.value.errno in (errno.EIO, errno.EROFS)  # EROFS: Btrfs, once it has given up
        assert device.disk.served(broken) > 0
        expected = {"copy": OLD} if old else {}
        assert expected == found_later(device, mount_point, directory)


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_disk_that_fails_one_flush(fstype: str, old: bool, source: Path) -> None:
    """Whichever of its flushes fails, once: success is the new file, an error the old or the new.

    A flush that fails and is asked for again succeeds: nothing may take that for a sync.
    """
    before = {"copy": OLD} if old else {}
    after = {"copy": source.read_bytes()}
    failed = 0
    for skip in range(4):
        with on_faulty_device(fstype, old) as (device, mount_point, directory):
            device.disk.fail(Rule("fsync", errno.EIO, skip=skip, times=1))
            try:
                copy_file(source, directory / "copy")
                expected = [after]
                assert device.disk.served("fsync") <= skip
            except OSError as error:
                in_place = "its name is not durable" in str(error)
                expected = [before, after] if in_place else [before]
                failed += 1
            assert found_later(device, mount_point, directory) in expected
    assert failed > 0


# --- a file system that fails at any call, and has no O_TMPFILE ----------------------------------


@pytest.fixture(scope="module", params=["cached", "uncached"])
def fuse(request: pytest.FixtureRequest) -> Iterator[FaultyDirectory]:
    """One that has the page cache between, for what is without O_DIRECT, and one that has not."""
    with faulty_directory(*["--direct-io"] * (request.param == "uncached")) as mounted:
        yield mounted


@pytest.fixture
def faulty(fuse: FaultyDirectory) -> Iterator[FaultyDirectory]:
    """It, without rules, and empty again afterwards."""
    fuse.fail()
    yield fuse
    fuse.fail()
    for name in os.listdir(fuse.backing):
        (fuse.backing / name).unlink()


def put_old(faulty: FaultyDirectory, old: bool) -> dict[str, bytes]:
    """Make the old destination if there is to be one; what is in the directory now."""
    if old:
        (faulty.backing / "copy").write_bytes(OLD)
        (faulty.backing / "copy").chmod(0o640)
    return contents(faulty)


def contents(faulty: FaultyDirectory) -> dict[str, bytes]:
    """The files that are really there, hidden ones included."""
    return {name: (faulty.backing / name).read_bytes() for name in os.listdir(faulty.backing)}


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_copy_without_o_tmpfile(faulty: FaultyDirectory, old: bool, source: Path) -> None:
    """A hidden temporary name takes its place, 0600 until the file is whole; nothing is left."""
    put_old(faulty, old)
    modes: dict[str, int] = {}

    def look(done: int, total: int) -> None:
        for entry in os.scandir(faulty.backing):
            if entry.name != "copy" and done < total:
                modes[entry.name] = stat.S_IMODE(entry.stat().st_mode)

    source.chmod(0o644)
    destination = faulty.mount_point / "copy"
    result = copy_file(source, destination, depth=1, block_size=64 * KIB, progress=look)
    assert (True, "aio-direct") == (result.synced, result.method)
    assert [0o600] == list(modes.values())
    assert re.fullmatch(TEMPORARY, next(iter(modes)))
    assert {"copy": source.read_bytes()} == contents(faulty)
    assert stat.S_IMODE((faulty.backing / "copy").stat().st_mode) == (0o640 if old else 0o644)


NO_SPACE = [errno.EIO, errno.ENOSPC, errno.EDQUOT]


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize(
    ("operation", "errnos", "words"),
    [
        ("create", [*NO_SPACE, errno.EROFS], "open destination"),
        ("fallocate", NO_SPACE, "allocate"),
        ("write", NO_SPACE, r"write at offset \d+"),
        ("truncate", NO_SPACE, "truncate"),
        ("fsync", NO_SPACE, "sync"),
        ("flush", NO_SPACE, "close"),
    ],
)
@pytest.mark.parametrize("times", [1, 1 << 30], ids=["once", "always"])
def test_any_call_that_fails(
    faulty: FaultyDirectory,
    operation: str,
    errnos: list[int],
    words: str,
    old: bool,
    times: int,
    source: Path,
) -> None:
    """The error says which call and why; the old file is untouched, or there is none."""
    before = put_old(faulty, old)
    for number in errnos:
        faulty.fail(Rule(operation, number, times=times))
        with pytest.raises(OSError, match=rf"^.Errno \d+] {words}: ") as caught:
            copy_file(source, faulty.mount_point / "copy", block_size=64 * KIB)
        assert number == caught.value.errno
        assert before == contents(faulty)


@pytest.mark.parametrize("times", [1, 1 << 30], ids=["once", "always"])
@pytest.mark.parametrize(
    ("operations", "old", "words"),
    [
        (["open"], True, "open destination"),
        (["chmod"], False, "set attributes"),
        (["rename"], True, "rename"),
        (["rename with flags"], False, "link"),
        (["fallocate", "truncate"], False, "allocate"),
        (["rename with flags", "link"], False, "link"),
    ],
)
def test_call_of_one_case_that_fails(
    faulty: FaultyDirectory,
    operations: list[str],
    old: bool,
    words: str,
    times: int,
    source: Path,
) -> None:
    """Those of a new or of a replaced file only, or for want of the call before."""
    before = put_old(faulty, old)
    refused = {"fallocate": errno.EOPNOTSUPP, "rename with flags": errno.EINVAL}
    rules = [Rule(name, refused[name]) for name in operations[:-1]]
    faulty.fail(*rules, Rule(operations[-1], errno.EIO, times=times))
    with pytest.raises(OSError, match=rf"^.Errno 5] {words}: "):
        copy_file(source, faulty.mount_point / "copy")
    assert before == contents(faulty)


def test_file_system_that_has_little(faulty: FaultyDirectory, source: Path) -> None:
    """Neither fallocate nor RENAME_NOREPLACE: the size is set, and a hard link gives the name."""
    faulty.fail(Rule("fallocate", errno.EOPNOTSUPP), Rule("rename with flags", errno.EINVAL))
    copy_file(source, faulty.mount_point / "copy")
    assert (1, 1, 1) == tuple(map(faulty.served, ("link", "unlink", "fsyncdir")))
    assert {"copy": source.read_bytes()} == contents(faulty)


@pytest.mark.parametrize("refused", [[], [Rule("rename with flags", errno.EINVAL)]])
def test_name_taken_meanwhile(faulty: FaultyDirectory, refused: list[Rule], source: Path) -> None:
    """A file that took the name of a new copy is not replaced."""

    def take(done: int, total: int) -> None:
        (faulty.backing / "copy").write_bytes(OLD)

    faulty.fail(*refused)
    with pytest.raises(FileExistsError, match="link: "):
        copy_file(source, faulty.mount_point / "copy", progress=take)
    assert {"copy": OLD} == contents(faulty)


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_directory_that_cannot_be_synced(faulty: FaultyDirectory, old: bool, source: Path) -> None:
    """The exit status is 1 although the name is there: it may be gone after a power cut."""
    put_old(faulty, old)
    faulty.fail(Rule("fsyncdir", errno.EIO, times=1))
    done = command(source, faulty.mount_point / "copy")
    assert done.returncode == 1
    assert ": copied, but its name is not durable: sync: Input/output error\n" in done.stderr
    assert {"copy": source.read_bytes()} == contents(faulty)
    assert faulty.served("fsyncdir") == 1


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_failed_sync_is_not_asked_for_again(
    faulty: FaultyDirectory, old: bool, source: Path
) -> None:
    """It would succeed, and be a lie: the kernel has dropped what could not be written."""
    before = put_old(faulty, old)
    faulty.fail(Rule("fsync", errno.EIO, times=1))
    done = command(source, faulty.mount_point / "copy")
    assert done.returncode == 1
    assert ": sync: Input/output error\n" in done.stderr
    assert faulty.served("fsync") == 1
    assert before == contents(faulty)


@pytest.mark.parametrize("direct", HOW)
def test_source_that_fails_in_the_middle(
    faulty: FaultyDirectory, direct: Direct, source: Path, tmp_path: Path
) -> None:
    """The offset is that of the block, or in the page cache that of the page."""
    (faulty.backing / "source").write_bytes(source.read_bytes())
    faulty.fail(Rule("read", errno.EIO, start=200 * KIB, end=201 * KIB))
    with pytest.raises(OSError, match=r"^.Errno 5] read at offset (196608|204800): "):
        copy_file(
            faulty.mount_point / "source", tmp_path / "copy", direct=direct, block_size=64 * KIB
        )
    assert [source.name] == os.listdir(tmp_path)


COUNTS = [1, 511, 512, 513, 4095, 4096, 4097, 64 * KIB - 1]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("size", [5000, 100 * KIB + 1])
@pytest.mark.parametrize("times", [1, 50])
@pytest.mark.parametrize("fuse", ["uncached"], indirect=True)
def test_short_reads(
    faulty: FaultyDirectory, times: int, size: int, count: int, tmp_path: Path
) -> None:
    """Reads of any count, once and again, make a whole copy; direct and buffered."""
    (faulty.backing / "source").write_bytes(some_bytes(size))
    for direct in HOW:
        faulty.fail(Rule("read", length=count, times=times))
        copy_file(
            faulty.mount_point / "source", tmp_path / "copy", direct=direct, block_size=64 * KIB
        )
        assert some_bytes(size) == (tmp_path / "copy").read_bytes()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("size", [5000, 100 * KIB + 1])
@pytest.mark.parametrize("times", [1, 50])
@pytest.mark.parametrize("fuse", ["cached"], indirect=True)
def test_short_writes(
    faulty: FaultyDirectory, times: int, size: int, count: int, tmp_path: Path
) -> None:
    """Writes of any count, once and again, make a whole copy.

    Through the page cache, that is: the kernel makes EIO of a direct write that FUSE does short.
    """
    (tmp_path / "source").write_bytes(some_bytes(size))
    destination = faulty.mount_point / "copy"
    faulty.fail(Rule("write", length=count, times=times))
    copy_file(tmp_path / "source", destination, direct="never", block_size=64 * KIB)
    assert {"copy": some_bytes(size)} == contents(faulty)

    faulty.fail(Rule("write", length=count, times=times))
    with suppress(OSError):
        copy_file(tmp_path / "source", destination, block_size=64 * KIB)
    assert {"copy": some_bytes(size)} == contents(faulty)


def test_reads_and_writes_of_nothing(faulty: FaultyDirectory, source: Path, tmp_path: Path) -> None:
    """A read of 0 before the end is a source that shrank, a write of 0 an error: never a loop."""
    (faulty.backing / "source").write_bytes(source.read_bytes())
    faulty.fail(Rule("read", length=0))
    with pytest.raises(aiocp.SourceChanged, match="shrank"):
        copy_file(faulty.mount_point / "source", tmp_path / "copy")
    assert [source.name] == os.listdir(tmp_path)

    faulty.fail(Rule("write", length=0))
    before = contents(faulty)
    for direct in HOW:
        with pytest.raises(OSError, match="write at offset 0: "):
            copy_file(source, faulty.mount_point / "copy", direct=direct)
        assert before == contents(faulty)


@pytest.mark.parametrize("operation", ["read", "write"])
def test_direct_io_that_is_refused(
    faulty: FaultyDirectory, operation: str, source: Path, tmp_path: Path
) -> None:
    """O_DIRECT can be set, and then EINVAL comes of it: the rest is buffered, and the result says
    so; what insists on it fails."""
    (faulty.backing / "source").write_bytes(source.read_bytes())
    reads = operation == "read"
    from_, to = (
        (faulty.mount_point / "source", tmp_path / "copy")
        if reads
        else (source, faulty.mount_point / "copy")
    )
    faulty.fail(Rule(operation, errno.EINVAL, direct=True))
    with pytest.raises(OSError, match=f"{operation} with O_DIRECT: ") as caught:
        copy_file(from_, to, direct="always")
    assert errno.EINVAL == caught.value.errno
    assert not to.exists()
    result = copy_file(from_, to)
    assert (not reads, reads) == (result.direct_read, result.direct_write)
    assert source.read_bytes() == to.read_bytes()


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("way", ["error", "interrupt", "cancel", "source changed"])
def test_temporary_goes_on_every_way_out(
    faulty: FaultyDirectory, way: str, old: bool, source: Path
) -> None:
    """Whatever ends the copy."""
    before = put_old(faulty, old)
    cancel = threading.Event()

    def stop(done: int, total: int) -> None:
        assert set(contents(faulty)) - set(before)  # the temporary is there
        if way == "cancel":
            cancel.set()
        elif way == "source changed":
            source.touch()
        else:
            raise KeyError if way == "error" else KeyboardInterrupt

    errors = (KeyError, KeyboardInterrupt, aiocp.Cancelled, aiocp.SourceChanged)
    with pytest.raises(errors):
        copy_file(
            source,
            faulty.mount_point / "copy",
            depth=1,
            block_size=64 * KIB,
            progress=stop,
            cancel=cancel,
        )
    assert before == contents(faulty)


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_what_a_kill_leaves_is_recognisable(
    faulty: FaultyDirectory, old: bool, source: Path
) -> None:
    """Without O_TMPFILE SIGKILL leaves the temporary: hidden, 0600, and it says whose it is."""
    before = put_old(faulty, old)
    child = os.fork()
    if not child:
        copy_file(
            source,
            faulty.mount_point / "copy",
            progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL),
        )
        os._exit(0)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    after = contents(faulty)
    left = set(after) - set(before)
    assert before == {name: after[name] for name in before}
    assert len(left) == 1
    assert re.fullmatch(TEMPORARY, left.pop())


def test_close_of_the_source_that_fails(faulty: FaultyDirectory, tmp_path: Path) -> None:
    """The copy is whole; an error says which close it was."""
    (faulty.backing / "source").write_bytes(some_bytes(SIZE))
    faulty.fail(Rule("flush", errno.EIO))
    with pytest.raises(OSError, match=r"^.Errno 5] copied, but close source: "):
        copy_file(faulty.mount_point / "source", tmp_path / "copy")
    assert some_bytes(SIZE) == (tmp_path / "copy").read_bytes()


def test_temporary_that_cannot_be_removed(faulty: FaultyDirectory, source: Path) -> None:
    """The error that is reported is the one that ended the copy."""
    faulty.fail(Rule("write", errno.ENOSPC), Rule("unlink", errno.EIO))
    with pytest.raises(OSError, match=r"^.Errno 28] write at offset 0: "):
        copy_file(source, faulty.mount_point / "copy")
