"""Copy one file: open both sides, drive the engine, commit.

The order is the promise: allocate, copy every block, see that the source did not change, set the
mode, sync the data, put the name in place, sync the directory. Whatever fails before the name is in
place leaves the destination as it was.
"""

import os
import stat
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from errno import EINVAL, EISDIR
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from aiocp import direct, engine, extents, stream
from aiocp.asked import Link, Progress, StrPath, check_checksum, check_link, paced_block_size
from aiocp.backup import NONE, Backups
from aiocp.context import Context, Contexts
from aiocp.destination import Destination
from aiocp.errors import (
    Cancel,
    Cancelled,
    VerificationFailed,
    add_words,
    fail,
    look,
    operation,
    same_file,
)
from aiocp.existing import Relation, relation, same_entry
from aiocp.extents import Sparse
from aiocp.place import Place
from aiocp.reflink import Reflink
from aiocp.result import CopyResult
from aiocp.small import copy_small
from aiocp.source import SMALL, Source
from aiocp.transfer import (
    DirectorySync,
    FileTransfer,
    resumable,
    rung,
    sync_before_name,
    sync_directory,
    what_stopped,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from aiocp.checksum import Algorithm
    from aiocp.crew import Crew
    from aiocp.pace import Pace
    from aiocp.partial import Partial
    from aiocp.ranges import Ranges
    from aiocp.verify import Verification

# What a copy waits for: a transfer to be driven through a context, of so many bytes (0: not told)
Work = tuple[Context, engine.Transfer, int]
T = TypeVar("T")
Steps = Generator[Work, None, T]


class FileCopier(NamedTuple):
    """How to copy; `copy` does it, and so does whoever drives the transfers that `steps` gives.

    `shared` is a context that is there for other copies as well: then nothing here waits, but for
    what opens, makes and names files. Else each takes one of `contexts`.
    """

    depth: int
    block_size: int
    direct: direct.Direct
    sparse: Sparse
    reflink: Reflink
    sync: bool
    verify: bool
    checksum: "Algorithm | None"
    resume: bool
    in_place: bool
    allow_changed: bool
    force: bool
    preserve: frozenset[str]
    remove: bool
    backup: tuple[str, bytes]
    attributes_only: bool
    pace: "Pace | None"
    idle: bool
    progress: Progress | None
    cancel: Cancel | None
    executor: "Executor | None" = None
    crew: "Crew | None" = None  # of the executor, if the file is large
    shared: Context | None = None
    contexts: Contexts = Context

    def copy_or_link(
        self, src: StrPath, dst: StrPath, link: Link | None, into_directory: bool
    ) -> CopyResult:
        """Copy one file, or make a `link`; the arguments are those of copy_file()."""
        check_link(link)
        check_checksum(self.checksum, contents=link is None and not self.attributes_only)
        source, destination, names = paths(src, dst, into_directory)
        try:
            if link is not None:
                return self.link(link, source, destination, names)
            return self.copy(source, destination, names)
        except OSError as error:
            error.filename, error.filename2 = names
            raise

    def backups(self) -> Backups | None:
        """What makes the backups, if there are to be any."""
        return None if self.backup[0] == NONE else Backups(*self.backup)

    def link(self, link: Link, src: bytes, dst: bytes, names: tuple[str, str]) -> CopyResult:
        """Make a link instead of a copy."""
        from aiocp.link import link_file  # and what makes nodes: few want it

        begun = perf_counter()
        with operation("open source"):
            seen = os.stat(src)
        if stat.S_ISDIR(seen.st_mode):
            raise fail(EISDIR, "open source")
        what = relation(
            (src, None),
            seen,
            (dst, None),
            followed=True,
            link=link,
            backup=self.backup[0] != NONE,
            remove=self.remove,
        )
        if what is Relation.SAME:
            raise same_file()
        replaced = (
            None
            if what is Relation.DONE
            else link_file(
                link,
                src,
                seen,
                dst,
                follow=True,
                replace=self.force or self.remove,
                backups=self.backups(),
                preserve=self.preserve,
                sync=self.sync,
            )
        )
        kept = None if replaced is None else replaced.backup
        return CopyResult(
            *names,
            size=0,
            bytes_read=0,
            bytes_cached=0,
            bytes_written=0,
            holes=0,
            resumed=0,
            method=f"{link}-link",
            depth=self.depth,
            peak_in_flight=0,
            block_size=self.block_size,
            direct_read=False,
            direct_write=False,
            in_place=False,
            backup=_beside(dst, kept),
            removed=replaced is not None and replaced.existed and not kept,
            synced=self.sync,
            verified=False,
            checksum=None,
            elapsed=perf_counter() - begun,
            rate=0,
            notes=(),
        )

    def copy(self, src: bytes, dst: bytes, names: tuple[str, str]) -> CopyResult:
        """Copy one file; `names` are what the result calls the two."""
        if self.executor is not None and self._may_be_cut(src):
            from aiocp.crew import Crew

            # before a file is open, as it may fork workers, which would keep that open and locked
            with Crew(self.executor, self.cancel) as crew:
                return self._replace(executor=None, crew=crew).copy(src, dst, names)
        if not self.idle:
            return self._drive(self.steps(src, dst, names))
        from aiocp.priority import lowered

        with lowered(idle=self.idle) as notes:
            result = self._drive(self.steps(src, dst, names))
        return result._replace(notes=(*result.notes, *notes))

    def _drive(self, steps: Steps[CopyResult]) -> CopyResult:
        """Drive the transfers of a copy, one after the other."""
        raised: BaseException | None = None
        while True:
            try:
                work = next(steps) if raised is None else steps.throw(raised)
            except StopIteration as end:
                result: CopyResult = end.value
                return result
            raised = None
            try:
                self._run(*work)
            except BaseException as error:  # noqa: BLE001 - thrown where the transfer was given
                raised = error

    def steps(self, src: bytes, dst: bytes, names: tuple[str, str]) -> Steps[CopyResult]:
        """Copy one file, but for its transfers, which are to be driven to their ends."""
        begun = perf_counter()
        look(self.cancel)
        backups = self.backups()
        with (
            Source(src, self.direct, self.block_size) as source,
            find_place(src, dst, source.stat, self.remove, backups) as place,
        ):
            result = self._copy_small(source, place, names, begun)
            return result or (yield from self._copy(source, place, backups, dst, names, begun))

    def _copy_small(
        self, source: Source, place: Place, names: tuple[str, str], begun: float
    ) -> CopyResult | None:
        """Copy a small file by a batch of one; None where that is not for this one."""
        general = self.attributes_only or self.sparse == "always" or self.shared or self._looks
        if general or self.pace or not self._is_small(source):
            return None
        copied = copy_small(
            source,
            place,
            preserve=self.preserve,
            sync=sync_before_name(self.preserve) if self.sync else engine.Sync.NONE,
            allow_changed=self.allow_changed,
            holes=self.sparse == "auto",
            reflink=self.reflink,
            report=self.progress,
        )
        if copied is None:
            return None
        try:
            if self.sync:
                sync_directory(place.directory, place.readable)
            source.close()
        except OSError as error:
            error.strerror = f"copied, but {error.strerror}"
            raise
        size, carried = copied.size, 0 if copied.method == "reflink" else copied.size
        elapsed = perf_counter() - begun
        return CopyResult(
            *names,
            size=size,
            bytes_read=carried,
            bytes_cached=carried if copied.cached else 0,
            bytes_written=carried,
            holes=0,
            resumed=0,
            method=copied.method,
            depth=1,
            peak_in_flight=1,
            block_size=self.block_size,
            direct_read=False,
            direct_write=False,
            in_place=False,
            backup=None,
            removed=False,
            synced=self.sync,
            verified=False,
            checksum=None,
            elapsed=elapsed,
            rate=size / elapsed,
            notes=(),
        )

    def _copy(
        self,
        source: Source,
        place: Place,
        backups: Backups | None,
        dst: bytes,
        names: tuple[str, str],
        begun: float,
    ) -> Steps[CopyResult]:
        """Copy what may be anything, through the engine or as a stream."""
        unfinished = self._unfinished(source, place)
        with (
            Destination(
                place.directory,
                place.name,
                source,
                self.direct,
                self.block_size,
                in_place=self.in_place,
                force=self.force,
                follow=place.follow,
                preserve=self.preserve,
                remove=self.remove,
                backups=backups,
                attributes_only=self.attributes_only,
                unfinished=unfinished,
                named=self._is_cut(source),
                cancel=self.cancel,
            ) as destination,
            ExitStack() as stack,
        ):
            if unfinished is not None:
                stack.callback(unfinished.close)
            if unfinished is not None and destination.in_place:
                raise fail(EINVAL, "resume: it is written in place")
            transfer = FileTransfer(
                source,
                destination,
                sync=self.sync,
                allow_changed=self.allow_changed,
                must_be_direct=self.direct == "always",
                unfinished=unfinished,
            )
            if transfer.sync is not engine.Sync.NONE:
                transfer.sync = sync_before_name(self.preserve, in_place=destination.in_place)
            streamed = source.size is None or not destination.seekable
            try:
                if not self.attributes_only:
                    transfer.clone(self.reflink, set())
                context = stack.enter_context(self._context(transfer, streamed))
                ranges = yield from self._fill(transfer, context)
                if transfer.cloned:
                    yield from self._read(transfer, context)
                verification = yield from self._verify(transfer, context)
            except (OSError, Cancelled) as error:
                if unfinished is not None:
                    unfinished.stopped(error)
                # what has been read is being written
                started = destination.touched or transfer.bytes_read or streamed
                if destination.in_place and destination.seekable and started:
                    _say_incomplete(error)
                raise
            destination.commit()
            try:
                if unfinished is not None:
                    unfinished.done()
                if self.sync and not destination.in_place:
                    yield from self._sync_directory(context, place, destination)
                destination.close()
                source.close()
            except OSError as error:
                error.strerror = f"copied, but {error.strerror}"
                raise
        elapsed = perf_counter() - begun
        by_blocks = not (streamed or transfer.cloned)
        return CopyResult(
            source=names[0],
            destination=names[1],
            size=transfer.size,
            bytes_read=transfer.bytes_read,
            bytes_cached=transfer.bytes_cached,
            bytes_written=transfer.bytes_written,
            holes=transfer.holes,
            resumed=transfer.resumed,
            method="attributes" if self.attributes_only else rung(transfer, context, streamed),
            depth=ranges.depth if ranges else context.depth,
            peak_in_flight=ranges.peak_in_flight if ranges else context.peak_in_flight,
            block_size=self.block_size,
            direct_read=transfer.read_direct and by_blocks,
            direct_write=transfer.write_direct and by_blocks,
            in_place=destination.in_place,
            backup=_beside(dst, destination.backup),
            removed=destination.removes and destination.backup is None,
            synced=transfer.synced,
            verified=verification is not None or (ranges is not None and ranges.verified),
            checksum=transfer.digest,
            elapsed=elapsed,
            rate=(transfer.size - transfer.resumed) / elapsed,
            notes=tuple(
                _notes(
                    self.direct,
                    transfer,
                    context,
                    by_blocks and not self._is_small(source),
                    ranges if ranges is not None and ranges.verified else verification,
                    unfinished,
                )
            ),
            workers=ranges.workers if ranges else (),
        )

    @property
    def _looks(self) -> bool:
        """Whether what is read is looked at."""
        return self.verify or self.checksum is not None

    def _unfinished(self, source: Source, place: Place) -> "Partial | None":
        """What is to be gone on with, if anything."""
        if not self.resume or self.attributes_only or source.small:
            return None
        return resumable(source, place.directory, place.name, self.block_size, place.readable)

    def _is_small(self, source: Source) -> bool:
        return self.direct == "auto" and source.small

    def _context(self, transfer: FileTransfer, streamed: bool) -> AbstractContextManager[Context]:
        # a stream is read and written by calls of its own, in a block of its own
        if streamed and (self.shared is not None or not self.verify):
            return Context(1, self.block_size, aio=False)
        if self.shared is not None:
            return nullcontext(self.shared)
        source = transfer.source
        holes = self.sparse != "never" and transfer.destination.regular
        nothing = holes and extents.has_no_data(source.fd, source.stat)
        shared = transfer.cloned and not self._looks
        if self._is_small(source) or shared or nothing:
            # the end of one for AIO takes 33 ms
            return Context(1, paced_block_size(SMALL, self.pace), aio=False)
        return self.contexts(self.depth, self.block_size, idle=self.idle)

    def _fill(self, transfer: FileTransfer, context: Context) -> "Steps[Ranges | None]":
        """Copy all bytes that are not shared, give the file its size and mode, and sync it; by
        which ranges, if it was by any."""
        ranges: Ranges | None = None
        source, destination = transfer.source, transfer.destination
        transfer.record(
            verify=self.verify,
            checksum=self.checksum,
            block_size=context.block_size,
            cancel=self.cancel,
        )
        if self.attributes_only:
            transfer.size = 0
        elif transfer.cloned:
            self._report(transfer.size, transfer.size)
        elif source.size is None or not destination.seekable:
            self._stream(transfer, context)
        else:
            transfer.lay_out(self.sparse, reserve=not self._is_small(source))
            if destination.temporary:
                ranges = self._by_ranges(transfer)
            elif transfer.resumed:
                yield from self._read(transfer, context)
        yield context, transfer, transfer.size
        if transfer.failed:
            raise what_stopped(transfer)
        return ranges

    def _may_be_cut(self, src: bytes) -> bool:
        """Whether the workers of an executor may have use for it."""
        from aiocp.ranges import worth_cutting

        with suppress(OSError):  # as its open will say
            digested = self.checksum is not None or self.attributes_only
            return worth_cutting(os.stat(src).st_size) and not digested
        return False

    def _is_cut(self, source: Source) -> bool:
        """Whether the workers of an executor are to copy it, each a range."""
        if self.crew is None or not stat.S_ISREG(source.stat.st_mode):
            return False
        from aiocp.ranges import worth_cutting

        return worth_cutting(source.size)

    def _by_ranges(self, transfer: FileTransfer) -> "Ranges":
        """Have the workers copy all bytes. Raises OSError, ExecutorFailed, Cancelled."""
        from aiocp.ranges import How, Ranges

        source, destination = transfer.source, transfer.destination
        path, directory = source.file.path(), destination.directory
        assert self.crew is not None
        with self.crew as crew, ExitStack() as stack:
            ground = crew.muster(path, source.fd, directory.path(), directory.fileno())
            ranges = Ranges(
                crew,
                ground,
                path,
                os.path.join(directory.path(), destination.temporary),
                transfer,
                How(
                    self.direct,
                    self.depth,
                    self.block_size,
                    self.sync,
                    self.verify,
                    self.allow_changed,
                    self.idle,
                ),
            )
            stack.callback(ranges.stopped)
            while ranges.more or ranges.pending:
                look(self.cancel)
                while ranges.more and not crew.full:
                    ranges.give()
                crew.wait()
                while crew.done():
                    crew.take()
                self._report(transfer.moved, transfer.size)
            stack.pop_all()
        return ranges

    def _read(self, transfer: FileTransfer, context: Context) -> Steps[None]:
        """Read what was not read to be copied, if it is to be looked at."""
        if not transfer.observers:
            return
        with closing(transfer.reading(context.block_size)) as reading:
            yield context, reading, 0
            if reading.failed:
                raise what_stopped(reading)

    def _verify(self, transfer: FileTransfer, context: Context) -> "Steps[Verification | None]":
        """Compare what is on the disk, if it is to be, with what was read."""
        digests = transfer.digests
        if digests is None or self.attributes_only:
            return None
        from aiocp.verify import Verification

        with closing(
            Verification(transfer.destination, digests, transfer.size, context.block_size)
        ) as verification:
            yield context, verification, 0
            if error := verification.why():
                raise error
        return verification

    def _sync_directory(
        self, context: Context, place: Place, destination: Destination
    ) -> Steps[None]:
        """Have the new name on the disk."""
        if self.shared is None or not place.readable:
            sync_directory(place.directory, place.readable, destination.fd)
            return
        sync = DirectorySync(place.directory.fileno())
        yield context, sync, 0
        try:
            sync.assert_done()
        except OSError as error:
            error.strerror = f"its name is not durable: {error.strerror}"
            raise

    def _run(self, context: Context, transfer: engine.Transfer, total: int = 0) -> None:
        """Drive a transfer to its end; tell how far it is of `total`."""
        reported = transfer.moved
        for _ in engine.Engine(context, [transfer], self.pace).run():
            look(self.cancel)
            if (done := transfer.moved) != reported:
                reported = done
                self._report(done, total)

    def _stream(self, transfer: FileTransfer, context: Context) -> None:
        """Copy what can only be read, or written, from its beginning to its end."""
        if self.direct == "always":
            raise fail(EINVAL, "O_DIRECT on a stream")
        if transfer.read_direct:
            direct.switch_off(transfer.read_fd)
        total = transfer.source.size or 0
        data: stream.Data | None = None
        if self.sparse == "always" and transfer.destination.regular:
            transfer.leave_zeroes_out(0)
            data = _data(transfer, context)
        block = context.memory(0, context.block_size)
        pace = self.pace if self.shared is None else None  # a file of /proc: nobody waits for it
        for done in transfer.copy_stream(block, self.cancel, data, pace):
            self._report(done, total)

    def _report(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


def paths(src: StrPath, dst: StrPath, into_directory: bool) -> tuple[bytes, bytes, tuple[str, str]]:
    """The source, the new file, and what results and errors call the two."""
    source, destination = os.fsencode(src), os.fsencode(dst)
    if into_directory and os.path.isdir(destination):
        destination = os.path.join(destination, os.path.basename(source.rstrip(b"/")))
    return source, destination, (os.fsdecode(source), os.fsdecode(destination))


def find_place(
    src: bytes, dst: bytes, seen: os.stat_result, remove: bool, backups: Backups | None
) -> Place:
    """Where the new file goes: in place of a link, too, that goes or gets a backup."""
    if not remove and backups is None:
        return Place(dst)
    if any(same_entry((path, None), (dst, None)) for path in (src, os.path.realpath(src))):
        raise same_file()
    place = Place(dst, follow=False)
    if backups is not None:
        backups.refuse(src, seen, place.directory.fileno(), place.name)
    return place


def _beside(path: bytes, name: bytes | None) -> str | None:
    """The path of another name in the same directory."""
    return None if name is None else os.fsdecode(os.path.join(os.path.dirname(path), name))


def _data(transfer: FileTransfer, context: Context) -> stream.Data:
    """What finds the stretches of slot 0 that are to be written, and counts the holes between."""

    def data(start: int, stop: int) -> tuple[int, int]:
        found = context.next_data(0, start, stop, transfer.hole_unit)
        transfer.holes += found[0] - start
        return found

    return data


def _say_incomplete(error: OSError | Cancelled) -> None:
    wrong = "wrong" if isinstance(error, VerificationFailed) else "incomplete"
    add_words(error, f"written in place, it is {wrong} now")


def _notes(
    how: direct.Direct,
    transfer: FileTransfer,
    context: Context,
    by_blocks: bool,
    verification: "Verification | Ranges | None",
    unfinished: "Partial | None",
) -> Iterator[str]:
    yield from context.notes()
    if unfinished is not None:
        yield from unfinished.notes()
    if verification is not None and not verification.past_the_cache:
        yield "verified by buffered reads: the copy takes no direct I/O"
    if how == "auto" and by_blocks:
        if not transfer.read_direct:
            yield "buffered reads: the source takes no direct I/O"
        if transfer.destination.through_cache:
            yield "buffered writes: Btrfs buffers direct ones too, for its checksums"
        elif not transfer.write_direct:
            yield "buffered writes: the destination takes no direct I/O"
