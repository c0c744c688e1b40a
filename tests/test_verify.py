"""What --verify sees, and what it keeps from being put in place."""

import errno
import json
import mmap
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aiocp import VerificationFailed, copy_file, copy_tree, direct
from aiocp.extents import Sparse
from aiocp.linux import cached_bytes
from aiocp.verify import Digests, Verification
from filesystems import loop_device, make_filesystem, mount, run, scratch_directory, sparse_file

KIB, MIB = 1 << 10, 1 << 20
CONTENT = random.Random(7).randbytes(3 * MIB + 777)
MARK = CONTENT[MIB + 100 * KIB :][:32]  # somewhere in the second MiB


class Disk(NamedTuple):
    image: Path
    directory: Path

    def flip(self, mark: bytes) -> None:
        """Change a byte of what is on the medium, behind the file system's back: each time that the
        mark is found there."""
        with (
            self.image.open("r+b") as file,
            mmap.mmap(file.fileno(), 0) as whole,
        ):
            at = whole.find(mark)
            assert at >= 0, "it is not on the medium"
            while at >= 0:
                whole[at] ^= 1
                at = whole.find(mark, at)


@contextmanager
def disk(fstype: str) -> Iterator[Disk]:
    with scratch_directory() as scratch:
        (scratch / "mnt").mkdir()
        image = sparse_file(scratch / "image", 512 * MIB)
        with loop_device(image) as device:
            make_filesystem(fstype, device)
            with mount(device, scratch / "mnt"):
                yield Disk(image, scratch / "mnt")


@pytest.fixture
def before_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Have something done between the sync of a copy and its reading."""

    def do(act: Callable[[], object]) -> None:
        opened = Verification.__init__

        def act_and_open(self: Verification, *arguments: Any) -> None:
            act()
            opened(self, *arguments)

        monkeypatch.setattr(Verification, "__init__", act_and_open)

    return do


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aiocp", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )


# --- what is right -------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", ["auto", "always", "never"])
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 100 * KIB, MIB, MIB + 1, len(CONTENT)])
def test_a_right_copy_is_put_in_place(tmp_path: Path, size: int, sparse: Sparse) -> None:
    """Small and large, with blocks of zeroes and a hole."""
    content = bytearray(CONTENT[:size])
    content[8 * KIB : 20 * KIB] = bytes(len(content[8 * KIB : 20 * KIB]))
    (tmp_path / "source").write_bytes(content)
    os.truncate(tmp_path / "source", size + MIB)
    result = copy_file(
        tmp_path / "source", tmp_path / "copy", verify=True, sparse=sparse, block_size=64 * KIB
    )
    assert result.verified
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "source").read_bytes()


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_every_file_system(mount_point: Callable[[str], Path], fstype: str) -> None:
    """By direct I/O where there is any, which leaves nothing in memory."""
    source, copy = mount_point(fstype) / "verify source", mount_point(fstype) / "verify copy"
    source.write_bytes(CONTENT)
    result = copy_file(source, copy, verify=True, reflink="never")
    assert result.verified
    assert copy.read_bytes() == CONTENT
    copy.unlink()
    copy_file(source, copy, verify=True, reflink="never")
    with copy.open("rb") as file:
        if fstype != "tmpfs":
            assert cached_bytes(file.fileno(), 0, 0)[0] <= 4 * KIB  # its end was cut
    source.unlink()
    copy.unlink()


def test_a_note_says_that_memory_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system takes no direct I/O."""
    (tmp_path / "source").write_bytes(CONTENT)
    monkeypatch.setattr(direct, "switch_on", lambda *_: 0)
    result = copy_file(tmp_path / "source", tmp_path / "copy", verify=True, reflink="never")
    assert "verified by buffered reads: the copy takes no direct I/O" in result.notes


@pytest.mark.parametrize("fstype", ["xfs", "btrfs"])
def test_what_is_shared_is_read_as_well(mount_point: Callable[[str], Path], fstype: str) -> None:
    top = mount_point(fstype) / "shared"
    (top / "tree").mkdir(parents=True)
    (top / "tree" / "file").write_bytes(CONTENT)
    result = copy_file(top / "tree" / "file", top / "copy", verify=True)
    assert (result.method, result.verified) == ("reflink", True)
    copied = copy_tree(top / "tree", top / "tree copy", verify=True)
    assert (copied.reflinked, copied.verified) == (1, True)
    assert copied.peak_in_flight > 0  # it was read


