"""What of a source tree is wanted: what filters leave of all of it, or of the names in a list."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

# whether a path below the root is meant, and it is told whether that is a directory
Test = Callable[[bytes, bool], bool]

# the names of a directory that are listed, each with those in it, None where there are none; ITSELF
# is among these where the name is more than the way to them
Names = dict[bytes, "Names | None"]
ITSELF = b""


class Selection(NamedTuple):
    """Of directories everything but what `exclude` names; of what is in them only what `include`
    names, and all that is in directories which it names. If there are `names` these only, and of
    directories among them all that is in them if `recursive`; `refused` are no names.
    """

    exclude: Test | None = None
    include: Test | None = None
    names: Names | None = None
    recursive: bool = True
    refused: tuple[bytes, ...] = ()

    @property
    def filters(self) -> bool:
        """Whether it is to be asked of each path."""
        return self.exclude is not None or self.include is not None

    def asked(self, by: Callable[[Test], Test]) -> "Selection":
        """The same, of which `by` makes what is called instead."""
        return self._replace(
            exclude=self.exclude and by(self.exclude), include=self.include and by(self.include)
        )

    def includes(self, path: bytes, *, is_directory: bool) -> bool:
        """Whether a file is included, or all that is in a directory."""
        return self.include is None or self.include(path, is_directory)

    def takes(self, path: bytes, is_directory: bool, included: bool) -> bool:
        """Whether to copy something, or to look into it; `included` if all next to it is."""
        if self.exclude is not None and self.exclude(path, is_directory):
            return False
        return is_directory or included or self.includes(path, is_directory=False)

    def within(self, names: Names | None) -> Names | None:
        """What of a directory that is listed, with these names in it, is wanted; None for all."""
        names = {ITSELF: None} if names is None else names
        return None if self.recursive and ITSELF in names else names


EVERYTHING = Selection()


def select(
    exclude: Test | None,
    include: Test | None,
    files: Iterable[str | bytes | os.PathLike[str] | os.PathLike[bytes]] | None,
    recursive: bool,
) -> Selection:
    """What is wanted by these arguments of copy_tree()."""
    if files is None:
        return Selection(exclude, include)
    names: Names = {}
    refused = tuple(path for path in map(os.fsencode, files) if not _enter(names, path))
    return Selection(exclude, include, names, recursive, refused)


def _enter(names: Names, path: bytes) -> bool:
    """Put a path among the names; False for one that leads out, or is none."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts or b"\0" in path:
        return False
    *above, last = parts or [ITSELF]
    for part in above:
        below = names.get(part)
        if below is None:
            below = names[part] = {ITSELF: None} if part in names else {}
        names = below
    below = names.setdefault(last)
    if below is not None:
        below[ITSELF] = None
    return True


def listed(path: bytes, names: Names | None) -> Iterator[bytes]:
    """The paths that are listed, at a path and below it."""
    waiting = [(path, names)]
    while waiting:
        path, names = waiting.pop()
        for name, below in (names or {ITSELF: None}).items():
            if name == ITSELF:
                yield path
            else:
                waiting.append((b"%b/%b" % (path, name), below))
