"""How a tree is to be copied: the options of copy_tree() that more than one module looks at."""

import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from aiocp.asked import Link
from aiocp.backup import NONE
from aiocp.engine import Sync
from aiocp.extents import Sparse
from aiocp.reflink import Reflink
from aiocp.transfer import sync_before_name

if TYPE_CHECKING:
    from aiocp.checksum import Algorithm
    from aiocp.pace import Pace

# whether to replace, given the path, the source's stat and that of what has its name
Replace = Callable[[bytes, os.stat_result, os.stat_result], bool]


class TreeOptions(NamedTuple):
    """As copy_tree() has them; `follow` is its `follow_symlinks`, `remove` its
    `remove_destination`, `keep_links` its `keep_directory_symlink`, `backup` the kind and suffix.
    """

    block_size: int
    sparse: Sparse
    reflink: Reflink
    preserve: frozenset[str]
    follow: bool
    sync: bool
    verify: bool
    checksum: "Algorithm | None"
    resume: bool
    allow_changed: bool
    replace: Replace | None
    remove: bool
    backup: tuple[str, bytes]
    link: Link | None
    attributes_only: bool
    copy_contents: bool
    keep_links: bool
    force: bool
    pace: "Pace | None"

    @property
    def backs_up(self) -> bool:
        """Whether what is replaced is kept under another name."""
        return self.backup[0] != NONE

    @property
    def file_sync(self) -> Sync:
        """What a new file needs before it gets its name."""
        return sync_before_name(self.preserve) if self.sync else Sync.NONE

    @property
    def batches(self) -> bool:
        """Whether small files may be copied by the batch.

        Not where each link that is followed is a name of its file, files are not what they seem, or
        what is in them is looked at.
        """
        linked = self.follow and "links" in self.preserve
        special = self.link or self.attributes_only
        looked_at = self.verify or self.checksum is not None or self.sparse == "always"
        return not (linked or special or looked_at)

    def has_contents(self, seen: os.stat_result) -> bool:
        """Whether to copy what is in something, rather than to make another of its kind."""
        if stat.S_ISREG(seen.st_mode):
            return True
        return self.copy_contents and not (stat.S_ISLNK(seen.st_mode) or stat.S_ISDIR(seen.st_mode))

    def writes_through(self, seen: os.stat_result) -> bool:
        """Whether a link at the destination is followed to copy this."""
        renews = self.remove or self.backs_up or self.link is not None
        return self.has_contents(seen) and not renews
