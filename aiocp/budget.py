"""How many files of a tree are open at once: what depth asks for and RLIMIT_NOFILE allows."""

import sys
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from typing import NamedTuple

from aiocp.batch import CAPACITY
from aiocp.target import KEPT_OPEN

# How many batches may be on their way to be opened, or placed
AHEAD, BEHIND = 3, 4

# How many batches may have files that are not in memory, and keep the others open meanwhile, at
# most and besides as many as the slots have descriptors for
_READING = 32

# How many small files wait without a name for one sync of the file system, at most and as a
# multiple of the depth. 20,000 files, cold, took 1.3 s on ext4, 1.3 on XFS, 2.1 on Btrfs; each with
# a sync of its own 1.9, 1.9, 4.0
_TOGETHER, _TOGETHER_OF_DEPTH = 1024, 4

# How many descriptors are left to the rest of the process
_OTHERS = 64


class Budget(NamedTuple):
    """The depth, the files of a batch, how many batches have files that are being read, how many
    files wait for a sync, and the walks through the tree."""

    depth: int
    batch: int
    reading: int
    together: int
    walks: int

    @property
    def descriptors(self) -> int:
        """How many are open at once: three for each slot, whose file may have a second one for what
        of it is cached, or two for each file of the batches that are being read; two for each file
        of those that are open ahead; one for each that waits for its sync or is being synced; those
        of the directories on the way down, of each walk and of the copy."""
        engine = max(3 * self.depth, 2 * self.reading * self.batch)
        ahead = 2 * (AHEAD + 2) * self.batch
        return engine + ahead + 2 * self.together + (self.walks + 1) * KEPT_OPEN


def room() -> int:
    """How many descriptors RLIMIT_NOFILE allows all trees."""
    limit, _ = getrlimit(RLIMIT_NOFILE)
    return sys.maxsize if limit == RLIM_INFINITY else limit - _OTHERS


def budget(depth: int, walks: int = 1) -> Budget:
    """What depth asks for and RLIMIT_NOFILE allows one tree, of which there are `walks`."""
    left = room() - (walks + 1) * KEPT_OPEN
    depth = max(1, min(depth, left // 8))
    batch = max(1, min(CAPACITY, depth, left // 32))
    rest = left - 3 * depth - 2 * (AHEAD + 2) * batch
    together = max(1, min(_TOGETHER, _TOGETHER_OF_DEPTH * depth, rest // 2))
    more = max(0, min(_READING, (rest - 2 * together) // (2 * batch)))
    reading = max(1, 3 * depth // (2 * batch)) + more
    return Budget(depth, batch, reading, together, walks)
