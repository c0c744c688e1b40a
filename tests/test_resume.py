"""What --resume goes on with, what it does not, and what is left of it.

scripts/crash runs the loops of kills and power cuts for longer.
"""

import asyncio
import fcntl
import itertools
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from errno import EBUSY, ENOSPC
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import aiocp.partial
from aiocp import Cancelled, CopyResult, VerificationFailed, aio, copy_file, copy_tree
from aiocp.journal import Journal
from aiocp.linux import File
from crash import WAYS
from filesystems import loop_device, sparse_file
from resume_crash import LEFT, cuts, kills
from test_interrupt import command, unnamed_in, wait_for
from test_verify import command as run

KIB, MIB = 1 << 10, 1 << 20
CONTENT = random.Random(3).randbytes(8 * MIB + 777)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiocp.partial, "EVERY_BYTES", MIB)


class Stopped(Exception):
    """By what looks at the progress."""


def stop() -> None:
    raise Stopped


def when_kept(directory: Path, act: Callable[[], object] = stop) -> Callable[[int, int], None]:
    """A progress that does something each time that the copy could be gone on with by then."""

    def kept() -> bool:
        return any(name.endswith("-journal") for name in os.listdir(directory))

    return when(kept, act)


def when(happened: Callable[[], bool], act: Callable[[], object]) -> Callable[[int, int], None]:
    """A progress that does something when something has happened, which it waits for a little,
    each time, since it happens in the copy and in a thread of it."""

    def progress(done: int, total: int) -> None:
        deadline = time.monotonic() + 0.05
        while not happened() and time.monotonic() < deadline:
            time.sleep(0.001)
        if happened():
            act()

    return progress


def copy(source: Path, destination: Path, **how: Any) -> CopyResult:
    how = dict[str, Any](depth=2, block_size=64 * KIB, reflink="never", resume=True) | how
    return copy_file(source, destination, **how)


def interrupt(tmp_path: Path, content: bytes = CONTENT, **how: Any) -> tuple[Path, Path]:
    """Begin a copy, so that some of it is kept; the source and the destination."""
    source, destination = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(content)
    with pytest.raises(Stopped):
        copy(source, destination, progress=when_kept(tmp_path), **how)
    assert set(os.listdir(tmp_path)) - {"source", "copy"} == LEFT
    return source, destination


def assert_resumed(result: CopyResult) -> None:
    """Some of it was there, and only the rest was read and written."""
    assert MIB <= result.resumed < result.size
    assert result.resumed + result.bytes_written + result.holes == result.size
    assert result.bytes_written <= result.bytes_read <= result.size - result.resumed
    assert Path(result.destination).read_bytes() == Path(result.source).read_bytes()
    assert not LEFT & set(os.listdir(Path(result.destination).parent))


# --- kills and power cuts ---


def test_after_a_hundred_kills_the_bytes_are_the_same(tmp_path: Path) -> None:
    """The old file until it is whole, and beside it never more than a partial and its journal."""
    tally = kills(tmp_path, 100, random.Random(1))
    assert ([], 100) == (tally.broken, tally.cuts)
    assert tally.kept > 50


@pytest.mark.root
@pytest.mark.parametrize(("fstype", "way"), WAYS)
def test_after_power_cuts_the_bytes_are_the_same(fstype: str, way: str) -> None:
    tally = cuts(fstype, way, 5)
    assert ([], 5) == (tally.broken, tally.cuts)


@pytest.mark.root
def test_a_journal_that_is_ahead_of_the_disk_would_be_seen() -> None:
    """So the cuts above show that it is written only after a sync."""
    assert any(cuts(fstype, way, 8, "never", lying=True).broken for fstype, way in 5 * WAYS)


# --- going on ---


@pytest.mark.parametrize("how", ["auto", "never"])
def test_goes_on_where_it_was(tmp_path: Path, how: str) -> None:
    """In a time that does not grow with what is there: none of it is read."""
    source, destination = interrupt(tmp_path, direct=how)
    assert_resumed(copy(source, destination, direct=how))


@pytest.mark.root
def test_on_every_file_system(filesystem: Path) -> None:
    source, destination = interrupt(filesystem)
    assert_resumed(copy(source, destination, depth=64, block_size=MIB))


