"""What of a tree waits for a worker, and how much of it one is given at a time.

A part costs a worker the wait for its last sync, so few large ones are best; but none is to be left
with a large one when all others are done. So a part is a share of what waits: large as long as the
walk is ahead, and smaller and smaller in the end.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from aiocp.hard_links import Identity
from aiocp.share import Names
from aiocp.target import Target

# A part has so many files, and not more bytes than that, unless it is one file
LEAST_FILES, MOST_FILES = 256, 8192
MOST_BYTES = 256 << 20

_AHEAD = 8  # how many of the largest parts the walk is ahead


class Far:
    """A file with several names that is with a worker."""

    digest: str | None = None

    def __init__(self, target: Target, name: bytes) -> None:
        self.target, self.name = target, name
        self.identity: Identity | None = None
        self.other_names: list[tuple[Target, bytes, bytes]] = []

    @property
    def path(self) -> bytes:
        """Below the root."""
        return self.target.directory.join(self.name)


class Waiting(NamedTuple):
    """A file, or a link, of so many bytes; `is_file` as that of an Entry, `far` if it has several
    names."""

    target: Target
    name: bytes
    size: int
    is_file: bool
    far: Far | None


class Gathered:
    """What a worker is given: names by their directories."""

    def __init__(self) -> None:
        self.names: dict[Target, Names] = {}
        self.far: list[Far] = []

    def add(self, one: Waiting) -> None:
        if (names := self.names.get(one.target)) is None:
            names = self.names[one.target] = Names(one.target.directory.path, [], [])
        (names.files if one.is_file else names.others).append(one.name)
        if one.far is not None:
            self.far.append(one.far)

    def counts(self) -> Iterator[tuple[Target, int]]:
        """How many are in each directory."""
        for target, names in self.names.items():
            yield target, len(names.files) + len(names.others)

    def directories(self) -> dict[bytes, Target]:
        """All that these are in, by their paths."""
        found: dict[bytes, Target] = {}
        for target in self.names:
            above: Target | None = target
            while above is not None and above.directory.path not in found:
                found[above.directory.path] = above
                above = above.parent
        return found

    def paths(self) -> Iterator[bytes]:
        """Of all that is in it, below the root."""
        for target, names in self.names.items():
            for name in (*names.files, *names.others):
                yield target.directory.join(name)


class Backlog:
    """Files that no worker has yet, in the order of the walk."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, one: Waiting) -> None:
        """Have one more."""
        self._waiting.append(one)
        self._bytes += one.size

    @property
    def ready(self) -> bool:
        """Whether there is enough for a part."""
        return len(self._waiting) >= LEAST_FILES or self._bytes >= MOST_BYTES

    @property
    def full(self) -> bool:
        """Whether the walk is far enough ahead."""
        return len(self._waiting) >= _AHEAD * MOST_FILES

    def take(self, hands: int) -> Gathered:
        """The next part, where so many are at work."""
        shares = 2 * hands if hands > 1 else 1  # one is never left over
        files = min(max(len(self._waiting) // shares, LEAST_FILES), MOST_FILES)
        gathered, size = Gathered(), 0
        while self._waiting and files and (not size or size + self._waiting[0].size <= MOST_BYTES):
            one = self._waiting.popleft()
            gathered.add(one)
            size += one.size
            files -= 1
        self._bytes -= size
        return gathered
