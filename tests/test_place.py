"""Links at the destination inside a tree: followed if nobody else can have put them there.

A link that is named for the destination itself is followed in any case: tests/test_security.py.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiocp import copy_tree, tree_files
from aiocp.linux import File
from aiocp.place import Place
from crash import disk
from filesystems import scratch_directory
from test_tree import group_of

NOBODY, OTHER = 65534, 1234
NEW, OLD = b"new" * 50_000, b"old"
DATA = NEW * 4


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A tree of one file, and one to copy it over where that is a link to a victim elsewhere."""
    for name in ("source", "copy", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "source" / "file").write_bytes(NEW)
    (tmp_path / "elsewhere" / "victim").write_bytes(OLD)
    (tmp_path / "elsewhere" / "victim").chmod(0o604)
    (tmp_path / "copy" / "file").symlink_to("../elsewhere/victim")
    return tmp_path


def refused(top: Path) -> str:
    """Copy; what the one error says, nothing having been written."""
    (error,) = group_of(lambda: copy_tree(top / "source", top / "copy"))
    assert (str(top / "copy" / "file"), OLD) == (
        error.filename2,
        (top / "elsewhere" / "victim").read_bytes(),
    )
    assert (top / "copy" / "file").is_symlink()
    return str(error.strerror)


@pytest.mark.parametrize("size", [5, 50_000, 500_000])
@pytest.mark.parametrize("text", ["../elsewhere/victim", "{top}/elsewhere/victim", "chain", "up/v"])
def test_the_file_is_replaced_where_the_link_leads(top: Path, text: str, size: int) -> None:
    """A new file of the old one's mode; the link stays. Through more links, of directories too."""
    link, victim = top / "copy" / "file", top / "elsewhere" / "victim"
    (top / "source" / "file").write_bytes(DATA[:size])
    (top / "elsewhere" / "v").symlink_to("victim")
    (top / "copy" / "up").symlink_to("../elsewhere")
    (top / "copy" / "chain").symlink_to("up/../elsewhere/v")
    link.unlink()
    link.symlink_to(text.format(top=top))
    before = victim.stat()
    result = copy_tree(top / "source", top / "copy")
    after = victim.stat()
    assert link.is_symlink()
    assert DATA[:size] == victim.read_bytes()
    assert (before.st_mode, True) == (after.st_mode, before.st_ino != after.st_ino)
    assert (1, size) == (result.files, result.bytes)
    assert ["v", "victim"] == sorted(os.listdir(top / "elsewhere"))


@pytest.mark.root
@pytest.mark.parametrize(
    ("euid", "directory_owner", "mode", "link_owner", "followed"),
    [
        # ours, or root's: wherever
        (0, 0, 0o755, 0, True),
        (0, 0, 0o1777, 0, True),
        (0, OTHER, 0o777, 0, True),
        (NOBODY, NOBODY, 0o755, NOBODY, True),
        (NOBODY, OTHER, 0o777, NOBODY, True),
        (NOBODY, OTHER, 0o777, 0, True),
        (NOBODY, 0, 0o1777, 0, True),
        # another user's, also in a directory that only we, or root, write
        (0, 0, 0o755, OTHER, False),
        (0, 0, 0o700, NOBODY, False),
        (NOBODY, NOBODY, 0o755, OTHER, False),
        (NOBODY, NOBODY, 0o700, OTHER, False),
        # another user's, where he can have put it
        (0, 0, 0o1777, OTHER, False),
        (0, 0, 0o777, OTHER, False),
        (0, 0, 0o775, OTHER, False),
        (0, 0, 0o757, OTHER, False),
        (0, OTHER, 0o755, OTHER, False),
        (0, OTHER, 0o700, NOBODY, False),
        (0, NOBODY, 0o755, OTHER, False),
        (NOBODY, NOBODY, 0o775, OTHER, False),
        (NOBODY, NOBODY, 0o1777, OTHER, False),
        (NOBODY, OTHER, 0o777, OTHER, False),
    ],
)
def test_who_can_have_put_it_there(
    euid: int, directory_owner: int, mode: int, link_owner: int, followed: bool
) -> None:
    """The error line says that it is another user's link, and the victim is as it was."""
    with scratch_directory() as top:
        top.chmod(0o777)
        for name in ("source", "copy", "elsewhere"):
            (top / name).mkdir()
            (top / name).chmod(0o777)
        (top / "source" / "file").write_bytes(NEW)
        victim = top / "elsewhere" / "victim"
        victim.write_bytes(OLD)
        victim.chmod(0o666)
        os.chown(victim, euid, euid)
        (top / "copy" / "file").symlink_to(victim)
        os.chown(top / "copy" / "file", link_owner, link_owner, follow_symlinks=False)
        os.chown(top / "copy", directory_owner, directory_owner)
        (top / "copy").chmod(mode)
        status = as_user(euid, lambda: copy_tree(top / "source", top / "copy"))
        assert ("followed" if followed else "another user's") in status
        assert (NEW if followed else OLD) == victim.read_bytes()
        assert ["victim"] == os.listdir(top / "elsewhere")