@pytest.mark.parametrize("sparse", ["auto", "always", "never"])
def test_holes_before_and_after_stay_holes(tmp_path: Path, sparse: str) -> None:
    """Each 512 KiB of data has one before it."""
    half = 512 * KIB
    content = b"".join(bytes(half) + CONTENT[at : at + half] for at in range(0, 6 * MIB, half))
    source, destination = interrupt(tmp_path, content, sparse=sparse)
    result = copy(source, destination, sparse=sparse)
    assert_resumed(result)
    if sparse == "always":
        assert destination.stat().st_blocks * 512 <= 7 * MIB


def test_goes_on_again_and_again(tmp_path: Path) -> None:
    """Each attempt from where the one before has come to."""
    source, destination = interrupt(tmp_path)
    reached = [0]

    def progress(done: int, total: int) -> None:
        time.sleep(0.01)
        if not first:
            first.append(done)
        if done > first[0] + 2 * MIB:
            raise Stopped

    for _ in range(2):
        first: list[int] = []
        with pytest.raises(Stopped):
            copy(source, destination, progress=progress)
        reached.append(first[0])
    assert reached == sorted(set(reached))
    assert_resumed(copy(source, destination))


def test_the_old_file_is_replaced_with_what_it_had(tmp_path: Path) -> None:
    destination = tmp_path / "copy"
    destination.write_bytes(b"old")
    destination.chmod(0o604)
    source, _ = interrupt(tmp_path)
    assert destination.read_bytes() == b"old"
    assert_resumed(copy(source, destination))
    assert destination.stat().st_mode & 0o777 == 0o604


def test_a_new_file_has_the_mode_of_its_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.touch(0o444)
    source, destination = interrupt(tmp_path)
    assert (tmp_path / ".copy.aiocp-partial").stat().st_mode & 0o777 == 0o600
    assert_resumed(copy(source, destination))
    assert destination.stat().st_mode & 0o777 == source.stat().st_mode & 0o777


