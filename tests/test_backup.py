"""Backups: the old file keeps a name, at every moment one of the two is whole under the other."""

import errno
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aiocp import copy_file, copy_tree
from aiocp.backup import Backups
from aiocp.linux import File
from crash import disk

KIB = 1 << 10
OLD, NEW = b"old" * 1000, random.Random(1).randbytes(40 * KIB + 7)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(NEW)
    return tmp_path / "source"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """An old file, alone in its directory."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "copy").write_bytes(OLD)
    return tmp_path / "directory" / "copy"


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(params=["linked", "renamed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Also where a file cannot have two names: vfat, another user's file."""
    if request.param == "renamed":
        link = File.link

        def refuse(self: File, name: bytes, *, dir_fd: int) -> None:
            if os.readlink(f"/proc/self/fd/{self.fileno()}").endswith("copy"):  # no unnamed one
                raise PermissionError(errno.EPERM, "no hard links")
            link(self, name, dir_fd=dir_fd)

        monkeypatch.setattr(File, "link", refuse)
    return str(request.param)


@pytest.mark.parametrize(
    ("backup", "before", "expected"),
    [
        ("simple", [], "copy.orig"),
        ("simple", ["copy.orig"], "copy.orig"),
        ("simple", ["copy.~1~"], "copy.orig"),
        ("numbered", [], "copy.~1~"),
        ("numbered", ["copy.~1~", "copy.~9~"], "copy.~10~"),
        ("numbered", ["copy.~0~", "copy.~01~", "copy.~1", "copy~1~", "other.~5~"], "copy.~1~"),
        ("existing", [], "copy.orig"),
        ("existing", ["copy.~0~", "other.~5~"], "copy.orig"),
        ("existing", ["copy.~3~", "copy.orig"], "copy.~4~"),
    ],
)
def test_what_a_backup_is_called(
    source: Path, copy: Path, way: str, backup: str, before: list[str], expected: str
) -> None:
    """As info coreutils has it, "Backup options"; a simple one replaces the one before."""
    for name in before:
        (copy.parent / name).write_bytes(b"before")
    result = copy_file(source, copy, backup=backup, suffix=".orig")
    there = dict.fromkeys(before, b"before")
    assert {**there, "copy": NEW, expected: OLD} == contents(copy.parent)
    assert (str(copy.parent / expected), False) == (result.backup, result.removed)


def test_without_an_old_file_there_is_none(source: Path, copy: Path) -> None:
    copy.unlink()
    assert copy_file(source, copy, backup="numbered").backup is None
    assert {"copy": NEW} == contents(copy.parent)


def test_the_backup_is_the_old_file_itself(source: Path, copy: Path, way: str) -> None:
    """Its inode with all that it has; the new one has nothing of it, as with cp -b."""
    copy.chmod(0o751)
    os.setxattr(copy, "user.old", b"yes")
    before = copy.stat()
    copy_file(source, copy, backup="simple")
    backup, now = copy.with_name("copy~").stat(), copy.stat()
    assert (before.st_ino, 0o751, 1) == (backup.st_ino, backup.st_mode & 0o777, backup.st_nlink)
    assert b"yes" == os.getxattr(copy.with_name("copy~"), "user.old")
    assert (source.stat().st_mode, []) == (now.st_mode, os.listxattr(copy))


def test_a_link_gets_the_backup_and_not_what_it_leads_to(
    source: Path, copy: Path, way: str
) -> None:
    (copy.parent / "target").write_bytes(b"precious")
    copy.unlink()
    copy.symlink_to("target")
    copy_file(source, copy, backup="simple")
    assert "target" == os.readlink(copy.with_name("copy~"))
    assert {"copy": NEW, "copy~": b"precious", "target": b"precious"} == contents(copy.parent)


def test_a_name_that_leaves_no_room(source: Path, copy: Path) -> None:
    """Its end makes room, as with cp."""
    for backup in ("simple", "numbered"):
        long = copy.with_name("x" * 254 + backup[0])
        copy.write_bytes(OLD)
        copy.rename(long)
        copy_file(source, long, backup=backup)
        assert {long.name: NEW, "x" * 254 + "~": OLD} == contents(copy.parent)
        long.unlink()


def test_what_has_the_backups_name_already(source: Path, copy: Path) -> None:
    """Another name of the file is its backup; a directory is an error, and nothing was done."""
    backup = copy.with_name("copy~")
    backup.hardlink_to(copy)
    copy_file(source, copy, backup="simple")
    assert {"copy": NEW, "copy~": OLD} == contents(copy.parent)
    backup.unlink()
    backup.mkdir()
    with pytest.raises(IsADirectoryError, match="back up"):
        copy_file(source, copy, backup="simple")
    assert ["copy", "copy~"] == sorted(os.listdir(copy.parent))
    assert copy.read_bytes() == NEW


