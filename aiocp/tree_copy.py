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
from errno import ESTALE
from time import perf_counter
from typing import Any

from aiocp.asked import Progress, paced_block_size
from aiocp.batch import Batch, SmallFile
from aiocp.budget import AHEAD, Budget
from aiocp.context import Context
from aiocp.count import Count
from aiocp.engine import Completion, Engine, Sync, Transfer
from aiocp.errors import Cancel, fail, look, operation
from aiocp.hard_links import HardLinks, Identity
from aiocp.linux import File
from aiocp.opening import Opening
from aiocp.outcome import Outcome, kind_of
from aiocp.placing import Placing, Written
from aiocp.result import Worker
from aiocp.selection import Selection
from aiocp.source import SMALL, Source
from aiocp.stage import Awaited, Stage
from aiocp.target import Target, TargetSync
from aiocp.transfer import what_stopped
from aiocp.tree import Directory, Enter, Entry, Step, walk
from aiocp.tree_file import TreeFile, begin
from aiocp.tree_files import TreeFiles
from aiocp.tree_links import TreeLinks
from aiocp.tree_node import Made, make
from aiocp.tree_options import TreeOptions
from aiocp.tree_outcomes import TreeOutcomes
from aiocp.tree_progress import TreeProgress
from aiocp.tree_targets import TreeTargets

# Seconds after which whoever drives a copy gets a turn, for what else he has to do
_TURN = 0.002

# What a copy waits for: completions, not longer than so many seconds if it is a number, or results;
# None: for nothing, it only gives a turn
Wait = Context | float | Awaited | None
# Gives completions; for whoever is to wait in it, not longer than so many seconds
Reap = Callable[[float | None], list[Completion]]


