"""copy_tree(): every kind of file, every name, nothing lost, nothing followed."""

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from aiocp import Cancelled, budget, copy_file, copy_tree, placing, tree_targets
from aiocp.destination import Destination
from aiocp.linux import File, sync_filesystem, temporary_name
from aiocp.outcome import Outcome
from crash import disk
from faults import as_nobody, in_child, refuse_tmpfile
from filesystems import scratch_directory
from trees import KIB, MIB, differences, make_tree, snapshot


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_tree(tmp_path / "source")
    return tmp_path / "source"


def group_of(action: Callable[[], object]) -> list[OSError]:
    """The errors that a copy ends with."""
    with pytest.raises(ExceptionGroup) as caught:
        action()
    return [error for error in caught.value.exceptions if isinstance(error, OSError)]


@pytest.mark.root
@pytest.mark.parametrize("depth", [1, 3, 64])
def test_everything_is_kept(filesystem: Path, depth: int) -> None:
    """With preserve="all" rsync finds nothing left to do, on every file system."""
    make_tree(filesystem / "source")
    result = copy_tree(
        filesystem / "source", filesystem / "copy", depth=depth, preserve=["all"], block_size=MIB
    )
    assert differences(filesystem / "source", filesystem / "copy") == ""
    assert (0, True) == (len(result.errors), result.synced)
    assert result.peak_in_flight <= depth


@pytest.mark.root
def test_plain_copy_is_what_cp_makes(source: Path, tmp_path: Path) -> None:
    """Without preserve: kinds, contents and modes as those of cp -r."""
    before = os.umask(0o027)
    try:
        copy_tree(source, tmp_path / "ours")
        subprocess.run(["cp", "-r", source, tmp_path / "theirs"], check=True)
    finally:
        os.umask(before)
    assert snapshot(tmp_path / "theirs") == snapshot(tmp_path / "ours")


@pytest.mark.root
def test_counts(source: Path, tmp_path: Path) -> None:
    found = snapshot(source)
    contents = {k: v for k, v in found.items() if isinstance(v[1], bytes)}
    result = copy_tree(source, tmp_path / "copy")
    files = subprocess.check_output(["find", source, "-type", "f"]).count(b"/f") >= 0
    assert files
    kinds = [
        len(subprocess.check_output(["find", source, "-type", kind, "-printf", "x"]))
        for kind in "fdl"
    ]
    assert kinds == [result.files, result.directories, result.links]
    assert result.specials == len(found) - sum(kinds)
    assert result.bytes <= sum(len(v[1]) for v in contents.values() if isinstance(v[1], bytes))


