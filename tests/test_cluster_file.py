"""A large file by many workers, each of which writes ranges of it."""

import mmap
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from aiocp import CopyResult, copy_file, ranges
from clusters import Cluster
from engines import Engine, copy_one, on_dask
from test_sparse import assert_same, data_of, make
from trees import everything

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

How = dict[str, Any]


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files of megabytes cut, too."""
    monkeypatch.setattr(ranges, "RANGE", MIB)


# --- as large as it is for -----------------------------------------------------------------------


PIECE = 4 * MIB
PIECES = 320  # pieces are so many, with a hole behind each


class Pieces:
    """Blocks like no other, read and written past the page cache, which would take the time."""

    def __init__(self) -> None:
        self._wanted, self._found = mmap.mmap(-1, PIECE), mmap.mmap(-1, PIECE)
        self._wanted[:] = random.Random(1).randbytes(PIECE)

    def _is(self, number: int) -> None:
        """Have the number in each page."""
        with memoryview(self._wanted) as view:
            view[0 :: 4 * KIB] = bytes([number % 256]) * (PIECE // (4 * KIB))
            view[1 :: 4 * KIB] = bytes([number // 256]) * (PIECE // (4 * KIB))

    def write(self, fd: int, number: int, offset: int) -> None:
        self._is(number)
        assert os.pwritev(fd, [self._wanted], offset) == PIECE

    def is_at(self, fd: int, number: int, offset: int) -> bool:
        self._is(number)
        assert os.preadv(fd, [self._found], offset) == PIECE
        return self._wanted[:] == self._found[:]


def test_ten_gigabytes_with_holes(tmp_path: Path, dask: Cluster) -> None:
    """Have the holes and the bytes of their source, and are more than one worker's."""
    source, to = tmp_path / "source", tmp_path / "copy"
    offsets = range(0, 10 * GIB, 10 * GIB // PIECES)
    pieces = Pieces()
    with opened(source, os.O_WRONLY | os.O_CREAT) as fd:
        for number, offset in enumerate(offsets):
            pieces.write(fd, number, offset)
        os.ftruncate(fd, 10 * GIB)
    result = on_dask(dask)(copy_one, source, to, {"reflink": "never"})
    assert ["copy", "source"] == sorted(os.listdir(tmp_path))
    assert (10 * GIB, PIECES * PIECE) == (result.size, result.bytes_written)
    assert result.bytes_written + result.holes == result.size
    assert len(result.workers) > 1
    assert result.bytes_written == sum(one.bytes for one in result.workers)
    assert [(offset, PIECE) for offset in offsets] == data_of(to)
    with opened(to, os.O_RDONLY) as fd:
        assert all(pieces.is_at(fd, number, offset) for number, offset in enumerate(offsets))
    for path in tmp_path.iterdir():  # pytest keeps it else
        path.unlink()


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError:  # tmpfs
        fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


# --- the same as without -------------------------------------------------------------------------

# of pages of 64 KiB, and what of the last one there is not
PAGE = 64 * KIB
LAYOUTS = {
    "dense": ("d" * 100, 0),
    "unaligned": ("d" * 100, PAGE - 777),
    "holes": ("d" * 20 + "." * 40 + "d" * 20 + "." * 40 + "dd", 5),
    "holes that end it": ("d" * 50 + "." * 50, 1),
    "holes that begin it": ("." * 50 + "d" * 50, 4095),
    "a range of one byte": ("d" * 33, PAGE - 1),
    "zeroes": (("d" * 5 + "0" * 5) * 10, 100),
    "little in much": ("d" + "." * 500 + "d" * 20 + "." * 200 + "d" * 20, 0),
}
HOWS: dict[str, How] = {
    "as it is": {},
    "all, verified": {"preserve": ["all"], "verify": True},
    "all holes": {"sparse": "always"},
    "no holes": {"sparse": "never"},
    "through the cache": {"direct": "never", "sync": False},
    "in place": {"in_place": True},
    "digest": {"checksum": "sha256"},
    "backup": {"backup": "numbered"},
    "resumed": {"resume": True, "preserve": ["timestamps"]},
}
# each layout new and over another file, each way of both with one of them
ROWS = [
    (layout, how, bool(i % 2)) for i, (how, layout) in enumerate(product([*HOWS][:4], LAYOUTS))
] + [("holes", how, old) for how in [*HOWS][4:] for old in (False, True)]


def figures_of(result: CopyResult) -> dict[str, object]:
    """What does not go by where it is, who makes it and in what time."""
    names = ["size", "bytes_written", "holes", "resumed", "method", "direct_read", "direct_write"]
    names += ["in_place", "removed", "synced", "verified", "checksum", "notes"]
    return {name: getattr(result, name) for name in names}


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize(("layout", "how", "old"), ROWS)
def test_the_same_as_by_one_process(
    tmp_path: Path, layout: str, how: str, old: bool, dask: Cluster
) -> None:
    """The same bytes, holes and attributes, and the same is said of them."""
    options = How(reflink="never", block_size=128 * KIB) | HOWS[how]
    source = make(tmp_path / "source", *LAYOUTS[layout], PAGE)
    os.utime(source, ns=(1, 2))
    source.chmod(0o640)
    tops = [tmp_path / name for name in ("ours", "theirs")]
    for top in tops:
        top.mkdir()
        if old:
            make(top / "copy", "d" * 200, 0, PAGE).chmod(0o604)
    ours = on_dask(dask)(copy_one, source, tops[0] / "copy", options)
    theirs = copy_file(source, tops[1] / "copy", **options)
    assert figures_of(theirs) == figures_of(ours)
    assert everything(tops[1]) == everything(tops[0])
    assert data_of(tops[1] / "copy") == data_of(tops[0] / "copy")
    alone = ours.in_place or ours.checksum is not None
    assert alone == (ours.workers == ())


@pytest.mark.root
@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize("engine", ["dask", "processes"], indirect=True)
def test_on_every_file_system(filesystem: Path, engine: Engine) -> None:
    source = make(filesystem / "source", "d" * 100 + "." * 100 + "d" * 100, 777, PAGE)
    how = {"verify": True, "reflink": "never"}
    result = engine(copy_one, source, filesystem / "copy", how)
    assert_same(source, filesystem / "copy")
    assert data_of(source) == data_of(filesystem / "copy")
    assert (True, True, 200 * PAGE - 777) == (result.synced, result.verified, result.bytes_written)
    assert len(result.workers) > 1
