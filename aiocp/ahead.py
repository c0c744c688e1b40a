"""Directories that are looked into ahead of a walk, several at once.

Where each look waits for a server, a walk that goes from one to the next would wait most of the
time. What comes next is known when a directory has been looked into: those that are in it. Where
none waits the walk looks by itself: threads would but wait for each other, at 0.2 ms a directory.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice, takewhile
from time import perf_counter
from typing import NamedTuple

from aiocp.errors import operation
from aiocp.linux import File
from aiocp.selection import Selection
from aiocp.tree import Directory, Entry, OnError, list_entries

_THREADS = 8
_MOST = 64  # directories that are looked into, and not walked yet
_MANY = 4096  # entries of a directory, that is not looked into ahead then
_TOGETHER = 64  # entries that one thread looks at
_SLOW = 50e-6  # seconds that an entry takes, on the average, where it is worth it
_SAMPLE = 32  # directories, of which the walk looks into one by itself, to know that

Found = tuple[bytes, bool, bool, os.stat_result | None]  # as Kind, and the status of no directory


class _Looked(NamedTuple):
    """What a directory was, and had in it."""

    status: os.stat_result
    found: list[Found]


class _Level(NamedTuple):
    """What is to be walked in a directory: `names` that nobody looks into yet, and those before
    them: `looking`, or None for those that are left to the walk."""

    parent: Directory
    file: File
    names: deque[bytes]
    looking: "dict[bytes, Future[_Looked | None] | None]"


class Ahead:
    """A listing for `walk`, whose entries have their status. `close` when done."""

    def __init__(self, *, follow: bool) -> None:
        self._follow = follow
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="aiocp-ahead")
        self._levels: list[_Level] = []  # on the way down, of each what is still to come
        self._under_way = self._asked = 0
        self._takes = 0.0  # seconds, an entry

    def __call__(
        self,
        directory: Directory,
        below: list[bytes],
        on_error: OnError,
        follow: bool,
        selection: Selection,
    ) -> Iterator[Entry]:
        """As `list_entries`."""
        if directory.names is not None:  # few are wanted
            for entry in list_entries(directory, below, on_error, follow, selection):
                seen = None
                with suppress(OSError):  # its copy will meet it again
                    seen = _status(entry.name, directory.fd(), follow)
                yield entry._replace(seen=seen)
            return
        asks = selection.filters
        for name, is_directory, is_file, seen in self._found(directory):
            if asks and not selection.takes(directory.join(name), is_directory, directory.included):
                continue
            if is_directory:
                below.append(name)
            else:
                yield Entry(directory, name, is_file, seen)
        self._look_ahead(directory, below)

    def _found(self, directory: Directory) -> Iterable[Found]:
        """What is in a directory, by a look ahead if that was at the same one."""
        looking = None
        if directory.parent is not None:
            looking = self._take(directory.parent, directory.name)
        # an error is not raised, which would keep files open: the walk meets it as well
        if looking is not None and looking.exception() is None:
            looked = looking.result()
            if looked is not None and os.path.samestat(looked.status, directory.stat):
                return looked.found
        return self._stream(directory.fd())

    def _take(self, parent: Directory, name: bytes) -> "Future[_Looked | None] | None":
        """The look ahead at a directory; those that the walk has passed by are given up."""
        while self._levels and self._levels[-1].parent.depth > parent.depth:
            self._forget(self._levels.pop().looking)
        if not self._levels or self._levels[-1].parent is not parent:
            return None
        level = self._levels[-1]
        passed = list(takewhile(lambda other: other != name, level.looking))
        self._forget({other: level.looking.pop(other) for other in passed})
        while name not in level.looking and level.names and level.names.popleft() != name:
            pass
        looking = level.looking.pop(name, None)
        self._under_way -= looking is not None
        return looking

    def _forget(self, looking: "dict[bytes, Future[_Looked | None] | None]") -> None:
        for future in filter(None, looking.values()):
            self._under_way -= 1
            future.cancel()

    def _stream(self, fd: int) -> Iterator[Found]:
        """What is in a directory, some entries at a time."""
        ahead: deque[Future[list[Found]]] = deque()
        with operation("list"), os.scandir(fd) as entries:
            begun = perf_counter()
            while some := list(islice(entries, _TOGETHER)):
                if ahead or self._is_slow:
                    ahead.append(self._pool.submit(_look_at_each, some, self._follow))
                    if len(ahead) > _THREADS:
                        yield from ahead.popleft().result()
                    continue
                found = _look_at_each(some, self._follow)
                self._took(perf_counter() - begun, len(some))
                yield from found
                begun = perf_counter()
            while ahead:
                yield from ahead.popleft().result()

    @property
    def _is_slow(self) -> bool:
        return self._takes > _SLOW

    def _took(self, seconds: float, entries: int) -> None:
        """Take note of how long a look has taken that did not wait for other threads."""
        self._takes += (seconds / (entries + 1) - self._takes) / 8

    def _look_ahead(self, directory: Directory, below: list[bytes]) -> None:
        """Look into what comes next: what is in this directory, then what is next to it."""
        if not self._is_slow:
            return
        if below:
            with suppress(OSError):  # may be listed and not searched: what is in it will say so
                file = File.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory.fd())
                self._levels.append(_Level(directory, file, deque(below), {}))
        for level in reversed(self._levels):
            while level.names and self._under_way < _MOST:
                name = level.names.popleft()
                self._asked += 1
                if self._asked % _SAMPLE == 0:
                    level.looking[name] = None
                    continue
                looking = self._pool.submit(_look_into, level.file, name, self._follow)
                level.looking[name] = looking
                self._under_way += 1

    def close(self) -> None:
        """Look no further."""
        self._levels.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _look_into(parent: File, name: bytes, follow: bool) -> _Looked | None:
    """What is in a directory, unless that is much."""
    flags = os.O_RDONLY | os.O_DIRECTORY | (0 if follow else os.O_NOFOLLOW)
    with File.open(name, flags, dir_fd=parent.fileno()) as file, os.scandir(file.fileno()) as each:
        entries = list(islice(each, _MANY))
        if len(entries) == _MANY:
            return None
        return _Looked(os.fstat(file.fileno()), _look_at_each(entries, follow))


def _look_at_each(entries: "Iterable[os.DirEntry[str]]", follow: bool) -> list[Found]:
    found: list[Found] = []
    for entry in entries:
        is_directory, is_file, seen = False, False, None
        with suppress(OSError):  # a link into nowhere, or one that went: its copy will say so
            is_directory = entry.is_dir(follow_symlinks=follow)
            is_file = entry.is_file(follow_symlinks=False)
            if not is_directory:
                seen = entry.stat(follow_symlinks=follow)
        found.append((os.fsencode(entry.name), is_directory, is_file, seen))
    return found


def _status(name: bytes, fd: int, follow: bool) -> os.stat_result:
    return os.stat(name, dir_fd=fd, follow_symlinks=follow)
