"""A tree that is not copied: walked, and of each entry told what would become of it.

The decisions are those of TreeCopy; what differs is that nothing is made. A directory that is not
there has a target too, with nothing in it.
"""

import os
import stat
from collections.abc import Callable, Iterator
from errno import EINVAL, ENOTDIR
from functools import partial
from typing import Any

from aiocp.backup import Backups, Replaced
from aiocp.context import Context
from aiocp.engine import Transfer
from aiocp.errors import fail, operation
from aiocp.foresee import (
    ForeseenDestination,
    ForeseenSource,
    foresee_node,
    may_write,
)
from aiocp.hard_links import HardLinks, Identity
from aiocp.linux import File
from aiocp.outcome import kind_of
from aiocp.place import open_directory
from aiocp.plan import Plan
from aiocp.selection import Selection
from aiocp.target import Target, open_target
from aiocp.tree import Directory, Entry
from aiocp.tree_copy import Reap, TreeCopy, Wait
from aiocp.tree_file import open_destination
from aiocp.tree_links import TreeLinks
from aiocp.tree_node import Made, is_other, making
from aiocp.tree_targets import TreeTargets


class _Taken(Target):
    """A directory that is there, and stays as it is; `plan` tells what else would be in it.

    `path` is its own, an absolute one.
    """

    __slots__ = ("path", "plan")

    def __init__(self, plan: Plan, path: bytes, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.plan, self.path = plan, path

    def planned(self, name: bytes, *, follow: bool) -> os.stat_result | None:
        """The stat of what would have a name that has it only by the plan."""
        return self.plan.look(os.path.join(self.path, name), follow=follow)

    def look(self, name: bytes, *, follow: bool) -> os.stat_result | None:
        planned = self.planned(name, follow=follow)
        return super().look(name, follow=follow) if planned is None else planned

    def carry(self, preserve: frozenset[str]) -> None:
        pass

    def finish(self, preserve: frozenset[str]) -> None:
        pass


class _Unmade(_Taken):
    """A directory that is not there; `stat` is that of the one above it that is."""

    __slots__ = ()

    def __init__(
        self,
        plan: Plan,
        path: bytes,
        directory: Directory,
        parent: Target | None,
        above: os.stat_result,
        backups: Backups | None,
    ) -> None:
        self.plan, self.path = plan, path
        self.file, self.directory, self.parent = File(), directory, parent
        self.created, self.backups, self.stat = True, backups, above
        self.mask = 0
        self.together = self.failed = False
        self.child = None
        self.waiting = 1
        if parent is not None:
            parent.waiting += 1

    def look(self, name: bytes, *, follow: bool) -> os.stat_result | None:
        return self.planned(name, follow=follow)

    def opened(self) -> File:
        return self.file

    def is_same(self, status: os.stat_result) -> bool:
        return False

    def park_above(self) -> None:
        pass

    def let_go(self) -> None:
        pass


class _Targets(TreeTargets):
    """The directories of a tree that is not copied: those that are there, and those that are not.

    `home` is the stat of where the root would be made, None where it would not be.
    """

    def __init__(self, plan: Plan, path: bytes, *arguments: Any) -> None:
        super().__init__(path, *arguments)
        self.home: os.stat_result | None = None
        self.top = os.path.abspath(path)
        self._plan = plan

    def _take(self, directory: Directory, parent: Target | None, path: bytes) -> Target:
        where = self._at(directory)
        backups = Backups(*self._how.backup) if self._how.backs_up else None
        with operation("make directory"):
            file, above = self._open_target(directory, parent, path)
            if file is not None:
                target: Target = _Taken(
                    self._plan, where, file, directory, parent, created=False, backups=backups
                )
                self._open.add(target)
            else:
                target = _Unmade(self._plan, where, directory, parent, above, backups)
        self._outcomes.directories += 1
        if file is None and self._plan.look(where, follow=False) is None:
            self._outcomes.tell(directory.path, "directory", "directory")
        return target

    def _at(self, directory: Directory) -> bytes:
        return os.path.join(self.top, directory.path) if directory.path else self.top

    def _open_target(
        self, directory: Directory, parent: Target | None, path: bytes
    ) -> tuple[File | None, os.stat_result]:
        """A directory if it is there, else the stat of the one where it would be made."""
        planned = self._plan.look(self._at(directory), follow=False)
        if planned is not None and not stat.S_ISDIR(planned.st_mode):
            raise fail(ENOTDIR, "make directory")
        if parent is None:
            return self._open_root(path, planned)
        if isinstance(parent, _Unmade):
            return None, parent.stat
        try:
            file = open_target(path, parent.fd(), follow=self._how.keep_links)
        except FileNotFoundError:
            if Target.look(parent, path, follow=False) is not None:  # a link into nowhere
                raise
            if planned is None:
                may_write(b".", parent.fd())
            return None, parent.stat
        return file, os.fstat(file.fileno())

    def _open_root(
        self, path: bytes, planned: os.stat_result | None
    ) -> tuple[File | None, os.stat_result]:
        try:
            file = open_target(path, None, follow=True)
        except FileNotFoundError:
            if planned is not None:
                return None, planned
            if os.path.lexists(path):  # a link into nowhere
                raise
            above = os.path.dirname(path.rstrip(b"/"))
            if (seen := self._plan.look(above or b".", follow=True)) is not None:
                return None, seen
            with open_directory(above)[0] as home:
                may_write(b".", home.fileno())
                self.home = os.fstat(home.fileno())
            return None, self.home
        return file, os.fstat(file.fileno())


class _Links(TreeLinks):
    """The names that files would get."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._numbers = 0

    def link(
        self,
        source: Identity,
        target: Target,
        name: bytes,
        path: bytes,
        seen: os.stat_result,
    ) -> bool:
        if self.copied.get(source) is None:
            return False
        self.refuse_directory(target, name, seen)
        replaced = _foresee(target, name, path, seen, link="name")
        self._outcomes.count(path, "hard-link", replaced, kind_of(seen.st_mode))
        return True

    def remember(
        self,
        source: Identity,
        target: Target,
        name: bytes,
        made: os.stat_result | None = None,
        digest: str | None = None,
    ) -> None:
        self._numbers += 1
        directory = os.path.join(self._top, target.directory.path)
        self.copied.add(source, directory, name, (0, self._numbers))


class DryTree(TreeCopy):
    """The state of one copy_tree() that only makes a plan."""

    _targets: _Targets

    def __init__(self, plan: Plan, *arguments: Any, **more: Any) -> None:
        self._plan = plan
        super().__init__(*arguments, **more)

    def _new_links(self, copied: HardLinks) -> TreeLinks:
        return _Links(self.names[1], self.how, copied, self.outcomes)

    def _new_targets(self, give: Callable[[Transfer], object]) -> TreeTargets:
        return _Targets(self._plan, self.names[1], self.how, self.outcomes, give)

    def steps(
        self, context: Context, reap: Reap, one_file_system: bool, selection: Selection
    ) -> Iterator[Wait]:
        self._selection = selection
        return super().steps(context, reap, one_file_system, selection)

    def _enter(self, directory: Directory) -> None:
        super()._enter(directory)
        home = self._targets.home
        if home is None or not os.path.samestat(home, directory.stat):
            return
        name = os.path.basename(self._targets.top)  # which the walk would come to, if it were there
        path, listed = directory.join(name), directory.names is None or name in directory.names
        if listed and self._selection.takes(path, is_directory=True, included=False):
            self.outcomes.failed(path, fail(EINVAL, "cannot copy a directory into itself"))

    def _add(self, entry: Entry) -> bool:
        target: Target = entry.directory.data
        for _ in self._other(target, entry.name, entry.directory.fd(), wanted=True):
            pass
        return False

    def _begin(
        self,
        target: Target,
        name: bytes,
        from_fd: int,
        seen: os.stat_result,
        identity: Identity | None,
    ) -> Transfer | None:
        source = ForeseenSource(name, seen, dir_fd=from_fd, follow=self.how.follow)
        assert isinstance(target, _Taken)
        existing = target.planned(name, follow=self.how.writes_through(seen))
        kind = partial(ForeseenDestination, existing=existing, made=not isinstance(target, _Unmade))
        destination, place, _ = open_destination(self.how, target, name, source, self.cancel, kind)
        if place is not None:
            place.directory.close()
        backup = None
        if destination.replaces and target.backups is not None:
            backup = target.backups.foresee(target.fd(), name)
        self.outcomes.files += 1
        size = 0 if self.how.attributes_only else source.size or 0
        self.outcomes.bytes += size
        path = target.directory.join(name)
        self.outcomes.tell(path, "copy", "file", destination.removes, backup, size)
        if identity is not None:
            self._links.remember(identity, target, name)
        return None

    def _make(
        self, target: Target, name: bytes, from_fd: int, path: bytes, seen: os.stat_result
    ) -> Made | None:
        how = self.how
        if not is_other(how, target, name, from_fd, seen):
            return None
        way = making(how, seen)
        path = os.path.join(self.names[0], path)
        replaced = _foresee(target, name, path, seen, link=how.link, replace=way.replace)
        return way.made(replaced)


def _foresee(
    target: Target,
    name: bytes,
    path: bytes,
    seen: os.stat_result,
    *,
    link: str | None,
    replace: bool = True,
) -> Replaced:
    return foresee_node(
        path,
        seen,
        target.look(name, follow=False),
        target.fd(),
        name,
        target.stat,
        made=not isinstance(target, _Unmade),
        link=link,
        replace=replace,
        backups=target.backups,
    )
