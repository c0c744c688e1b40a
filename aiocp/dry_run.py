"""--dry-run: what a command line would copy, and what of it would fail, with nothing touched.

The decisions are those of Operands; what differs is that nothing is opened to be written, nor made.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import ESTALE
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from aiocp.asked import DEFAULT_BLOCK_SIZE, Link
from aiocp.backup import Backups, Replaced
from aiocp.errors import fail, operation
from aiocp.file_copier import find_place
from aiocp.foresee import ForeseenDestination, ForeseenSource, foresee_node
from aiocp.hard_links import Copied
from aiocp.linux import File
from aiocp.operands import How, Operands, Status
from aiocp.outcome import Outcome
from aiocp.parents import in_the_way
from aiocp.place import Place
from aiocp.plan import Plan
from aiocp.result import CopyResult

if TYPE_CHECKING:
    from aiocp.progress import Progress
    from aiocp.result import TreeResult


class _At(NamedTuple):
    """As a Place; `made` tells whether the directory is there."""

    directory: File
    name: bytes
    follow: bool
    made: bool


class DryRun(Operands):
    """One dry run of the command."""

    plan: Plan

    def __init__(self, how: How) -> None:
        super().__init__(how)
        self.plan = Plan()
        self._backups: dict[bytes, Backups] = {}

    def copy(
        self, source: str, destination: str, progress: "Progress"
    ) -> "CopyResult | TreeResult | None":
        super().copy(source, destination, progress)
        return None

    def _look(self, path: str, *, follow: bool) -> Status | None:
        planned = self.plan.look(os.fsencode(path), follow=follow)
        return planned or super()._look(path, follow=follow)

    @contextmanager
    def _parents(self, source: bytes, target: bytes) -> Iterator[None]:
        from_path, to_path = b"/" * source.startswith(b"/"), target
        for name in filter(None, os.path.dirname(source.rstrip(b"/")).split(b"/")):
            from_path, to_path = os.path.join(from_path, name), os.path.join(to_path, name)
            if name in (b".", b".."):  # which every directory has
                continue
            there = self._look(os.fsdecode(to_path), follow=True)
            if there is None:
                with (
                    operation("open source"),
                    File.open(from_path, os.O_PATH | os.O_DIRECTORY) as directory,
                ):
                    seen = os.fstat(directory.fileno())
                self.plan.add(to_path, from_path, seen)
                self._tell_directory(from_path, to_path)
            elif not stat.S_ISDIR(there.st_mode):
                raise in_the_way(to_path)
        yield

    def _directory(
        self, source: str, destination: str, seen: Status, progress: "Progress"
    ) -> "TreeResult | None":
        result = super()._directory(source, destination, seen, progress)
        follow = self.how.follow == "all"
        self.plan.add_tree(os.fsencode(destination), os.fsencode(source), follow=follow)
        return result

    # --- what is no directory ---

    def _copy_file(self, source: str, destination: str, remove: bool, progress: "Progress") -> None:
        how, src, dst = self.how, os.fsencode(source), os.fsencode(destination)
        with operation("open source"):
            found = ForeseenSource(src, os.stat(src))
        backups = self._backups_in(dst)
        renews = remove or backups is not None
        with self._place_of(dst, partial(find_place, src, dst, found.stat, remove, backups)) as at:
            foreseen = ForeseenDestination(
                at.directory,
                at.name,
                found,
                "auto",
                DEFAULT_BLOCK_SIZE,
                in_place=how.file["in_place"],
                force=how.common["force"],
                follow=at.follow,
                preserve=how.preserve,
                remove=remove,
                backups=backups,
                attributes_only=how.common["attributes_only"],
                existing=self.plan.look(dst, follow=not renews),
                made=at.made,
            )
            backup = None
            if foreseen.replaces and backups is not None:
                name = os.fsdecode(backups.foresee(at.directory.fileno(), at.name))
                backup = os.path.join(os.path.dirname(destination), name)
        self.plan.add(dst if renews else os.path.realpath(dst), src, found.stat)
        if how.on_entry is not None:
            removed = foreseen.removes and backup is None
            size = 0 if how.common["attributes_only"] else found.size or 0
            how.on_entry(Outcome(source, destination, "copy", backup, removed, size=size))

    def _make_node(self, source: str, destination: str, seen: Status, replace: bool) -> Replaced:
        return self._foresee(os.fsencode(source), destination, seen, replace=replace, link=None)

    def _make_link(
        self, link: Link, source: str, destination: str, seen: Status, replace: bool
    ) -> Replaced | None:
        return self._foresee(os.fsencode(source), destination, seen, replace=replace, link=link)

    def _make_name(self, copied: Copied, destination: str) -> Replaced | None:
        seen = self.plan.look(copied.path, follow=False)
        if seen is None:
            raise fail(ESTALE, "its first name was replaced meanwhile")
        return self._foresee(copied.path, destination, seen, replace=True, link="name")

    def _foresee(
        self, source: bytes, destination: str, seen: Status, *, replace: bool, link: str | None
    ) -> Replaced:
        """What would become of what has the name of a link or node."""
        dst = os.fsencode(destination)
        backups = self._backups_in(dst)
        with self._place_of(dst, partial(Place, dst, follow=False)) as at:
            directory = at.directory.fileno()
            if at.made and backups is not None and link != "name":
                backups.refuse(source, seen, directory, at.name)
            replaced = foresee_node(
                source,
                seen,
                self._look(destination, follow=False),
                directory,
                at.name,
                os.fstat(directory) if at.made else seen,
                made=at.made,
                link=link,
                replace=replace,
                backups=backups,
            )
        self.plan.add(dst, source, seen, link)
        return replaced

    def _backups_in(self, path: bytes) -> Backups | None:
        """What names the backups beside a path: one for all operands, for numbers are taken."""
        if self.how.backup is None:
            return None
        directory = os.path.realpath(os.path.dirname(path) or b".")
        return self._backups.setdefault(directory, Backups(*self.how.backup))

    @contextmanager
    def _place_of(self, path: bytes, find: Callable[[], Place]) -> Iterator[_At]:
        """Where something would be made."""
        above = os.path.dirname(path) or b"."
        if self.plan.look(above, follow=True) is not None and not os.path.isdir(above):
            yield _At(File(), os.path.basename(path), follow=False, made=False)
            return
        with find() as place:
            yield _At(place.directory, place.name, place.follow, made=True)
