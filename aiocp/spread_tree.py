"""Copy a tree through the workers of an executor; this is the coordinator's part of it.

    walk     as of any tree, with looks ahead; files go to the workers, by the batch, and by ranges
             where they are large; directories and what is special are made here
    took     what a batch has come to is told, and what it has copied counts as in place
    leave    a directory whose last entry is in place is finished and synced here

A directory that is left is closed as long as its files are with the workers.
"""

import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from copy import copy
from errno import EIO, ESTALE
from functools import partial
from typing import Any

from aiocp.ahead import Ahead
from aiocp.backlog import Backlog, Far, Gathered, Waiting
from aiocp.crew import Crew
from aiocp.engine import Transfer
from aiocp.errors import fail, operation
from aiocp.hard_links import Identity
from aiocp.linux import File
from aiocp.metadata import umask
from aiocp.ranges import How, Ranges, worth_cutting
from aiocp.result import Worker
from aiocp.share import Batch, BatchDone, Done, Ground, kernel
from aiocp.target import Target
from aiocp.tree import Directory, Entry, Step, walk, without_empty
from aiocp.tree_copy import TreeCopy
from aiocp.tree_file import TreeFile
from aiocp.tree_targets import TreeTargets

_PATH_MAX = 4096 - 256  # bytes; a temporary name is a little longer


class _Parked(Target):
    """A directory that can be opened again by its `path`."""

    __slots__ = ("path",)

    path: bytes

    def opened(self) -> File:
        if self.file.fileno() < 0:
            with operation("open directory again"):
                file = File.open_far(self.path, os.O_RDONLY | os.O_DIRECTORY)
                if not self.is_same(os.fstat(file.fileno())):
                    raise fail(ESTALE, "moved while being copied")
            self.file = file
        return self.file

    def let_go(self) -> None:
        self.file.let_go()


