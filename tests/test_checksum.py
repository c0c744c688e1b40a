"""The digest of what is copied, as the system's tools tell it of the copy."""

import asyncio
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aiocp import Cancelled, Outcome, SourceChanged, aio, copy_file, copy_tree
from aiocp.checksum import Checksum, line
from aiocp.direct import Direct
from aiocp.extents import Sparse
from aiocp.transfer import FileTransfer
from filesystems import loop_device, scratch_directory, unavailable

if TYPE_CHECKING:
    from aiocp.checksum import Algorithm

KIB, MIB = 1 << 10, 1 << 20
CONTENT = random.Random(11).randbytes(9 * MIB + 777)
TOOLS = {"sha256": "sha256sum", "blake2b": "b2sum", "xxh128": "xxh128sum"}
ALGORITHMS: list["Algorithm"] = ["sha256", "blake2b", "xxh128"]


def by_tool(path: Path, algorithm: str = "sha256") -> str:
    """The digest of a file."""
    if shutil.which(TOOLS[algorithm]) is None:
        unavailable(f"{TOOLS[algorithm]} is not installed")
    with path.open("rb") as file:
        return subprocess.check_output([TOOLS[algorithm]], stdin=file, text=True).split()[0]


def assert_checked(source: Path, copy: Path, **how: Any) -> None:
    """Its digest is that of the copy, and the copy that of the source."""
    algorithm = how.setdefault("checksum", "sha256")
    result = copy_file(source, copy, **how)
    assert by_tool(copy, algorithm) == result.checksum
    assert subprocess.call(["cmp", source, copy]) == 0


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 256 * KIB, 256 * KIB + 1, MIB, len(CONTENT)])
def test_it_is_what_the_tool_says(tmp_path: Path, algorithm: "Algorithm", size: int) -> None:
    (tmp_path / "source").write_bytes(CONTENT[:size])
    assert_checked(tmp_path / "source", tmp_path / "copy", checksum=algorithm)


@pytest.mark.parametrize("depth", [1, 2, 64])
@pytest.mark.parametrize("direct", ["auto", "never"])
@pytest.mark.parametrize("verify", [False, True])
def test_at_any_depth(tmp_path: Path, depth: int, direct: Direct, *, verify: bool) -> None:
    """From the disk and from memory, over what is there, compared and not."""
    (tmp_path / "source").write_bytes(CONTENT)
    for in_memory in (False, True):
        with (tmp_path / "source").open("rb") as file:
            os.fsync(file.fileno())
            if not in_memory:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert_checked(
            tmp_path / "source",
            tmp_path / "copy",
            depth=depth,
            direct=direct,
            verify=verify,
            block_size=64 * KIB,
            reflink="never",
        )


def test_at_a_rate(tmp_path: Path) -> None:
    """Blocks that wait for their turns, and for the pace; awaited, too."""
    (tmp_path / "source").write_bytes(CONTENT)
    how: dict[str, Any] = {"reflink": "never", "bwlimit": 64 * MIB, "block_size": 64 * KIB}
    assert_checked(tmp_path / "source", tmp_path / "copy", **how)
    names = tmp_path / "source", tmp_path / "copy"
    result = asyncio.run(aio.copy_file(*names, checksum="sha256", **how))
    assert result.checksum == by_tool(tmp_path / "copy")


@pytest.mark.parametrize("sparse", ["auto", "always", "never"])
@pytest.mark.parametrize("data", [(), (0,), (5,), (20,), (0, 3, 7, 20)])
def test_holes_are_zeroes(tmp_path: Path, data: tuple[int, ...], sparse: Sparse) -> None:
    """At the beginning, between, at the end, everywhere; and zeroes that were written are."""
    with (tmp_path / "source").open("wb") as file:
        for at in data:
            file.seek(at * MIB)
            file.write(CONTENT[: 300 * KIB + 5] + bytes(500 * KIB) + CONTENT[:9])
        file.truncate(21 * MIB + 77)
    assert_checked(tmp_path / "source", tmp_path / "copy", sparse=sparse, reflink="never")


def test_every_file_system(filesystem: Path) -> None:
    """A clone is read for it, also one in place of the old bytes, with --verify and without."""
    source, copy = filesystem / "source", filesystem / "copy"
    source.write_bytes(CONTENT)
    os.truncate(source, 20 * MIB)
    for how in ({}, {"verify": True}, {"in_place": True}, {"reflink": "never"}):
        assert_checked(source, copy, **how)


