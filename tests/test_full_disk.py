"""No space, no quota, no descriptors left, at many points: an old file is not touched by it."""

import errno
import os
import random
import re
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from aiocp import copy_file
from aiocp.direct import Direct
from faults import in_child, refuse, refuse_tmpfile
from filesystems import mounted, run

KIB, MIB = 1 << 10, 1 << 20
SIZES = {"ext4": 64 * MIB, "xfs": 300 * MIB, "btrfs": 256 * MIB, "tmpfs": 32 * MIB}
NEW = random.Random(1).randbytes(2 * MIB - 777)
# what is left free on each file system: evenly, and so that it ends within the last block
FREE = [i * 3 * MIB // 17 for i in range(17)] + [2 * MIB - i * 8 * KIB for i in range(1, 9)]
OLD = random.Random(2).randbytes(100 * KIB)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(NEW)
    return tmp_path / "source"


@contextmanager
def filler(mount_point: Path) -> Iterator[Callable[[int], None]]:
    """Give a function that leaves so many bytes of a file system free."""
    with (mount_point / "filler").open("wb") as file:

        def leave(free: int) -> None:
            size = os.stat(file.name).st_size
            for step in (16 * MIB, MIB, 64 * KIB, 4 * KIB):
                with suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), size, step)
                        size += step
            file.truncate(size - free)
            run("sync", "-f", mount_point)

        yield leave
    (mount_point / "filler").unlink()


def attempt(copy: Callable[[], object], to: Path) -> OSError | None:
    """Copy in a child; hold the directory against the result, which is returned."""
    there = set(os.listdir(to.parent))
    before = to.read_bytes() if to.exists() else None
    error = in_child(copy)
    if error is None:
        assert NEW == to.read_bytes()
        assert there | {to.name} == set(os.listdir(to.parent))
    else:
        assert before == (to.read_bytes() if to.exists() else None)
        assert there == set(os.listdir(to.parent))
        assert re.fullmatch(
            rf"[a-z ]+( at offset \d+)?: {os.strerror(error.errno or 0)}", error.strerror or ""
        )
    return error


def refuse_fallocate() -> None:
    refuse("fallocate", errno.EOPNOTSUPP)


@pytest.mark.root
@pytest.mark.parametrize("how", ["allocated", "not allocated", "buffered"])
@pytest.mark.parametrize("fstype", list(SIZES))
def test_full_disk(fstype: str, how: str, source: Path) -> None:
    """The old file or the whole new one, wherever the space runs out: where it is reserved, or,
    on a file system without fallocate, anywhere among the writes. Then the next copy works."""

    def copy() -> None:
        if how != "allocated":
            refuse_fallocate()
        direct: Direct = "never" if how == "buffered" else "auto"
        copy_file(source, to, depth=4, block_size=64 * KIB, direct=direct)

    reasons = []
    with mounted(fstype, SIZES[fstype]) as mount_point:
        to = mount_point / "directory" / "copy"
        to.parent.mkdir()
        with filler(mount_point) as leave:
            for point, free in enumerate(FREE):
                leave(8 * MIB)
                to.unlink(missing_ok=True)
                if point % 2:
                    to.write_bytes(OLD)
                leave(free)
                error = attempt(copy, to)
                if error:
                    assert errno.ENOSPC == error.errno
                    reasons.append(error.strerror)
        assert attempt(copy, to) is None
    assert len(reasons) > len(FREE) // 2
    assert len(set(reasons)) > (0 if how == "allocated" else 10)


@pytest.mark.root
@pytest.mark.parametrize("fstype", list(SIZES))
def test_full_disk_in_place(fstype: str, source: Path) -> None:
    """What is written in place is as it was too, if the space for it cannot be reserved."""
    with mounted(fstype, SIZES[fstype]) as mount_point:
        to = mount_point / "directory" / "copy"
        to.parent.mkdir()
        to.write_bytes(OLD)
        with filler(mount_point) as leave:
            for point in range(5):
                leave(point * 300 * KIB)
                error = attempt(partial(copy_file, source, to, in_place=True), to)
                assert error
                assert errno.ENOSPC == error.errno


@pytest.mark.root
def test_quota(source: Path) -> None:
    """EDQUOT, at the limit of a Btrfs quota group."""
    with mounted("btrfs", SIZES["btrfs"]) as mount_point:
        run("btrfs", "subvolume", "create", mount_point / "directory")
        run("btrfs", "quota", "enable", mount_point)
        to = mount_point / "directory" / "copy"
        for how in ("new", "replaced"):
            for limit in (MIB, 2 * MIB, 4 * MIB):
                run("btrfs", "qgroup", "limit", str(limit), mount_point / "directory")
                error = attempt(partial(copy_file, source, to), to)
                assert (errno.EDQUOT if limit < 4 * MIB else None) == (error and error.errno), how
            to.write_bytes(OLD)


LIMITS = sorted({0, 1, 4095, 4096, 64 * KIB, MIB, *(len(NEW) + d for d in (-1, 0, 1, 4095, 4096))})


@pytest.mark.parametrize("how", ["allocated", "not allocated", "buffered", "a stream"])
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("old", [OLD, None])
def test_file_size_limit(
    limit: int, how: str, old: bytes | None, source: Path, tmp_path: Path
) -> None:
    """EFBIG from RLIMIT_FSIZE, or the whole file where it just fits."""
    to = tmp_path / "directory" / "copy"
    to.parent.mkdir()
    if old:
        to.write_bytes(old)

    def copy() -> None:
        if how == "not allocated":
            refuse_fallocate()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        from_ = source
        if how == "a stream":
            reader, writer = os.pipe()
            threading.Thread(target=source_into, args=[writer], daemon=True).start()
            from_ = Path(f"/dev/fd/{reader}")
        direct: Direct = "never" if how == "buffered" else "auto"
        copy_file(from_, to, depth=4, block_size=64 * KIB, direct=direct)

    def source_into(writer: int) -> None:
        with open(writer, "wb") as pipe:
            pipe.write(NEW)

    error = attempt(copy, to)
    if error:
        assert errno.EFBIG == error.errno
        assert limit < len(NEW) + 4096  # direct writes come in blocks of this size
    else:
        assert limit >= len(NEW)


@pytest.mark.parametrize("old", [OLD, None])
@pytest.mark.parametrize("named", [True, False])
def test_descriptor_limit(named: bool, old: bytes | None, source: Path, tmp_path: Path) -> None:
    """EMFILE at each descriptor that a copy opens, until there are enough of them."""
    to = tmp_path / "directory" / "copy"
    to.parent.mkdir()
    if old:
        to.write_bytes(old)

    def copy(more: int) -> None:
        if named:
            refuse_tmpfile()
        highest = max(map(int, os.listdir("/proc/self/fd")))
        while os.open(os.devnull, os.O_RDONLY) < highest:
            pass  # until all lower ones are taken
        limit = highest + 1 + more
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        copy_file(source, to)

    failed = 0
    while error := attempt(partial(copy, failed), to):
        assert errno.EMFILE == error.errno
        failed += 1
    assert failed >= 3  # source, directory, new file