def test_merges_into_what_is_there(tmp_path: Path) -> None:
    """Existing files are replaced, others stay; an existing directory keeps its mode."""
    for name in ("source", "copy"):
        (tmp_path / name / "directory").mkdir(parents=True)
    (tmp_path / "source" / "directory" / "file").write_bytes(b"new")
    (tmp_path / "copy" / "directory" / "file").write_bytes(b"old")
    (tmp_path / "copy" / "directory" / "other").write_bytes(b"other")
    (tmp_path / "copy" / "directory").chmod(0o700)
    (tmp_path / "source" / "link").symlink_to("new")
    (tmp_path / "copy" / "link").symlink_to("old")
    copy_tree(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy" / "directory" / "file").read_bytes() == b"new"
    assert (tmp_path / "copy" / "directory" / "other").read_bytes() == b"other"
    assert (tmp_path / "copy" / "directory").stat().st_mode & 0o777 == 0o700
    assert os.readlink(tmp_path / "copy" / "link") == "new"
    assert sorted(os.listdir(tmp_path / "copy")) == ["directory", "link"]


def test_what_cannot_be_copied_does_not_stop_the_rest(tmp_path: Path) -> None:
    """One error each, with both names; everything else is there."""
    (tmp_path / "source" / "in the way").mkdir(parents=True)
    (tmp_path / "source" / "file").write_bytes(b"file")
    (tmp_path / "source" / "good").write_bytes(b"good")
    (tmp_path / "copy" / "file").mkdir(parents=True)
    (tmp_path / "copy" / "in the way").write_bytes(b"no directory")
    errors = group_of(lambda: copy_tree(tmp_path / "source", tmp_path / "copy"))
    assert {"file": errno.EISDIR, "in the way": errno.ENOTDIR} == {
        Path(error.filename).name: error.errno for error in errors
    }
    assert all(Path(error.filename2).is_relative_to(tmp_path / "copy") for error in errors)
    assert (tmp_path / "copy" / "good").read_bytes() == b"good"
    assert (tmp_path / "copy" / "in the way").read_bytes() == b"no directory"


def test_on_error_takes_the_errors(tmp_path: Path) -> None:
    """They are told as they happen, and nothing is raised."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"file")
    (tmp_path / "copy" / "file").mkdir(parents=True)
    told: list[OSError] = []
    result = copy_tree(tmp_path / "source", tmp_path / "copy", on_error=told.append)
    assert told == list(result.errors)
    assert len(told) == 1


@pytest.mark.parametrize("inner", ["copy", "a/b", "."])
def test_into_itself(tmp_path: Path, inner: str) -> None:
    """What was there is copied once; the copy is not copied into itself."""
    (tmp_path / "source" / "a").mkdir(parents=True)
    (tmp_path / "source" / "file").write_bytes(b"file")
    with pytest.raises((ExceptionGroup, OSError), match=r"not copied|into itself"):
        copy_tree(tmp_path / "source", tmp_path / "source" / inner)
    assert len(list((tmp_path / "source").rglob("*"))) < 8


def test_deeper_than_any_path(tmp_path: Path) -> None:
    """A path longer than PATH_MAX is only ever walked by descriptors."""
    levels = 1200
    top = os.open(tmp_path, os.O_RDONLY)
    for root in ("source",):
        os.mkdir(root, dir_fd=top)
        fd = os.open(root, os.O_RDONLY, dir_fd=top)
        for _ in range(levels):
            os.mkdir("deep", dir_fd=fd)
            below = os.open("deep", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
        os.close(fd)
    os.close(top)
    result = copy_tree(tmp_path / "source", tmp_path / "copy")
    assert (1, levels + 1) == (result.files, result.directories)
    for name in ("source", "copy"):
        subprocess.run(["rm", "-r", tmp_path / name], check=True)


DEEP = """
import os, resource, sys
from aiocp import copy_tree
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
top = os.getcwd()
os.mkdir("source")
os.chdir("source")
for level in range(600):
    os.mkdir("deep")
    os.mkdir("empty")
    for name in ("one", "two"):
        with open(name, "w") as file:
            file.write(str(level))
    os.link("one", "deep/link")
    os.chdir("deep")
os.chdir(top)
result = copy_tree("source", "copy", depth=1000, sync=bool(int(sys.argv[1])), preserve="all")
assert result.files == 1800, result
assert result.depth < 128, result
for level in range(600):
    os.chdir("copy" if level == 0 else "deep")
    assert open("one").read() == open("two").read() == str(level)
    assert os.path.samefile("one", "deep/link")
"""


@pytest.mark.parametrize("sync", ["0", "1"])
def test_deep_trees_need_few_descriptors(tmp_path: Path, sync: str) -> None:
    """Directories far up are closed, and depth is bounded, where RLIMIT_NOFILE is low."""
    command = [sys.executable, "-c", DEEP, sync]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)
    subprocess.run(["rm", "-r", tmp_path / "source", tmp_path / "copy"], check=True)


@pytest.fixture
def many_on_btrfs(mount_point: Callable[[str], Path], tmp_path: Path) -> Iterator[Path]:
    """A directory on Btrfs with a source of 1,300 files in three directories."""
    directory = Path(tempfile.mkdtemp(dir=mount_point("btrfs")))
    for i in range(1300):
        file = directory / "source" / str(i % 3) / str(i)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"%d" % i * (i % 7))
    yield directory
    shutil.rmtree(directory)


@pytest.mark.root
def test_on_btrfs_files_are_synced_together(
    many_on_btrfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names that a sync of the file system finds are those whose bytes the one before it, or
    an earlier one, found; after the last name there is one more sync."""
    source, copy = many_on_btrfs / "source", many_on_btrfs / "copy"
    found: list[int] = []

    def sync(fd: int) -> None:
        found.append(sum(path.is_file() for path in copy.rglob("*")))
        sync_filesystem(fd)

    monkeypatch.setattr(placing, "sync_filesystem", sync)
    monkeypatch.setattr(budget, "_TOGETHER", 512)
    monkeypatch.setattr(tree_targets, "dirty_bytes", lambda: 0)  # whatever else is on this machine
    result = copy_tree(source, copy)
    assert found[0] == 0
    assert found == sorted(found)
    assert all(after - before <= 512 for before, after in pairwise(found))
    assert (found[-1], len(found)) == (1300, result.syncs)
    assert differences(source, copy, "-rcni") == ""


@pytest.mark.root
@pytest.mark.parametrize("dirty", [0, 1 << 40])
def test_what_others_have_not_written_is_not_waited_for(
    filesystem: Path, monkeypatch: pytest.MonkeyPatch, dirty: int
) -> None:
    """Where that is much, each file is synced by itself; on tmpfs always, it has nothing else."""
    (filesystem / "source").mkdir()
    (filesystem / "source" / "file").write_bytes(b"file")
    monkeypatch.setattr(tree_targets, "dirty_bytes", lambda: dirty)
    result = copy_tree(filesystem / "source", filesystem / "copy")
    kind = subprocess.check_output(["stat", "-f", "-c", "%T", filesystem], text=True).strip()
    assert (result.syncs > 0) == (not dirty and kind != "tmpfs")


@pytest.mark.root
@pytest.mark.parametrize("failing", [1, 2, 4])
def test_a_failed_sync_of_the_file_system(
    many_on_btrfs: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """No file that waited for it gets its name, and each is an error; the last fails the whole."""
    source, copy = many_on_btrfs / "source", many_on_btrfs / "copy"
    calls = 0

    def sync(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.EIO, "injected")
        sync_filesystem(fd)

    monkeypatch.setattr(placing, "sync_filesystem", sync)
    monkeypatch.setattr(budget, "_TOGETHER", 512)
    monkeypatch.setattr(tree_targets, "dirty_bytes", lambda: 0)  # whatever else is on this machine
    before = len(os.listdir("/proc/self/fd"))
    errors = group_of(lambda: copy_tree(source, copy))
    assert before == len(os.listdir("/proc/self/fd"))
    assert {errno.EIO} == {error.errno for error in errors}
    left = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    if failing == 4:
        assert ([str(copy)], 1300) == ([error.filename2 for error in errors], len(left))
    else:
        failed = {str(Path(error.filename).relative_to(source)) for error in errors}
        assert len(errors) == len(failed) == 512
        assert (1300 - 512, set()) == (len(left), left & failed)


def test_followed_links_are_copied_as_what_they_point_to(tmp_path: Path) -> None:
    """A loop and a dangling link are one error each."""
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "file").write_bytes(b"file")
    (source / "link").symlink_to("file")
    (source / "to d").symlink_to("d")
    (source / "d" / "loop").symlink_to("..")
    (source / "dangling").symlink_to("nowhere")
    errors = group_of(lambda: copy_tree(source, tmp_path / "copy", follow_symlinks=True))
    assert {errno.ELOOP, errno.ENOENT} == {error.errno for error in errors}
    assert not (tmp_path / "copy" / "link").is_symlink()
    assert (tmp_path / "copy" / "link").read_bytes() == b"file"
    assert (tmp_path / "copy" / "to d").is_dir()


def test_exclude(source: Path, tmp_path: Path) -> None:
    """What it names is not copied, and an excluded directory is not looked into."""
    asked: list[bytes] = []

    def exclude(path: bytes, is_directory: bool) -> bool:
        asked.append(path)
        return path == b"wide" or path.endswith(b"f1")

    copy_tree(source, tmp_path / "copy", exclude=exclude)
    found = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*")}
    assert "wide" not in found
    assert not any(path.endswith("f1") for path in found)
    assert "d/f2" in found
    assert not any(path.startswith(b"wide/") for path in asked)


def test_cancel(source: Path, tmp_path: Path) -> None:
    """Nothing partial is under any name, and no descriptor is left."""
    before = len(os.listdir("/proc/self/fd"))
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        copy_tree(
            source,
            tmp_path / "copy",
            depth=2,
            block_size=64 * KIB,
            cancel=cancel,
            progress=lambda done, total: cancel.set(),
        )
    assert before == len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "copy").rglob("*"):
        if not path.is_symlink() and path.is_file():
            assert path.read_bytes() == (source / path.relative_to(tmp_path / "copy")).read_bytes()


