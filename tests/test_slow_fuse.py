"""The file system that is far away: as much is in flight there as was asked for; it keeps trees."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocp import copy_file, copy_tree
from slow_fuse import SlowDirectory, move, slow_directory
from trees import differences

BLOCK = 16 << 10

pytestmark = pytest.mark.root


@pytest.fixture
def slow() -> Iterator[SlowDirectory]:
    with slow_directory(0.1) as directory:  # time enough to submit them all
        yield directory


@pytest.mark.parametrize("depth", [3, 64, 200])
def test_the_depth_reaches_the_file_system(slow: SlowDirectory, depth: int) -> None:
    data = os.urandom(BLOCK * max(depth * 2, 20))  # more than goes by plain system calls
    source, copy = slow.mount_point / "source", slow.mount_point / "copy"
    source.write_bytes(data)  # one at a time: the kernel waits for each
    result = copy_file(source, copy, depth=depth, block_size=BLOCK)
    assert (True, True) == (result.direct_read, result.direct_write)
    assert depth == slow.peak_in_flight()
    assert data == copy.read_bytes()


def test_a_tree_is_kept_there(slow: SlowDirectory, tmp_path: Path) -> None:
    tree, there, back = tmp_path / "tree", slow.mount_point / "copy", tmp_path / "back"
    for i in range(300):  # more than one answer to a listing has room for
        directory = tree / f"{i % 2}/{i % 3}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ("x" * 200 + f"{i}")).write_bytes(b"%d" % i * (i * 40))
    (tree / "large").write_bytes(os.urandom((3 << 20) + 17))
    (tree / "link").symlink_to("0/0")
    os.link(tree / "large", tree / "0/hard")
    (tree / "empty").mkdir(mode=0o700)
    move(slow.mount_point, 0.0)
    copy_tree(tree, there, preserve=["mode", "timestamps", "links"])
    copy_tree(there, back, preserve=["mode", "timestamps", "links"], sync=False)
    assert "" == differences(tree, there, "-naciH") == differences(tree, back, "-naciH")
    shutil.rmtree(there)
    assert [] == list(slow.mount_point.iterdir())


def test_it_moves_away_while_it_is_mounted(slow: SlowDirectory) -> None:
    move(slow.mount_point, 0.3)
    begun = time.monotonic()
    (slow.mount_point / "file").write_bytes(b"data")
    assert time.monotonic() - begun >= 0.3
