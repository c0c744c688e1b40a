"""Trees of everything that Linux has, by the command, and what in them cannot be copied.

rsync and a walk of our own look what there is to tell the copy from its source: nothing. What
cannot be copied is one error that names it, and the rest is there.
"""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from errno import EACCES, EEXIST, EISDIR, ELOOP, ENOENT, ENOTDIR, ENXIO, EPERM, ESTALE
from functools import partial
from pathlib import Path

import pytest

from aiocp import copy_tree
from trees import complaints, differences, facts, make_deep, make_refused, make_tree, make_wide

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


Change = Callable[[Path], object]


def become(make: Change, path: Path) -> None:
    """Have something else under the name."""
    if not path.is_symlink() and path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    make(path)


def refused(
    source: Path, copy: Path, *options: str, user: bool = False, limit: int = 1024
) -> dict[bytes, str]:
    """Copy with the command, as an ordinary `user` if asked; what was not copied, and why."""
    command: list[str | Path] = ["prlimit", f"--nofile={limit}", *NOBODY * user]
    command += [sys.executable, "-m", "aiocp", *options, source, copy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    said = complaints(done.stderr, source, copy)
    assert done.returncode == bool(said)
    return said


def let_others_in(filesystem: Path) -> None:
    """Let an ordinary user write to the file system."""
    filesystem.chmod(0o777)
    filesystem.parent.parent.chmod(0o755)


@pytest.mark.root
def test_an_archive_is_the_same(filesystem: Path) -> None:
    """Every kind, name and attribute, on every file system."""
    source, copy = filesystem / "source", filesystem / "copy"
    make_tree(source)
    assert {} == refused(source, copy, "-a")
    assert differences(source, copy) == ""
    assert facts(source) == facts(copy)


@pytest.mark.root
def test_an_archive_over_another_tree_is_the_same(filesystem: Path) -> None:
    """Also where other files, links and nodes have the names, of other kinds but directories."""
    source, copy = filesystem / "source", filesystem / "copy"
    make_tree(source)
    make_tree(copy, seed=2)
    kinds: list[Change] = [os.mkfifo, Path.touch, os.mknod, lambda path: path.symlink_to("x")]
    for i, name in enumerate(("link", "fifo", "null", "numbers", "long", "dangling", "d/loop")):
        become(kinds[i % len(kinds)], copy / name)
    assert {} == refused(source, copy, "-aT")
    assert differences(source, copy) == ""
    assert facts(source) == facts(copy)


def _link_of_another(path: Path, text: str) -> None:
    path.symlink_to(text)
    os.chown(path, 1234, 1234, follow_symlinks=False)


IN_THE_WAY: dict[str, tuple[Change, int]] = {
    "fifo": (os.mkfifo, EEXIST),
    "link": (lambda path: _link_of_another(path, "good"), EPERM),
    "dangling": (lambda path: _link_of_another(path, "nowhere"), EPERM),
    "directory": (os.mkdir, EISDIR),
    "driverless": (lambda path: os.mknod(path, stat.S_IFCHR, os.makedev(511, 7)), ENXIO),
}


@pytest.mark.root
def test_what_is_in_the_way(filesystem: Path) -> None:
    """One error each, and as it was: nothing is followed, or waited for."""
    source, copy = filesystem / "source", filesystem / "copy"
    for directory in (source, copy):
        directory.mkdir()
        (directory / "good").write_bytes(directory.name.encode())
    for name, (make, _) in IN_THE_WAY.items():
        (source / name).write_bytes(b"new")
        make(copy / name)
    copy.chmod(0o777)  # so that others can have put the links there
    before = facts(copy)
    expected = {os.fsencode(name): os.strerror(errno) for name, (_, errno) in IN_THE_WAY.items()}
    assert expected == refused(source, copy, "-aT")
    for path in (b"", b"good"):
        before[path] = facts(source)[path]
    assert before == facts(copy)


@pytest.mark.root
def test_no_path_is_too_long(filesystem: Path) -> None:
    """Nor the way from one name of a file to another, 1,500 directories further up, whether that
    is in place already or not; few descriptors do."""
    source, copies = filesystem / "source", [filesystem / "copy1", filesystem / "copy64"]
    try:
        make_deep(source)
        expected = facts(source)
        for copy, depth in zip(copies, (1, 64), strict=True):
            options = ("-a", f"--depth={depth}", "--no-sync" if depth == 1 else "--sync")
            assert {} == refused(source, copy, *options, limit=256)
            assert expected == facts(copy)
    finally:
        subprocess.run(["rm", "-rf", source, *copies], check=True)  # shutil's needs a deep stack


@pytest.mark.root
def test_no_directory_is_too_wide(filesystem: Path) -> None:
    source, copy = filesystem / "source", filesystem / "copy"
    make_wide(source)
    assert {} == refused(source, copy, "-a")
    assert facts(source) == facts(copy)


@pytest.mark.root
def test_what_is_refused_to_an_ordinary_user(filesystem: Path) -> None:
    """One error each, with its name; the rest is as cp has it, which has the same complaints."""
    let_others_in(filesystem)
    source, ours, theirs = (filesystem / name for name in ("source", "ours", "theirs"))
    names = make_refused(source)
    said = refused(source, ours, "-a", user=True)
    assert dict.fromkeys(names, os.strerror(EACCES)) == said
    done = subprocess.run([*NOBODY, "cp", "-a", source, theirs], capture_output=True)
    assert (1, len(names)) == (done.returncode, len(done.stderr.splitlines()))
    expected = facts(theirs)
    del expected[b"shut"], expected[b"unlisted"]  # it leaves an empty directory
    assert expected == facts(ours)


@pytest.mark.root
@pytest.mark.parametrize("user", [False, True], ids=["root", "nobody"])
def test_loops_of_followed_links(filesystem: Path, user: bool) -> None:
    """Each is one error, however many there are, with few descriptors; the rest is copied."""
    let_others_in(filesystem)
    source, copy = filesystem / "source", filesystem / "copy"
    (source / "d").mkdir(parents=True)
    (source / "d" / "file").write_bytes(b"file")
    loops = {b"d/up%d" % i for i in range(100)} | {b"here", b"d/itself"}
    for i in range(100):
        (source / "d" / f"up{i}").symlink_to("..")
    (source / "here").symlink_to(".")
    (source / "d" / "itself").symlink_to("itself")
    (source / "to d").symlink_to("d/../d")
    (source / "link").symlink_to("d/file")
    loops |= {b"to d" + path[1:] for path in loops if path.startswith(b"d/")}
    said = refused(source, copy, "-rL", user=user, limit=64)
    assert dict.fromkeys(loops, os.strerror(ELOOP)) == said
    expected = {"d", "d/file", "to d", "to d/file", "link"}
    assert expected == {str(path.relative_to(copy)) for path in copy.rglob("*")}
    assert all(not path.is_symlink() for path in copy.rglob("*"))
    assert (copy / "link").read_bytes() == (copy / "to d" / "file").read_bytes() == b"file"


# what becomes of a name between its listing and its opening, and what the error is
VANISHED: dict[str, tuple[Change, int]] = {
    "file gone": (Path.unlink, ENOENT),
    "directory gone": (shutil.rmtree, ENOENT),
    "link gone": (Path.unlink, ENOENT),
    "fifo gone": (Path.unlink, ENOENT),
    "file to link": (partial(become, lambda path: path.symlink_to("/etc/passwd")), ELOOP),
    "file to fifo": (partial(become, os.mkfifo), ESTALE),
    "file to directory": (partial(become, os.mkdir), ESTALE),
    "directory to file": (partial(become, Path.touch), ENOTDIR),
    "directory to link": (partial(become, lambda path: path.symlink_to("/etc")), ENOTDIR),
    "link to directory": (partial(become, os.mkdir), ESTALE),
}


@pytest.fixture
def vanishing(filesystem: Path) -> Path:
    """A tree with what is going to vanish, among what stays."""
    source = filesystem / "source"
    for directory in (source, source / "below"):
        directory.mkdir()
        for name in VANISHED:
            if name.startswith("file"):
                (directory / name).write_bytes(b"file")
            elif name.startswith("directory"):
                (directory / name).mkdir()
                (directory / name / "file").write_bytes(b"below")
            elif name.startswith("link"):
                (directory / name).symlink_to("nowhere")
            else:
                os.mkfifo(directory / name)
        for i in range(50):
            (directory / f"stays {i}").write_bytes(b"%d" % i)
    return source


@pytest.mark.root
def test_what_vanishes_during_the_walk(vanishing: Path, filesystem: Path) -> None:
    """One error each, which holds nothing open; nothing of what has taken its name is copied."""
    copy = filesystem / "copy"
    stay = {
        path: what
        for path, what in facts(vanishing).items()
        if path.split(b"/")[-1][:5] == b"stays"
    }

    def vanish(path: bytes, is_directory: bool) -> bool:
        name = path.split(b"/")[-1].decode()
        if name in VANISHED:
            VANISHED[name][0](vanishing / os.fsdecode(path))
        return False

    said: list[OSError] = []
    before = len(os.listdir("/proc/self/fd"))
    copy_tree(vanishing, copy, preserve="all", exclude=vanish, on_error=said.append)
    expected = {
        str(vanishing / below / name): errno
        for below in ("", "below")
        for name, (_, errno) in VANISHED.items()
    }
    assert expected == {error.filename: error.errno for error in said}
    assert (len(expected), before) == (len(said), len(os.listdir("/proc/self/fd")))
    assert stay == {path: what for path, what in facts(copy).items() if path not in (b"", b"below")}