def test_a_stream_into_a_file(tmp_path: Path) -> None:
    """In pieces of any size."""
    os.mkfifo(tmp_path / "fifo")

    def write() -> None:
        rng = random.Random(3)
        with (tmp_path / "fifo").open("wb", buffering=0) as fifo:
            done = 0
            while done < len(CONTENT):
                done += fifo.write(CONTENT[done : done + rng.randint(1, 90 * KIB)])

    writer = threading.Thread(target=write)
    writer.start()
    result = copy_file(tmp_path / "fifo", tmp_path / "copy", verify=True, block_size=128 * KIB)
    writer.join()
    assert (result.method, result.verified) == ("stream", True)
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_a_tree_of_everything(tmp_path: Path) -> None:
    """By the command; with holes, hard links, what is read to its end, over what is there."""
    tree, copy = tmp_path / "tree", tmp_path / "copy"
    (tree / "below").mkdir(parents=True)
    for number in range(50):
        (tree / "below" / f"file{number}").write_bytes(CONTENT[: number * 5000])
    with (tree / "holes").open("wb") as file:
        file.seek(3 * MIB)
        file.write(CONTENT)
    os.link(tree / "holes", tree / "other name")
    os.mkfifo(tree / "fifo")
    writer = threading.Thread(target=(tree / "fifo").write_bytes, args=(CONTENT,))
    writer.start()
    arguments = ("-r", "--preserve=links", "--copy-contents", "--verify", "--json", tree, copy)
    done = command(*arguments)
    writer.join()
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[-1])["verified"]
    assert (copy / "fifo").read_bytes() == CONTENT
    assert (copy / "holes").samefile(copy / "other name")
    (copy / "fifo").unlink()
    (tree / "fifo").unlink()
    done = command("-r", "--preserve=links", "--verify", "--sparse=always", "-T", tree, copy)
    assert (done.returncode, done.stderr) == (0, "")
    assert subprocess.call(["diff", "-r", tree, copy]) == 0


