"""No one sees more than they may, at no moment, and nothing that is planted redirects the bytes."""

import errno
import os
import random
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from aiocp import SourceChanged, copy_file, place
from aiocp import source as source_module
from aiocp.destination import Destination
from aiocp.linux import File
from aiocp.place import Place
from faulty_fuse import faulty_directory
from filesystems import scratch_directory

KIB = 1 << 10
NEW = random.Random(1).randbytes(40 * KIB + 7)
OLD = b"old" * 1000
NOBODY = 65534
COPIES = 300


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One that everybody may do everything with."""
    (tmp_path / "source").write_bytes(NEW)
    (tmp_path / "source").chmod(0o777)
    return tmp_path / "source"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty one to copy into."""
    (tmp_path / "directory").mkdir()
    return tmp_path / "directory"


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """What is denied is denied by the program; the process's own umask comes back."""
    with umask(0):
        yield


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture(params=["unnamed", "named"])
def temporary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of temporary, also where there is O_TMPFILE."""
    if request.param == "named":
        without_tmpfile(monkeypatch)
    return str(request.param)


def without_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no O_TMPFILE, so that temporaries get names."""
    open_ = File.open

    def refuse(path: bytes, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> File:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return open_(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(File, "open", refuse)


def mode(path: Path | int) -> int:
    return stat.S_IMODE(os.stat(path, follow_symlinks=isinstance(path, int)).st_mode)


@contextmanager
def watching(look: Callable[[], int | None]) -> Iterator[set[int]]:
    """A thread looks in a loop; yield what it sees."""
    seen: set[int] = set()
    stop = threading.Event()

    def watch() -> None:
        last = False
        while not last:
            last = stop.is_set()  # what is there in the end is seen for certain
            with suppress(FileNotFoundError):
                found = look()
                if found is not None:
                    seen.add(found)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


# --- who may read, and when ----------------------------------------------------------------------


def hidden_mode(directory: Path) -> int | None:
    """The mode of a named temporary, if there is one."""
    modes = [mode(directory / name) for name in os.listdir(directory) if name.startswith(".")]
    return modes[0] if modes else None


def temporary_modes(directory: Path) -> list[int]:
    """The modes of this process's open temporaries in a directory, with names or without."""
    modes = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the listing's own
            name = os.readlink(f"/proc/self/fd/{fd}")
            if name.startswith((f"{directory}/#", f"{directory}/.")):
                modes.append(mode(fd))
    return modes


@pytest.mark.parametrize("old_mode", [None, 0o666])
def test_the_temporary_is_its_owners_alone(
    source: Path, directory: Path, temporary: str, old_mode: int | None
) -> None:
    """0600 while anything is written into it, whatever mode the file has in the end."""
    if old_mode is not None:
        (directory / "copy").write_bytes(OLD)
        (directory / "copy").chmod(old_mode)
    seen = []

    def progress(done: int, total: int) -> None:
        seen.extend(temporary_modes(directory))
        assert (temporary == "named") == (hidden_mode(directory) is not None)

    copy_file(
        source,
        directory / "copy",
        depth=1,
        block_size=4 * KIB,
        direct="never",
        progress=progress,
    )
    assert len(seen) == 11
    assert {0o600} == set(seen)
    assert mode(directory / "copy") == (old_mode or 0o777)


@pytest.mark.parametrize("final", [0o640, 0o604])
def test_a_named_temporary_is_never_wider_than_the_file(
    source: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, final: int
) -> None:
    """Seen from outside it is 0600 from its creation on, and what the file is to be once the bytes
    are complete."""
    without_tmpfile(monkeypatch)
    (directory / "copy").write_bytes(OLD)
    (directory / "copy").chmod(final)
    with watching(lambda: hidden_mode(directory)) as seen:
        for _ in range(COPIES):
            copy_file(source, directory / "copy")
    assert 0o600 in seen
    assert seen <= {0o600, final}


@pytest.mark.root
def test_the_temporary_where_there_is_no_tmpfile(source: Path) -> None:
    """The same on a file system that gives every temporary a name."""
    seen = []
    with faulty_directory() as faulty:

        def progress(done: int, total: int) -> None:
            seen.append(hidden_mode(faulty.backing))

        with watching(lambda: hidden_mode(faulty.backing)) as seen_outside:
            for _ in range(20):
                copy_file(source, faulty.mount_point / "copy", depth=1, progress=progress)
        assert mode(faulty.backing / "copy") == 0o777
        assert os.listdir(faulty.backing) == ["copy"]
    assert {0o600} == set(seen)
    assert 0o600 in seen_outside
    assert seen_outside <= {0o600, 0o777}


@pytest.mark.parametrize("mask", [0, 0o077])
@pytest.mark.parametrize("old_mode", [0o600, 0o640, 0o604])
def test_a_replaced_file_has_its_mode_at_every_moment(
    source: Path, directory: Path, temporary: str, old_mode: int, mask: int
) -> None:
    """It never shows the source's mode, nor the temporary's, nor what the umask leaves."""
    copy = directory / "copy"
    copy.write_bytes(OLD)
    copy.chmod(old_mode)
    with umask(mask), watching(lambda: mode(copy)) as seen:
        for _ in range(COPIES // 3):
            copy_file(source, copy)
    assert {old_mode} == seen


@pytest.mark.parametrize("mask", [0, 0o022, 0o027, 0o077])
def test_a_new_file_has_its_mode_at_every_moment(
    source: Path, directory: Path, temporary: str, mask: int
) -> None:
    """From when the name is there; it is the source's without the umask."""
    copy = directory / "copy"
    source.chmod(0o775)
    with umask(mask), watching(lambda: mode(copy)) as seen:
        for _ in range(COPIES // 3):
            copy_file(source, copy)
            copy.unlink()
        copy_file(source, copy)
    assert {0o775 & ~mask} == seen


def test_a_file_written_in_place_has_its_mode_at_every_moment(
    source: Path, directory: Path
) -> None:
    copy = directory / "copy"
    copy.write_bytes(OLD)
    copy.chmod(0o600)
    with watching(lambda: mode(copy)) as seen:
        for _ in range(COPIES // 3):
            copy_file(source, copy, in_place=True)
    assert {0o600} == seen


@pytest.mark.parametrize("mask", [0, 0o022, 0o027, 0o077])
def test_modes_are_those_of_cp(source: Path, tmp_path: Path, mask: int) -> None:
    """Of new files as of replaced ones."""
    with umask(mask):
        for wanted in (0o777, 0o666, 0o640, 0o400, 0o4755, 0o2755, 0o1777):
            source.chmod(wanted)
            ours, theirs = tmp_path / "ours", tmp_path / "theirs"
            for _ in range(2):
                copy_file(source, ours)
                subprocess.run(["cp", source, theirs], check=True)
                assert mode(theirs) == mode(ours), f"{wanted:o}"
                ours.chmod(0o664)
                theirs.chmod(0o664)
            ours.unlink()
            theirs.unlink()


@pytest.mark.root
@pytest.mark.parametrize("old_mode", [0o4755, 0o2755, 0o6711])
def test_setuid_bits_go_when_a_user_writes_the_file(old_mode: int) -> None:
    """What an ordinary user copies over his setuid file is not run with its rights, as with cp;
    root may do it."""
    with scratch_directory() as scratch:
        scratch.chmod(0o777)
        (scratch / "source").write_bytes(NEW)
        (scratch / "source").chmod(0o755)
        for user in (NOBODY, 0):
            for name in ("ours", "theirs"):
                (scratch / name).write_bytes(OLD)
                os.chown(scratch / name, user, user)
                (scratch / name).chmod(old_mode)
            copy_as(user, scratch / "source", scratch / "ours")
            subprocess.run(["cp", scratch / "source", scratch / "theirs"], user=user, check=True)
            assert (scratch / "ours").read_bytes() == NEW
            assert mode(scratch / "theirs") == mode(scratch / "ours")
            assert bool(mode(scratch / "ours") & 0o6000) == (user == 0)


def copy_as(user: int, source: Path, copy: Path) -> None:
    """Copy in a forked child as another user."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            copy_file(source, copy)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- what is planted meanwhile -------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that a planted link points to."""
    (tmp_path / "victim").write_bytes(b"precious")
    return tmp_path / "victim"


def once(action: Callable[[], object]) -> Callable[[int, int], None]:
    """A `progress` that does something the first time."""
    todo = [action]

    def progress(done: int, total: int) -> None:
        while todo:
            todo.pop()()

    return progress


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_planted_at_a_new_destination(
    source: Path, directory: Path, victim: Path, temporary: str, dangling: bool
) -> None:
    """The name is taken: an error. What the link points to is neither written nor made."""
    copy = directory / "copy"
    if dangling:
        victim.unlink()
    with pytest.raises(FileExistsError):
        copy_file(source, copy, progress=once(lambda: copy.symlink_to(victim)))
    assert os.readlink(copy) == str(victim)
    assert os.listdir(directory) == ["copy"]
    assert dangling or victim.read_bytes() == b"precious"
    assert dangling != victim.exists()


def test_a_link_planted_at_an_old_destination(
    source: Path, directory: Path, victim: Path, temporary: str
) -> None:
    """The link is replaced; what it points to stays."""
    copy = directory / "copy"
    copy.write_bytes(OLD)

    def plant() -> None:
        copy.unlink()
        copy.symlink_to(victim)

    copy_file(source, copy, progress=once(plant))
    assert not copy.is_symlink()
    assert copy.read_bytes() == NEW
    assert victim.read_bytes() == b"precious"
    assert os.listdir(directory) == ["copy"]


def test_a_link_planted_while_written_in_place(source: Path, directory: Path, victim: Path) -> None:
    """The bytes go to the file that was opened."""
    copy = directory / "copy"
    copy.write_bytes(OLD)

    def plant() -> None:
        copy.rename(directory / "moved")
        copy.symlink_to(victim)

    copy_file(source, copy, in_place=True, progress=once(plant))
    assert (directory / "moved").read_bytes() == NEW
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("before", ["_look", "_open"])
def test_a_link_planted_before_the_destination_is_opened(
    source: Path,
    directory: Path,
    victim: Path,
    in_place: bool,
    before: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A link that was not there when links were followed is refused."""
    copy = directory / "copy"
    copy.write_bytes(OLD)
    original = getattr(Destination, before)

    def plant(self: Destination, *arguments: object) -> object:
        copy.rename(directory / "moved")
        copy.symlink_to(victim)
        return original(self, *arguments)

    monkeypatch.setattr(Destination, before, plant)
    with pytest.raises(OSError, match="open destination: Too many levels of symbolic links"):
        copy_file(source, copy, in_place=in_place)
    assert victim.read_bytes() == b"precious"
    assert (directory / "moved").read_bytes() == OLD
    assert sorted(os.listdir(directory)) == ["copy", "moved"]


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("when", ["open", "copying"])
def test_a_link_planted_in_place_of_the_directory(
    source: Path,
    directory: Path,
    tmp_path: Path,
    temporary: str,
    old: bool,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bytes land in the directory that was opened, wherever it is now."""
    elsewhere, moved = tmp_path / "elsewhere", tmp_path / "moved"
    elsewhere.mkdir()
    if old:
        (directory / "copy").write_bytes(OLD)
        (elsewhere / "copy").write_bytes(b"precious")

    def plant() -> None:
        directory.rename(moved)
        directory.symlink_to(elsewhere)

    if when == "open":
        enter = Place.__enter__

        def plant_and_enter(self: Place) -> Place:
            plant()
            return enter(self)

        monkeypatch.setattr(Place, "__enter__", plant_and_enter)
    copy_file(source, directory / "copy", progress=once(plant) if when == "copying" else None)
    assert (moved / "copy").read_bytes() == NEW
    assert os.listdir(moved) == ["copy"]
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == (
        {"copy": b"precious"} if old else {}
    )


def test_a_directory_that_is_gone(source: Path, directory: Path) -> None:
    """One that is removed during the copy is not made anew, nor is another's taken."""

    def remove() -> None:
        shutil.rmtree(directory)
        directory.mkdir()

    with pytest.raises(FileNotFoundError):
        copy_file(source, directory / "copy", progress=once(remove))
    assert os.listdir(directory) == []


def test_a_link_that_changes_after_it_was_followed(
    source: Path, directory: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A destination that is a link is followed once."""
    copy, target = directory / "copy", directory / "target"
    target.write_bytes(OLD)
    copy.symlink_to(target)
    resolve = place._resolve

    def resolve_and_change(path: bytes) -> tuple[bytes, bool]:
        resolved = resolve(path)
        copy.unlink()
        copy.symlink_to(victim)
        return resolved

    monkeypatch.setattr(place, "_resolve", resolve_and_change)
    copy_file(source, copy)
    assert target.read_bytes() == NEW
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("planted", ["link", "pipe", "file"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_a_source_swapped_between_look_and_open(
    source: Path,
    directory: Path,
    victim: Path,
    old: bool,
    planted: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever takes its name is not copied, and a pipe is not waited for."""
    if old:
        (directory / "copy").write_bytes(OLD)
    open_ = source_module._open

    def swap(*arguments: Any) -> File:
        source.rename(source.with_name("moved"))
        if planted == "link":
            source.symlink_to(victim)
        elif planted == "pipe":
            os.mkfifo(source)
        else:
            source.write_bytes(b"another")
        return open_(*arguments)

    monkeypatch.setattr(source_module, "_open", swap)
    patience = threading.Event()
    timer = threading.Timer(10, patience.set)
    timer.start()
    with pytest.raises(SourceChanged, match="source was replaced while being opened"):
        copy_file(source, directory / "copy", cancel=patience)
    timer.cancel()
    copies = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert copies == ({"copy": OLD} if old else {})
