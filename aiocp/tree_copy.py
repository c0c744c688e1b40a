"""Copy a tree: every file a transfer of its own, all through one engine and one context.

    walk     files are opened by the batch ahead of the engine, which reads, writes and syncs them;
             links and specials are made, and directories, at once
    commit   files whose sync is down get their names, small ones by the batch behind the engine
    leave    a directory whose last entry is in place gets its attributes and is synced, then counts
             as an entry of its parent that is in place

Ahead are two side threads, behind is one, all with calls that need no GIL. Where it is faster
small files are synced together, by syncfs(2), before they get their names. Errors of single entries
are collected, and the rest goes on.
"""

import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from errno import EINVAL, EISDIR, ESTALE
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from aiocp.asked import Progress, paced_block_size
from aiocp.backup import Backups, Replaced
from aiocp.batch import Batch, SmallFile
from aiocp.budget import AHEAD, Budget
from aiocp.context import Context
from aiocp.count import Count
from aiocp.engine import Completion, Engine, Sync, Transfer
from aiocp.errors import Cancel, fail, look, operation
from aiocp.file_copier import rung
from aiocp.hard_links import HardLinks, Identity, identity
from aiocp.linux import File, dirty_bytes, has_syncfs
from aiocp.nodes import link_node
from aiocp.opening import Opening
from aiocp.outcome import Outcome, kind_of
from aiocp.placing import Placing, Written
from aiocp.selection import Selection
from aiocp.source import SMALL, Source
from aiocp.stage import Stage
from aiocp.target import Target, TargetSync, make_directory
from aiocp.transfer import (
    sync_directory,
    sync_parent,
    what_stopped,
)
from aiocp.tree import Directory, Enter, Entry, Step, walk
from aiocp.tree_file import TreeFile, begin
from aiocp.tree_node import Made, make
from aiocp.tree_options import TreeOptions
from aiocp.tree_progress import TreeProgress

if TYPE_CHECKING:
    from aiocp.reading import Reading
    from aiocp.verify import Verification

# Bytes of other programs that a sync of the file system may write along, about what a disk writes
# in a second
_OTHERS_DIRTY = 256 << 20

# Seconds after which whoever drives a copy gets a turn, for what else he has to do
_TURN = 0.002

# What a copy waits for: completions, not longer than so many seconds if it is a number, or results;
# None: for nothing, it only gives a turn
Wait = Context | float | Stage[Any] | None
# Gives completions; for whoever is to wait in it, not longer than so many seconds
Reap = Callable[[float | None], list[Completion]]


