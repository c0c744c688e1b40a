"""Batches of a tree's files, copied by one of many workers.

What is walked are the names that the batch has. Their directories are the coordinator's, which has
made them, and finishes them when all is in them; here the names that were made are synced.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from errno import EACCES, EEXIST
from operator import add
from typing import Any

from aiocp.budget import budget
from aiocp.context import Context
from aiocp.errors import Cancel, operation
from aiocp.hard_links import HardLinks
from aiocp.outcome import Outcome
from aiocp.selection import EVERYTHING, Selection
from aiocp.share import Batch, BatchDone, Depth, Failure, Names, Told, kernel
from aiocp.stage import Stage
from aiocp.target import Target, open_target
from aiocp.tree import Directory, Entry, OnError, Step, walk
from aiocp.tree_copy import TreeCopy, Wait
from aiocp.tree_outcomes import TreeOutcomes
from aiocp.tree_targets import TreeTargets


class _Given(Target):
    """A directory that somebody else has made, and will finish."""

    __slots__ = ()

    def carry(self, preserve: frozenset[str]) -> None:
        pass

    def finish(self, preserve: frozenset[str]) -> None:
        pass


class _Targets(TreeTargets):
    """The directories that are there; `umask` holds for what is made in them, and those of the
    paths `named` get names."""

    _kind = _Given

    def __init__(self, umask: int, named: Iterable[bytes], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._umask, self._named = umask, frozenset(named)

    def _take(self, directory: Directory, parent: Target | None, path: bytes) -> Target:
        follow = parent is None or self._how.keep_links
        with operation("open directory"):
            file = open_target(path, None if parent is None else parent.fd(), follow=follow)
        target = self._adopt(file, directory, parent, created=False)
        if not target.acl:
            target.mask = self._umask
        return target

    def _is_synced(self, target: Target) -> bool:
        return super()._is_synced(target) and target.directory.path in self._named


class _Outcomes(TreeOutcomes):
    """What is to be told elsewhere."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.told: list[Told] = []
        self.failures: list[Failure] = []

    def tell(
        self,
        path: bytes,
        method: str,
        kind: str,
        existed: bool = False,
        backup: bytes | None = None,
        size: int = 0,
        digest: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        if self.on_entry is not None:
            self.told.append((path, method, kind, existed, backup, size, digest, notes))

    def failed(self, path: bytes, error: BaseException) -> None:
        if not isinstance(error, OSError):
            raise error
        self.failures.append((path, error))


class PartTree(TreeCopy):
    """The state of one batch that is copied."""

    outcomes: _Outcomes

    def __init__(self, batch: Batch, cancel: Cancel | None) -> None:
        self._batch = batch
        self._below: defaultdict[bytes, list[bytes]] = defaultdict(list)  # where to go into
        self._led_to: set[bytes] = set()
        self._names = {names.path: names for names in batch.names}
        for path in self._names:
            self._lead_to(path)
        super().__init__(
            batch.roots,
            batch.how,
            budget(batch.depth),
            HardLinks(),
            on_entry=_listens if batch.listens else None,
            on_error=None,
            progress=None,
            progress_files=None,
            totals=False,
            cancel=cancel,
        )

    def _lead_to(self, path: bytes) -> None:
        """Have the walk come to a directory, by way of those above it."""
        while path and path not in self._led_to:
            self._led_to.add(path)
            above, _, name = path.rpartition(b"/")
            self._below[above].append(name)
            path = above

    def _new_outcomes(
        self,
        on_entry: Callable[[Outcome], object] | None,
        on_error: Callable[[OSError], object] | None,
    ) -> _Outcomes:
        return _Outcomes(self.names, on_entry, on_error)

    def _new_targets(self, give: Callable[[Any], object]) -> TreeTargets:
        arguments = self.names[1], self.how, self.outcomes, give
        return _Targets(self._batch.umask, self._names, *arguments)

    def _walk(self, root: Directory) -> Generator[Step, None, None]:
        return walk(root, self.outcomes.failed, follow=self.how.follow, listing=self._list)

    def _list(
        self,
        directory: Directory,
        below: list[bytes],
        on_error: OnError,
        follow: bool,
        selection: Selection,
    ) -> Iterator[Entry]:
        below += self._below[directory.path]
        names = self._names.get(directory.path) or Names(b"", [], [])
        for name in names.files:
            yield Entry(directory, name, is_file=True)
        for name in names.others:
            yield Entry(directory, name, is_file=False)

    def _sync_names(self) -> Iterator[Wait]:
        if self._batch.synced_by and self._batch.synced_by == kernel():
            return iter(())
        return super()._sync_names()


def copy_batch(batch: Batch, cancel: Cancel | None) -> tuple[BatchDone, Depth]:
    """Copy a batch; what became of it. Raises OSError where nothing could be begun, Cancelled."""
    limits = budget(batch.depth)
    with Context(limits.depth, batch.how.block_size, idle=batch.idle) as context:
        done = _copy(batch, context, cancel)
        if again := _ours(batch, done.failures):
            paths = {os.path.join(names.path, name) for names in again for name in names.files}
            forced = batch._replace(how=batch.how._replace(force=True), names=again)
            rest = [failure for failure in done.failures if failure[0] not in paths]
            done = _added(done._replace(failures=rest), _copy(forced, context, cancel))
        return done, Depth(context.depth, context.peak_in_flight)


def _copy(batch: Batch, context: Context, cancel: Cancel | None) -> BatchDone:
    copy = PartTree(batch, cancel)
    try:
        steps = copy.steps(context, context.reap, one_file_system=False, selection=EVERYTHING)
        for on in steps:
            if isinstance(on, Stage):
                on.wait()
    finally:
        copy.close()
    outcomes = copy.outcomes
    return BatchDone(
        outcomes.files,
        outcomes.links,
        outcomes.specials,
        outcomes.bytes,
        outcomes.holes,
        outcomes.reflinked,
        copy.moved,
        copy.syncs,
        outcomes.told,
        outcomes.failures,
    )


def _ours(batch: Batch, failures: Iterable[Failure]) -> list[Names]:
    """Of what may not be opened at the destination, or came to be there meanwhile, what is of this
    copy: made by a worker that was lost, or taken for it, before it could say so, as it has changed
    since the lease was made."""
    denied = {path for path, error in failures if error.errno in (EACCES, EEXIST)}
    if not denied:
        return []
    try:
        since = os.stat(batch.ground.lease).st_ctime_ns
    except OSError:  # the copy is at its end
        return []
    ours: list[Names] = []
    for names in batch.names:
        files = []
        for name in names.files:
            path = os.path.join(names.path, name)
            if path in denied:
                with suppress(OSError):
                    if os.lstat(os.path.join(batch.roots[1], path)).st_ctime_ns >= since:
                        files.append(name)
        if files:
            ours.append(Names(names.path, files, []))
    return ours


def _added(one: BatchDone, other: BatchDone) -> BatchDone:
    """Both together: all of it is to be added."""
    return BatchDone(*map(add, one, other))


def _listens(_: Outcome) -> None:
    """Has entries told."""
