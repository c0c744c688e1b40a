"""The targets of a tree: made or taken where the walk enters, finished when all is in them."""

import os
from collections.abc import Callable
from errno import EINVAL

from aiocp.backup import Backups
from aiocp.engine import Transfer
from aiocp.errors import fail, operation
from aiocp.linux import File, dirty_bytes, has_syncfs
from aiocp.target import Target, TargetSync, make_directory
from aiocp.transfer import sync_parent
from aiocp.tree import Directory
from aiocp.tree_options import TreeOptions
from aiocp.tree_outcomes import TreeOutcomes

# Bytes of other programs that a sync of the file system may write along, about what a disk writes
# in a second
_OTHERS_DIRTY = 256 << 20


class TreeTargets:
    """Has a target for each directory that the walk has entered, until all is in it.

    `path` is that of the `root`, which is None until it is entered. `give` is called with each sync
    that the engine is to do.
    """

    _kind = Target

    def __init__(
        self,
        path: bytes,
        how: TreeOptions,
        outcomes: TreeOutcomes,
        give: Callable[[Transfer], object],
    ) -> None:
        self.root: Target | None = None
        self._path, self._how, self._outcomes, self._give = path, how, outcomes, give
        self._open: set[Target] = set()

    def enter(self, directory: Directory) -> None:
        """Make, or take, the directory that goes with one of the source's."""
        parent: Target | None = None
        if directory.parent is None:
            directory.data = self.root = self._make_root(directory)
            return
        parent = directory.parent.data
        assert parent is not None
        assert self.root is not None
        if self.root.is_same(directory.stat):
            raise fail(EINVAL, "cannot copy a directory into itself")
        directory.data = self._take(directory, parent, directory.name)
        if not self._how.keep_links:  # a link's ".." is not where the link is
            parent.park_above()

    def _make_root(self, directory: Directory) -> Target:
        target = self._take(directory, None, self._path)
        if target.is_same(directory.stat):
            raise fail(EINVAL, "cannot copy a directory into itself")
        return target

    def _take(self, directory: Directory, parent: Target | None, path: bytes) -> Target:
        """Make or take a directory, and give it what it can have before its entries; the rest
        would be undone by them."""
        file, created = make_directory(path, parent, follow=parent is None or self._how.keep_links)
        target = self._adopt(file, directory, parent, created)
        early = self._kept(directory) - {"timestamps"}
        if early:
            try:
                with operation("set attributes"):
                    target.carry(early)
            except OSError as error:  # what is below can be copied all the same
                target.failed = True
                self._outcomes.failed(directory.path, error)
        self._outcomes.directories += 1
        if created:
            self._outcomes.tell(directory.path, "directory", "directory")
        return target

    def _adopt(
        self, file: File, directory: Directory, parent: Target | None, created: bool
    ) -> Target:
        """The target that is an open directory."""
        backups = Backups(*self._how.backup) if self._how.backs_up else None
        try:
            with operation("make directory"):
                target = self._kind(file, directory, parent, created=created, backups=backups)
        except OSError:
            file.let_go()  # the error lives on, and all that it knows with it
            raise
        self._open.add(target)
        if parent is None:
            # other names promise the data of files that are only looked at: all of it, at the end
            together = self._how.link == "hard" or _syncs_together(file.fileno())
            target.together = self._how.sync and together
        return target

    def _kept(self, directory: Directory) -> frozenset[str]:
        """What a directory keeps of the source's attributes."""
        return frozenset() if directory.implied else self._how.preserve

    def arrived(self, target: Target | None, count: int = 1) -> None:
        """That much less is to be put into a directory; after the last it is finished."""
        while target is not None:
            target.waiting -= count
            count = 1
            if target.waiting:
                return
            try:
                with operation("set attributes"):
                    self._finish(target)
            except OSError as error:
                self._failed(target, error)
            if self._is_synced(target):
                try:
                    self._give(TargetSync(target))
                except OSError as error:
                    self._failed(target, error)
                else:
                    return
            target = self._settle(target)

    def _failed(self, target: Target, error: OSError) -> None:
        """Tell what is wrong with a directory, once."""
        if not target.failed:
            target.failed = True
            self._outcomes.failed(target.directory.path, error)

    def _finish(self, target: Target) -> None:
        """Give a directory what its entries would have changed. Raises OSError."""
        target.finish(self._kept(target.directory))

    def _is_synced(self, target: Target) -> bool:
        """Whether a directory is to be synced by itself."""
        return self._how.sync and not target.together

    def synced(self, sync: TargetSync) -> None:
        """The engine is done with the sync of a directory."""
        try:
            sync.assert_done()
        except OSError as error:
            self._outcomes.failed(sync.target.directory.path, error)
        self.arrived(self._settle(sync.target))

    def _settle(self, target: Target) -> Target | None:
        """Let go of a finished directory; the one that it counts as an entry of."""
        if target.parent is not None:  # the root is still to be synced
            target.let_go()
            self._open.discard(target)
        return target.parent

    def sync_name(self) -> None:
        """Have the root's own name on the disk."""
        root = self._path.rstrip(b"/")
        with (
            operation("its name is not durable: sync"),
            File.open(root or b"/", os.O_RDONLY | os.O_DIRECTORY) as file,
        ):
            sync_parent(root, file.fileno())

    def close(self) -> None:
        """Let go of what an exception has left open."""
        for target in self._open:
            target.file.let_go()


def _syncs_together(fd: int) -> bool:
    """Whether to sync the file system as a whole, for many files at once."""
    try:
        return has_syncfs(fd) and dirty_bytes() < _OTHERS_DIRTY
    except OSError:  # what others have to write cannot be told
        return False