def test_open_files_are_bounded_by_depth(source: Path, tmp_path: Path) -> None:
    """By a multiple of it: twice the depth for the engine, as much for each of the batches ahead of
    it, less for those behind it, and two for each directory on the way down or with files there."""
    most = 0

    def look(done: int, total: int) -> None:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))

    before = len(os.listdir("/proc/self/fd"))
    copy_tree(source, tmp_path / "copy", depth=4, progress=look)
    assert most - before <= 24 * 4 + 2 * 8


@pytest.mark.parametrize("preserve", ["links", "none", ["mode", "colour"]])
def test_preserve_takes_names(source: Path, tmp_path: Path, preserve: str) -> None:
    if preserve == "links":
        copy_tree(source, tmp_path / "copy", preserve=preserve)
        assert (tmp_path / "copy" / "plain").samefile(tmp_path / "copy" / "d" / "hard")
    else:
        with pytest.raises(ValueError, match="cannot preserve"):
            copy_tree(source, tmp_path / "copy", preserve=preserve)


@pytest.mark.root
def test_as_an_ordinary_user() -> None:
    """Files that may not be read are one error each; owners become the user's, as with cp -a."""
    with scratch_directory() as scratch:
        scratch.chmod(0o777)
        source, ours, theirs = (scratch / name for name in ("source", "ours", "theirs"))
        make_tree(source)
        source.chmod(0o755)

        def copy_both() -> bool:
            assert group_of(lambda: copy_tree(source, ours, preserve="all"))
            command: list[str | Path] = ["cp", "-a", source, theirs]
            return subprocess.run(command, capture_output=True).returncode == 1

        assert as_nobody(copy_both)
        expected = snapshot(theirs)
        for path in snapshot(source):
            mode = os.lstat(os.fsencode(source) + path).st_mode
            if stat.S_ISDIR(mode) and not mode & stat.S_IROTH:
                expected.pop(path, None)  # cp leaves an empty directory
        assert expected == snapshot(ours)


