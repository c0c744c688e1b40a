"""Walk a source tree by directory descriptors, lazily.

Nothing is resolved through a path: each directory is opened from its parent's descriptor without
following links, so nobody can swap a directory for a link under the walk. A directory gives its
files first, as the kernel lists them, then its subdirectories one after the other; a generator on
an explicit stack, so neither the width nor the depth of a tree costs memory or recursion. Where
names are listed that are wanted, only these are gone to.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from errno import EINVAL, ELOOP, ESTALE
from typing import Any, NamedTuple

from aiocp.errors import fail, operation
from aiocp.linux import File
from aiocp.listing import look_for, read
from aiocp.selection import EVERYTHING, ITSELF, Names, Selection

# How many directories on the way down are kept open; those above are opened again through ".."
_KEPT_OPEN = 32

_OPEN = os.O_RDONLY | os.O_DIRECTORY


class Directory:
    """A source directory on the walk: `path` below the root for messages, `stat` as it was opened.

    `name` is the directory's own; that of the root is empty. `names` are those in it that are
    wanted, if not all are, and `implied` tells of the root that it is but the way to these;
    `included` that all that is in it is wanted, unless excluded. `data` is for whoever takes the
    walk, who may also set `skip` when he gets `Enter`: nothing below is given then.
    """

    __slots__ = (
        "data",
        "depth",
        "file",
        "implied",
        "included",
        "name",
        "names",
        "parent",
        "path",
        "skip",
        "stat",
    )

    def __init__(self, file: File, name: bytes, parent: "Directory | None", path: bytes) -> None:
        self.file, self.name, self.parent, self.path = file, name, parent, path
        self.stat = os.fstat(file.fileno())
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.included, self.implied = True, False
        self.names: Names | None = None
        self.data: Any = None
        self.skip = False

    def fd(self) -> int:
        return self.file.fileno()

    def join(self, name: bytes) -> bytes:
        """The path of an entry, for messages."""
        return b"%b/%b" % (self.path, name) if self.path else name

    def loops(self) -> bool:
        """Whether this directory is one of those above it, as a link followed can make it."""
        above = self.parent
        while above is not None:
            if os.path.samestat(above.stat, self.stat):
                return True
            above = above.parent
        return False


class Enter(NamedTuple):
    """A directory is begun: its files come next."""

    directory: Directory


class Entry(NamedTuple):
    """Anything in a directory but a directory; `is_file` if the listing says a regular file, and
    `seen` its status, if who looked into the directory has asked for it."""

    directory: Directory
    name: bytes
    is_file: bool
    seen: os.stat_result | None = None


class Leave(NamedTuple):
    """Everything below a directory has been given."""

    directory: Directory


Step = Enter | Entry | Leave
OnError = Callable[[bytes, OSError], None]
# gives the entries of a directory, and puts the names of directories in it into a list
Listing = Callable[[Directory, list[bytes], OnError, bool, Selection], Iterable[Entry]]


def walk(
    root: Directory,
    on_error: OnError,
    *,
    follow: bool = False,
    one_file_system: bool = False,
    selection: Selection = EVERYTHING,
    listing: Listing | None = None,
) -> Generator[Step, None, None]:
    """Give what is wanted below `root`, parents first, directories at their end once more.

    Arguments:
        on_error: called with the path and the error of what cannot be listed or opened; the rest
            is given all the same.
        follow: go into what symbolic links point to; a loop is an error (ELOOP).
        one_file_system: give directories on other file systems, but do not go into them.
        selection: what is wanted; a directory that has nothing of what it includes is not given.
        listing: looks into a directory, in place of `list_entries`.
    """
    if selection.names is not None:
        root.names = selection.within(selection.names)
        root.implied = ITSELF not in selection.names
    root.included = selection.include is None
    steps = _walk(root, on_error, follow, one_file_system, selection, listing)
    return steps if root.included or listing else without_empty(steps)


def _walk(
    root: Directory,
    on_error: OnError,
    follow: bool,
    one_file_system: bool,
    selection: Selection,
    listing: Listing | None,
) -> Generator[Step, None, None]:
    for path in selection.refused:
        on_error(path.lstrip(b"/"), OSError(EINVAL, "not a name below the source"))
    stack: list[tuple[Directory, list[bytes]]] = []
    directory: Directory | None = root
    try:
        while True:
            if directory is not None:
                below: list[bytes] = []
                stack.append((directory, below))
                yield Enter(directory)
                elsewhere = one_file_system and directory.stat.st_dev != root.stat.st_dev
                if not (elsewhere or directory.skip):
                    try:
                        look = listing or list_entries
                        yield from look(directory, below, on_error, follow, selection)
                    except OSError as error:
                        on_error(directory.path, error)
                below.reverse()
                directory = None
                if not follow:  # a link's ".." is not where the link is
                    _park(stack)
            parent, names = stack[-1]
            if names:
                name = names.pop()
                try:
                    directory = _enter(parent, name, follow)
                    if parent.names is not None:
                        directory.names = selection.within(parent.names[name])
                    if not parent.included:
                        directory.included = selection.includes(directory.path, is_directory=True)
                except OSError as error:
                    on_error(parent.join(name), error)
                continue
            if len(stack) > 1:
                above, names = stack[-2]
                try:
                    _unpark(above, parent)
                except OSError as error:
                    on_error(above.path, error)
                    names.clear()
            parent.file.let_go()
            yield Leave(parent)
            stack.pop()
            if not stack:
                return
    finally:
        for directory, _ in stack:
            directory.file.let_go()


def list_entries(
    directory: Directory,
    below: list[bytes],
    on_error: OnError,
    follow: bool,
    selection: Selection,
) -> Iterator[Entry]:
    """Give the entries that are no directories; put the names of those that are into `below`."""
    if directory.names is None:
        kinds = read(directory.fd(), follow)
    else:

        def failed(path: bytes, error: OSError) -> None:
            on_error(directory.join(path), error)

        kinds = look_for(directory.fd(), directory.names, follow, failed)
    asks = selection.filters
    for name, is_directory, is_file in kinds:
        if asks and not selection.takes(directory.join(name), is_directory, directory.included):
            continue
        if is_directory:
            below.append(name)
        else:
            yield Entry(directory, name, is_file)


def without_empty(steps: Generator[Step, None, None]) -> Generator[Step, None, None]:
    """Hold directories back until something in them is given, or all in them is included."""
    held: list[Directory] = []  # the last of those on the way down
    with closing(steps):
        for step in steps:
            directory = step.directory
            if isinstance(step, Leave) and held:
                held.pop()
                continue
            if isinstance(step, Enter):
                held.append(directory)
                # what is to be given is still open, and what holds the root is nothing
                due = directory.included or directory.parent is None or len(held) >= _KEPT_OPEN
                if not due:
                    continue
            for each in held:
                each.skip = each.parent is not None and each.parent.skip
                if not each.skip:
                    yield Enter(each)
            held.clear()
            if isinstance(step, Leave) or (isinstance(step, Entry) and not directory.skip):
                yield step


def _enter(parent: Directory, name: bytes, follow: bool) -> Directory:
    with operation("open directory"):
        flags = _OPEN if follow else _OPEN | os.O_NOFOLLOW
        file = File.open(name, flags, dir_fd=parent.fd())
        try:
            directory = Directory(file, name, parent, parent.join(name))
            if follow and directory.loops():
                raise fail(ELOOP, "open directory")
        except OSError:
            file.let_go()  # the error lives on, and all that it knows with it
            raise
    return directory


def _park(stack: list[tuple[Directory, list[bytes]]]) -> None:
    """Close the directory that is too far up to be needed soon."""
    if len(stack) > _KEPT_OPEN:
        stack[-_KEPT_OPEN - 1][0].file.let_go()


def _unpark(directory: Directory, child: Directory) -> None:
    """Open a closed directory again from its child, and make sure that it is the same."""
    if directory.fd() >= 0:
        return
    with operation("open directory again"):
        file = File.open(b"..", _OPEN, dir_fd=child.fd())
        if not os.path.samestat(os.fstat(file.fileno()), directory.stat):
            raise fail(ESTALE, "moved while being copied")
        directory.file = file