def test_one_that_had_its_mode_already_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that was killed just before it got its name, of a source that may not be written."""
    source, destination = interrupt(tmp_path)
    partial = tmp_path / ".copy.aiocp-partial"
    partial.chmod(0o400)
    opened = File.open_kept

    def open_kept(name: bytes, flags: int, *, dir_fd: int) -> File:
        if partial.stat().st_mode & 0o200 == 0:  # as for anybody but root
            raise PermissionError(13, "Permission denied")
        return opened(name, flags, dir_fd=dir_fd)

    monkeypatch.setattr(File, "open_kept", open_kept)
    assert_resumed(copy(source, destination))


def test_the_longest_name(tmp_path: Path) -> None:
    """Its hidden names are cut, and another long name has others."""
    source, destination = tmp_path / "source", tmp_path / ("n" * 255)
    source.write_bytes(CONTENT)

    with pytest.raises(Stopped):
        copy(source, destination, progress=when_kept(tmp_path))
    names = set(os.listdir(tmp_path)) - {"source"}
    assert copy(source, tmp_path / ("n" * 254 + "m")).resumed == 0
    assert copy(source, destination).resumed >= MIB
    assert not names & set(os.listdir(tmp_path))


def test_with_verify_what_was_there_is_compared_too(tmp_path: Path) -> None:
    """A byte that has changed meanwhile is found, and nothing of it is kept."""
    source, destination = interrupt(tmp_path)
    with (tmp_path / ".copy.aiocp-partial").open("r+b") as file:
        file.seek(100 * KIB)
        file.write(b"wrong")
    with pytest.raises(VerificationFailed, match="at offset 65536 are not what was read"):
        copy(source, destination, verify=True)
    assert os.listdir(tmp_path) == ["source"]
    assert copy(source, destination, verify=True).verified


def test_verified_when_resumed(tmp_path: Path) -> None:
    source, destination = interrupt(tmp_path)
    result = copy(source, destination, verify=True)
    assert_resumed(result)
    assert result.verified


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("sparse", ["auto", "always"])
def test_the_checksum_of_one_that_is_resumed(tmp_path: Path, sparse: str, *, verify: bool) -> None:
    """Is that of all of it: what was there is read for it."""
    content = CONTENT[: 2 * MIB] + bytes(MIB) + CONTENT + bytes(MIB)
    source, destination = interrupt(tmp_path, content, sparse=sparse)
    result = copy(source, destination, verify=verify, sparse=sparse, checksum="sha256")
    assert MIB <= result.resumed < result.size
    digest = subprocess.check_output(["sha256sum", destination], text=True).split()[0]
    assert result.checksum == digest
    assert destination.read_bytes() == content


def test_in_asyncio(tmp_path: Path) -> None:
    source, destination = interrupt(tmp_path)
    assert_resumed(
        asyncio.run(aio.copy_file(source, destination, resume=True, block_size=64 * KIB))
    )


def test_cancelled(tmp_path: Path) -> None:
    """What is kept is told."""
    cancel = threading.Event()
    (tmp_path / "source").write_bytes(CONTENT)
    progress = when_kept(tmp_path, cancel.set)
    with pytest.raises(Cancelled, match=r"^[\d,]+ bytes are kept for --resume$"):
        copy(tmp_path / "source", tmp_path / "copy", progress=progress, cancel=cancel)


# --- beginning anew ---


def change_size(source: Path) -> None:
    with source.open("ab") as file:
        file.write(b"more")


def change_content(source: Path) -> None:
    """As far as the times tell."""
    with source.open("r+b") as file:
        file.write(b"other")
    os.utime(source, ns=(1, 1))


def replace(source: Path) -> None:
    status = source.stat()
    (source.parent / "other").write_bytes(CONTENT[::-1])
    (source.parent / "other").rename(source)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [change_size, change_content, replace])
def test_a_changed_source_is_copied_anew_and_that_is_said(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    source, destination = interrupt(tmp_path)
    change(source)
    result = copy(source, destination)
    assert "resume: begun anew, as the source has changed" in result.notes
    assert result.resumed == 0
    assert source.read_bytes() == destination.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["copy", "source"]


def test_a_source_that_changes_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    source, destination = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(CONTENT)

    progress = when_kept(tmp_path, partial(os.utime, source))
    with pytest.raises(OSError, match="changed while being copied"):
        copy(source, destination, progress=progress)
    assert os.listdir(tmp_path) == ["source"]


def lose_journal(directory: Path) -> None:
    (directory / ".copy.aiocp-journal").unlink()


def lose_partial(directory: Path) -> None:
    (directory / ".copy.aiocp-partial").unlink()


def empty_journal(directory: Path) -> None:
    (directory / ".copy.aiocp-journal").write_bytes(b"")


def cut_partial(directory: Path) -> None:
    os.truncate(directory / ".copy.aiocp-partial", MIB // 2)


def other_partial(directory: Path) -> None:
    """Another file under its name."""
    partial = directory / ".copy.aiocp-partial"
    (directory / "other").write_bytes(bytes(9 * MIB))
    (directory / "other").chmod(0o600)
    (directory / "other").rename(partial)


def of_others(name: str) -> Callable[[Path], None]:
    def give_away(directory: Path) -> None:
        os.chown(directory / name, 12345, -1)

    return give_away


def linked(name: str) -> Callable[[Path], None]:
    """Has another name, under which somebody may write to it."""

    def link(directory: Path) -> None:
        (directory.parent / "elsewhere").unlink(missing_ok=True)
        os.link(directory / name, directory.parent / "elsewhere")

    return link


def symbolic(name: str) -> Callable[[Path], None]:
    def link(directory: Path) -> None:
        (directory / name).rename(directory.parent / "elsewhere")
        (directory / name).symlink_to(directory.parent / "elsewhere")

    return link


@pytest.mark.root
@pytest.mark.parametrize(
    "spoil",
    [
        lose_journal,
        lose_partial,
        empty_journal,
        cut_partial,
        other_partial,
        *[how(name) for how in (of_others, linked, symbolic) for name in sorted(LEFT)],
    ],
)
def test_what_is_not_whole_or_not_ours_is_not_gone_on_with(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """Somebody else may have put it there, to choose what the copy is."""
    (tmp_path / "d").mkdir()
    source, destination = interrupt(tmp_path / "d")
    spoil(tmp_path / "d")
    result = copy(source, destination)
    assert result.resumed == 0
    assert destination.read_bytes() == CONTENT
    assert sorted(os.listdir(tmp_path / "d")) == ["copy", "source"]


def test_every_byte_of_a_record_counts(tmp_path: Path) -> None:
    """Whichever is another, the record before it is taken, or none."""
    interrupt(tmp_path)
    journal = tmp_path / ".copy.aiocp-journal"
    whole = journal.read_bytes()
    with File.open(os.fsencode(tmp_path), os.O_RDONLY) as directory:
        latest = Journal(directory, journal.name.encode()).read()
        assert latest is not None
        for at in itertools.chain(range(300), range(4096, 4396)):
            journal.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            found = Journal(directory, journal.name.encode()).read()
            assert found is None or found == latest or found.synced < latest.synced


# --- what is refused, and what cannot be had ---


def test_two_at_once(tmp_path: Path) -> None:
    """The second is refused while the first is under way."""
    source, destination = interrupt(tmp_path)
    with (tmp_path / ".copy.aiocp-partial").open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another copy to it is under way") as raised:
            copy(source, destination)
    assert raised.value.errno == EBUSY
    assert_resumed(copy(source, destination))


def test_two_that_begin_at_once(tmp_path: Path) -> None:
    """The one that comes second is refused, and one that is not to be resumed is not."""
    source, destination = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(CONTENT)
    destination.write_bytes(b"old")
    inner: list[CopyResult] = []

    def another() -> None:
        if not inner:
            with pytest.raises(OSError, match="under way"):
                copy(source, destination)
            inner.append(copy(source, destination, resume=False))

    result = copy(source, destination, progress=when_kept(tmp_path, another))
    assert inner
    assert not result.notes
    assert sorted(os.listdir(tmp_path)) == ["copy", "source"]


def test_no_room_for_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is made all the same, and it is said."""

    tried = []

    def write(self: Journal, record: object) -> None:
        tried.append(record)
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    monkeypatch.setattr(Journal, "write", write)
    (tmp_path / "source").write_bytes(CONTENT)
    progress = when(lambda: bool(tried), lambda: None)
    result = copy(tmp_path / "source", tmp_path / "copy", progress=progress)
    assert len(tried) == 1
    assert any("resume: nothing was kept meanwhile: keep what is" in note for note in result.notes)
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert sorted(os.listdir(tmp_path)) == ["copy", "source"]


