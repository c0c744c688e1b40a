"""Clones: made where they can be, with the promises of any copy, and refused by cp's rules."""

import errno
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import aiocp
from aiocp import copy_file, copy_tree, destination, linux, tree_targets
from aiocp.reflink import Reflink
from crash import WAYS, after_return, at_random_moments, kills
from faults import Copy, in_child, inject, refuse_tmpfile, trace
from filesystems import mounted, run

KIB, MIB = 1 << 10, 1 << 20
AIOCP = [sys.executable, "-m", "aiocp"]
CLONING = ["xfs", "btrfs"]

pytestmark = pytest.mark.root


@pytest.fixture(params=CLONING)
def directory(request: pytest.FixtureRequest, mount_point: Callable[[str], Path]) -> Iterator[Path]:
    """An empty directory on a file system that can clone."""
    directory = mount_point(request.param) / "reflink"
    directory.mkdir()
    yield directory
    run("rm", "-r", directory)


def fill(path: Path, size: int, seed: int = 1) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def assert_same(one: Path, two: Path) -> None:
    subprocess.run(["cmp", one, two], check=True)


def physical(path: Path) -> list[str]:
    """Where the blocks of a file are on the device, and whether they are shared."""
    run("sync", path)
    lines = run("filefrag", "-v", path).splitlines()
    return [
        line.split(":")[2].strip() + "shared" * ("shared" in line) for line in lines if ".." in line
    ]


SIZES = [1, 4095, 4096, 4097, 256 * KIB, 256 * KIB + 1, 3 * MIB + 777]


@pytest.mark.parametrize("how", ["auto", "always"])
@pytest.mark.parametrize("size", SIZES)
def test_the_copy_shares_the_sources_blocks(directory: Path, size: int, how: Reflink) -> None:
    """What cp --reflink=always shares, and nothing was read or written."""
    source = fill(directory / "source", size)
    source.chmod(0o640)
    result = copy_file(source, directory / "copy", reflink=how)
    assert_same(source, directory / "copy")
    subprocess.run(["cp", "--reflink=always", source, directory / "theirs"], check=True)
    assert physical(directory / "theirs") == physical(directory / "copy")
    assert ("reflink", size, 0, 0, 0) == (
        result.method,
        result.size,
        result.bytes_read,
        result.bytes_written,
        result.holes,
    )
    assert (True, False, False, False) == (
        result.synced,
        result.in_place,
        result.direct_read,
        result.direct_write,
    )
    assert () == result.notes
    assert (directory / "theirs").stat().st_mode == (directory / "copy").stat().st_mode
    assert source.stat().st_blocks == (directory / "copy").stat().st_blocks


def test_a_change_of_one_is_none_of_the_other(directory: Path) -> None:
    before = fill(directory / "source", MIB).read_bytes()
    copy_file(directory / "source", directory / "copy", reflink="always")
    with (directory / "source").open("r+b") as file:
        file.write(b"new" * 10_000)
    assert before == (directory / "copy").read_bytes()


def test_what_is_not_on_the_disk_yet_is_cloned_too(directory: Path) -> None:
    source = directory / "source"
    for seed in range(20):
        fill(source, 300 * KIB + seed, seed)
        copy_file(source, directory / "copy", reflink="always")
        assert_same(source, directory / "copy")


def test_never_makes_a_second_copy(directory: Path) -> None:
    source = fill(directory / "source", MIB)
    result = copy_file(source, directory / "copy", reflink="never")
    assert "reflink" != result.method
    assert MIB == result.bytes_written
    assert not any("shared" in line for line in physical(directory / "copy"))
    assert_same(source, directory / "copy")


@pytest.mark.parametrize("sparse", ["always", "never"])
def test_other_holes_than_the_sources_are_no_clone(directory: Path, sparse: str) -> None:
    """cp clones all the same, and the holes are the source's."""
    with (directory / "source").open("wb") as file:
        file.write(b"x" * MIB + bytes(MIB))
        file.truncate(3 * MIB)
    run("sync", directory / "source")
    result = copy_file(
        directory / "source",
        directory / "copy",
        sparse=sparse,  # type: ignore[arg-type]
    )
    assert "reflink" != result.method
    blocks = (directory / "copy").stat().st_blocks * 512
    assert blocks == MIB if sparse == "always" else blocks >= 3 * MIB
    assert_same(directory / "source", directory / "copy")