def test_debug_says_it(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    done = command("--verify", "--debug", tmp_path / "source", tmp_path / "copy")
    assert " in flight, synced, verified" in done.stderr
    done = command("--debug", tmp_path / "source", tmp_path / "copy")
    assert "verified" not in done.stderr


def test_what_cannot_be_read_back_is_refused(tmp_path: Path) -> None:
    """A pipe, and what is not on the disk."""
    (tmp_path / "source").write_bytes(CONTENT)
    with pytest.raises(ValueError, match="verify reads what is on the disk"):
        copy_file(tmp_path / "source", tmp_path / "copy", verify=True, sync=False)
    done = command("--verify", "--no-sync", tmp_path / "source", tmp_path / "copy")
    assert done.returncode == 2
    assert "--verify reads what is on the disk: it excludes --no-sync" in done.stderr
    with pytest.raises(OSError, match="verify: a stream cannot be read back"):
        copy_file(tmp_path / "source", "/dev/null", verify=True)


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("small", [False, True], ids=["large", "small"])
def test_a_byte_that_changed_on_the_medium(
    fstype: str, small: bool, tmp_path: Path, before_reading: Callable[..., None]
) -> None:
    """It is seen, by us or by the file system; the old file is still there."""
    content = CONTENT[MIB + 90 * KIB :][: 100 * KIB] if small else CONTENT
    (tmp_path / "source").write_bytes(content)
    with disk(fstype) as target:
        copy = target.directory / "copy"
        copy.write_bytes(b"old")
        run("sync", "--file-system", copy)
        before_reading(lambda: target.flip(MARK))
        with pytest.raises(VerificationFailed, match="verify: ") as raised:
            copy_file(tmp_path / "source", copy, verify=True)
        assert raised.value.errno == (errno.EIO if fstype == "btrfs" else errno.EBADMSG)
        at = 0 if small else MIB
        assert f"at offset {at}" in str(raised.value) or fstype == "btrfs"
        assert raised.value.filename2 == str(copy)
        assert os.listdir(target.directory) == ["copy"] or fstype == "ext4"
        assert copy.read_bytes() == b"old"


@pytest.mark.root
def test_a_file_of_a_tree_that_changed_on_the_medium(
    tmp_path: Path, before_reading: Callable[..., None]
) -> None:
    """It alone is missing."""
    (tmp_path / "tree").mkdir()
    for number in range(20):
        (tmp_path / "tree" / f"file{number}").write_bytes(random.Random(number).randbytes(9000))
    (tmp_path / "tree" / "large").write_bytes(CONTENT)
    with disk("ext4") as target:
        flipped: list[bool] = []

        def flip() -> None:
            with (
                open(target.image, "rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole,
            ):
                there = whole.find(MARK) >= 0
            if there and not flipped:
                target.flip(MARK)
                flipped.append(True)

        before_reading(flip)
        errors: list[OSError] = []
        copy = target.directory / "copy"
        result = copy_tree(tmp_path / "tree", copy, verify=True, on_error=errors.append)
        (error,) = errors
        assert isinstance(error, VerificationFailed)
        assert error.filename2 == str(copy / "large")
        assert result.files == 20
        assert sorted(os.listdir(copy)) == sorted(f"file{number}" for number in range(20))


@pytest.mark.parametrize("how", ["bytes", "size", "hole"])
def test_a_copy_that_is_written_to_meanwhile(
    tmp_path: Path, how: str, before_reading: Callable[..., None]
) -> None:
    """In place, so that it can be: other bytes, more of them, some where there is a hole."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(CONTENT)
    os.truncate(source, 8 * MIB)
    copy.write_bytes(b"old")

    def change() -> None:
        with copy.open("r+b") as file:
            file.seek({"bytes": 5000, "size": 8 * MIB, "hole": 6 * MIB}[how])
            file.write(b"changed")

    before_reading(change)
    words = {
        "bytes": "verify: 1048576 bytes at offset 0 are not what was read; written in place, it is",
        "size": "verify: it has 8388615 bytes, not 8388608",
        "hole": "verify: there is data where the source has a hole, at offset 62",
    }[how]
    with pytest.raises(VerificationFailed, match=words):
        copy_file(source, copy, verify=True, in_place=True)


@pytest.mark.root
def test_a_device(before_reading: Callable[..., None]) -> None:
    """Its own bytes behind the copy's are no matter."""
    with scratch_directory() as scratch:
        (scratch / "source").write_bytes(CONTENT)
        backing = scratch / "backing"
        backing.write_bytes(b"x" * (4 * MIB))
        with loop_device(backing) as device:
            assert copy_file(scratch / "source", device, verify=True).verified
            assert backing.read_bytes()[: len(CONTENT)] == CONTENT

            def change() -> None:
                with backing.open("r+b") as file:
                    file.seek(2 * MIB + 5)
                    file.write(b"changed")

            before_reading(change)
            with pytest.raises(VerificationFailed, match=f"at offset {2 * MIB} are not what"):
                copy_file(scratch / "source", device, verify=True)


def test_the_exit_status_is_its_own(tmp_path: Path) -> None:
    """3, also where another operand has failed for another reason."""
    program = (
        "import os, sys\n"
        "from aiocp import cli, verify\n"
        "saw = verify.Verification.saw\n"
        "verify.Verification.saw = lambda self, at, block: saw(self, at, block[:-1])\n"
        "sys.exit(cli.run(sys.argv[1:]))\n"
    )
    (tmp_path / "source").write_bytes(CONTENT)
    (tmp_path / "to").mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-c", program, "--verify", "--reflink=never"),
            *(tmp_path / "source", tmp_path / "missing", tmp_path / "to"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3
    first, second = done.stderr.splitlines()
    assert first.startswith(f"aiocp: cannot copy '{tmp_path}/source' to '{tmp_path}/to/source': ")
    assert "verify: " in first
    assert "No such file" in second
    assert os.listdir(tmp_path / "to") == []


# --- digests -------------------------------------------------------------------------------------


def test_a_streams_digests_are_those_of_its_blocks() -> None:
    """However it comes."""
    rng = random.Random(5)
    for size in (0, 1, 4095, 4096, 4097, 8192, 50_000):
        content = memoryview(CONTENT)[:size]
        blocks, stream = Digests(4096), Digests(4096)
        for at in range(0, size, 4096):
            blocks.add(at, content[at : at + 4096])
        at = 0
        while at < size:
            count = rng.randint(1, 9000)
            stream.feed(content[at : at + count])
            at += count
        stream.end(size)
        assert len(blocks) == len(stream) == -(-size // 4096)
        assert [blocks.block(i) for i in range(len(blocks))] == [
            stream.block(i) for i in range(len(stream))
        ]


def test_what_no_block_covers() -> None:
    digests = Digests(4096)
    for at, length in ((8192, 4096), (0, 4096), (20480, 100)):
        digests.add(at, memoryview(bytes(length)))
    assert list(digests.between(30_000)) == [(4096, 4096), (12288, 8192), (20580, 9420)]
    assert list(Digests(4096).between(0)) == []
    assert list(Digests(4096).between(5)) == [(0, 5)]
