"""Trees on media that fail: full, unreadable in places, failing to write, to sync, to flush.

What a fault has hit is said and is not there; the rest is, and is on the disk. A sync that has
failed is not asked for again, and whatever it was to make durable counts as not copied.
"""

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults import Copy, run_traced
from faulty_fuse import FaultyDevice, FaultyDirectory, Rule, faulty_device, faulty_directory
from filesystems import (
    forget,
    loop_device,
    make_filesystem,
    mount,
    mounted,
    run,
    scratch_directory,
    sparse_file,
)
from test_bad_media import cut, position
from test_full_disk import SIZES, filler
from trees import KIB, MIB, complaints, facts, flaws, snapshot

pytestmark = pytest.mark.root

DIRECTORIES = ("", "one", "one/below", "two")


def make(root: Path, files: int, size: int) -> list[str]:
    """Make a tree of so many files up to a size, each with a name of its own; their paths."""
    rng = random.Random(files)
    for directory in (*DIRECTORIES, "two/empty"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    names = [f"{DIRECTORIES[i % 4]}/file{i}".strip("/") for i in range(files)]
    for name in names:
        (root / name).write_bytes(rng.randbytes(rng.randint(1, size)))
    (root / "one" / "large").write_bytes(rng.randbytes(600 * KIB + 7))
    return [*names, "one/large"]


def copy(source: Path, to: Path, *options: str) -> tuple[set[bytes], str]:
    """Copy with the command; the paths that it says it has not copied, and all that it says."""
    done = subprocess.run(
        [sys.executable, "-m", "aiocp", "-rT", "--block-size=64K", *options, source, to],
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = complaints(done.stderr, source, to)
    assert done.returncode == bool(said), done.stderr
    return set(said), done.stderr


# --- no space ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fstype", list(SIZES))
def test_full_disk(fstype: str, tmp_path: Path) -> None:
    """Wherever in a tree the space ends, every name is whole or not there; then all is copied."""
    source = tmp_path / "source"
    make(source, 150, 40 * KIB)
    new = facts(source)
    with mounted(fstype, SIZES[fstype]) as mount_point:
        to = mount_point / "copy"
        with filler(mount_point) as leave:
            for free in (500 * KIB, 2 * MIB):
                leave(free)
                said, words = copy(source, to, "-a")
                assert said
                assert words.count(os.strerror(errno.ENOSPC)) == len(words.splitlines())
                assert [] == list(flaws(new, {}, facts(to), said))
                leave(8 * MIB)
                shutil.rmtree(to, ignore_errors=True)
        assert copy(source, to, "-a") == (set(), "")
        assert [] == list(flaws(new, {}, facts(to), []))


# --- a file system that fails at one file --------------------------------------------------------


@pytest.fixture(scope="module")
def fuse() -> Iterator[FaultyDirectory]:
    with faulty_directory("--direct-io") as mounted:
        yield mounted


@pytest.fixture
def faulty(fuse: FaultyDirectory) -> Iterator[FaultyDirectory]:
    """A file system without rules, and empty again afterwards."""
    fuse.fail()
    yield fuse
    fuse.fail()
    for path in fuse.backing.iterdir():
        shutil.rmtree(path)


IN_SOURCE = [
    ("open", "open source"),
    ("read", "read at offset 0"),
    ("opendir", "open directory"),
    ("readdir", "list"),
]
IN_COPY = [
    ("create", "open destination"),
    ("write", "write at offset 0"),
    ("fsync", "sync"),
    ("chmod", "set attributes"),
    ("flush", "close"),
    ("rename with flags", "link"),
    ("mkdir", "make directory"),
    ("fsyncdir", "sync"),
]


@pytest.mark.parametrize(
    ("side", "operation", "words"),
    [*(("source", *row) for row in IN_SOURCE), *(("copy", *row) for row in IN_COPY)],
)
def test_one_file_fails(
    faulty: FaultyDirectory, tmp_path: Path, side: str, operation: str, words: str
) -> None:
    """It alone is not copied, or what is in that directory; its sync is asked for once."""
    top = faulty.mount_point if side == "source" else tmp_path
    source = (faulty.backing if side == "source" else tmp_path) / "source"
    names = make(source, 30, 20 * KIB)
    expected = snapshot(source)
    to = tmp_path / "copy" if side == "source" else faulty.mount_point / "copy"
    name = "below" if "dir" in operation else random.Random(operation).choice(names)
    path = "one/below" if name == "below" else name
    faulty.fail(Rule(operation, errno.EIO, times=1, name=os.path.basename(name)))
    said, complaint = copy(top / "source", to)
    assert {os.fsencode(path)} == said
    assert complaint.endswith(f": {words}: {os.strerror(errno.EIO)}\n")
    if operation.startswith("fsync"):
        assert faulty.served(operation, os.path.basename(name)) == 1
    found = snapshot(tmp_path / "copy" if side == "source" else faulty.backing / "copy")
    hit = b"/" + os.fsencode(path)
    if operation not in ("fsyncdir", "readdir"):
        del expected[hit]
    if operation != "fsyncdir":
        expected = {path: what for path, what in expected.items() if hit + b"/" not in path}
    assert expected == found


# --- a disk that fails for all -------------------------------------------------------------------


@contextmanager
def on_failing_disk(fstype: str) -> Iterator[tuple[FaultyDevice, Path]]:
    """A file system on a disk with a write cache, on which there is a directory."""
    with faulty_device(320 * MIB, "--volatile") as device, scratch_directory() as scratch:
        (scratch / "mnt").mkdir()
        make_filesystem(fstype, device.path)
        with mount(device.path, scratch / "mnt"):
            (scratch / "mnt" / "copy").mkdir()
            run("sync", "--file-system", scratch / "mnt")
            yield device, scratch / "mnt"


def cut_power(device: FaultyDevice, mount_point: Path) -> None:
    """Lose what is in the disk's cache, and mount what is left on the repaired disk."""
    device.disk.fail(Rule("power"))
    run("umount", mount_point)
    device.disk.fail()
    run("mount", device.path, mount_point)


@pytest.mark.parametrize("broken", ["fsync", "write"])
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_disk_that_fails(fstype: str, broken: str, tmp_path: Path) -> None:
    """One flush, or all writes from some moment on; then the power goes.

    What the command has not complained of is there, and every name is whole.
    """
    source = tmp_path / "source"
    make(source, 60, 20 * KIB)
    new = facts(source)
    complained = 0
    for skip in (0, 2) if broken == "fsync" else (2, 10):
        with on_failing_disk(fstype) as (device, mount_point):
            times = 1 if broken == "fsync" else 1 << 30
            device.disk.fail(Rule(broken, errno.EIO, skip=skip, times=times))
            said, _ = copy(source, mount_point / "copy", "-a")
            complained += bool(said)
            cut_power(device, mount_point)
            assert [] == list(flaws(new, {}, facts(mount_point / "copy"), said)), skip
    assert complained


@pytest.mark.parametrize("names", [["file"], ["one", "two", "three"]], ids=["file", "tree"])
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_disk_that_fails_for_somebody_else(fstype: str, names: list[str], tmp_path: Path) -> None:
    """When all names are there, and before they are synced, another's sync meets the failure.

    A file system that has given up has nothing to say to a sync any more: ext4 and Btrfs answer 0.
    """
    source = tmp_path / "source"
    source.mkdir()
    for name in names:
        (source / name).write_bytes(name.encode() * 1000)
    with on_failing_disk(fstype) as (device, mount_point):
        to = mount_point / "copy"

        def fail() -> None:
            end = time.monotonic() + 20
            while time.monotonic() < end and len(os.listdir(to)) < len(names):
                time.sleep(0.001)
            device.disk.fail(Rule("fsync", errno.EIO, times=1))
            subprocess.run(["sync", "--file-system", to], stderr=subprocess.DEVNULL)

        somebody = threading.Thread(target=fail)
        somebody.start()
        late = ["--trace=linkat", "--inject=linkat:delay_exit=300000"]  # microseconds
        name = "file" if names == ["file"] else ""
        arguments = ["-rT", os.path.join(source, name), os.path.join(to, name)]
        outcome = run_traced(Copy(arguments, str(tmp_path / "stderr")), late, tmp_path / "log")
        somebody.join()
        said = complaints(outcome.stderr, source, to)
        cut_power(device, mount_point)
        found = sorted(path.name for path in to.iterdir() if path.stat().st_size > 1000)
    assert (outcome.status, found) in ((0, sorted(names)), (1, []))
    assert ([os.fsencode(name)] if outcome.status else []) == list(said)


# --- a source with bad sectors -------------------------------------------------------------------


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_source_with_bad_sectors(fstype: str, tmp_path: Path) -> None:
    """The files that have one are not copied, and said to be; all others are."""
    with scratch_directory() as scratch:
        backing = sparse_file(scratch / "backing", 320 * MIB)
        (scratch / "mnt").mkdir()
        with loop_device(backing) as device:
            make_filesystem(fstype, device)
            with mount(device, scratch / "mnt"):
                source = scratch / "mnt" / "source"
                names = make(source, 60, 20 * KIB)
                run("sync", "--file-system", source)
                ends = {name: position(source / name, 0) for name in names}
                middle = sorted(ends.values())[len(names) // 2]
                expected = snapshot(source)
                for name in names:  # of this tree alone: others need what is in memory
                    forget(source / name)
                with cut(backing, middle):
                    said, _ = copy(source, tmp_path / "copy")
    bad = {name for name, start in ends.items() if start >= middle}
    assert {os.fsencode(name) for name in bad} == said
    for name in bad:
        del expected[b"/" + os.fsencode(name)]
    assert expected == snapshot(tmp_path / "copy")