def test_file_system_that_takes_no_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vfat has no O_TMPFILE, gives every file the mode of the mount, and EPERM to fchmod."""

    def create(self: Destination) -> File:
        directory = self.directory.fileno()
        return File.create_named(temporary_name(self.name), os.O_RDWR, 0o755, dir_fd=directory)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "vfat")

    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"file")
    monkeypatch.setattr(Destination, "_create_new", create)
    monkeypatch.setattr(os, "chmod", refuse)

    def copy() -> None:
        refuse_tmpfile()
        copy_tree(tmp_path / "source", tmp_path / "copy")

    assert in_child(copy) is None
    assert (tmp_path / "copy" / "file").read_bytes() == b"file"


@pytest.mark.parametrize("created", [True, False])
def test_a_directory_that_cannot_be_told_of_after_its_sync(
    tmp_path: Path, created: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An XFS that has shut down syncs it without an error; the copy does not go by that."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"file")
    if not created:
        (tmp_path / "copy").mkdir()

    def shut_down(fd: int) -> None:
        raise OSError(errno.EIO, "sync: shut down")

    monkeypatch.setattr(placing, "assert_durable", shut_down)
    monkeypatch.setattr(tree_targets, "dirty_bytes", lambda: 0)  # whatever else is on this machine
    with pytest.raises((ExceptionGroup, OSError)):
        copy_tree(tmp_path / "source", tmp_path / "copy")


# --- instead of all that is in a tree ------------------------------------------------------------


def test_attributes_only(tmp_path: Path) -> None:
    """What is there keeps its contents and gets the source's attributes; what is new is empty."""
    for name in ("source", "copy"):
        (tmp_path / name / "d").mkdir(parents=True)
        (tmp_path / name / "d" / "file").write_text(name * 100_000)
    (tmp_path / "source" / "fresh").write_bytes(b"x" * MIB)
    for name in ("d/file", "fresh", "d"):
        (tmp_path / "source" / name).chmod(0o751)
        os.utime(tmp_path / "source" / name, (1, 10**9))
    before = (tmp_path / "copy" / "d" / "file").stat()
    told: list[Outcome] = []
    result = copy_tree(
        tmp_path / "source",
        tmp_path / "copy",
        attributes_only=True,
        preserve=["mode", "timestamps"],
        on_entry=told.append,
    )
    after = (tmp_path / "copy" / "d" / "file").stat()
    assert (tmp_path / "copy" / "d" / "file").read_text() == "copy" * 100_000
    assert (before.st_ino, 0o751, 10**9) == (after.st_ino, after.st_mode & 0o777, after.st_mtime)
    fresh = (tmp_path / "copy" / "fresh").stat()
    assert (0, 0o751, 10**9) == (fresh.st_size, fresh.st_mode & 0o777, fresh.st_mtime)
    assert (2, 0, True) == (result.files, result.bytes, result.synced)
    assert ["attributes", "attributes"] == [one.method for one in told]