@pytest.mark.parametrize("fstype", ["xfs", "btrfs"])
def test_that_of_a_clone_is_the_clones(
    mount_point: Callable[[str], Path], fstype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of its source, if that may change."""
    top = mount_point(fstype) / "checksum"
    (top / "tree").mkdir(parents=True)
    (top / "tree" / "file").write_bytes(CONTENT)
    begin = FileTransfer.reading

    def change_and_begin(self: FileTransfer, block_size: int) -> Any:
        with (top / "tree" / "file").open("r+b") as file:
            file.seek(random.randrange(MIB))
            file.write(b"changed")
        return begin(self, block_size)

    monkeypatch.setattr(FileTransfer, "reading", change_and_begin)
    result = copy_file(top / "tree" / "file", top / "c", checksum="sha256", allow_changed=True)
    assert (result.method, result.checksum) == ("reflink", by_tool(top / "c"))
    told: list[Outcome] = []
    copy_tree(
        top / "tree",
        top / "tree copy",
        checksum="sha256",
        allow_changed=True,
        on_entry=told.append,
    )
    assert told[-1].checksum == by_tool(top / "tree copy" / "file")
    assert told[-1].method == "reflink"
    shutil.rmtree(top)


@pytest.mark.parametrize("sparse", ["auto", "always"])
def test_a_stream(tmp_path: Path, sparse: Sparse) -> None:
    os.mkfifo(tmp_path / "fifo")
    content = CONTENT + bytes(MIB) + CONTENT[:5]
    writer = threading.Thread(target=(tmp_path / "fifo").write_bytes, args=(content,))
    writer.start()
    result = copy_file(tmp_path / "fifo", tmp_path / "copy", checksum="sha256", sparse=sparse)
    writer.join()
    assert (result.method, result.checksum) == ("stream", by_tool(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == content


def test_a_file_whose_size_is_not_told(tmp_path: Path) -> None:
    result = copy_file("/proc/self/mountinfo", tmp_path / "copy", checksum="sha256", verify=True)
    assert (result.method, result.checksum) == ("stream", by_tool(tmp_path / "copy"))


@pytest.mark.root
def test_a_device() -> None:
    """Of the image that is written to it, and of all there is on it."""
    with scratch_directory() as scratch:
        (scratch / "source").write_bytes(CONTENT)
        os.truncate(scratch / "source", 12 * MIB)  # the hole is punched
        (scratch / "backing").write_bytes(b"x" * (16 * MIB))
        with loop_device(scratch / "backing") as device:
            result = copy_file(scratch / "source", device, checksum="sha256")
            assert result.checksum == by_tool(scratch / "source")
            result = copy_file(device, scratch / "copy", checksum="sha256")
        assert result.checksum == by_tool(scratch / "backing") == by_tool(scratch / "copy")


@pytest.mark.parametrize("how", ["grows", "shrinks"])
def test_a_source_that_changes(tmp_path: Path, how: str) -> None:
    """A digest is that of the bytes which are in the copy, or there is no copy."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(CONTENT)

    def change(*_: object) -> None:
        if how == "shrinks":
            os.truncate(source, 6 * MIB)
        else:
            with source.open("ab") as file:
                file.write(b"more")

    arguments: dict[str, Any] = {"checksum": "sha256", "depth": 1, "reflink": "never"}
    if how == "grows":
        result = copy_file(source, copy, progress=change, allow_changed=True, **arguments)
        assert (result.size, result.checksum) == (len(CONTENT), by_tool(copy))
    else:
        with pytest.raises(SourceChanged):
            copy_file(source, copy, progress=change, allow_changed=True, **arguments)
        assert not copy.exists()


def test_a_hole_without_end_can_be_left(tmp_path: Path) -> None:
    """A hole of 1 TiB takes minutes to digest; to cancel that does not."""
    with (tmp_path / "source").open("wb") as file:
        file.truncate(1 << 40)

    class Soon:
        looks = 0

        def is_set(self) -> bool:
            self.looks += 1
            return self.looks > 100

    with pytest.raises(Cancelled):
        copy_file(tmp_path / "source", tmp_path / "copy", checksum="xxh128", cancel=Soon())
    assert os.listdir(tmp_path) == ["source"]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    wrong: list[dict[str, Any]] = [
        {"checksum": "md5"},
        {"checksum": "sha256", "attributes_only": True},
        {"checksum": "sha256", "link": "hard"},
    ]
    for how in wrong:
        for copy in (copy_file, copy_tree):
            with pytest.raises(ValueError, match="checksum"):
                copy(tmp_path / "source", tmp_path / "copy", **how)
    assert os.listdir(tmp_path) == ["source"]
    assert copy_file(tmp_path / "source", tmp_path / "copy").checksum is None


# --- awaited -------------------------------------------------------------------------------------


def test_copies_that_are_awaited(tmp_path: Path) -> None:
    """Many at once; with a hole, which is digested in a thread."""
    rng = random.Random(3)
    for number in range(30):
        (tmp_path / f"{number}").write_bytes(CONTENT[: rng.randrange(len(CONTENT))])
    os.truncate(tmp_path / "7", 15 * MIB)

    async def copy() -> None:
        results = await asyncio.gather(
            *(
                aio.copy_file(tmp_path / f"{i}", tmp_path / f"copy{i}", depth=8, checksum="sha256")
                for i in range(30)
            )
        )
        for number, result in enumerate(results):
            assert result.checksum == by_tool(tmp_path / f"copy{number}")
            assert result.checksum == by_tool(tmp_path / f"{number}")

    asyncio.run(copy())


def test_a_copy_that_is_cancelled_when_blocks_have_their_turns(tmp_path: Path) -> None:
    """Nothing is left of it, and the others in the same context are whole."""
    for name in ("one", "other"):
        (tmp_path / name).write_bytes(CONTENT)

    async def copy(number: int) -> None:
        blocks = iter(range(number))

        def count(*_: object) -> None:
            if next(blocks, None) is None:
                one.cancel()

        how: dict[str, Any] = {"checksum": "sha256", "block_size": 64 * KIB, "reflink": "never"}
        to = tmp_path / "copy"
        one = asyncio.create_task(
            aio.copy_file(tmp_path / "one", tmp_path / "gone", progress=count, **how)
        )
        other = asyncio.create_task(aio.copy_file(tmp_path / "other", to, **how))
        with pytest.raises(asyncio.CancelledError):
            await one
        assert (await other).checksum == by_tool(to)

    for number in (0, 1):  # of 145 blocks at most 64 are told of at once
        asyncio.run(copy(number))
        assert sorted(os.listdir(tmp_path)) == ["copy", "one", "other"]


# --- trees ---------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Small files and large ones, holes, several names, odd names, links."""
    top = tmp_path / "tree"
    (top / "below").mkdir(parents=True)
    for number in range(60):
        (top / "below" / f"{number}").write_bytes(CONTENT[: number * 1000])
    (top / "large").write_bytes(CONTENT)
    (top / "holes").write_bytes(CONTENT[:MIB])
    os.truncate(top / "holes", 8 * MIB)
    os.link(top / "large", top / "other name")
    os.link(top / "below" / "7", top / "seven")
    os.symlink("large", top / "link")
    for name in (b"new\nline", b"back\\slash", b"return\r", b"\xff\xfe", b" ", b"-"):
        (Path(os.fsdecode(os.fsencode(top) + b"/" + name))).write_bytes(name)
    return top


@pytest.mark.parametrize("depth", [1, 64])
@pytest.mark.parametrize("verify", [False, True])
def test_every_file_of_a_tree(tree: Path, tmp_path: Path, depth: int, *, verify: bool) -> None:
    """Whether copied or linked; what has no contents has none."""
    told: list[Outcome] = []
    copy_tree(
        tree,
        tmp_path / "copy",
        depth=depth,
        block_size=64 * KIB,
        checksum="sha256",
        verify=verify,
        preserve=["links"],
        on_entry=told.append,
    )
    assert subprocess.call(["diff", "-r", tree, tmp_path / "copy"]) == 0
    assert len(told) == 60 + 4 + 6 + 1 + 2  # files, names, odd ones, a link, directories
    for outcome in told:
        copy = Path(outcome.destination)
        if copy.is_symlink() or copy.is_dir():
            assert outcome.checksum is None
        else:
            assert outcome.checksum == by_tool(copy)


def test_what_is_read_to_its_end_in_a_tree(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    os.mkfifo(tmp_path / "tree" / "fifo")
    writer = threading.Thread(target=(tmp_path / "tree" / "fifo").write_bytes, args=(CONTENT,))
    writer.start()
    told: list[Outcome] = []
    copy = tmp_path / "copy"
    copy_tree(tmp_path / "tree", copy, checksum="sha256", copy_contents=True, on_entry=told.append)
    writer.join()
    assert told[-1].checksum == by_tool(copy / "fifo")
    assert (copy / "fifo").read_bytes() == CONTENT


# --- a digest, a line ----------------------------------------------------------------------------


def _pieces(rng: random.Random) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(CONTENT):
        at += rng.choice([0, 1, 4096, 600 * KIB])
        count = rng.randint(1, MIB)
        yield at, min(count, max(0, len(CONTENT) - at))
        at += count


def test_what_was_not_read_is_zeroes(tmp_path: Path) -> None:
    for seed in range(5):
        digest, expected = Checksum("xxh128"), bytearray(len(CONTENT) + MIB)
        for at, count in _pieces(random.Random(seed)):
            digest.add(at, memoryview(CONTENT)[at : at + count])
            expected[at : at + count] = CONTENT[at : at + count]
        digest.end(len(expected))
        (tmp_path / "expected").write_bytes(expected)
        assert digest.hex() == by_tool(tmp_path / "expected", "xxh128")


@pytest.mark.parametrize(
    "name",
    [b"a", b"a b", b"new\nline", b"back\\slash", b"re\rturn", b"\\n\\", b"\xff", b" x", b"*"],
)
def test_a_line_is_what_the_tool_prints(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    Path(os.fsdecode(path)).write_bytes(b"x")
    printed = subprocess.check_output(["sha256sum", name], cwd=tmp_path)
    assert line(by_tool(Path(os.fsdecode(path))), os.fsdecode(name)) == printed


def test_a_file_called_dash_is_no_standard_input(tmp_path: Path) -> None:
    (tmp_path / "-").write_bytes(b"x")
    (tmp_path / "sums").write_bytes(line(by_tool(tmp_path / "-"), "-"))
    done = subprocess.run(["sha256sum", "-c", "sums"], cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert done.returncode == 0