def test_what_is_written_in_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    (tmp_path / "copy").write_bytes(b"old")
    os.link(tmp_path / "copy", tmp_path / "other")
    with pytest.raises(OSError, match="resume: it is written in place"):
        copy(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"old"


@pytest.mark.root
def test_a_device_is_refused(tmp_path: Path) -> None:
    """Nothing tells whether it changed."""
    with (
        loop_device(sparse_file(tmp_path / "image", MIB)) as device,
        pytest.raises(OSError, match="resume: only files tell whether they changed"),
    ):
        copy(device, tmp_path / "copy")


@pytest.mark.parametrize("how", [{"sync": False}, {"in_place": True}])
def test_what_does_not_go_with_it(tmp_path: Path, how: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="resume"):
        copy(tmp_path / "source", tmp_path / "copy", **how)


def test_small_files_and_clones_keep_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"small")
    copy(tmp_path / "source", tmp_path / "copy")
    assert sorted(os.listdir(tmp_path)) == ["copy", "source"]


def test_a_copy_that_is_not_to_be_resumed_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(CONTENT)

    def progress(done: int, total: int) -> None:
        assert set(os.listdir(tmp_path)) <= {"source"}
        if done == total:
            raise Stopped

    with pytest.raises(Stopped):
        copy(tmp_path / "source", tmp_path / "copy", resume=False, progress=progress)
    assert os.listdir(tmp_path) == ["source"]


# --- trees ---


def test_a_tree_is_gone_on_with(tmp_path: Path) -> None:
    """What is finished is left alone, large files go on, and the rest is copied."""
    source, destination = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    for i in range(100):
        (source / f"small{i}").write_bytes(b"%d" % i)
    (source / "large").write_bytes(CONTENT)
    how: dict[str, Any] = {"resume": True, "depth": 4, "block_size": 64 * KIB, "reflink": "never"}
    with pytest.raises(Stopped):
        copy_tree(source, destination, progress=when_kept(destination), **how)
    there = {path.name: path.stat().st_ino for path in destination.iterdir()}
    assert {".large.aiocp-partial", ".large.aiocp-journal"} <= set(there)
    skipped = []

    def on_entry(outcome: Any) -> None:
        if outcome.method == "skipped":
            skipped.append(Path(outcome.destination).name)

    copy_tree(source, destination, on_entry=on_entry, **how)
    assert set(skipped) == set(there) - {".large.aiocp-partial", ".large.aiocp-journal"}
    assert (destination / "large").stat().st_ino == there[".large.aiocp-partial"]
    assert subprocess.run(["diff", "-r", source, destination]).returncode == 0