@pytest.mark.root
def test_attributes_only_of_one_file(filesystem: Path) -> None:
    """Also where a file can have the blocks of another, and even if it must."""
    source, copy = filesystem / "source", filesystem / "copy"
    source.write_bytes(b"new" * 100_000)
    for there in (None, b"old", b"older" * 100_000):
        if there is not None:
            copy.write_bytes(there)
        result = copy_file(source, copy, attributes_only=True, reflink="always")
        assert (there or b"", "attributes", 0) == (copy.read_bytes(), result.method, result.size)


@pytest.mark.root
@pytest.mark.parametrize("way", ["tree", "file", "in place"])
@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_attributes_are_on_the_disk(fstype: str, way: str, tmp_path: Path) -> None:
    """The mode alone, too, which the sync of a file's data leaves out."""
    (tmp_path / "source").mkdir()
    file = tmp_path / "source" / "file"
    file.write_bytes(b"new")
    file.chmod(0o751)
    with disk(fstype, "shutdown") as target:
        copy = target.mount_point / "copy" / "file"
        copy.parent.mkdir()
        copy.write_bytes(b"old")
        copy.chmod(0o600)
        if way == "in place":
            (target.mount_point / "other").hardlink_to(copy)
        target.sync()
        if way == "tree":
            copy_tree(file.parent, copy.parent, attributes_only=True, preserve="mode")
        else:
            copy_file(file, copy, attributes_only=way == "file", preserve="mode")
        target.cut()
        target.restart()
        assert copy.stat().st_mode & 0o777 == 0o751


@pytest.mark.parametrize("there", [False, True])
def test_copy_contents(tmp_path: Path, there: bool) -> None:
    """What comes out of a FIFO until it is closed, into a new file or a FIFO that is there."""
    (tmp_path / "source").mkdir()
    os.mkfifo(tmp_path / "source" / "fifo")
    (tmp_path / "source" / "link").symlink_to("fifo")
    (tmp_path / "source" / "zero").symlink_to("/dev/zero")
    data = b"piped" * 100_000
    write = threading.Thread(target=(tmp_path / "source" / "fifo").write_bytes, args=(data,))
    read: list[bytes] = []
    if there:
        (tmp_path / "copy").mkdir()
        os.mkfifo(tmp_path / "copy" / "fifo")
        reader = threading.Thread(
            target=lambda: read.append((tmp_path / "copy" / "fifo").read_bytes())
        )
        reader.start()
    write.start()
    result = copy_tree(tmp_path / "source", tmp_path / "copy", copy_contents=True)
    write.join()
    if there:
        reader.join()
    else:
        read.append((tmp_path / "copy" / "fifo").read_bytes())
    assert [data] == read
    assert (1, 2, 0) == (result.files, result.links, result.specials)