def test_a_replaced_file_keeps_what_it_keeps(directory: Path) -> None:
    source, copy = fill(directory / "source", MIB), fill(directory / "copy", 5 * MIB, 2)
    copy.chmod(0o600)
    os.setxattr(copy, "user.note", b"kept")
    before = copy.stat().st_ino
    assert "reflink" == copy_file(source, copy).method
    assert_same(source, copy)
    assert b"kept" == os.getxattr(copy, "user.note")
    assert (0o600, True) == (copy.stat().st_mode & 0o777, copy.stat().st_ino != before)


@pytest.mark.parametrize("how", ["auto", "always"])
@pytest.mark.parametrize("old", [0, 100, 5000, 5001, MIB])
def test_a_file_in_place_becomes_a_clone(directory: Path, old: int, how: Reflink) -> None:
    """Also one that is longer, over which an end within a block is cloned only once it is cut."""
    source, one = fill(directory / "source", 5001), fill(directory / "one", old, 2)
    os.link(one, directory / "two")
    result = copy_file(source, one, reflink=how)
    assert (True, "reflink") == (result.in_place, result.method)
    assert_same(source, directory / "two")
    assert physical(source) == physical(directory / "two")


def test_what_is_no_file_leaves_a_file_in_place_alone(directory: Path) -> None:
    """An EINVAL of another reason cuts nothing."""
    os.mkfifo(directory / "fifo")
    old = fill(directory / "old", 5001).read_bytes()
    for source in (directory / "fifo", Path("/dev/null")):
        with pytest.raises(OSError, match="clone: "):
            copy_file(source, directory / "old", in_place=True, reflink="always")
        assert old == (directory / "old").read_bytes()


def test_without_unnamed_files(directory: Path) -> None:
    """Where there is no O_TMPFILE the temporary name is what is cloned to, and it goes."""
    source = fill(directory / "source", MIB)

    def copy() -> None:
        refuse_tmpfile()
        if copy_file(source, directory / "copy").method != "reflink":
            raise OSError(errno.EDOM, "no clone")

    assert in_child(copy) is None
    assert_same(source, directory / "copy")
    assert ["copy", "source"] == sorted(os.listdir(directory))


def test_empty_files(directory: Path) -> None:
    """There is nothing to share; "always" succeeds where a file that is not empty would."""
    (directory / "source").touch()
    assert "stream" == copy_file(directory / "source", directory / "copy").method
    copy_file(directory / "source", directory / "copy", reflink="always")
    assert 0 == (directory / "copy").stat().st_size


# --- refusals ------------------------------------------------------------------------------------


