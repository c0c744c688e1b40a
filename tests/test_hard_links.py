"""The table of files with several names: what it says, and what it takes."""

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from aiocp import copy_tree
from aiocp.hard_links import HardLinks

INODES = st.integers(1, 2**64 - 1)
NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name)
FILES = st.tuples(st.integers(0, 3), INODES, st.integers(0, 5), NAMES, INODES)


@given(st.lists(FILES, max_size=200), st.integers(1, 2**64 - 1))
def test_what_was_added_is_found(files: list[tuple[int, int, int, bytes, int]], other: int) -> None:
    """The last copy of each source, by a dict; nothing for what was not added. With a digest, if it
    has one, of any length."""
    table, expected = HardLinks(), {}
    for device, inode, number, name, copy in files:
        directory = b"/d%d" % number
        digest = name[:64].hex() if number % 2 else None
        table.add((device, inode), directory, name, (number, copy), digest)
        expected[device, inode] = (directory + b"/" + name, (number, copy), digest)
    assert {key: table.get(key) for key in expected} == expected
    assert (len(expected), None) == (len(table), table.get((9, other)))


@given(st.lists(FILES, max_size=200), st.lists(st.tuples(st.integers(0, 3), INODES)))
def test_identities_are_a_set(
    files: list[tuple[int, int, int, bytes, int]], more: list[tuple[int, int]]
) -> None:
    """Of its own: what is added to it is not added to the table it came from."""
    table = HardLinks()
    for device, inode, number, name, copy in files:
        table.add((device, inode), b"/d%d" % number, name, (number, copy))
    identities, expected = table.identities(), {file[:2] for file in files}
    before = len(table)
    for one in more:
        assert (one not in expected) == identities.add(one)
        expected.add(one)
    assert before == len(table)
    assert {one for one in more if table.get(one)} <= {file[:2] for file in files}


def test_a_linked_file_takes_a_hundred_bytes_at_most() -> None:
    """Of resident memory, names of ten bytes and a hundred in a directory included."""
    code = """if True:
        from aiocp.hard_links import HardLinks
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096
        table = HardLinks()
        before = resident()
        for i in range(200_000):
            table.add((1, 3 * i + 1), b"/a/directory/%d" % (i // 100), b"file%06d" % i, (2, i + 1))
        print((resident() - before) / 200_000)
    """
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert float(said.stdout) <= 100


def test_a_name_deeper_than_path_max(tmp_path: Path) -> None:
    """Links to it are made all the same."""
    source, fd = tmp_path / "source", os.open(tmp_path, os.O_RDONLY)
    names = ["source", *["d" * 200] * 30]
    for name in names:
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    with open(os.open("first", os.O_CREAT | os.O_WRONLY, dir_fd=fd), "wb") as file:
        file.write(b"deep")
    os.link("first", "second", src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)
    copy_tree(source, tmp_path / "copy", preserve=["links"])
    fd = os.open(tmp_path / "copy", os.O_RDONLY)
    for name in names[1:]:
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    first, second = (os.stat(name, dir_fd=fd) for name in ("first", "second"))
    os.close(fd)
    assert (first.st_ino, 2, 4) == (second.st_ino, first.st_nlink, first.st_size)
    subprocess.run(["rm", "-rf", source, tmp_path / "copy"], check=True)