@pytest.mark.parametrize("text", ["elsewhere", "{top}/elsewhere", "chain"])
def test_keep_directory_symlink(tmp_path: Path, text: str) -> None:
    """A link to a directory at the destination is one; otherwise it is in the way."""
    (tmp_path / "source" / "d" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "d" / "sub" / "file").write_bytes(b"file")
    (tmp_path / "copy" / "elsewhere").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "copy" / "chain").symlink_to("elsewhere")
    (tmp_path / "copy" / "d").symlink_to(text.format(top=tmp_path))
    (error,) = group_of(lambda: copy_tree(tmp_path / "source", tmp_path / "copy"))
    assert errno.ENOTDIR == error.errno
    copy_tree(tmp_path / "source", tmp_path / "copy", keep_directory_symlink=True)
    assert (tmp_path / "copy" / "d").is_symlink()
    assert (tmp_path / "copy" / "d" / "sub" / "file").read_bytes() == b"file"
    (tmp_path / "copy" / "d").unlink()
    for way in ("nowhere", "../source/d/sub/file"):  # no directories
        (tmp_path / "copy" / "d").symlink_to(way)
        assert group_of(
            lambda: copy_tree(tmp_path / "source", tmp_path / "copy", keep_directory_symlink=True)
        )
        (tmp_path / "copy" / "d").unlink()


def test_keep_directory_symlink_in_depth(tmp_path: Path) -> None:
    """More levels than are kept open otherwise, on both sides of a link."""
    deep = "/".join(["d"] * 100)
    (tmp_path / "source" / deep).mkdir(parents=True)
    for i in range(1, 101, 9):
        (tmp_path / "source" / "/".join(["d"] * i) / "file").write_text(str(i))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "copy" / "/".join(["d"] * 50)).mkdir(parents=True)
    (tmp_path / "copy" / "/".join(["d"] * 51)).symlink_to(tmp_path / "elsewhere")
    copy_tree(tmp_path / "source", tmp_path / "copy", keep_directory_symlink=True)
    for i in range(1, 101, 9):
        assert (tmp_path / "copy" / "/".join(["d"] * i) / "file").read_text() == str(i)
    assert (tmp_path / "elsewhere" / "d").is_dir()


def test_every_entry_is_told_of(source: Path, tmp_path: Path) -> None:
    """Once each when it is in place, with what it took; nothing of what failed."""
    told: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        assert os.path.lexists(outcome.destination)
        told.append(outcome)

    result = copy_tree(source, tmp_path / "copy", preserve="links", on_entry=tell)
    paths = [os.fsdecode(path).lstrip("/") or "." for path in snapshot(source)]
    assert sorted(paths) == sorted(os.path.relpath(one.source, source) for one in told)
    assert all(
        os.path.relpath(one.source, source) == os.path.relpath(one.destination, tmp_path / "copy")
        for one in told
    )
    methods = Counter(one.method for one in told)
    assert (result.directories, result.links + result.specials) == (
        methods.pop("directory"),
        methods.pop("special"),
    )
    assert result.files == methods.total()
    assert methods.keys() <= {"aio-direct", "aio-buffered", "plain", "stream", "hard-link"}
    told.clear()
    (tmp_path / "copy" / "wide" / "7").unlink()
    (tmp_path / "copy" / "wide" / "7").mkdir()
    result = copy_tree(
        source,
        tmp_path / "copy",
        replace=lambda path, seen, existing: not path.startswith(b"wide/"),
        on_entry=tell,
    )
    skipped = [one for one in told if one.method == "skipped"]
    assert len(os.listdir(source / "wide")) == len(skipped)
    assert [] == [one for one in told if one.method == "directory"]


def test_progress_of_large_files_and_small_ones(tmp_path: Path) -> None:
    """Block by block, and never back: what is in memory, what is read, what is a hole."""
    source = tmp_path / "source"
    source.mkdir()
    sizes = {"large": 5 << 20, "small": 5000, "read": 70_000, "empty": 0, "holes": 3 << 20}
    for name, size in sizes.items():
        (source / name).write_bytes(os.urandom(size))
    with (source / "holes").open("r+b") as file:
        file.truncate(20 << 20)
    with (source / "read").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    told: list[tuple[int, int]] = []
    result = copy_tree(
        source,
        tmp_path / "copy",
        depth=4,
        block_size=1 << 18,
        reflink="never",
        progress=lambda *done: told.append(done),
    )
    done = [moved for moved, _ in told]
    assert done == sorted(done)
    assert done[-1] == result.bytes == sum(sizes.values()) + (17 << 20)
    assert len(done) >= 5  # of 20 blocks, at most 4 are in flight at once