def as_user(euid: int, action: Callable[[], object]) -> str:
    """Run `action` in a forked child as a user: "followed", or what was raised."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            if euid:
                os.setgroups([])
                os.setgid(euid)
                os.setuid(euid)
            try:
                action()
                said = "followed"
            except ExceptionGroup as group:
                said = "; ".join(map(str, group.exceptions))
            os.write(writer, said.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.root
def test_the_second_link_is_looked_at_too(top: Path) -> None:
    """One of root's that leads to one that somebody else has put where he can."""
    (top / "elsewhere").chmod(0o1777)
    planted = top / "elsewhere" / "planted"
    planted.symlink_to("victim")
    (top / "copy" / "file").unlink()
    (top / "copy" / "file").symlink_to("../elsewhere/planted")
    copy_tree(top / "source", top / "copy")
    (top / "elsewhere" / "victim").write_bytes(OLD)
    os.chown(planted, OTHER, OTHER, follow_symlinks=False)
    assert "another user's symbolic link" in refused(top)


@pytest.mark.root
@pytest.mark.parametrize("options", [{"remove_destination": True}, {"backup": "simple"}])
def test_what_replaces_the_link_does_not_follow_it(top: Path, options: Any) -> None:
    """Whosever it is."""
    (top / "copy").chmod(0o1777)
    os.chown(top / "copy" / "file", OTHER, OTHER, follow_symlinks=False)
    copy_tree(top / "source", top / "copy", **options)
    assert not (top / "copy" / "file").is_symlink()
    assert (NEW, OLD) == (
        (top / "copy" / "file").read_bytes(),
        (top / "elsewhere" / "victim").read_bytes(),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nowhere", "not writing through dangling symbolic link"),
        ("no/where", "not writing through dangling symbolic link"),
        ("file", "Too many levels of symbolic links"),
        (".", "cannot overwrite a directory"),
        ("..", "cannot overwrite a directory"),
        ("../elsewhere", "cannot overwrite a directory"),
        ("../elsewhere/", "cannot overwrite a directory"),
        ("../elsewhere/victim/", "Not a directory"),
        ("../source/file", "same file"),
    ],
)
def test_where_it_may_not_lead(top: Path, text: str, words: str) -> None:
    (top / "copy" / "file").unlink()
    (top / "copy" / "file").symlink_to(text)
    assert words in refused(top)
    assert ["file"] == os.listdir(top / "copy")


def test_a_link_planted_between_the_check_and_its_use(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was judged is what is read: another link under the name changes nothing."""
    (top / "elsewhere" / "precious").write_bytes(OLD)
    readlink = os.readlink

    def plant(path: Any, *, dir_fd: int | None = None) -> Any:
        (top / "copy" / "file").unlink()
        (top / "copy" / "file").symlink_to("../elsewhere/precious")
        return readlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "readlink", plant)
    copy_tree(top / "source", top / "copy")
    assert (NEW, OLD) == (
        (top / "elsewhere" / "victim").read_bytes(),
        (top / "elsewhere" / "precious").read_bytes(),
    )


def test_a_link_planted_where_the_first_has_led(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was followed, none is: an error."""
    (top / "elsewhere" / "precious").write_bytes(OLD)
    behind = Place.behind

    def plant(directory: File, name: bytes) -> Place | None:
        found = behind(directory, name)
        (top / "elsewhere" / "victim").rename(top / "moved")
        (top / "elsewhere" / "victim").symlink_to("precious")
        return found

    monkeypatch.setattr(Place, "behind", plant)
    assert "Too many levels of symbolic links" in refused(top)
    assert OLD == (top / "moved").read_bytes()


def test_nothing_is_left_open(top: Path) -> None:
    """Not even while the errors are kept, whose tracebacks keep what was open."""
    before = len(os.listdir("/proc/self/fd"))
    copy_tree(top / "source", top / "copy")
    for text in ("../elsewhere/nowhere", "../elsewhere", "../source/file"):
        (top / "copy" / "file").unlink()
        (top / "copy" / "file").symlink_to(text)
        errors = group_of(lambda: copy_tree(top / "source", top / "copy"))
        assert before == len(os.listdir("/proc/self/fd"))
        del errors


@pytest.mark.root
@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
@pytest.mark.parametrize("synced", [True, False])
def test_a_power_cut_after_the_return(
    fstype: str, synced: bool, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was replaced on another disk is there; it would not be without the directory's sync."""
    if not synced:
        monkeypatch.setattr(tree_files, "sync_directory", lambda *_: None)
    with disk(fstype, "shutdown") as target:
        victim = target.mount_point / "victim"
        victim.write_bytes(OLD)
        (top / "copy" / "file").unlink()
        (top / "copy" / "file").symlink_to(victim)
        target.sync()
        copy_tree(top / "source", top / "copy")
        target.cut()
        target.restart()
        assert (NEW if synced else OLD) == victim.read_bytes()


@pytest.mark.root
def test_the_command_says_whose_it_is(top: Path) -> None:
    """One line, exit status 1, and the rest is copied."""
    (top / "source" / "other").write_bytes(NEW)
    (top / "copy").chmod(0o1777)
    os.chown(top / "copy" / "file", OTHER, OTHER, follow_symlinks=False)
    done = subprocess.run(
        [sys.executable, "-m", "aiocp", "-rT", top / "source", top / "copy"],
        capture_output=True,
        text=True,
    )
    assert (1, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert f"to '{top}/copy/file': will not write through another user's" in done.stderr
    assert NEW == (top / "copy" / "other").read_bytes()