def test_a_number_that_somebody_takes_meanwhile(source: Path, copy: Path) -> None:
    """The next one is taken, and his file stays."""

    def take(done: int, total: int) -> None:
        copy.with_name("copy.~1~").write_bytes(b"his")

    directory = os.open(copy.parent, os.O_RDONLY)
    backups = Backups("numbered", b"~")
    assert b"copy.~1~" == backups.name(directory, b"copy")
    take(0, 0)
    with backups.keeping(directory, b"copy") as backup:
        assert b"copy.~2~" == backup
    os.close(directory)
    assert {"copy": OLD, "copy.~1~": b"his", "copy.~2~": OLD} == contents(copy.parent)


@pytest.mark.parametrize("backup", ["simple", "numbered"])
def test_a_new_file_that_does_not_come(
    source: Path, copy: Path, way: str, backup: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one has its name, and no other."""
    replace = File.replace

    def fail(self: File, name: bytes, *, temporary: bytes, dir_fd: int) -> None:
        if name == b"copy":
            raise OSError(errno.EIO, "injected")
        replace(self, name, temporary=temporary, dir_fd=dir_fd)

    monkeypatch.setattr(File, "replace", fail)
    with pytest.raises(OSError, match="rename: "):
        copy_file(source, copy, backup=backup)
    assert {"copy": OLD} == contents(copy.parent)
    assert copy.stat().st_nlink == 1


def test_an_old_file_that_goes_meanwhile(source: Path, copy: Path) -> None:
    """An error: what has no backup is not replaced, and another may be there by then."""
    with pytest.raises(FileNotFoundError, match="back up: "):
        copy_file(source, copy, backup="simple", progress=lambda *_: copy.unlink(missing_ok=True))
    assert [] == os.listdir(copy.parent)


def test_nothing_is_backed_up_before_all_bytes_are_there(source: Path, copy: Path) -> None:
    """A copy that fails on the way has changed nothing."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_file(source, copy, backup="simple", progress=stop)
    assert {"copy": OLD} == contents(copy.parent)


@contextmanager
def watching(path: Path) -> Iterator[set[str]]:
    """A thread looks in a loop; yield what it sees."""
    seen: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                seen.add("nothing")
            else:
                seen.add({OLD: "old", NEW: "new"}.get(data, "damaged"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("backup", ["simple", "numbered"])
def test_the_name_is_there_at_every_moment(source: Path, copy: Path, backup: str) -> None:
    """Old or new, and so is a simple backup once there was one."""
    old = source.with_name("old")
    old.write_bytes(OLD)
    copy_file(source, copy, backup="simple")
    with watching(copy) as seen, watching(copy.with_name("copy~")) as seen_backup:
        for _ in range(60):
            copy_file(old, copy, backup=backup)
            copy_file(source, copy, backup=backup)
    assert {"old", "new"} == seen
    assert seen_backup <= {"old", "new"}


def test_where_it_must_be_renamed_there_is_a_moment(
    source: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the test above would have seen one."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links")

    monkeypatch.setattr("aiocp.backup._link", refuse)
    with watching(copy) as seen:
        for _ in range(300):
            copy_file(source, copy, backup="simple")
            if "nothing" in seen:
                break
    assert "nothing" in seen


def test_a_kill_at_any_moment(source: Path, copy: Path) -> None:
    """Both names are whole files, and there is no other."""
    rng = random.Random(3)
    old = source.with_name("old")
    old.write_bytes(OLD)
    copy_file(source, copy, backup="simple")
    for _ in range(60):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            while True:
                copy_file(old, copy, backup="simple")
                copy_file(source, copy, backup="simple")
        os.close(writer)
        time.sleep(rng.uniform(0.04, 0.06))  # of which the first copy takes most
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.read(reader, 1)  # what gives names outlives it, and has the pipe open too
        os.close(reader)
        there = contents(copy.parent)
        assert {"copy", "copy~"} == there.keys()
        assert {*there.values()} <= {OLD, NEW}
        if copy.stat().st_nlink == 2:  # killed between the two steps: the backup is made
            assert there["copy"] == there["copy~"]


@pytest.mark.root
@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_a_power_cut_after_the_return(fstype: str, source: Path) -> None:
    """Both names are on the disk."""
    with disk(fstype, "shutdown") as target:
        copy = target.mount_point / "copy"
        copy.write_bytes(OLD)
        (target.mount_point / "tree").mkdir()
        (target.mount_point / "tree" / "source").write_bytes(OLD)
        tree = source.with_name("tree")
        tree.mkdir()
        source.rename(tree / "source")
        target.sync()
        copy_file(tree / "source", copy, backup="numbered")
        copy_tree(tree, target.mount_point / "tree", backup="simple")
        target.cut()
        target.restart()
        assert (NEW, OLD) == (copy.read_bytes(), copy.with_name("copy.~1~").read_bytes())
        assert {"source": NEW, "source~": OLD} == contents(target.mount_point / "tree")


# --- in trees ------------------------------------------------------------------------------------


def test_in_a_tree_everything_that_is_replaced(tmp_path: Path, way: str) -> None:
    """Files, links and FIFOs; directories are merged, and what is new has none."""
    for name in ("source", "directory"):
        (tmp_path / name / "d").mkdir(parents=True)
        (tmp_path / name / "d" / "copy").write_bytes(NEW if name == "source" else OLD)
        (tmp_path / name / "link copy").symlink_to(name)
        os.mkfifo(tmp_path / name / "fifo copy")
        (tmp_path / name / "linked copy").hardlink_to(tmp_path / name / "d" / "copy")
    (tmp_path / "source" / "fresh").write_bytes(NEW)
    told: list[Any] = []
    copy_tree(
        tmp_path / "source",
        tmp_path / "directory",
        backup="numbered",
        preserve="links",
        on_entry=told.append,
    )
    directory = tmp_path / "directory"
    names = ["d", "fifo copy", "fresh", "link copy", "linked copy"]
    backups = ["fifo copy.~1~", "link copy.~1~", "linked copy.~1~"]
    assert sorted([*names, *backups]) == sorted(os.listdir(directory))
    assert {"copy": NEW, "copy.~1~": OLD} == contents(directory / "d")
    assert ("source", "directory") == (
        os.readlink(directory / "link copy"),
        os.readlink(directory / "link copy.~1~"),
    )
    assert (directory / "linked copy").samefile(directory / "d" / "copy")
    assert (directory / "linked copy.~1~").samefile(directory / "d" / "copy.~1~")
    assert [*sorted(backups), "d/copy.~1~"] == sorted(
        (os.path.relpath(one.backup, directory) for one in told if one.backup),
        key=lambda name: (name.startswith("d/"), name),
    )


def test_numbers_are_looked_up_once_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a directory of n files would be read n times."""
    for name in ("source", "copy"):
        (tmp_path / name).mkdir()
        for i in range(50):
            (tmp_path / name / str(i)).write_text(name)
    listed = 0
    scandir = os.scandir

    def count(path: Any) -> Any:
        nonlocal listed
        listed += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", count)
    copy_tree(tmp_path / "source", tmp_path / "copy", backup="existing")
    assert listed == 2  # the source is one
    copy_tree(tmp_path / "source", tmp_path / "copy", backup="numbered")
    assert len(os.listdir(tmp_path / "copy")) == 150


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("copier", [copy_file, copy_tree])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backup": "some"}, "backup must be none, simple, existing, numbered, not 'some'"),
        ({"backup": "simple", "suffix": ""}, "suffix must be part of a name, not ''"),
        ({"backup": "simple", "suffix": "a/b"}, "suffix must be part of a name, not 'a/b'"),
    ],
)
def test_values_that_cannot_be(
    source: Path, copy: Path, copier: Callable[..., object], arguments: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        copier(source, copy, **arguments)
    assert {"copy": OLD} == contents(copy.parent)


def test_a_source_that_its_backup_would_replace(copy: Path) -> None:
    """cp would lose it; numbered there is no danger."""
    source = copy.with_name("copy~")
    source.write_bytes(NEW)
    with pytest.raises(OSError, match="backing up the destination might destroy the source"):
        copy_file(source, copy, backup="simple")
    assert {"copy": OLD, "copy~": NEW} == contents(copy.parent)
    copy_file(source, copy, backup="numbered")
    assert {"copy": NEW, "copy~": NEW, "copy.~1~": OLD} == contents(copy.parent)


@pytest.mark.parametrize("to", ["copy", "link"])
@pytest.mark.parametrize("options", [{"backup": "simple"}, {"remove_destination": True}])
def test_a_file_to_itself(copy: Path, to: str, options: Any) -> None:
    """Also through a link at the source, and for a link: cp, making room for it, loses it."""
    copy.with_name("link").symlink_to("copy")
    with pytest.raises(OSError, match="are the same file"):
        copy_file(copy.with_name("link"), copy.with_name(to), **options)
    assert copy.with_name("link").is_symlink()
    with pytest.raises(OSError, match="are the same file"):
        copy_file(copy, copy, **options)
    assert {"copy": OLD, "link": OLD} == contents(copy.parent)


def test_another_name_of_the_source(copy: Path) -> None:
    """Becomes a copy, and its backup what the name was."""
    other = copy.with_name("other")
    other.hardlink_to(copy)
    copy_file(copy, other, backup="simple")
    assert not other.samefile(copy)
    assert copy.with_name("other~").samefile(copy)


def test_cp_makes_no_other_backup(source: Path, copy: Path) -> None:
    """Of a file in another directory, "existing" with and without numbered ones."""
    theirs = copy.parent.with_name("theirs")
    subprocess.run(["cp", "-a", copy.parent, theirs], check=True)
    for _ in range(2):
        copy_file(source, copy, backup="existing")
        subprocess.run(["cp", "--backup=existing", source, theirs / "copy"], check=True)
        copy.with_name("copy.~7~").touch()
        (theirs / "copy.~7~").touch()
    assert contents(theirs) == contents(copy.parent)