class TreeCopy:
    """The state of one copy_tree(); `outcomes` is what it has come to."""

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
        self.cancel = cancel
        self.outcomes = self._new_outcomes(on_entry, on_error)
        self._reading, self._most_reading = 0, limits.reading  # batches that the engine has
        self._placing = Placing(limits.together)
        self._opening = Opening(self._new_batch, limits.batch, how.reflink)
        self._progress: TreeProgress | None = None
        if progress is not None or progress_files is not None:
            count = self._counting if totals else None
            self._progress = TreeProgress(progress, progress_files, count)
        self._stream_block = memoryview(bytearray(paced_block_size(SMALL, how.pace)))
        self._begun: deque[Transfer] = deque()  # to hand to the engine
        self._links = self._new_links(links)
        self._targets = self._new_targets(self._begun.append)
        self._files = TreeFiles(
            how, self.outcomes, self._links, self._targets, self._placing, self._begun.append
        )
        self._on: Awaited | None = None  # what the walk waits for
        self._turn_ends = 0.0

    def _new_outcomes(
        self,
        on_entry: Callable[[Outcome], object] | None,
        on_error: Callable[[OSError], object] | None,
    ) -> TreeOutcomes:
        return TreeOutcomes(self.names, on_entry, on_error)

    def _new_links(self, copied: HardLinks) -> TreeLinks:
        return TreeLinks(self.names[1], self.how, copied, self.outcomes)

    def _new_targets(self, give: Callable[[Transfer], object]) -> TreeTargets:
        return TreeTargets(self.names[1], self.how, self.outcomes, give)

    def steps(
        self,
        context: Context,
        reap: Reap,
        one_file_system: bool,
        selection: Selection,
    ) -> Iterator[Wait]:
        """Copy everything, but for the waiting; errors of single entries go into `outcomes`.

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
        steps = self._walk(root)
        transfers = self._transfers(steps)
        self._context = self._files.context = context
        self._engine = engine = Engine(context, transfers, self.how.pace)
        with closing(steps), closing(transfers):
            yield from self._drive(engine, reap)
        self._report(through=not self.outcomes.errors)
        yield from self._sync_names()

    def _walk(self, root: Directory) -> Generator[Step, None, None]:
        return walk(root, self.outcomes.failed, **self._rules)

    def _sync_names(self) -> Iterator[Wait]:
        """Have the names on the disk that were not synced with their directories."""
        target = self._targets.root
        assert target is not None
        if target.together:  # or no name that was put in place since the last is durable
            yield from self._beside(self._placing.sync)
        if self.how.sync and target.created:
            yield from self._beside(self._targets.sync_name)

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
            self.outcomes.failed(b"", error)

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
            files = self.outcomes.files + self.outcomes.links + self.outcomes.specials
            self._progress.report(self.moved, files, through=through)

    def _counting(self) -> Count:
        """What counts all that is to be copied, from now on."""
        root = self._targets.root
        assert root is not None
        linked = "links" in self.how.preserve and self.how.link != "hard"
        return Count(
            root.directory.fd(),
            root.is_same,
            links=self._links.copied if linked else None,
            contents=self.how.link is None and not self.how.attributes_only,
            **self._rules,
        )

    def _passed(self, seen: os.stat_result) -> None:
        """Take off the totals what is counted, but not copied."""
        if self._progress is not None:
            self._progress.passed(seen)

    @property
    def moved(self) -> int:
        """How many bytes are where they belong."""
        return self.outcomes.moved + self._engine.bytes_written

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Of an executor, what each has done."""
        return ()

    @property
    def syncs(self) -> int:
        """How often the file system was synced."""
        return self._placing.syncs

    def close(self) -> None:
        """Let go of what an exception has left open."""
        self._placing.close()
        self._opening.close()
        self._files.close()
        self._targets.close()
        if self._progress is not None:
            self._progress.close()

    # --- what the walk gives ---

    def _transfers(self, steps: Iterable[Step]) -> Generator[Transfer | None, None, None]:
        """What is to be transferred; None where something is to be waited for, or done, first."""
        for step in steps:
            while self._placing.full:
                self._on = self._placing.stage
                yield None
            if self._turn_is_over():
                yield None
            if isinstance(step, Entry):
                yield from self._take_up(step)
            elif isinstance(step, Enter):
                try:
                    self._enter(step.directory)
                except OSError as error:
                    if step.directory.parent is None:
                        raise
                    step.directory.skip = True
                    self.outcomes.failed(step.directory.path, error)
            elif step.directory.data is not None:
                self._leave(step.directory.data)
            while self._begun:
                yield self._begun.popleft()
        yield from self._rest()

    def _take_up(self, entry: Entry) -> Iterator[Transfer | None]:
        """Begin to copy what is no directory."""
        if not (entry.is_file and self.how.batches):
            directory = entry.directory
            yield from self._other(directory.data, entry.name, directory.fd())
        elif self._wanted(entry) and self._add(entry):
            self._opening.open()
            yield from self._until_opened(AHEAD)

    def _leave(self, target: Target) -> None:
        """The walk is done with a directory."""
        self._targets.arrived(target)

    def _rest(self) -> Iterator[Transfer | None]:
        """What was put off until the walk has ended."""
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
            self.outcomes.failed(path, error)
        return False

    def _add(self, entry: Entry) -> bool:
        """Have a file opened with others; whether there are enough of them."""
        try:
            return self._opening.add(entry.directory, entry.name)
        except OSError as error:
            self.outcomes.failed(entry.directory.join(entry.name), error)
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
            self._targets.arrived(target)
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
            self.outcomes.failed(path, error)
        else:
            if transfer is None:
                look(self.cancel)
            elif isinstance(transfer, TreeFile) and transfer.resumed and transfer.observers:
                self._files.read(transfer.reading, transfer)
            else:
                yield transfer

    def _enter(self, directory: Directory) -> None:
        """Make, or take, the directory that goes with one of the source's."""
        self._targets.enter(directory)
        if directory.parent is None:
            self._placing.root = self._targets.root
            if self._progress is not None:
                self._progress.begin()

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
        if linked and self._links.link(key, target, name, path, seen):
            return None
        if self.how.link is None and self.how.has_contents(seen):
            return self._begin(target, name, from_fd, seen, key if linked else None)
        made = self._make(target, name, from_fd, path, seen)
        if made is None:
            self._passed(seen)
        else:
            kind = "link" if made.is_link else kind_of(seen.st_mode)
            self.outcomes.count(path, made.method, made.replaced, kind, is_link=made.is_link)
        if linked:
            self._links.remember(key, target, name)
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
        return self._begin_file(target, name, from_fd, seen, identity)

    def _begin_file(
        self,
        target: Target,
        name: bytes,
        from_fd: int,
        seen: os.stat_result,
        identity: Identity | None,
        *,
        named: bool = False,
    ) -> TreeFile:
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
            named=named,
            cancel=self.cancel,
        )
        self._files.add(transfer, identity)
        return transfer

    def _make(
        self, target: Target, name: bytes, from_fd: int, path: bytes, seen: os.stat_result
    ) -> Made | None:
        return make(self.how, target, name, from_fd, os.path.join(self.names[0], path), seen)

    def _may_replace(self, target: Target, name: bytes, path: bytes, seen: os.stat_result) -> bool:
        """Whether what has the name, if anything has, is to be replaced."""
        if self.how.replace is None:
            return True
        existing = target.look(name, follow=self.how.writes_through(seen))
        if existing is None:
            return True
        if self.how.replace(path, seen, existing):
            return True
        self._passed(seen)
        self.outcomes.tell(path, "skipped", kind_of(seen.st_mode))
        return False

    # --- what the engine gives back ---

    def _ended(self, transfer: Transfer) -> None:
        if isinstance(transfer, SmallFile):
            batch = transfer.batch
            batch.transferred += transfer.bytes_written
            if transfer.failed:
                batch.failed(transfer.index, what_stopped(transfer))
            self._written(batch)
        elif isinstance(transfer, TreeFile):
            self._files.ended(transfer)
        elif isinstance(transfer, TargetSync):
            self._targets.synced(transfer)
        else:
            self._files.was_read(transfer)

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
            self._files.commit(written)

    def _batch_placed(self, batch: Batch) -> None:
        for index, error in batch.failures():
            self.outcomes.failed(batch.where(index).directory.join(batch.name(index)), error)
        if self.outcomes.on_entry is not None:
            for index, how, size in batch.copied():
                path = batch.where(index).directory.join(batch.name(index))
                plain = how == "aio-buffered" and self._context.plain
                self.outcomes.tell(path, "plain" if plain else how, "file", size=size)
        self.outcomes.files += batch.placed
        self.outcomes.reflinked += batch.cloned
        self.outcomes.bytes += batch.size
        self.outcomes.moved += max(0, batch.size - batch.transferred)
        for target, count in zip(batch.data, batch.counts, strict=True):
            if count:
                self._targets.arrived(target, count)
        self._opening.let_go(batch)