class _Targets(TreeTargets):
    """Directories, the last of which is finished without the lease in it."""

    _kind = _Parked

    def __init__(self, crew: Crew, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._crew, self._top = crew, os.path.abspath(self._path)

    def _adopt(
        self, file: File, directory: Directory, parent: Target | None, created: bool
    ) -> Target:
        target = super()._adopt(file, directory, parent, created)
        assert isinstance(target, _Parked)
        target.path = os.path.join(self._top, directory.path) if directory.path else self._top
        return target

    def _finish(self, target: Target) -> None:
        if target.parent is None:
            self._crew.release()
        super()._finish(target)


class SpreadTree(TreeCopy):
    """The state of one copy_tree() whose files are copied by a crew."""

    def __init__(self, crew: Crew, idle: bool, depth: int, *arguments: Any, **more: Any) -> None:
        self._crew, self._idle, self._depth = crew, idle, depth
        self._backlog = Backlog()
        self._ranges: dict[TreeFile, Ranges] = {}  # of files that are with the crew
        self._ground: Ground | None = None
        self._synced = 0  # file systems, by workers
        super().__init__(*arguments, **more)
        self._ahead = Ahead(follow=self.how.follow)
        plain = self.how._replace(replace=None, resume=False, pace=None)
        self._theirs = plain._replace(backup=("none", b"~"))

    def _new_targets(self, give: Callable[[Transfer], object]) -> TreeTargets:
        return _Targets(self._crew, self.names[1], self.how, self.outcomes, give)

    def _walk(self, root: Directory) -> Generator[Step, None, None]:
        steps = walk(root, self.outcomes.failed, **self._rules, listing=self._ahead)
        return steps if root.included else without_empty(steps)

    def _enter(self, directory: Directory) -> None:
        super()._enter(directory)
        if directory.parent is None:
            self._muster(directory)

    def _muster(self, root: Directory) -> None:
        """Have the workers see both sides, before anything is given to them."""
        target = self._targets.root
        assert target is not None
        try:
            self._ground = self._crew.muster(self.names[0], root.fd(), self.names[1], target.fd())
        except OSError:
            self._crew.close()
            if target.created:
                with suppress(OSError):
                    os.rmdir(self.names[1])
            raise

    # --- what the walk gives ---

    def _take_up(self, entry: Entry) -> Iterator[Transfer | None]:
        directory, name, seen = entry.directory, entry.name, entry.seen
        target: Target = directory.data
        if seen is None or not self._is_theirs(seen):
            yield from self._other(target, name, directory.fd())
            return
        path = directory.join(name)
        identity = seen.st_dev, seen.st_ino
        several = seen.st_nlink > 1 or self.how.follow  # a link that is followed is a name too
        linked = several and "links" in self.how.preserve
        try:
            if not self._may_replace(target, name, path, seen):
                return
            if linked and self._links.link(identity, target, name, path, seen):
                return
            here = self.how.backs_up and target.look(name, follow=False) is not None
        except OSError as error:
            self.outcomes.failed(path, error)
            return
        if here:  # a part that is done twice would make two backups
            yield from self._other(target, name, directory.fd(), wanted=True)
        elif self._is_cut(path, seen):
            key = identity if linked else None
            yield from self._cut(target, name, directory.fd(), seen, key)
        else:
            self._put_off(entry, seen, identity if linked else None)
            if self._backlog.ready and (self._backlog.full or not self._crew.full):
                yield from self._give()

    def _is_theirs(self, seen: os.stat_result) -> bool:
        """Whether the workers copy it: what is a file for all of them, and links."""
        return stat.S_ISREG(seen.st_mode) or stat.S_ISLNK(seen.st_mode)

    def _put_off(self, entry: Entry, seen: os.stat_result, identity: Identity | None) -> None:
        """Have a file, or a link, wait for a worker."""
        target: Target = entry.directory.data
        target.waiting += 1
        size, far = seen.st_size if stat.S_ISREG(seen.st_mode) else 0, None
        if identity is not None:
            far = Far(target, entry.name)
            self._links.add(far, identity)
        self._backlog.add(Waiting(target, entry.name, size, entry.is_file, far))

    def _give(self) -> Iterator[None]:
        """Give the crew what waits, or a part of it, when it has use for that."""
        while self._crew.full:
            self._on = self._crew
            yield None
        gathered = self._backlog.take(self._crew.hands)
        assert self._ground is not None
        linked = bool(gathered.far) and self.how.checksum is not None
        batch = Batch(
            self._ground,
            (self._ground.source, os.path.dirname(self._ground.lease)),
            self._theirs,
            self._depth,
            self._idle,
            umask(),
            kernel() if self._syncs_all else b"",
            self.outcomes.on_entry is not None or linked,
            [*gathered.names.values()],
        )
        self._crew.give(batch, partial(self._took, gathered))

    @property
    def _syncs_all(self) -> bool:
        """Whether the file system is synced as a whole in the end."""
        return self._targets.root is not None and self._targets.root.together

    def _is_cut(self, path: bytes, seen: os.stat_result) -> bool:
        """Whether several workers are to copy a file: not where it is digested, from its beginning
        to its end, or has a path that is too long for a name."""
        if not worth_cutting(seen.st_size) or self.how.checksum is not None:
            return False
        return len(self._source(path)) < _PATH_MAX

    def _source(self, path: bytes) -> bytes:
        assert self._ground is not None
        return os.path.join(self._ground.source, path)

    def _cut(
        self,
        target: Target,
        name: bytes,
        from_fd: int,
        seen: os.stat_result,
        identity: Identity | None,
    ) -> Iterator[Transfer | None]:
        """Have a large file copied by ranges, unless it is cloned or written in place."""
        path = target.directory.join(name)
        try:
            file = self._begin_file(target, name, from_fd, seen, identity, named=True)
        except OSError as error:
            self.outcomes.failed(path, error)
            return
        if file.cloned or file.destination.in_place:
            yield file
            return
        try:
            ranges = self._new_ranges(file, path)
        except OSError as error:
            file.error = error
            yield file
            return
        if ranges.more:
            self._ranges[file] = ranges
        while ranges.more:
            while self._crew.full:
                self._on = self._crew
                yield None
            if ranges.more:  # it can have failed meanwhile
                ranges.give()

    def _new_ranges(self, file: TreeFile, path: bytes) -> Ranges:
        """What gives the workers the ranges of a file, which then is to be ended by the engine."""
        assert self._ground is not None
        if file.place is None:
            directory = os.path.join(
                os.path.dirname(self._ground.lease), file.target.directory.path
            )
        else:
            directory = file.place.directory.path()
        how = self.how
        return Ranges(
            self._crew,
            self._ground,
            self._source(path),
            os.path.join(directory, file.destination.temporary),
            file,
            How(
                "auto",
                self._depth,
                how.block_size,
                how.sync,
                how.verify,
                how.allow_changed,
                self._idle,
            ),
            ended=partial(self._all_there, file),
        )

    def _rest(self) -> Iterator[Transfer | None]:
        yield from super()._rest()
        while self._crew.pending or self._backlog:
            while self._backlog and not self._crew.full:
                yield from self._give()
            self._on = self._crew
            yield None

    def _leave(self, target: Target) -> None:
        super()._leave(target)
        if target.waiting and target.parent is not None:
            target.park()

    # --- what the workers give back ---

    def _go_on(self, ended: Iterable[Transfer]) -> Iterator[None]:
        yield from super()._go_on(ended)
        while self._crew.done():
            self._crew.take()

    def _took(self, gathered: Gathered, outcome: Done | OSError) -> None:
        """Tell what became of a batch."""
        digests: dict[bytes, str | None] = {}
        if isinstance(outcome, OSError):
            failures = [(path, _again(outcome)) for path in gathered.paths()]
        else:
            what = outcome.what
            assert isinstance(what, BatchDone)
            failures = what.failures
            digests = {path: digest for path, *_, digest, _ in what.told}
            self._add_up(what)
        directories = gathered.directories() if failures else {}
        for path, error in failures:
            if (target := directories.get(path)) is not None:  # of each batch that has some of it
                if target.failed:
                    continue
                target.failed = True
            self.outcomes.failed(path, error)
        for far in gathered.far:
            far.digest = digests.get(far.path)
        self._link_far(gathered.far, dict(failures))
        for target, count in gathered.counts():
            self._targets.arrived(target, count)

    def _all_there(self, file: TreeFile) -> None:
        """A large file is to be put in place, by the engine."""
        self._ranges.pop(file, None)
        self._begun.append(file)

    def _add_up(self, what: BatchDone) -> None:
        outcomes = self.outcomes
        outcomes.files += what.files
        outcomes.links += what.links
        outcomes.specials += what.specials
        outcomes.bytes += what.bytes
        outcomes.holes += what.holes
        outcomes.reflinked += what.reflinked
        outcomes.moved += what.moved
        self._synced += what.syncs
        for told in what.told:
            outcomes.tell(*told)

    def _link_far(self, files: Iterable[Far], failed: dict[bytes, OSError]) -> None:
        """Give files that are in place their other names."""
        for far in files:
            self._links.discard(far)
            try:
                self._link_one(far, failed)
            except OSError as error:
                if far.other_names and error.errno != EIO:  # which the file has under each
                    self._copy_next(far)
                    continue
                self._links.fail_others(far, error)
            for target, _, _ in far.other_names:
                self._targets.arrived(target)

    def _copy_next(self, far: Far) -> None:
        """Have a file copied under its second name, as it was not under its first."""
        (target, name, _), *others = far.other_names
        following = Far(target, name)
        following.other_names = others
        assert far.identity is not None
        self._links.add(following, far.identity)
        # no file by a listing: it can be a link that is followed
        self._backlog.add(Waiting(target, name, 0, is_file=False, far=following))

    def _link_one(self, far: Far, failed: dict[bytes, OSError]) -> None:
        path = far.path
        while path:  # or the directory could not be opened
            if path in failed:
                raise failed[path]
            path = os.path.dirname(path)
        assert far.identity is not None
        flags = os.O_PATH if self.how.follow else os.O_PATH | os.O_NOFOLLOW
        with (
            operation("open copy"),
            File.open(far.name, flags, dir_fd=far.target.fd()) as file,
        ):
            self._links.link_names(far, far.identity, file.fileno())

    @property
    def syncs(self) -> int:
        return super().syncs + self._synced

    @property
    def workers(self) -> tuple[Worker, ...]:
        return self._crew.workers

    def close(self) -> None:
        self._crew.close()
        for ranges in self._ranges.values():
            ranges.stopped()
        self._ahead.close()
        super().close()


def _again(error: OSError) -> OSError:
    """The same error, for another file."""
    other = copy(error)
    other.__cause__ = error.__cause__
    return other