def cannot(source: Path, copy: Path) -> None:
    """`auto` copies, `always` says why it does not, and leaves nothing, or the old file."""
    old = copy.read_bytes() if copy.exists() else None
    done = subprocess.run([*AIOCP, "--reflink", source, copy], capture_output=True, text=True)
    assert (1, "") == (done.returncode, done.stdout)
    expected = subprocess.run(
        ["cp", "--reflink", source, copy.with_name("theirs")],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert 1 == expected.returncode
    copy.with_name("theirs").unlink(missing_ok=True)
    reason = expected.stderr.strip().rpartition(": ")[2]
    assert re.fullmatch(rf"aiocp: cannot copy '\S+' to '\S+': clone: {reason}\n", done.stderr), (
        done.stderr
    )
    assert old == (copy.read_bytes() if copy.exists() else None)
    assert "reflink" != copy_file(source, copy).method
    assert source.read_bytes() == copy.read_bytes()


@pytest.mark.parametrize("fstype", ["ext4", "tmpfs"])
@pytest.mark.parametrize("size", [0, 100, MIB])
def test_a_file_system_that_cannot(
    fstype: str, size: int, mount_point: Callable[[str], Path]
) -> None:
    top = mount_point(fstype) / "cannot"
    top.mkdir()
    cannot(fill(top / "source", size), top / "copy")
    cannot(fill(top / "source", size), fill(top / "old", 10))
    run("rm", "-r", top)


def test_another_file_system(directory: Path, tmp_path: Path) -> None:
    cannot(fill(tmp_path / "source", MIB), directory / "copy")
    cannot(Path("/proc/version"), directory / "version")


def test_a_file_that_cannot(mount_point: Callable[[str], Path]) -> None:
    """Btrfs refuses to clone what has no checksums to what has (EINVAL): but others it clones."""
    top = mount_point("btrfs") / "nocow"
    top.mkdir()
    (top / "source").touch()
    run("chattr", "+C", top / "source")
    cannot(fill(top / "source", MIB), top / "copy")
    result = copy_tree(top, top.with_name("nocow2"))
    assert (2, 1) == (result.files, result.reflinked)
    run("rm", "-r", top, top.with_name("nocow2"))


def test_xfs_without_reflinks() -> None:
    with mounted("xfs", 300 * MIB, mkfs_options=["-m", "reflink=0"]) as top:
        cannot(fill(top / "source", MIB), top / "copy")


REAL = ["EIO", "ENOMEM", "ENOSPC", "EDQUOT"]
REFUSALS = ["EXDEV", "EOPNOTSUPP", "EINVAL", "ENOTTY", "ETXTBSY", "EPERM", "EBADF", "ENOSYS"]


@pytest.mark.parametrize("how", ["auto", "always"])
@pytest.mark.parametrize("recursive", [False, True])
def test_every_error(
    how: str, recursive: bool, mount_point: Callable[[str], Path], tmp_path: Path
) -> None:
    """A refusal is copied over with "auto", by cp's list; an error is one of "always" and of all
    that a copy would meet. One line then, and nothing left."""
    directory = mount_point("xfs") / "errors"
    (directory / "source").mkdir(parents=True)
    new = fill(directory / "source" / "file", 300 * KIB).read_bytes()
    source = directory / "source" if recursive else directory / "source" / "file"

    def command(name: str) -> Copy:
        options = [f"--reflink={how}", *["-r"] * recursive]
        (directory / name).mkdir()
        return Copy([*options, str(source), str(directory / name / "copy")], f"{tmp_path}/{name}")

    (call,) = [call for call in trace(command("dry"), tmp_path / "log") if "FICLONE" in call.text]
    for error in [*REAL, *REFUSALS, "EINTR"]:
        copy = command(error)
        (outcome,) = inject(
            [(copy, call)], {"ioctl": f"error={error}"}, tmp_path / "log", for_ever=False
        )
        assert "FICLONE" in outcome.injected
        there = directory / error / "copy" / "file" if recursive else directory / error / "copy"
        if error == "EINTR" or (how == "auto" and error in REFUSALS):
            assert (0, "") == (outcome.status, outcome.stderr), error
            assert new == there.read_bytes()
            shared = any("shared" in line for line in physical(there))
            assert shared == (error == "EINTR"), error
        else:
            assert 1 == outcome.status, error
            words = os.strerror(getattr(errno, error))
            assert outcome.stderr.endswith(f": clone: {words}\n"), outcome.stderr
            assert 1 == len(outcome.stderr.splitlines())
            assert not there.exists()
            assert not recursive or [] == os.listdir(there.parent)
    run("rm", "-r", directory)


def test_an_error_over_a_file_in_place_says_that_it_is_incomplete(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was cloned by then is in it; a refusal has changed nothing."""
    source, copy = fill(directory / "source", MIB), fill(directory / "copy", 10)

    def fail(code: int) -> None:
        def clone(fd: int, source_fd: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(destination, "clone", clone)

    for code, incomplete in ((errno.ENOSPC, True), (errno.EOPNOTSUPP, False)):
        fail(code)
        with pytest.raises(OSError, match="clone: ") as caught:
            copy_file(source, copy, in_place=True, reflink="always")
        assert incomplete == ("incomplete" in str(caught.value))
        assert 10 == copy.stat().st_size


# --- a source that changes -----------------------------------------------------------------------


def test_a_source_that_changes_all_the_time(directory: Path) -> None:
    """A clone that succeeds has the bytes that the source had at a moment, all others fail."""
    source, copy = fill(directory / "source", MIB), directory / "copy"
    state = bytearray(source.read_bytes())
    states = {bytes(state)}
    stop = threading.Event()

    def change() -> None:
        rng = random.Random(1)
        with source.open("r+b", buffering=0) as file:
            while not stop.wait(rng.choice([0.02, 0.005])):
                offset = rng.randrange(MIB - 8 * KIB)
                data = rng.randbytes(4 * KIB)
                state[offset : offset + 4 * KIB] = data
                states.add(bytes(state))
                os.pwrite(file.fileno(), data, offset)

    outcomes = {"reflink": 0, "changed": 0}
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(2000):
            try:
                outcomes[copy_file(source, copy).method] += 1
            except aiocp.SourceChanged:
                outcomes["changed"] += 1
            else:
                assert copy.read_bytes() in states
            if outcomes["changed"] > 3 and outcomes["reflink"] > 50:
                break
    finally:
        stop.set()
        thread.join()
    assert outcomes["reflink"] > 50


@pytest.mark.parametrize("change", ["longer", "shorter", "another byte"])
@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("size", [300 * KIB, MIB])
def test_a_change_between_the_open_and_the_clone(
    change: str, allowed: bool, size: int, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is an error; allowed, the copy has the size of the open, and one that is shorter fails."""
    (directory / "tree").mkdir()
    source = fill(directory / "tree" / "source", size)
    clone = linux.clone

    def changed(fd: int, source_fd: int) -> None:
        with source.open("r+b") as file:
            if change == "longer":
                file.seek(0, os.SEEK_END)
                file.write(b"more" * 1000)
            elif change == "shorter":
                file.truncate(1000)
            else:
                file.write(b"x")
        clone(fd, source_fd)

    monkeypatch.setattr(destination, "clone", changed)
    for attempt in ("file", "tree"):
        fill(source, size)
        (directory / "copy").mkdir(exist_ok=True)
        there = directory / "copy" / attempt / "source"

        def copy(attempt: str = attempt, there: Path = there) -> None:
            if attempt == "file":
                there.parent.mkdir()
                copy_file(source, there, allow_changed=allowed)
            else:
                copy_tree(source.parent, there.parent, allow_changed=allowed, on_error=raise_error)

        if allowed and change != "shorter":
            copy()
            assert source.read_bytes()[:size] == there.read_bytes()
        else:
            match = "shrank" if change == "shorter" else "changed"
            with pytest.raises(aiocp.SourceChanged, match=match):
                copy()
            assert not there.exists()


def raise_error(error: OSError) -> None:
    raise error


# --- trees ---------------------------------------------------------------------------------------


def test_trees_are_cloned(directory: Path) -> None:
    """Files of every size, new ones and replaced ones, with attributes and without."""
    tree = directory / "tree"
    (tree / "below").mkdir(parents=True)
    for size in (0, *SIZES):
        fill(tree / f"f{size}", size)
        fill(tree / "below" / f"f{size}", size)
    os.link(tree / f"f{MIB * 3 + 777}", tree / "hard")
    for preserve in ((), ("all",)):
        for _ in range(2):
            result = copy_tree(tree, directory / "copy", reflink="always", preserve=preserve)
            links = 1 if preserve else 0
            assert 2 * len(SIZES) + 3 == result.files
            assert result.files - links == result.reflinked
            subprocess.run(["diff", "-r", tree, directory / "copy"], check=True)
            for size in SIZES:
                assert physical(tree / f"f{size}") == physical(directory / "copy" / f"f{size}")
    result = copy_tree(tree, directory / "copy2", reflink="never")
    assert 0 == result.reflinked
    assert not any("shared" in line for line in physical(directory / "copy2" / "f4096"))


def test_a_refusal_is_asked_for_once(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two file systems, however many files and directories; of one file only for it."""
    tree = tmp_path / "tree"
    for number in range(30):
        (tree / f"d{number % 3}").mkdir(parents=True, exist_ok=True)
        fill(tree / f"d{number % 3}" / f"f{number}", 300 * KIB + number)  # none for a batch
    calls = 0
    clone = linux.clone

    def counted(fd: int, source_fd: int) -> None:
        nonlocal calls
        calls += 1
        clone(fd, source_fd)

    monkeypatch.setattr(destination, "clone", counted)
    result = copy_tree(tree, directory / "copy")
    assert (30, 0, 1) == (result.files, result.reflinked, calls)
    result = copy_tree(directory / "copy", directory / "copy2")
    assert (30, 30, 31) == (result.files, result.reflinked, calls)

    def refused(fd: int, source_fd: int) -> None:
        nonlocal calls
        calls += 1
        raise OSError(errno.EINVAL, "of this file")

    monkeypatch.setattr(destination, "clone", refused)
    result = copy_tree(directory / "copy", directory / "copy3")
    assert (30, 0, 61) == (result.files, result.reflinked, calls)


def test_a_tree_with_always_says_each_file_that_is_none(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for number in range(3):
        fill(tmp_path / "tree" / f"f{number}", number * 300 * KIB)
    (tmp_path / "tree" / "link").symlink_to("f0")
    with pytest.raises(ExceptionGroup) as caught:
        copy_tree(tmp_path / "tree", directory / "copy", reflink="always")
    for error in caught.value.exceptions:
        assert isinstance(error, OSError)
        assert (errno.EXDEV, True) == (error.errno, "clone: " in str(error))
    assert 3 == len(caught.value.exceptions)
    assert ["link"] == os.listdir(directory / "copy")


def test_btrfs_clones_of_any_size_wait_for_one_sync(
    mount_point: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few of their bytes are not on the disk: one sync of the file system, as for small files."""
    monkeypatch.setattr(tree_targets, "dirty_bytes", lambda: 0)  # whatever else is on this machine
    top = mount_point("btrfs") / "together"
    (top / "tree").mkdir(parents=True)
    for number in range(20):
        fill(top / "tree" / f"f{number}", MIB + number)
    result = copy_tree(top / "tree", top / "copy")
    assert (20, True) == (result.reflinked, result.synced)
    assert (True, 0) == (result.syncs <= 2, result.peak_in_flight)
    run("rm", "-r", top)


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "method"),
    [
        ("f new", 0, "reflink"),
        ("--reflink f new", 0, "reflink"),
        ("--reflink=always f new", 0, "reflink"),
        ("--reflink=auto f new", 0, "reflink"),
        ("--reflink=never f new", 0, "copy"),
        ("--reflink=al f new", 0, "reflink"),
        ("--refl=n f new", 0, "copy"),
        ("--reflink=a f new", 2, ""),
        ("--reflink= f new", 2, ""),
        ("--reflink always f new", 1, ""),
        ("f --reflink new", 0, "reflink"),
        ("--reflink --reflink=never f new", 0, "copy"),
        ("--reflink=never --reflink f new", 0, "reflink"),
        ("-r --reflink d new", 0, ""),
        ("--reflink --sparse=auto f new", 0, "reflink"),
        ("--reflink --sparse=always f new", 2, ""),
    ],
)
def test_the_option_is_cps(arguments: str, status: int, method: str, directory: Path) -> None:
    """The same words are right and wrong (usage errors are 2 here), with the same result."""
    outcomes = []
    for name, command in (("cp", ["cp"]), ("aiocp", AIOCP)):
        top = directory / name
        (top / "d").mkdir(parents=True)
        fill(top / "f", MIB)
        fill(top / "d" / "f", MIB)
        done = subprocess.run([*command, *arguments.split()], cwd=top, capture_output=True)
        copies = [path for path in (top / "new", top / "new" / "f") if path.is_file()]
        shared = [any("shared" in line for line in physical(path)) for path in copies]
        outcomes.append((done.returncode > 0, shared))
        last = done
    assert outcomes[0] == outcomes[1]
    # a directory that is not there is wrong usage here
    assert last.returncode == (2 if status == 1 else status)
    if method:
        assert [method == "reflink"] == outcomes[1][1]


def test_it_says_how(directory: Path) -> None:
    fill(directory / "f", MIB)
    done = subprocess.run(
        [*AIOCP, "--debug", "f", "new"], cwd=directory, capture_output=True, text=True, check=True
    )
    assert done.stdout == "'f' -> 'new': reflink\n"
    assert "\naiocp: 1 reflink; " in done.stderr


def test_a_clone_sets_up_no_context(directory: Path, tmp_path: Path) -> None:
    """The end of one takes 33 ms, and two syncs one after the other need none."""
    fill(directory / "f", MIB)
    copy = Copy([str(directory / "f"), str(directory / "copy")], f"{tmp_path}/stderr")
    names = [call.name for call in trace(copy, tmp_path / "log")]
    assert "io_setup" not in names
    assert (1, 1) == (names.count("fdatasync"), names.count("fsync"))


# --- power cuts and kills ------------------------------------------------------------------------


@pytest.mark.parametrize(("fstype", "way"), [way for way in WAYS if way[0] in CLONING])
def test_power_cuts(fstype: str, way: str) -> None:
    """Of sources that are not on the disk themselves when they are cloned."""
    tally = after_return(fstype, way, 5, kind="clone")
    assert ([], 15) == (tally.broken, tally.found["new"])
    assert tally.methods["reflink"] > 5
    tally = at_random_moments(fstype, way, 5, kind="clone")
    assert ([], 5) == (tally.broken, tally.cuts)


@pytest.mark.parametrize(("fstype", "way"), [way for way in WAYS if way[0] in CLONING])
def test_without_the_sync_a_power_cut_loses_the_clone(fstype: str, way: str) -> None:
    """So the cuts above would have shown a sync that is missing."""
    tally = after_return(fstype, way, 5, sync=False, kind="clone")
    assert len(tally.broken) >= 5


def test_kills(directory: Path) -> None:
    """The old file or the whole new one, at any moment."""
    empty = directory / "empty"
    empty.mkdir()
    tally = kills(empty, 50, random.Random(4), kind="clone")
    assert ([], 0, 50) == (tally.broken, tally.hidden, tally.cuts)
