"""Holes: kept, made of zeroes, or not wanted; on every file system, as cp makes them."""

import errno
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aiocp
from aiocp import copy_file, copy_tree, extents
from aiocp.engine import Engine, Extent, Step, Sync
from aiocp.extents import Sparse
from aiocp.slots import Slots
from crash import WAYS, after_return, at_random_moments, kills
from fakes import File, FileTransfer, Operation, Script, ScriptedContext
from faults import Copy, in_child, inject, refuse, trace
from filesystems import loop_device, mounted, run, scratch_directory
from test_full_disk import filler

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
PAGE = 4 * KIB
AIOCP = [sys.executable, "-m", "aiocp"]
SPARSE: tuple[Sparse, ...] = get_args(Sparse)

# pages: "d" is data, "0" written zeroes, "." a hole
Layout = str


def make(path: Path, layout: Layout, cut: int = 0, page: int = PAGE) -> Path:
    """Make a file of pages, the last one cut by so many bytes, and have it on the disk."""
    rng = random.Random(len(layout))
    with path.open("wb", buffering=0) as file:
        file.truncate(len(layout) * page - cut)
        for at, kind in enumerate(layout):
            content = {"d": rng.randbytes(page), "0": bytes(page), ".": b""}[kind]
            last = at == len(layout) - 1
            os.pwrite(file.fileno(), content[: page - cut] if last else content, at * page)
        os.fsync(file.fileno())
    return path


def assert_same(source: Path, copy: Path) -> None:
    subprocess.run(["cmp", source, copy], check=True)


def data_of(path: Path) -> list[Extent]:
    """Where the kernel says that data is, in a file that is on the disk."""
    found: list[Extent] = []
    at = 0
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while True:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return found
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, at - start))


def data_bytes(path: Path) -> int:
    return sum(length for _, length in data_of(path))


def within(inner: list[Extent], outer: list[Extent]) -> bool:
    """Whether all that some extents hold is in others."""
    return all(
        any(start <= at and at + count <= start + length for start, length in outer)
        for at, count in inner
    )


# --- finding zeroes ------------------------------------------------------------------------------


@given(
    runs=st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=8),
    start=st.integers(0, 200),
    unit=st.sampled_from([1, 3, 64, 100, 4096]),
    zero=st.integers(0, 1),
)
def test_skip_is_right_to_the_byte(
    runs: list[tuple[int, bool]], start: int, unit: int, zero: int
) -> None:
    """Any bytes, alignment and unit: as a search byte by byte finds it."""
    block = b"".join((b"\0" if empty else b"\x80") * length for length, empty in runs)
    start = min(start, len(block))
    slots = Slots()
    slots.resize(2, 4096)
    slots.buffer(1)[:] = b"\xff" * 4096
    slots.buffer(1, 0, len(block))[:] = block
    expected = start
    while expected < len(block):
        piece = block[expected : min(expected + unit, len(block))]
        if (not any(piece)) != zero:
            break
        expected += len(piece)
    assert expected == slots.skip(1, start, len(block), unit, zero)
    slots.close()


@pytest.mark.parametrize("at", [0, 1, 7, 8, 63, 64, 100, 4031, 4032, 4094, 4095])
def test_one_bit_is_found_anywhere(at: int) -> None:
    slots = Slots()
    slots.resize(1, 8192)
    slots.buffer(0)[:] = bytes(8192)
    for bit in range(8):
        slots.buffer(0, at, 1)[:] = bytes([1 << bit])
        assert (0, 4096) == (slots.skip(0, 0, 8192, 4096, 1), slots.skip(0, 0, 8192, 4096, 0))
    slots.close()


