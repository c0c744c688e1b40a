"""Somebody swaps what is in the source and the destination while a tree is copied.

Directories for symbolic links to others, files for links, FIFOs and directories, in one system call
each, some ten thousand times. Nothing outside the source is ever copied, nothing outside the
destination is ever changed, and nothing is waited for.
"""

import ctypes
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from aiocp import copy_tree
from filesystems import scratch_directory
from trees import facts

TIMEOUT = 60  # seconds after which a copy hangs
_RENAME_EXCHANGE = 2
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_LIBC = ctypes.CDLL(None, use_errno=True)

Swap = Callable[[], object]


@contextmanager
def directory_of(top: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """Open the directory of a name in a tree, without following links: that would be an attack of
    our own on what is outside."""
    fd = os.open(top, _DIRECTORY)
    try:
        *directories, last = name.split("/")
        for directory in directories:
            below = os.open(directory, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd, os.fsencode(last)
    finally:
        os.close(fd)


def exchange(top: Path, name: str, decoy: Path) -> None:
    """Swap what has a name in a tree for a decoy, in one system call: renameat2(2)."""
    with directory_of(top, name) as (fd, last):
        _LIBC.renameat2(fd, last, 0, bytes(decoy), _RENAME_EXCHANGE)


def plant(top: Path, name: str, link: Path) -> None:
    """Have another name for a link, one that is about to be made; take it away if it is there."""
    with directory_of(top, name) as (fd, last):
        try:
            os.link(link, last, dst_dir_fd=fd, follow_symlinks=False)
        except FileExistsError:
            os.readlink(last, dir_fd=fd)  # raises if it is none
            os.unlink(last, dir_fd=fd)


def under_attack(copy: Callable[[int], object], copies: int, swaps: list[Swap]) -> int:
    """Call `copy` so many times, with its number, in a forked child, and swap meanwhile.

    Returns how many swaps there were.
    """
    child = os.fork()
    if not child:
        try:
            for number in range(copies):
                copy(number)
            os._exit(0)
        finally:
            os._exit(1)
    end = time.monotonic() + TIMEOUT
    count = 0
    for swap in cycle(swaps):
        with suppress(OSError):
            swap()
            swap()  # back again: so that there is something to be swapped
        count += 2
        if count % 64 == 0:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                assert os.waitstatus_to_exitcode(status) == 0
                return count
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                pytest.fail("a copy hangs")
    raise AssertionError


def fill(top: Path, contents: bytes) -> None:
    """Make the tree that is copied, and the one outside that is not to be touched."""
    for directory in ("a/b/c", "d"):
        (top / directory).mkdir(parents=True)
    for directory in ("", "a", "a/b", "a/b/c", "d"):
        for i in range(6):
            (top / directory / f"file{i}").write_bytes(contents * (i + 1))
        (top / directory / "link").symlink_to("file1")
        os.mkfifo(top / directory / "fifo", 0o666)
    (top / "a" / "b" / "large").write_bytes(contents * 100_000)
    (top / "d" / "hard").hardlink_to(top / "a" / "file2")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory with a source, and with what is outside."""
    with scratch_directory() as scratch:
        fill(scratch / "source", b"public")
        fill(scratch / "outside", b"secret")
        for i, path in enumerate(sorted((scratch / "outside").rglob("*"))):
            os.utime(path, (i, i), follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(0o751)
        yield scratch


def attacks(scratch: Path, top: Path) -> list[Swap]:
    """Swap directories of a tree for links to those outside, files for links and other kinds."""
    evil = scratch / "evil"
    evil.mkdir()
    swaps: list[Swap] = []

    for name in ("a", "a/b", "a/b/c", "d"):
        link = evil / name.replace("/", "-")
        _link(link, scratch / "outside" / name)
        swaps.append(partial(exchange, top, name, link))
    for directory in ("", "a", "a/b/c", "d"):
        kinds: list[Callable[[Path, Path], object]] = [_link, _fifo, _directory, _other]
        for i, make in enumerate(kinds):
            decoy = evil / f"{directory.replace('/', '-')}.{i}"
            make(decoy, scratch / "outside" / directory / f"file{i}")
            name = os.path.join(directory, f"file{i}")
            swaps.append(partial(exchange, top, name, decoy))
        fifo = evil / f"{directory.replace('/', '-')}.fifo"
        _link(fifo, scratch / "outside" / directory / "file5")
        swaps.append(partial(exchange, top, os.path.join(directory, "fifo"), fifo))
    return swaps


def _link(path: Path, outside: Path) -> None:
    """One that somebody else has made."""
    path.symlink_to(outside)
    os.chown(path, 1234, 1234, follow_symlinks=False)


def _fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path, outside: Path) -> None:
    path.mkdir()


def _other(path: Path, outside: Path) -> None:
    path.write_bytes(b"public, but another")


def contents(top: Path) -> Iterator[bytes]:
    """The bytes of all files of a tree; links are not followed."""
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    yield file.read()


HOW: list[dict[str, Any]] = [
    {},
    {"preserve": "all"},
    {"preserve": "all", "remove_destination": True},
    {"preserve": "all", "sync": False},
]


@pytest.mark.parametrize("listed", [False, True])
def test_nothing_outside_the_source_is_copied(scratch: Path, listed: bool) -> None:
    """Whatever the walk, the opening and the reading meet, where names are listed too."""
    before = facts(scratch / "outside")
    source = scratch / "source"
    files = [path.relative_to(source) for path in source.rglob("*")] if listed else None

    def copy(number: int) -> None:
        how = HOW[number % len(HOW)]
        to = scratch / f"copy{number}"
        recursive = number % 3 == 0
        copy_tree(source, to, files=files, recursive=recursive, on_error=lambda _: None, **how)

    assert under_attack(copy, 100, attacks(scratch, scratch / "source")) > 5_000
    seen = [data for copy in scratch.glob("copy*") for data in contents(copy)]
    assert len(seen) > 1000
    assert not [data for data in seen if b"secret" in data]
    assert before == facts(scratch / "outside")


def test_nothing_outside_the_destination_is_changed(scratch: Path) -> None:
    """Neither written, nor created, nor removed, nor given a mode, an owner or a time."""
    before = facts(scratch / "outside")
    fill(scratch / "copy", b"before")

    def copy(number: int) -> None:
        if number % 2 == 0:
            shutil.rmtree(scratch / "copy", ignore_errors=True)
        to = scratch / "copy"
        copy_tree(scratch / "source", to, on_error=lambda error: None, **HOW[number % len(HOW)])

    swaps = attacks(scratch, scratch / "copy")
    for name in ("", "a/", "a/b/", "a/b/c/", "d/"):
        for last in ("a", "b", "c", "d", "file1", "file4", "fifo", "link", "large", "hard"):
            link = scratch / "evil" / f"planted {name.replace('/', '-')}{last}"
            _link(link, scratch / "outside" / name / last)
            swaps.append(partial(plant, scratch / "copy", name + last, link))
    assert under_attack(copy, 80, swaps) > 5_000
    assert before == facts(scratch / "outside")


def test_the_way_to_both_is_swapped(scratch: Path) -> None:
    """What was opened in the beginning is copied to what was opened, wherever both are then."""
    for name in ("from", "to"):
        (scratch / name).mkdir()
        (scratch / f"outside {name}").symlink_to("outside")
    (scratch / "source").rename(scratch / "from" / "source")
    fill(scratch / "outside" / "source", b"secret")
    fill(scratch / "outside" / "copy", b"secret")
    before, expected = facts(scratch / "outside"), facts(scratch / "from" / "source")

    def swap(path: bytes, is_directory: bool) -> bool:
        if path == b"a/b":
            for name in ("from", "to"):
                exchange(scratch, name, scratch / f"outside {name}")
        return False

    copy_tree(scratch / "from/source", scratch / "to/copy", preserve="all", exclude=swap)
    assert (scratch / "from").is_symlink()
    assert expected == facts(scratch / "outside to" / "copy")
    assert before == facts(scratch / "outside")