class TreeCopy:
    """The state of one copy_tree()."""

    def __init__(
        self,
        names: tuple[bytes, bytes],
        how: TreeOptions,
        limits: Budget,
        links: HardLinks,
        on_entry: Callable[[Outcome], object] | None,
        on_error: Callable[[OSError], object] | None,
        progress: Progress | None,
        progress_files: Progress | None,
        totals: bool,
        cancel: Cancel | None,
    ) -> None:
        self.names, self.how = names, how
        self._above = [os.fsdecode(os.path.join(name, b"")) for name in names]
        self.on_entry, self.on_error = on_entry, on_error
        self.cancel = cancel
        self.files = self.directories = self.links = self.specials = self.bytes = 0
        self.holes = self.reflinked = 0
        self.errors: list[OSError] = []
        self._root: Target | None = None
        self._reading, self._most_reading = 0, limits.reading  # batches that the engine has
        self._placing = Placing(limits.together)
        self._opening = Opening(self._new_batch, limits.batch, how.reflink)
        self._moved = 0  # bytes; those that the engine writes it counts itself
        self._progress: TreeProgress | None = None
        if progress is not None or progress_files is not None:
            count = self._counting if totals else None
            self._progress = TreeProgress(progress, progress_files, count)
        self._open: set[TreeFile] = set()
        self._targets: set[Target] = set()
        self._stream_block = memoryview(bytearray(paced_block_size(SMALL, how.pace)))
        self._copied = links
        self._in_flight: dict[Identity, TreeFile] = {}  # of those, what is not in place yet
        self._top = os.path.abspath(names[1])
        self._begun: deque[Transfer] = deque()  # to hand to the engine
        self._on: Stage[Any] | None = None  # what the walk waits for
        self._turn_ends = 0.0
        # what is read of clones, and of what is on the disk
        self._read_back: dict[Transfer, tuple[Reading | Verification, TreeFile]] = {}

    def steps(
        self,
        context: Context,
        reap: Reap,
        one_file_system: bool,
        selection: Selection,
    ) -> Iterator[Wait]:
        """Copy everything, but for the waiting; errors of single entries go into `errors`.

        Gives what there is to wait for before it goes on; what comes of others meanwhile is taken
        too. The context's `reap` waits for completions by itself, for `reap_now` whoever drives
        has waited.
        """
        with operation("open source"):
            file = File.open(self.names[0], os.O_RDONLY | os.O_DIRECTORY)
            root = Directory(file, b"", None, b"")
        self._rules: dict[str, Any] = {
            "follow": self.how.follow,
            "one_file_system": one_file_system,
            "selection": selection,
        }
        steps = walk(root, self._failed, **self._rules)
        transfers = self._transfers(steps)
        self._context = context
        self._engine = engine = Engine(context, transfers, self.how.pace)
        with closing(steps), closing(transfers):
            yield from self._drive(engine, reap)
        self._report(through=not self.errors)
        assert self._root is not None
        if self._root.together:  # or no name that was put in place since the last is durable
            yield from self._beside(self._placing.sync)
        if self.how.sync and self._root.created:
            yield from self._beside(self._sync_parent)

    def _drive(self, engine: Engine, reap: Reap) -> Iterator[Wait]:
        """Drive the engine and the stages to their end."""
        context = self._context
        while True:
            self._begin_turn()
            self._look()
            while self._begun:
                engine.add(self._begun.popleft())
            self._on = None
            ended = engine.start()
            if not ended:
                if engine.ready or self._turn_is_over():
                    on: Wait = None
                elif (on := self._on or self._last(engine)) is None and not self._begun:
                    return
                yield on
                waits = on is context or isinstance(on, float)
                ended = engine.complete(reap(engine.delay) if waits else context.reap_now())
            yield from self._go_on(ended)

    def _last(self, engine: Engine) -> Wait:
        """What to wait for where the walk has nothing more to begin."""
        if engine.delay is not None:
            return engine.delay
        if engine.in_flight:
            return self._context
        self._placing.rest()
        return self._placing.stage if self._placing.stage.pending else None

    def _go_on(self, ended: Iterable[Transfer]) -> Iterator[None]:
        """Go on with what the engine and the stage behind it are done with."""
        for transfer in ended:
            self._look()
            self._ended(transfer)
            if self._turn_is_over():
                yield
                self._begin_turn()
        for written in self._placing.settled():
            self._placed(written)
            if self._turn_is_over():
                yield
                self._begin_turn()

    def _begin_turn(self) -> None:
        self._turn_ends = perf_counter() + _TURN

    def _turn_is_over(self) -> bool:
        return perf_counter() >= self._turn_ends

    def _beside(self, call: Callable[[], object]) -> Iterator[Wait]:
        """Have a side thread sync something at the end."""
        self._placing.then(call)
        while not self._placing.stage.done():
            yield self._placing.stage
        try:
            assert not list(self._placing.settled())
        except OSError as error:
            self._failed(b"", error)

    def tell(self, told: Callable[[], object]) -> None:
        """Have this called, by any thread, whenever a stage is no longer to be waited for."""
        for stage in (self._opening.stage, self._placing.stage):
            stage.tell(told)

    def settle(self) -> Iterator[Wait]:
        """After an exception: what there is to wait for, so that `close` need not."""
        stages: tuple[Stage[Any], ...] = (self._opening.stage, self._placing.stage)
        for stage in stages:
            stage.forget()
        for stage in stages:
            while stage.pending:
                while not stage.done():
                    yield stage
                with suppress(Exception):  # nobody is told any more
                    stage.take()

    def _look(self) -> None:
        """See whether to stop, and tell how far it is."""
        look(self.cancel)
        self._report()

    def _report(self, *, through: bool = False) -> None:
        if self._progress is not None:
            moved = self._moved + self._engine.bytes_written
            files = self.files + self.links + self.specials
            self._progress.report(moved, files, through=through)

    def _counting(self) -> Count:
        """What counts all that is to be copied, from now on."""
        assert self._root is not None
        linked = "links" in self.how.preserve and self.how.link != "hard"
        return Count(
            self._root.directory.fd(),
            self._root.is_same,
            links=self._copied if linked else None,
            contents=self.how.link is None and not self.how.attributes_only,
            **self._rules,
        )

    def _passed(self, seen: os.stat_result) -> None:
        """Take off the totals what is counted, but not copied."""
        if self._progress is not None:
            self._progress.passed(seen)

    def _sync_parent(self) -> None:
        """Have the root's own name on the disk."""
        root = self.names[1].rstrip(b"/")
        with (
            operation("its name is not durable: sync"),
            File.open(root or b"/", os.O_RDONLY | os.O_DIRECTORY) as file,
        ):
            sync_parent(root, file.fileno())

    @property
    def syncs(self) -> int:
        """How often the file system was synced."""
        return self._placing.syncs

    def close(self) -> None:
        """Let go of what an exception has left open."""
        self._placing.close()
        self._opening.close()
        for transfer in self._open:
            transfer.close()
        for target in self._targets:
            target.file.let_go()
        if self._progress is not None:
            self._progress.close()

    # --- what the walk gives ---

    def _transfers(self, steps: Iterable[Step]) -> Generator[Transfer | None, None, None]:
        """What is to be transferred; None where something is to be waited for, or done, first."""
        batches = self.how.batches
        for step in steps:
            while self._placing.full:
                self._on = self._placing.stage
                yield None
            if self._turn_is_over():
                yield None
            if isinstance(step, Entry):
                if step.is_file and batches:
                    if self._wanted(step) and self._add(step):
                        self._opening.open()
                        yield from self._until_opened(AHEAD)
                else:
                    directory = step.directory
                    yield from self._other(directory.data, step.name, directory.fd())
            elif isinstance(step, Enter):
                try:
                    self._enter(step.directory)
                except OSError as error:
                    if step.directory.parent is None:
                        raise
                    step.directory.skip = True
                    self._failed(step.directory.path, error)
            elif step.directory.data is not None:
                self._arrived(step.directory.data)
            while self._begun:
                yield self._begun.popleft()
        self._opening.open()
        yield from self._until_opened(0)

    def _until_opened(self, ahead: int) -> Iterator[Transfer | None]:
        """Take batches that are opened, until no more than `ahead` are on their way."""
        stage, placing = self._opening.stage, self._placing
        while stage.pending > ahead:
            if placing.full:
                self._on = placing.stage
                yield None
            elif self._reading >= self._most_reading:
                yield None
            elif not stage.done():
                self._on = stage
                yield None
            else:
                yield from self._opened(self._opening.take())

    def _wanted(self, entry: Entry) -> bool:
        """Whether to copy a regular file over what has its name."""
        if self.how.replace is None:
            return True
        target: Target = entry.directory.data
        path = entry.directory.join(entry.name)
        try:
            with operation("open source"):
                seen = os.stat(entry.name, dir_fd=entry.directory.fd(), follow_symlinks=False)
            return self._may_replace(target, entry.name, path, seen)
        except OSError as error:
            self._failed(path, error)
        return False

    def _add(self, entry: Entry) -> bool:
        """Have a file opened with others; whether there are enough of them."""
        try:
            return self._opening.add(entry.directory, entry.name)
        except OSError as error:
            self._failed(entry.directory.join(entry.name), error)
            return False

    def _new_batch(self, target: Target) -> Batch:
        return Batch(
            self.how.preserve,
            Sync.NONE if target.together else self.how.file_sync,
            allow_changed=self.how.allow_changed,
            replace=not (self.how.remove or self.how.backs_up),
            holes=self.how.sparse == "auto",
            at_once=self.how.pace is None,
        )

    def _opened(self, batch: Batch) -> Iterator[Transfer | None]:
        batch.waiting = 1
        self._reading += 1
        for transfer in batch.transfers(self._opening.alignments, self.how.block_size):
            batch.waiting += 1
            yield transfer
        for index, from_fd in batch.others():
            target = batch.where(index)
            yield from self._other(target, batch.name(index), from_fd, wanted=True)
            self._arrived(target)
            if self._turn_is_over():
                yield None
        self._written(batch)

    def _other(
        self, target: Target, name: bytes, from_fd: int, *, wanted: bool = False
    ) -> Iterator[Transfer]:
        """Copy what is not for a batch; `wanted` even over what has its name."""
        path = target.directory.join(name)
        try:
            transfer = self._entry(target, name, from_fd, path, wanted=wanted)
        except OSError as error:
            self._failed(path, error)
        else:
            if transfer is None:
                look(self.cancel)
            elif isinstance(transfer, TreeFile) and transfer.resumed and transfer.observers:
                self._read(transfer.reading, transfer)
            else:
                yield transfer

    def _enter(self, directory: Directory) -> None:
        """Make, or take, the directory that goes with one of the source's."""
        parent: Target | None = None
        if directory.parent is None:
            directory.data = self._root = self._placing.root = self._make_root(directory)
            if self._progress is not None:
                self._progress.begin()
            return
        parent = directory.parent.data
        assert parent is not None
        assert self._root is not None
        if self._root.is_same(directory.stat):
            raise fail(EINVAL, "cannot copy a directory into itself")
        directory.data = self._take(directory, parent, directory.name)
        if not self.how.keep_links:  # a link's ".." is not where the link is
            parent.park_above()

    def _make_root(self, directory: Directory) -> Target:
        target = self._take(directory, None, self.names[1])
        if target.is_same(directory.stat):
            raise fail(EINVAL, "cannot copy a directory into itself")
        return target

    def _take(self, directory: Directory, parent: Target | None, path: bytes) -> Target:
        """Make or take a directory, and give it what it can have before its entries; the rest
        would be undone by them."""
        file, created = make_directory(path, parent, follow=parent is None or self.how.keep_links)
        backups = Backups(*self.how.backup) if self.how.backs_up else None
        try:
            with operation("make directory"):
                target = Target(file, directory, parent, created=created, backups=backups)
        except OSError:
            file.let_go()  # the error lives on, and all that it knows with it
            raise
        self._targets.add(target)
        if parent is None:
            # other names promise the data of files that are only looked at: all of it, at the end
            together = self.how.link == "hard" or _syncs_together(file.fileno())
            target.together = self.how.sync and together
        early = self._kept(directory) - {"timestamps"}
        if early:
            try:
                with operation("set attributes"):
                    target.carry(early)
            except OSError as error:  # what is below can be copied all the same
                target.failed = True
                self._failed(directory.path, error)
        self.directories += 1
        if created:
            self._tell(directory.path, "directory", "directory")
        return target

    def _kept(self, directory: Directory) -> frozenset[str]:
        """What a directory keeps of the source's attributes."""
        return frozenset() if directory.implied else self.how.preserve

    def _entry(
        self, target: Target, name: bytes, from_fd: int, path: bytes, *, wanted: bool
    ) -> Transfer | None:
        """Begin to copy a file; anything else is copied at once."""
        with operation("open source"):
            seen = os.stat(name, dir_fd=from_fd, follow_symlinks=self.how.follow)
        if not (wanted or self._may_replace(target, name, path, seen)):
            return None
        if stat.S_ISDIR(seen.st_mode):
            raise fail(ESTALE, "became a directory")
        key = (seen.st_dev, seen.st_ino)
        several = seen.st_nlink > 1 or self.how.follow  # a link that is followed is a name too
        linked = several and "links" in self.how.preserve and self.how.link != "hard"
        if linked and self._link(key, target, name, path, seen):
            return None
        if self.how.link is None and self.how.has_contents(seen):
            return self._begin(target, name, from_fd, seen, key if linked else None)
        made = self._make(target, name, from_fd, path, seen)
        if made is None:
            self._passed(seen)
        else:
            kind = "link" if made.is_link else kind_of(seen.st_mode)
            self._count(path, made.method, made.replaced, kind, is_link=made.is_link)
        if linked:
            self._remember(key, target, name)
        return None

    def _begin(
        self,
        target: Target,
        name: bytes,
        from_fd: int,
        seen: os.stat_result,
        identity: Identity | None,
    ) -> Transfer | None:
        """Begin to copy what has contents; `identity` is given if names are to be linked to it."""
        source = Source(
            name,
            "auto",
            self.how.block_size,
            dir_fd=from_fd,
            seen=seen,
            follow=self.how.follow,
            alone=False,
        )
        transfer = begin(
            self.how,
            target,
            name,
            source,
            refused=self._opening.refused[target.stat.st_dev],
            block=self._stream_block,
            cancel=self.cancel,
        )
        self._open.add(transfer)
        if identity is not None:
            transfer.identity, self._in_flight[identity] = identity, transfer
        return transfer

    def _make(
        self, target: Target, name: bytes, from_fd: int, path: bytes, seen: os.stat_result
    ) -> Made | None:
        return make(self.how, target, name, from_fd, os.path.join(self.names[0], path), seen)

    def _remember(
        self,
        source: Identity,
        target: Target,
        name: bytes,
        made: os.stat_result | None = None,
        digest: str | None = None,
    ) -> None:
        """That a file which has other names was copied."""
        if made is None:
            made = os.stat(name, dir_fd=target.fd(), follow_symlinks=False)
        directory = os.path.join(self._top, target.directory.path)
        self._copied.add(source, directory, name, identity(made), digest)

    def _may_replace(self, target: Target, name: bytes, path: bytes, seen: os.stat_result) -> bool:
        """Whether what has the name, if anything has, is to be replaced."""
        if self.how.replace is None:
            return True
        existing = self._existing(target, name, follow=self.how.writes_through(seen))
        if existing is None:
            return True
        if self.how.replace(path, seen, existing):
            return True
        self._passed(seen)
        self._tell(path, "skipped", kind_of(seen.st_mode))
        return False

    def _existing(self, target: Target, name: bytes, *, follow: bool) -> os.stat_result | None:
        """The stat of what has a name, None if nothing has it."""
        try:
            return os.stat(name, dir_fd=target.fd(), follow_symlinks=follow)
        except FileNotFoundError:
            return None

    def _link(
        self,
        source: Identity,
        target: Target,
        name: bytes,
        path: bytes,
        seen: os.stat_result,
    ) -> bool:
        """Give a file that is copied already, or on its way, another name; whether it is."""
        if (transfer := self._in_flight.get(source)) is not None:
            transfer.other_names.append((target, name, path))
            target.waiting += 1
            return True
        if (copied := self._copied.get(source)) is None:
            return False
        flags = os.O_PATH if self.how.follow else os.O_PATH | os.O_NOFOLLOW
        with operation("link"), File.open_far(copied.path, flags) as file:
            found = os.fstat(file.fileno())
            if copied.identity != identity(found):
                raise fail(ESTALE, "its first name was replaced meanwhile")
            self._link_to(file.fileno(), target, name, path, found, copied.checksum)
        return True

    def _link_to(
        self,
        fd: int,
        target: Target,
        name: bytes,
        path: bytes,
        found: os.stat_result,
        digest: str | None,
    ) -> None:
        self._refuse_directory(target, name, found)
        replaced = link_node(fd, found, target.fd(), name, backups=target.backups)
        made, kind = replaced or Replaced(), kind_of(found.st_mode)
        self._count(path, "hard-link", made, kind, digest=digest)

    def _refuse_directory(self, target: Target, name: bytes, seen: os.stat_result) -> None:
        """Raise OSError where a link to a directory has the name of a file that is to be linked."""
        renews = target.created or self.how.remove or self.how.backs_up
        if renews or not stat.S_ISREG(seen.st_mode):
            return
        existing = self._existing(target, name, follow=True)
        if existing is not None and stat.S_ISDIR(existing.st_mode):
            raise fail(EISDIR, "cannot overwrite a directory with what is none")

    # --- what the engine gives back ---

    def _ended(self, transfer: Transfer) -> None:
        if isinstance(transfer, SmallFile):
            batch = transfer.batch
            batch.transferred += transfer.bytes_written
            if transfer.failed:
                batch.failed(transfer.index, what_stopped(transfer))
            self._written(batch)
        elif isinstance(transfer, TreeFile):
            elsewhere = transfer.cloned or transfer.streamed  # what no engine has written
            self._moved += transfer.size if elsewhere else transfer.holes + transfer.resumed
            if transfer.cloned and transfer.observers and not transfer.failed:
                if transfer.digests is None:  # the copy is read
                    transfer.let_source_go()
                self._read(transfer.reading, transfer)
            else:
                self._copied_whole(transfer)
        elif transfer in self._read_back:
            self._was_read(*self._read_back.pop(transfer))
        else:
            assert isinstance(transfer, TargetSync)
            try:
                transfer.assert_done()
            except OSError as error:
                self._failed(transfer.target.directory.path, error)
            self._arrived(self._settle(transfer.target))

    def _copied_whole(self, file: TreeFile) -> None:
        """Have a file placed, or what is on the disk of it compared with what was read before."""
        if file.failed:
            self._commit(file)
        elif file.waits:
            file.let_source_go()
            self._placing.hold(file, 1)
        elif (digests := file.digests) is not None:
            from aiocp.verify import Verification

            file.let_source_go()
            self._read(partial(Verification, file.destination, digests, file.size), file)
        else:
            self._commit(file)

    def _read(self, begin: "Callable[[int], Reading | Verification]", file: TreeFile) -> None:
        """Have the engine read what is on the disk of a file."""
        try:
            reading = begin(self.how.block_size)
        except OSError as error:
            file.error = error
            self._commit(file)
        else:
            self._read_back[reading] = reading, file
            self._begun.append(reading)

    def _was_read(self, reading: "Reading | Verification", file: TreeFile) -> None:
        from aiocp.reading import Reading

        reading.close()
        if not isinstance(reading, Reading):
            file.error = reading.why()
            self._commit(file)
            return
        if reading.failed:
            file.error = what_stopped(reading)
        if file.cloned or file.failed:
            self._copied_whole(file)
        else:  # it was there before, and the rest comes now
            self._begun.append(file)

    def _written(self, batch: Batch) -> None:
        """One file less of a batch is to be written; after the last it is placed."""
        batch.waiting -= 1
        if batch.waiting:
            return
        self._reading -= 1
        if self.how.sync and batch.sync is Sync.NONE:
            batch.seal()
            self._placing.hold(batch, len(batch))
        else:
            self._placing.place(batch)

    def _placed(self, written: Written) -> None:
        """Tell what became of what was to be placed."""
        if isinstance(written, Batch):
            self._batch_placed(written)
        else:
            self._commit(written)

    def _batch_placed(self, batch: Batch) -> None:
        for index, error in batch.failures():
            self._failed(batch.where(index).directory.join(batch.name(index)), error)
        if self.on_entry is not None:
            for index, how, size in batch.copied():
                path = batch.where(index).directory.join(batch.name(index))
                plain = how == "aio-buffered" and self._context.plain
                self._tell(path, "plain" if plain else how, "file", size=size)
        self.files += batch.placed
        self.reflinked += batch.cloned
        self.bytes += batch.size
        self._moved += max(0, batch.size - batch.transferred)
        for target, count in zip(batch.data, batch.counts, strict=True):
            if count:
                self._arrived(target, count)
        self._opening.let_go(batch)

    def _commit(self, transfer: TreeFile) -> None:
        """Put a finished file, and the names linked to it, in place."""
        try:
            if transfer.failed:
                raise what_stopped(transfer)
            self._put_in_place(transfer)
        except OSError as error:
            if transfer.unfinished is not None:
                transfer.unfinished.stopped(error)
            self._failed(transfer.path, error)
            for _, _, path in transfer.other_names:
                self._failed(path, fail(error.errno or ESTALE, "its first name was not copied"))
        finally:
            if transfer.identity is not None:
                del self._in_flight[transfer.identity]
            self._open.discard(transfer)
            transfer.close()
        self._arrived(transfer.target)
        for target, _, _ in transfer.other_names:
            self._arrived(target)

    def _put_in_place(self, transfer: TreeFile) -> None:
        destination = transfer.destination
        destination.commit(flush=transfer.target.flush)
        if transfer.unfinished is not None:
            transfer.unfinished.done()
        if transfer.place is not None and self.how.sync and not destination.in_place:
            sync_directory(transfer.place.directory, transfer.place.readable, destination.fd)
        self.files += 1
        self.bytes += transfer.size
        self.holes += transfer.holes
        self.reflinked += transfer.cloned
        if self.on_entry is not None:
            method = rung(transfer, self._context, transfer.streamed)
            if self.how.attributes_only:
                method = "attributes"
            unfinished = transfer.unfinished
            self._tell(
                transfer.path,
                method,
                "file",
                destination.removes,
                destination.backup,
                transfer.size,
                transfer.digest,
                () if unfinished is None else tuple(unfinished.notes()),
            )
        if transfer.identity is None:
            return
        if transfer.place is None or self.how.follow:
            self._link_others(transfer, transfer.identity, destination.fd)
        else:  # the link is what gets another name
            flags = os.O_PATH | os.O_NOFOLLOW
            with File.open(transfer.name, flags, dir_fd=transfer.target.fd()) as link:
                self._link_others(transfer, transfer.identity, link.fileno())

    def _link_others(self, transfer: TreeFile, source: Identity, fd: int) -> None:
        """Link the names of a file that came while it was in flight, those furthest down first:
        the way up to a parked directory begins at the one before, and no more than these two are
        open."""
        with operation("look at copy"):
            found = os.fstat(fd)
        digest = transfer.digest
        self._remember(source, transfer.target, transfer.name, found, digest)
        before: Target | None = None
        names = sorted(transfer.other_names, key=lambda other: -other[0].directory.depth)
        for target, name, path in names:
            parked = target.file.fileno() < 0
            try:
                self._link_to(fd, target, name, path, found, digest)
            except OSError as error:
                self._failed(path, error)
            if parked:
                if before is not None:
                    before.park()
                before = target
        if before is not None:
            before.park()

    def _arrived(self, target: Target | None, count: int = 1) -> None:
        """That much less is to be put into a directory; after the last it is finished."""
        while target is not None:
            target.waiting -= count
            count = 1
            if target.waiting:
                return
            try:
                with operation("set attributes"):
                    target.finish(self._kept(target.directory))
            except OSError as error:
                if not target.failed:
                    self._failed(target.directory.path, error)
            if self.how.sync and not target.together:
                try:
                    self._begun.append(TargetSync(target))
                except OSError as error:
                    self._failed(target.directory.path, error)
                else:
                    return
            target = self._settle(target)

    def _settle(self, target: Target) -> Target | None:
        """Let go of a finished directory; the one that it counts as an entry of."""
        if target.parent is not None:  # the root is still to be synced
            target.let_go()
            self._targets.discard(target)
        return target.parent

    def _count(
        self,
        path: bytes,
        method: str,
        replaced: Replaced,
        kind: str,
        *,
        is_link: bool = False,
        digest: str | None = None,
    ) -> None:
        """Count, and tell of, what was made at once."""
        if is_link:
            self.links += 1
        elif method == "special":
            self.specials += 1
        else:
            self.files += 1
        existed, backup = replaced.existed, replaced.backup
        self._tell(path, method, kind, existed, backup, digest=digest)

    def _tell(
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
        if self.on_entry is None:
            return
        source, destination = self._both(path)
        kept = None
        if backup is not None:
            kept = os.fsdecode(os.path.join(os.path.dirname(os.fsencode(destination)), backup))
        removed = existed and backup is None
        how = method, kept, removed, kind, size, digest, notes
        self.on_entry(Outcome(source, destination, *how))

    def _both(self, path: bytes) -> tuple[str, str]:
        """The names of an entry on both sides; those of the tree for the empty path."""
        if not path:
            return os.fsdecode(self.names[0]), os.fsdecode(self.names[1])
        below = os.fsdecode(path)
        return self._above[0] + below, self._above[1] + below

    def _failed(self, path: bytes, error: BaseException) -> None:
        """Take down what was not copied."""
        if not isinstance(error, OSError):
            raise error
        error.filename, error.filename2 = self._both(path)
        self.errors.append(error)
        if self.on_error is not None:
            self.on_error(error)


def _syncs_together(fd: int) -> bool:
    """Whether to sync the file system as a whole, for many files at once."""
    try:
        return has_syncfs(fd) and dirty_bytes() < _OTHERS_DIRTY
    except OSError:  # what others have to write cannot be told
        return False