class Short(Script):
    """Moves some of what it is asked for, if direct in whole units; completes in any order."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def completes(self, in_flight: list[Operation]) -> list[Operation]:
        return self.rng.sample(in_flight, self.rng.randint(1, len(in_flight)))

    def result(self, operation: Operation) -> int | None:
        some = self.rng.randint(1, 8)
        return self.rng.choice([None, None, 8 * some if operation.direct else some])


@settings(deadline=None)
@given(
    layout=st.text("d0", max_size=40),
    cut=st.integers(0, 7),
    depth=st.integers(1, 5),
    units=st.integers(1, 9),
    alignments=st.sampled_from([(0, 0), (8, 8), (0, 8), (8, 0)]),
    seed=st.integers(0, 1000),
)
def test_the_engine_writes_no_unit_of_zeroes(
    layout: Layout, cut: int, depth: int, units: int, alignments: tuple[int, int], seed: int
) -> None:
    """And every other byte once, whatever is short: what is not written is counted."""
    unit = 8
    rng = random.Random(seed)
    data = b"".join(rng.randbytes(7) + b"x" if kind == "d" else bytes(8) for kind in layout)
    data = data[: max(0, len(data) - cut)]
    source, destination = File(data, alignments[0]), File(bytes(len(data)), alignments[1])
    context = ScriptedContext(depth, units * unit, Short(seed))
    transfer = FileTransfer(context, source, destination)
    transfer.hole_unit = unit
    for ended in Engine(context, [transfer]).run():
        assert ended in (None, transfer)
    assert (None, None) == (transfer.failure, transfer.error)
    assert data == destination.data
    assert len(data) == transfer.bytes_read == transfer.bytes_written + transfer.holes
    written = [0] * len(layout)
    for start, count in destination.writes:
        for at in range(start // unit, -(-(start + count) // unit)):
            written[at] += 1
    zero = [not any(data[at : at + unit]) for at in range(0, len(data), unit)]
    assert all((times == 0) == empty for times, empty in zip(written, zero, strict=False))
    assert transfer.holes == sum(
        min(unit, len(data) - at * unit) for at, empty in enumerate(zero) if empty
    )
    assert [(Sync.FDATASYNC, data)] == destination.synced


@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_write_between_two_holes_that_fails(nth: int) -> None:
    """Nothing more of the block is written, and the offset is that of the stretch."""

    class Nth(Script):
        def result(self, operation: Operation) -> int | None:
            failing = (operation.step, operation.offset) == (Step.WRITING, 16 * nth + 8)
            return -errno.EIO if failing else None

    data = (bytes(8) + b"x" * 8) * 3
    context = ScriptedContext(1, 48, Nth())
    destination = File(bytes(48))
    transfer = FileTransfer(context, File(data), destination)
    transfer.hole_unit = 8
    for _ in Engine(context, [transfer]).run():
        pass
    assert (Step.WRITING, errno.EIO, 16 * nth + 8) == transfer.failure
    assert [(16 * i + 8, 8) for i in range(nth)] == destination.writes
    assert 8 * nth == transfer.bytes_written


# --- against cp ----------------------------------------------------------------------------------

LAYOUTS = {
    "dense": ("d" * 200, 0),
    "hole in the middle": ("d" * 50 + "." * 100 + "d" * 50, 777),
    "hole at the end": ("d" * 50 + "." * 150, 1),
    "hole at the start": ("." * 150 + "d" * 50, 4095),
    "all hole": ("." * 200, 100),
    "zeroes": ("0" * 200, 100),
    "every other page": ("d." * 100, 0),
    "all kinds": ("d0." * 60 + "..." * 20 + "000" + "ddd" * 10 + ".00", 5),
    "a page": (".", 10),
    "small": ("d.0", 3),
}


@pytest.mark.root
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("direct", ["auto", "never"])
@pytest.mark.parametrize("sparse", SPARSE)
def test_holes_are_those_that_cp_makes(
    filesystem: Path, sparse: Sparse, direct: str, name: str
) -> None:
    """The bytes, and with "auto" and "always" where they are; "never": a block for each byte.

    With "auto" blocks of zeroes are not written where there are holes, but they stay reserved: what
    the source has of them is allowed.
    """
    layout, cut = LAYOUTS[name]
    source = make(filesystem / "source", layout, cut)
    ours, theirs = filesystem / "ours", filesystem / "theirs"
    subprocess.run(["cp", "--reflink=never", f"--sparse={sparse}", source, theirs], check=True)
    result = copy_file(
        source,
        ours,
        sparse=sparse,
        reflink="never",
        direct=direct,  # type: ignore[arg-type]
        block_size=64 * KIB,
    )
    assert_same(source, ours)
    size = len(layout) * PAGE - cut
    assert size == result.size == result.bytes_written + result.holes
    if sparse == "never":
        assert 0 == result.holes
        assert ours.stat().st_blocks * 512 >= size
        assert [(0, size)] == data_of(ours)
    else:
        most = theirs if sparse == "always" else source
        assert within(data_of(theirs), data_of(ours))
        assert within(data_of(ours), data_of(most))
        assert result.bytes_written == data_bytes(theirs)
        assert ours.stat().st_blocks <= most.stat().st_blocks


@pytest.mark.root
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "tmpfs"])
@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    layout=st.lists(st.tuples(st.sampled_from("d0."), st.integers(1, 40)), min_size=1, max_size=12),
    cut=st.integers(0, PAGE - 1),
    depth=st.integers(1, 8),
    pages=st.integers(1, 20),
    sparse=st.sampled_from(SPARSE),
    direct=st.sampled_from(["auto", "never"]),
    old=st.sampled_from([None, "d" * 10, "d" * 500]),
    in_place=st.booleans(),
)
def test_any_layout(
    mount_point: Callable[[str], Path],
    fstype: str,
    layout: list[tuple[str, int]],
    cut: int,
    depth: int,
    pages: int,
    sparse: Sparse,
    direct: str,
    old: Layout | None,
    in_place: bool,
) -> None:
    """Equal bytes, no more blocks than the source has and rounding adds; over old bytes as well."""
    with tempfile.TemporaryDirectory(dir=mount_point(fstype)) as directory:
        source, copy = Path(directory, "source"), Path(directory, "copy")
        text = "".join(kind * count for kind, count in layout)
        make(source, text, cut)
        if old:
            make(copy, old)
        result = copy_file(
            source,
            copy,
            depth=depth,
            block_size=pages * PAGE,
            sparse=sparse,
            reflink="never",
            direct=direct,  # type: ignore[arg-type]
            in_place=in_place,
        )
        assert_same(source, copy)
        assert (old is not None and in_place) == result.in_place
        size = len(text) * PAGE - cut
        assert size == result.bytes_written + result.holes == os.stat(copy).st_size
        taken, given_ = data_bytes(copy), data_bytes(source)
        if sparse == "never":
            assert size <= taken + PAGE
        else:
            assert taken <= given_
            if source.stat().st_blocks < size // 512 or sparse == "always":
                holes = sum(map(len, re.findall(r"\.{17,}", text)))  # the others are read through
                assert given_ <= result.bytes_read <= size - (holes - 1) * PAGE
        if sparse == "always":
            assert taken <= text.count("d") * PAGE


@pytest.mark.root
def test_extents_that_direct_io_cannot_start_at() -> None:
    """On a file system of 1 KiB blocks: the bytes around an extent are copied with it."""
    with mounted("ext4", 64 * MIB, mkfs_options=["-b", "1024"]) as directory:
        for seed in range(20):
            rng = random.Random(seed)
            source = directory / "source"
            with source.open("wb", buffering=0) as file:
                file.truncate(MIB - rng.randint(0, 2000))
                for _ in range(rng.randint(1, 60)):
                    data = rng.randbytes(rng.randint(1, 3000))
                    os.pwrite(file.fileno(), data, rng.randrange(MIB - 5000))
                os.fsync(file.fileno())
            assert data_of(source)
            for sparse in SPARSE:
                result = copy_file(source, directory / "copy", sparse=sparse, block_size=16 * KIB)
                assert result.direct_write
                assert_same(source, directory / "copy")
        assert any(start % 4096 for start, _ in data_of(source))


@pytest.mark.root
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_a_tebibyte_of_holes(mount_point: Callable[[str], Path], fstype: str) -> None:
    """Only the data is read and written; memory is what any copy takes."""
    directory = mount_point(fstype) / "tebibyte"
    directory.mkdir()
    step = TIB // 3000 // PAGE * PAGE
    content = random.Random(1).randbytes(PAGE)
    with (directory / "source").open("xb", buffering=0) as file:
        file.truncate(TIB + 777)
        for i in range(3000):
            os.pwrite(file.fileno(), content, i * step)
        os.fsync(file.fileno())
    command = [*AIOCP, "--json", "--reflink=never", "--depth=8", "--block-size=64K"]
    child = subprocess.Popen(
        [*command, directory / "source", directory / "copy"], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    told, _ = map(json.loads, child.stdout)
    _, status, usage = os.wait4(child.pid, 0)
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # through fork and exec
    child.returncode = status
    child.stdout.close()
    assert (0, TIB + 777) == (status, (directory / "copy").stat().st_size)
    assert 3000 * PAGE == told["bytes_read"] == told["bytes_written"]
    assert usage.ru_maxrss * KIB < max(64 * MIB, inherited * KIB + MIB)
    assert data_of(directory / "source") == data_of(directory / "copy")
    with (directory / "copy").open("rb", buffering=0) as file:
        for i in range(3000):
            assert content == os.pread(file.fileno(), PAGE, i * step)
    for name in ("source", "copy"):
        (directory / name).unlink()
    directory.rmdir()


@pytest.mark.parametrize("sparse", SPARSE)
def test_progress_counts_the_holes_as_done(sparse: Sparse, tmp_path: Path) -> None:
    source = make(tmp_path / "source", "d.0" * 60 + "." * 20, 3)
    calls: list[tuple[int, int]] = []
    copy_file(
        source,
        tmp_path / "copy",
        depth=2,
        block_size=64 * KIB,
        sparse=sparse,
        reflink="never",
        progress=lambda done, total: calls.append((done, total)),
    )
    size = 200 * PAGE - 3
    assert (size, size) == calls[-1]
    assert sorted(calls) == calls
    assert {size} == {total for _, total in calls}


# --- streams -------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("old", [None, "d" * 300])
def test_a_pipe_becomes_a_file_with_holes(filesystem: Path, old: Layout | None) -> None:
    """As with cp --sparse=always /dev/stdin, however the writer cuts it up."""
    source = make(filesystem / "source", "d0" * 20 + "0" * 100 + "d" * 30 + "0" * 20, 9)
    rng = random.Random(4)
    for in_place in (False, True):
        copy = filesystem / f"copy{in_place}"
        if old:
            make(copy, old)
        reader, writer = os.pipe()

        def feed(writer: int = writer) -> None:
            data = memoryview(source.read_bytes())
            with open(writer, "wb", buffering=0) as pipe:
                while data:
                    count = rng.randint(1, 200 * KIB)
                    data = data[pipe.write(data[:count]) :]

        thread = threading.Thread(target=feed)
        thread.start()
        result = copy_file(f"/dev/fd/{reader}", copy, sparse="always", in_place=in_place)
        thread.join()
        os.close(reader)
        assert_same(source, copy)
        assert "stream" == result.method
        size = source.stat().st_size
        assert size == result.size == result.bytes_read == result.bytes_written + result.holes
        assert 50 * PAGE == result.bytes_written == data_bytes(copy)


def test_a_stream_to_a_pipe_has_all_its_zeroes(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "d0.0d" * 10, 1)
    done = subprocess.run(
        [*AIOCP, "--sparse=always", source, "/dev/stdout"], stdout=subprocess.PIPE, check=True
    )
    assert source.read_bytes() == done.stdout


# --- over old bytes ------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("sparse", ["auto", "always"])
@pytest.mark.parametrize("old", ["d" * 10, "d" * 1000])
def test_a_file_that_keeps_its_inode_gets_the_holes(
    filesystem: Path, sparse: Sparse, old: Layout
) -> None:
    """A hard-linked one, shorter or longer: no old byte is left in it, by any of its names."""
    source = make(filesystem / "source", "d..0d" * 50 + "....", 100)
    one = make(filesystem / "one", old)
    os.link(one, filesystem / "two")
    result = copy_file(source, one, sparse=sparse, reflink="never", block_size=64 * KIB)
    assert result.in_place
    assert_same(source, filesystem / "two")
    assert 100 * PAGE == result.bytes_written <= data_bytes(one) <= data_bytes(source)
    assert sparse == "auto" or 100 * PAGE == data_bytes(one)


@contextmanager
def old_device(size: int) -> Iterator[Path]:
    """A block device full of old bytes."""
    with scratch_directory() as scratch:
        backing = scratch / "backing"
        backing.write_bytes(b"old!" * (size // 4))
        with loop_device(backing) as device:
            yield device


@pytest.mark.root
@pytest.mark.parametrize("punch", [True, False])
@pytest.mark.parametrize("direct", ["auto", "never"])
@pytest.mark.parametrize("sparse", SPARSE)
def test_a_device_holds_zeroes_where_the_image_has_holes(
    sparse: Sparse, direct: str, punch: bool, tmp_path: Path
) -> None:
    """Made by the device, or where that is refused written; what is behind the image stays."""

    def copy(image: Path, device: Path, makes_holes: bool) -> None:
        if not punch:
            refuse("fallocate", errno.EOPNOTSUPP)
        result = copy_file(
            image,
            device,
            sparse=sparse,
            direct=direct,  # type: ignore[arg-type]
            block_size=64 * KIB,
        )
        told = result.bytes_written + result.holes, result.in_place, result.holes > 0
        if told != (image.stat().st_size, True, makes_holes):
            raise OSError(errno.EDOM, str(result))

    for layout, cut in LAYOUTS.values():
        image = make(tmp_path / "image", layout, cut)
        makes_holes = punch and sparse != "never" and "." in layout[:-1]
        with old_device(4 * MIB) as device:
            assert in_child(partial(copy, image, device, makes_holes)) is None
            expected = image.read_bytes()
            expected += (b"old!" * MIB)[len(expected) :]
            assert expected == device.read_bytes()


# --- a source that changes -----------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("sparse", ["auto", "always"])
def test_a_hole_map_that_changes_all_the_time(filesystem: Path, sparse: Sparse) -> None:
    """A copy that succeeds has the bytes that the source had at a moment, all others fail."""
    source = make(filesystem / "source", "d.." * 100)
    size = 300 * PAGE
    state = bytearray(source.read_bytes())
    states = {bytes(state)}
    stop = threading.Event()

    def change() -> None:
        rng = random.Random(1)
        with source.open("r+b", buffering=0) as file:
            # apart by more than a tick of the kernel's clock: mtime shows each
            while not stop.wait(rng.choice([0.02, 0.05])):
                page = rng.randrange(300)
                if rng.random() < 0.7:
                    data = rng.randbytes(PAGE)
                    state[page * PAGE : (page + 1) * PAGE] = data
                    states.add(bytes(state))
                    os.pwrite(file.fileno(), data, page * PAGE)
                else:  # a hole at the end, without the fallocate(2) that not every kernel has
                    state[page * PAGE :] = bytes(size - page * PAGE)
                    states.update((bytes(state), bytes(state[: page * PAGE])))
                    os.ftruncate(file.fileno(), page * PAGE)
                    os.ftruncate(file.fileno(), size)

    copied = changed = 0
    thread = threading.Thread(target=change)
    thread.start()
    copy = filesystem / "copy"
    try:
        while copied < 30 or changed < 5:
            try:
                copy_file(
                    source, copy, sparse=sparse, reflink="never", depth=4, block_size=64 * KIB
                )
            except aiocp.SourceChanged:
                changed += 1
            else:
                copied += 1
                assert copy.read_bytes() in states
    finally:
        stop.set()
        thread.join()
    copy_file(source, copy, sparse=sparse, reflink="never")
    assert state == copy.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("when", ["before the first extent", "behind it", "at the end"])
@pytest.mark.parametrize("what", ["data in a hole", "a hole in data", "longer", "shorter"])
def test_a_change_at_any_moment_is_an_error(what: str, when: str, tmp_path: Path) -> None:
    """Between any two looks for data: the hole map is never of two moments."""
    source = make(tmp_path / "source", "d....d" * 30)
    seeks = {"before the first extent": 0, "behind it": 5, "at the end": 60}[when]

    def change() -> None:
        with source.open("r+b", buffering=0) as file:
            if what == "data in a hole":
                os.pwrite(file.fileno(), b"x" * PAGE, 2 * PAGE)
            elif what == "a hole in data":
                file.truncate(177 * PAGE)
                file.truncate(180 * PAGE)
            elif what == "longer":
                os.pwrite(file.fileno(), b"x" * PAGE, 200 * PAGE)
            else:
                file.truncate(PAGE)

    class Changing:
        """The module `os`, where a look for data is one too many."""

        SEEK_DATA, SEEK_HOLE = os.SEEK_DATA, os.SEEK_HOLE
        calls = 0

        def lseek(self, fd: int, at: int, whence: int) -> int:
            if self.calls == seeks:
                change()
            self.calls += 1
            return os.lseek(fd, at, whence)

    changing = Changing()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extents, "os", changing)
        match = "shrank" if what == "shorter" else "changed"
        with pytest.raises(aiocp.SourceChanged, match=match):
            copy_file(source, tmp_path / "copy", reflink="never", block_size=64 * KIB)
    assert changing.calls > seeks
    assert ["source"] == os.listdir(tmp_path)


def test_a_source_that_grows_is_copied_as_it_was(tmp_path: Path) -> None:
    """With allow_changed: its size is that of the open, and what was there by then is right."""
    source = make(tmp_path / "source", "d..." * 50)
    before = source.read_bytes()

    def grow(done: int, total: int) -> None:
        with source.open("ab") as file:
            file.write(b"more" * 1000)

    result = copy_file(
        source,
        tmp_path / "copy",
        allow_changed=True,
        reflink="never",
        depth=1,
        block_size=64 * KIB,
        progress=grow,
    )
    assert len(before) == result.size
    assert before == (tmp_path / "copy").read_bytes()


# --- no space ------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_a_full_disk_shows_before_the_first_write(fstype: str, tmp_path: Path) -> None:
    """The space for all of the data is reserved, whatever the size says; nothing is left."""
    sizes = {"ext4": 64 * MIB, "xfs": 300 * MIB, "btrfs": 256 * MIB, "tmpfs": 32 * MIB}
    source = make(tmp_path / "source", ("d" * 64 + "." * 64) * 30)  # 7.5 of 15 MiB

    def never(done: int, total: int) -> None:
        raise AssertionError("something was written")

    with mounted(fstype, sizes[fstype]) as mount_point:
        (mount_point / "directory").mkdir()
        copy = mount_point / "directory" / "copy"
        with filler(mount_point) as leave:
            leave(6 * MIB)
            for old in (None, b"old"):
                if old:
                    copy.write_bytes(old)
                with pytest.raises(OSError, match="allocate: No space left") as caught:
                    copy_file(source, copy, progress=never)
                assert errno.ENOSPC == caught.value.errno
                assert old == (copy.read_bytes() if copy.exists() else None)
                with pytest.raises(OSError, match=r"No space left"):
                    copy_file(source, copy, sparse="always")
                assert old == (copy.read_bytes() if copy.exists() else None)
                assert bool(old) == bool(os.listdir(copy.parent))
            leave(12 * MIB)
            copy_file(source, copy)
            assert_same(source, copy)


@pytest.mark.root
@pytest.mark.parametrize("sparse", ["auto", "always"])
def test_a_file_in_place_says_that_it_is_incomplete(sparse: Sparse, tmp_path: Path) -> None:
    """It was emptied before the space was found to be missing."""
    source = make(tmp_path / "source", ("d" * 64 + "." * 64) * 100)
    with mounted("ext4", 16 * MIB) as mount_point:
        (mount_point / "copy").write_bytes(b"old")
        with pytest.raises(OSError, match="No space left on device; written in place, it is inc"):
            copy_file(source, mount_point / "copy", in_place=True, sparse=sparse)


# --- trees and the command -----------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("sparse", SPARSE)
def test_trees_keep_and_make_holes(filesystem: Path, sparse: Sparse) -> None:
    """In files of every size, new ones and replaced ones: the layout that cp gives them."""
    tree = filesystem / "tree"
    tree.mkdir()
    for size in (1, 3, 60, 64, 65, 300):
        make(tree / f"sparse{size}", ("d.0." * size)[:size], 7)
        make(tree / f"zeroes{size}", ("d0d0" * size)[:size], 7)
        make(tree / f"hole{size}", "." * size, 7)
        make(tree / f"dense{size}", "d" * size, 7)
    (tree / "empty").touch()
    theirs, ours = filesystem / "theirs", filesystem / "ours"
    for again in range(2):
        options = ["-rT", "--reflink=never", f"--sparse={sparse}"]
        subprocess.run(["cp", *options, tree, theirs], check=True)
        result = copy_tree(tree, ours, sparse=sparse, reflink="never", block_size=64 * KIB)
        holes = 0
        for path in sorted(tree.iterdir()):
            assert_same(path, ours / path.name)
            size = path.stat().st_size
            if sparse == "never":
                assert ([(0, size)] if size else []) == data_of(ours / path.name)
            else:
                maps = [data_of(top / path.name) for top in (theirs, ours, tree)]
                assert within(maps[0], maps[1]), path.name
                assert within(maps[1], maps[2]), path.name
                assert "auto" == sparse or maps[0] == maps[1]
            holes += size - data_bytes(theirs / path.name)
        assert holes == result.holes, again
        assert bool(holes) == (sparse != "never")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("--sparse=always f new", 0),
        ("--sparse=never f new", 0),
        ("--sparse=auto f new", 0),
        ("--sparse always f new", 0),
        ("--sparse=al f new", 0),
        ("--sp=n f new", 0),
        ("--sparse=a f new", 2),
        ("--sparse= f new", 2),
        ("--sparse=some f new", 2),
        ("--sparse", 2),
        ("--sparse=never --sparse=always f new", 0),
        ("--sparse=always --reflink f new", 2),
        ("--sparse=never --reflink=always f new", 2),
        ("--reflink=always --sparse=never --sparse=auto missing new", 1),
        ("--sparse=always --reflink=auto f new", 0),
        ("--sparse=always --reflink=never f new", 0),
        ("-r --sparse=always d new", 0),
    ],
)
def test_the_option_is_cps(arguments: str, status: int, tmp_path: Path) -> None:
    """The same words are right and wrong (usage errors are 2 here), with the same result."""
    results = []
    for name, command in (("cp", ["cp"]), ("aiocp", AIOCP)):
        top = tmp_path / name
        (top / "d").mkdir(parents=True)
        make(top / "f", "d0.0" * 40)
        make(top / "d" / "f", "d0.0" * 40)
        done = subprocess.run([*command, *arguments.split()], cwd=top, capture_output=True)
        copies = [path for path in (top / "new", top / "new" / "f") if path.is_file()]
        results.append((bool(done.returncode), [data_of(path) for path in copies]))
        last = done
    assert results[0] == results[1]
    assert status == last.returncode
    assert len(last.stderr.splitlines()) == (status > 0)


def test_what_cannot_be() -> None:
    for copy in (copy_file, copy_tree):
        with pytest.raises(ValueError, match="sparse must be 'auto', 'always' or 'never'"):
            copy("nothing", "nowhere", sparse="maybe")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="reflink 'always' goes with sparse 'auto'"):
            copy("nothing", "nowhere", sparse="always", reflink="always")


# --- faults, kills, power cuts -------------------------------------------------------------------

FAULTS = {
    "lseek": ["EINVAL", "ENXIO", "EOPNOTSUPP", "EIO", "EINTR"],
    "ftruncate": ["EIO", "EFBIG", "EPERM"],
    "fallocate": ["ENOSPC", "EOPNOTSUPP", "EIO", "EINTR"],
    "io_submit": ["EAGAIN", "EINVAL"],
}


@pytest.mark.root
@pytest.mark.parametrize("sparse", ["auto", "always"])
def test_every_call_every_fault(
    sparse: Sparse, mount_point: Callable[[str], Path], tmp_path: Path
) -> None:
    """Status 0 with the source's bytes, or status 1 with one line and nothing there.

    But for an ENXIO, which says that there is no more data: that is believed.
    """
    directory = mount_point("ext4") / "sparse-faults"
    directory.mkdir()
    source = make(directory / "source", "d....d" * 2 + "..0" * 5, 100)
    new = source.read_bytes()

    def command(name: str) -> Copy:
        (directory / name).mkdir()
        options = ["--depth=2", "--block-size=64K", f"--sparse={sparse}", "--reflink=never"]
        options.append("--direct=never")  # by the pipeline, small as it is
        return Copy([*options, str(source), str(directory / name / "copy")], f"{tmp_path}/{name}")

    calls = [call for call in trace(command("dry"), tmp_path / "log") if call.name in FAULTS]
    assert {"lseek", "ftruncate", "io_submit"} <= {call.name for call in calls}
    assert (sparse == "auto") == ("fallocate" in {call.name for call in calls})
    met = 0
    for number in range(max(map(len, FAULTS.values()))):
        errors = {name: each[number] for name, each in FAULTS.items() if number < len(each)}
        plan = [
            (command(f"{number}.{i}"), call) for i, call in enumerate(calls) if call.name in errors
        ]
        faults = {name: f"error={error}" for name, error in errors.items()}
        for i, outcome in enumerate(inject(plan, faults, tmp_path / "log", for_ever=False)):
            call, (copy, _) = plan[i][1], plan[i]
            fault = f"{errors[call.name]} at {call}: {outcome}"
            there = Path(copy.arguments[-1])
            found = there.read_bytes() if there.exists() else None
            met += bool(outcome.injected)
            if outcome.status == 0:
                lies = "lseek" in outcome.injected and "ENXIO" in outcome.injected
                assert lies or found == new, fault
                assert len(new) == len(found or b""), fault
            else:
                assert (1, None) == (outcome.status, found), fault
                assert 1 == len(outcome.stderr.splitlines()), fault
                assert "lseek" not in outcome.injected, fault
            assert {"copy"} >= set(os.listdir(there.parent)), fault
    assert met > len(calls)
    run("rm", "-r", directory)


@pytest.mark.root
@pytest.mark.parametrize(("fstype", "way"), WAYS)
def test_power_cuts(fstype: str, way: str) -> None:
    """Whatever has returned is there, whatever has not is old or new; holes are zeroes."""
    tally = after_return(fstype, way, 5, kind="sparse")
    assert ([], 15) == (tally.broken, tally.found["new"])
    tally = at_random_moments(fstype, way, 5, kind="sparse")
    assert ([], 5) == (tally.broken, tally.cuts)


@pytest.mark.root
def test_kills(filesystem: Path) -> None:
    """The old file or the whole new one, at any moment."""
    tally = kills(filesystem, 30, random.Random(3), kind="sparse")
    assert ([], 0, 30) == (tally.broken, tally.hidden, tally.cuts)


def test_memory_is_not_spent_on_the_hole_map(tmp_path: Path) -> None:
    """A file of 8,000 extents takes no more than one of as many blocks, beyond some kilobytes."""
    with (tmp_path / "sparse").open("xb", buffering=0) as file:
        for i in range(8000):
            os.pwrite(file.fileno(), b"x", 2 * i * PAGE)
    make(tmp_path / "dense", "d" * 8000)
    peaks = []
    for name in ("dense", "sparse"):
        tracemalloc.start()
        result = copy_file(
            tmp_path / name, tmp_path / "copy", depth=4, block_size=PAGE, reflink="never"
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert 8000 * PAGE - result.bytes_written < PAGE  # the last one is short
        assert_same(tmp_path / name, tmp_path / "copy")
    assert peaks[1] < peaks[0] + 64 * KIB


@pytest.mark.parametrize("sparse", ["auto", "always"])
def test_a_file_that_is_but_a_hole_takes_no_context(
    tmp_path: Path, sparse: Literal["auto", "always"]
) -> None:
    """There is nothing to have in flight; one with a block of data takes one."""
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(MIB + 777)
    result = copy_file(source, tmp_path / "copy", sparse=sparse, reflink="never")
    assert (result.method, result.bytes_read, result.holes) == ("plain", 0, MIB + 777)
    assert (tmp_path / "copy").stat().st_size == MIB + 777
    assert (tmp_path / "copy").stat().st_blocks == 0
    with source.open("r+b") as file:
        file.write(b"data")
    result = copy_file(source, tmp_path / "other", sparse=sparse, reflink="never")
    assert result.method.startswith("aio")
    assert (tmp_path / "other").read_bytes() == source.read_bytes()