@pytest.mark.parametrize("verify", [False, True])
def test_the_checksum_of_a_file_of_a_tree_that_is_resumed(tmp_path: Path, *, verify: bool) -> None:
    """What is left alone, as it is finished, has none."""
    source, destination = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    (source / "large").write_bytes(CONTENT)
    (source / "small").write_bytes(CONTENT[:5])
    how: dict[str, Any] = {"resume": True, "depth": 4, "block_size": 64 * KIB, "reflink": "never"}
    with pytest.raises(Stopped):
        copy_tree(source, destination, progress=when_kept(destination), **how)
    inode = (destination / ".large.aiocp-partial").stat().st_ino
    sums: dict[str, str | None] = {}

    def on_entry(outcome: Any) -> None:
        if outcome.method not in ("directory", "skipped"):
            sums[outcome.destination] = outcome.checksum

    copy_tree(source, destination, checksum="sha256", verify=verify, on_entry=on_entry, **how)
    assert (destination / "large").stat().st_ino == inode
    for name in {str(destination / "large"), *sums}:
        digest = subprocess.check_output(["sha256sum", name], text=True).split()[0]
        assert sums[name] == digest
    assert subprocess.run(["diff", "-r", source, destination]).returncode == 0


def test_what_changed_since_it_was_finished_is_copied_again(tmp_path: Path) -> None:
    source, destination = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    for name in ("same", "longer", "later"):
        (source / name).write_bytes(b"old")
    copy_tree(source, destination, resume=True)
    (source / "longer").write_bytes(b"longer")
    (source / "later").write_bytes(b"new")
    os.utime(source / "later", ns=(2**62, 2**62))
    os.utime(destination / "longer", ns=(2**62, 2**62))
    inode = (destination / "same").stat().st_ino
    copy_tree(source, destination, resume=True)
    assert inode == (destination / "same").stat().st_ino
    assert subprocess.run(["diff", "-r", source, destination]).returncode == 0


# --- the command ---


def test_the_command_is_stopped_and_goes_on(tmp_path: Path) -> None:
    """What is kept is said, and no more of it is written than is missing."""
    source, destination = sparse_file(tmp_path / "source", 1024 * MIB), tmp_path / "copy"
    slowly = ["--sparse=never", "--reflink=never", "--depth=1", "--block-size=4096"]
    with command("--resume", *slowly, source, destination) as process:
        wait_for(process, re.escape(f"{tmp_path}/.copy.aiocp-journal"))
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = re.fullmatch(
        rf"aiocp: stopped by SIGINT: '{source}' was not copied;"
        r" ([\d,]+) bytes are kept for --resume\n",
        error,
    )
    assert kept
    done = run("--resume", "--json", source, destination)
    assert (0, "") == (done.returncode, done.stderr)
    whole_blocks = int(kept[1].replace(",", "")) // MIB * MIB
    assert f'"resumed": {whole_blocks}, ' in done.stdout
    assert subprocess.run(["cmp", source, destination]).returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["copy", "source"]
    again = run("--resume", "--debug", source, destination)
    assert (0, f"skipped '{destination}'\n") == (again.returncode, again.stdout)


def test_the_command_says_that_it_begins_anew(tmp_path: Path) -> None:
    source, destination = interrupt(tmp_path)
    change_content(source)
    done = run("--resume", source, destination)
    assert (0, "") == (done.returncode, done.stdout)
    words = "resume: begun anew, as the source has changed"
    assert done.stderr == f"aiocp: warning: '{destination}': {words}\n"


@pytest.mark.parametrize("option", ["--no-sync", "--in-place"])
def test_options_that_exclude_it(option: str) -> None:
    done = run("--resume", option, "a", "b")
    assert done.returncode == 2
    assert "--resume excludes --no-sync and --in-place" in done.stderr


def test_before_there_is_something_to_keep_nothing_is_named(tmp_path: Path) -> None:
    """A SIGKILL leaves nothing of the first seconds."""
    source = sparse_file(tmp_path / "source", 4096 * MIB)
    (tmp_path / "to").mkdir()
    slowly = ["--sparse=never", "--reflink=never", "--depth=1", "--block-size=4096"]
    with command("--resume", *slowly, source, tmp_path / "to") as process:
        wait_for(process, unnamed_in(tmp_path / "to"))
    assert os.listdir(tmp_path / "to") == []
