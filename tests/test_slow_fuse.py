"""What is in flight is in flight at the far end: counted by the file system that serves it."""

import os
from collections.abc import Iterator

import pytest

from aiocp import copy_file
from slow_fuse import SlowDirectory, slow_directory

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
