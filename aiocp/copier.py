"""Copy one file: open both sides, drive the engine, commit.

The order is the promise: allocate, copy every block, see that the source did not change, set the
mode, sync the data, put the name in place, sync the directory. Whatever fails before the name is in
place leaves the destination as it was.
"""

import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from errno import EINVAL, EISDIR
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from aiocp import direct, engine, extents, stream
from aiocp.backup import NONE, SUFFIX, Backups, check_backup
from aiocp.context import MAX_DEPTH, Context, Contexts
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
from aiocp.metadata import attributes
from aiocp.place import Place
from aiocp.reflink import Reflink
from aiocp.small import copy_small
from aiocp.source import SMALL, Source
from aiocp.transfer import (
    DirectorySync,
    FileTransfer,
    sync_before_name,
    sync_directory,
    what_stopped,
)

if TYPE_CHECKING:
    from aiocp.checksum import Algorithm
    from aiocp.pace import Pace
    from aiocp.partial import Partial
    from aiocp.verify import Verification

StrPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Link = Literal["hard", "symbolic"]
Progress = Callable[[int, int], object]

# What a copy waits for: a transfer to be driven through a context, of so many bytes (0: not told)
Work = tuple[Context, engine.Transfer, int]
T = TypeVar("T")
Steps = Generator[Work, None, T]

# By measurement (scripts/bench --sweep, 2 GiB, ext4 and XFS on loop devices, MiB/s of the whole
# command): blocks of 1M at depth 1, 4, 16, 64, 256 gave 684, 1584, 1555, 1373, 1577 on ext4, and
# 740, 1782, 1581, 1438, 1444 on XFS; at depth 64 blocks of 64K, 256K, 1M, 4M gave 1300, 1303, 1373,
# 1589, and 1337, 1458, 1438, 1435. Flat from 4 MiB in flight on there, from 16 MiB on a slower
# disk; with 5 ms of latency it grows with the depth up to 64 and beyond.
DEFAULT_DEPTH = 64
DEFAULT_BLOCK_SIZE = 1 << 20
BLOCK_SIZE_UNIT = 4096
MAX_BLOCK_SIZE = 1 << 30


class CopyResult(NamedTuple):
    """What happened, not what was asked.

    `size`, `bytes_read`, `bytes_written` and `block_size` are in bytes, `elapsed` in seconds, and
    `rate` in bytes per second; `bytes_cached` of those read were in the page cache. `method` is the
    rung that carried the data: "aio-direct" (O_DIRECT on both sides), "aio-buffered", "plain"
    (preadv and pwritev), "stream" (read and write), or "reflink": none was carried, the copy shares
    the source's blocks; "attributes", "hard-link" or "symbolic-link" where that was all there was
    to do. `holes` are bytes that were not written because the copy has holes there: with
    `bytes_written`, and the bytes that were `resumed`, there from an earlier copy, they are `size`.
    `backup` is the name of the backup, None without one, and
    `removed` tells that what was there is gone and has left nothing to the new file. `notes` says
    what could not be had as asked, and why. `checksum` is the digest of the copy, if one was asked
    for, in hexadecimal digits.
    """

    source: str
    destination: str
    size: int
    bytes_read: int
    bytes_cached: int
    bytes_written: int
    holes: int
    resumed: int
    method: str
    depth: int
    peak_in_flight: int
    block_size: int
    direct_read: bool
    direct_write: bool
    in_place: bool
    backup: str | None
    removed: bool
    synced: bool
    verified: bool
    checksum: str | None
    elapsed: float
    rate: float
    notes: tuple[str, ...]

    @property
    def kind(self) -> str:
        """As that of an Outcome."""
        return "link" if self.method == "symbolic-link" else "file"


def copy_file(
    src: StrPath,
    dst: StrPath,
    *,
    depth: int = DEFAULT_DEPTH,
    block_size: int = DEFAULT_BLOCK_SIZE,
    direct: direct.Direct = "auto",
    sparse: Sparse = "auto",
    reflink: Reflink = "auto",
    sync: bool = True,
    verify: bool = False,
    checksum: "Algorithm | None" = None,
    resume: bool = False,
    in_place: bool = False,
    allow_changed: bool = False,
    force: bool = False,
    preserve: Iterable[str] = (),
    remove_destination: bool = False,
    backup: str = NONE,
    suffix: str | bytes = SUFFIX,
    link: Link | None = None,
    attributes_only: bool = False,
    into_directory: bool = True,
    bwlimit: "int | Pace | None" = None,
    idle: bool = False,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> CopyResult:
    """Copy a file and its mode; on return the copy is whole, in place and on the disk.

    Arguments:
        src: the file to copy, symbolic links followed.
        dst: the new file, or a directory to copy into under the source's name.
        depth: how many blocks are in flight, 1 to 65,536.
        block_size: bytes per block, a multiple of 4096; memory is depth x block_size.
        direct: "auto" takes O_DIRECT where it is possible, "always" fails where it is not, "never"
            copies through the page cache.
        sparse: "auto" makes holes where the source has them, "always" also of its blocks of zeroes,
            "never" writes everything.
        reflink: "auto" shares the source's blocks where the file system can and `sparse` is "auto",
            instead of copying them, "always" fails where it cannot, "never" copies.
        sync: False leaves the copy to the kernel's writeback, as cp does: a power cut can lose it.
        verify: read the copy back from the disk before it gets its name, and see that each block is
            what was read of the source.
        checksum: "sha256", "blake2b" or "xxh128" (XXH3): the digest that is taken of the bytes as
            they are read. Those of holes are read from nowhere, and take their time all the same.
        resume: go on with what an earlier copy that was to be resumed has left when it was stopped,
            killed or cut off, if the source (inode, size, mtime, ctime) is what it was; leave such
            a thing when this one is: next to `dst`, under a hidden name, with a journal. Not for
            what is written in place or cannot be read twice.
        in_place: write into an existing file instead of replacing it by a new one.
        allow_changed: accept a source whose size, mtime or ctime changed while it was copied; what
            it grew by is not copied. A source that shrank is always an error.
        force: write to a block device that is mounted or otherwise in use, and replace a file that
            may not be opened.
        preserve: as for `copy_tree`; "links" makes a new file of one that has several names.
        remove_destination: make a new file in place of what is there, a symbolic link included,
            that has nothing of the old one's owner, mode and attributes.
        backup: make one of what is there, which then is never without a name: "simple" (its name
            and `suffix`), "numbered" (".~1~" and on), "existing" (numbered where there is such a
            one, else simple) or "none". The new file is made as with `remove_destination`.
        link: make another name for the source ("hard") or a symbolic link to it ("symbolic")
            instead of a copy. What is there is replaced only with `force`, `remove_destination` or
            a backup. The path of a symbolic link is `src` as given; a relative one is refused
            unless `dst` is in the current directory.
        attributes_only: carry over what `preserve` names, and no contents: what is there keeps its
            own, a new file is empty.
        into_directory: False: `dst` is the new file's name in any case, even if it is that of a
            link to a directory.
        bwlimit: how many bytes per second are moved at most, from 4096 on, in blocks of an eighth
            of that at most; those that `verify` reads back count too, those that are shared or
            holes do not. Copies that are given the same `aiocp.pace.Pace` share its rate.
        idle: use the disk when nobody else does, as far as its I/O scheduler makes a difference:
            the idle class of ioprio_set(2).
        progress: called as `progress(bytes_done, bytes_total)` while blocks are written;
            bytes_total is 0 while unknown. What it raises stops the copy and propagates.
        cancel: a `threading.Event`, looked at whenever a block completes; once set, the copy stops.

    Raises:
        OSError: of the subclass that belongs to errno, with both file names; its strerror names the
            operation. An existing destination is as it was unless it was written in place.
        VerificationFailed: an OSError: what is on the disk is not what was read.
        SourceChanged: an OSError: the source shrank or changed while being copied.
        shutil.SameFileError: an OSError: both are one file.
        Cancelled: `cancel` was set; what was there before still is, unless written in place.
        ValueError: depth, block_size, checksum, bwlimit, preserve, backup, suffix or link out of
            range, or `reflink="always"` with another `sparse` than "auto", `verify` or `resume`
            without `sync`, `resume` with `in_place`, `checksum` where no contents are copied.
    """
    how = prepare(
        depth=depth,
        block_size=block_size,
        direct=direct,
        sparse=sparse,
        reflink=reflink,
        sync=sync,
        verify=verify,
        checksum=checksum,
        resume=resume,
        in_place=in_place,
        allow_changed=allow_changed,
        force=force,
        preserve=preserve,
        remove_destination=remove_destination,
        backup=backup,
        suffix=suffix,
        attributes_only=attributes_only,
        bwlimit=bwlimit,
        idle=idle,
        progress=progress,
        cancel=cancel,
    )
    return how.copy_or_link(src, dst, link, into_directory)


def paths(src: StrPath, dst: StrPath, into_directory: bool) -> tuple[bytes, bytes, tuple[str, str]]:
    """The source, the new file, and what results and errors call the two."""
    source, destination = os.fsencode(src), os.fsencode(dst)
    if into_directory and os.path.isdir(destination):
        destination = os.path.join(destination, os.path.basename(source.rstrip(b"/")))
    return source, destination, (os.fsdecode(source), os.fsdecode(destination))


def prepare(
    *,
    depth: int,
    block_size: int,
    direct: direct.Direct,
    sparse: Sparse,
    reflink: Reflink,
    sync: bool,
    verify: bool,
    checksum: "Algorithm | None",
    resume: bool,
    in_place: bool,
    allow_changed: bool,
    force: bool,
    preserve: Iterable[str],
    remove_destination: bool,
    backup: str,
    suffix: str | bytes,
    attributes_only: bool,
    bwlimit: "int | Pace | None",
    idle: bool,
    progress: Progress | None,
    cancel: Cancel | None,
) -> "FileCopier":
    """A copier of these arguments of copy_file(). Raises ValueError."""
    check_depth(depth)
    check_block_size(block_size)
    check_when("direct", direct)
    check_verify(verify, sync)
    check_checksum(checksum, contents=not attributes_only)
    check_resume(resume, sync, in_place)
    pace = which_pace(bwlimit)
    return FileCopier(
        depth,
        paced_block_size(block_size, pace),
        direct,
        sparse,
        which_reflink(reflink, sparse),
        sync,
        verify,
        checksum,
        resume,
        in_place,
        allow_changed,
        force,
        attributes(preserve),
        remove_destination,
        check_backup(backup, suffix),
        attributes_only,
        pace,
        idle,
        progress,
        cancel,
    )


def check_depth(depth: int) -> None:
    """Raise ValueError unless this is a depth."""
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"depth must be from 1 to {MAX_DEPTH:,}, not {depth}")


def check_block_size(block_size: int) -> None:
    """Raise ValueError unless this is a block size."""
    if not 1 <= block_size <= MAX_BLOCK_SIZE or block_size % BLOCK_SIZE_UNIT:
        raise ValueError(
            f"block size must be a multiple of {BLOCK_SIZE_UNIT} up to 1 GiB, not {block_size}"
        )


def check_link(link: str | None) -> None:
    """Raise ValueError unless this is None or a kind of link."""
    if link not in (None, "hard", "symbolic"):
        raise ValueError(f"link must be None, 'hard' or 'symbolic', not {link!r}")


def check_verify(verify: bool, sync: bool) -> None:
    """Raise ValueError where nothing would be on the disk to be read back.

    What it takes is loaded now, while no file is open.
    """
    if verify:
        import aiocp.verify  # noqa: F401

        if not sync:
            raise ValueError("verify reads what is on the disk: it goes with sync")


def check_checksum(checksum: str | None, *, contents: bool) -> None:
    """Raise ValueError unless this is None or an algorithm, and `contents` are there to digest.

    What it takes is loaded now, while no file is open.
    """
    if checksum is not None:
        import aiocp.reading  # noqa: F401
        from aiocp.checksum import load

        load(checksum)
        if not contents:
            raise ValueError("checksum is of contents: it goes without attributes_only and link")


def check_resume(resume: bool, sync: bool, in_place: bool) -> None:
    """Raise ValueError where nothing could be gone on with.

    What it takes is loaded now, while no file is open.
    """
    if resume:
        import aiocp.partial  # noqa: F401

        if not sync:
            raise ValueError("resume goes on from what is on the disk: it goes with sync")
        if in_place:
            raise ValueError("resume needs a new file: it does not go with in_place")


def which_pace(bwlimit: "int | Pace | None") -> "Pace | None":
    """What has blocks wait for a rate. Raises ValueError unless it is one."""
    if bwlimit is None:
        return None
    from aiocp.pace import Pace

    return bwlimit if isinstance(bwlimit, Pace) else Pace(bwlimit)


def paced_block_size(block_size: int, pace: "Pace | None") -> int:
    """The size of the blocks of a copy that has a pace: so many that they come smoothly."""
    return block_size if pace is None else pace.block_size(block_size)


def check_when(name: str, when: str) -> None:
    """Raise ValueError unless this is one of the three that several arguments take."""
    if when not in ("auto", "always", "never"):
        raise ValueError(f"{name} must be 'auto', 'always' or 'never', not {when!r}")


def which_reflink(reflink: Reflink, sparse: Sparse) -> Reflink:
    """When to clone: not where holes are asked for that the source may not have, or none.

    Raises ValueError unless both are what they can be, together.
    """
    check_when("sparse", sparse)
    check_when("reflink", reflink)
    if sparse == "auto":
        return reflink
    if reflink == "always":
        raise ValueError(f"reflink 'always' goes with sparse 'auto', not {sparse!r}")
    return "never"


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
                yield from self._fill(transfer, context)
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
            depth=context.depth,
            peak_in_flight=context.peak_in_flight,
            block_size=self.block_size,
            direct_read=transfer.read_direct and by_blocks,
            direct_write=transfer.write_direct and by_blocks,
            in_place=destination.in_place,
            backup=_beside(dst, destination.backup),
            removed=destination.removes and destination.backup is None,
            synced=transfer.synced,
            verified=verification is not None,
            checksum=transfer.digest,
            elapsed=elapsed,
            rate=(transfer.size - transfer.resumed) / elapsed,
            notes=tuple(
                _notes(
                    self.direct,
                    transfer,
                    context,
                    by_blocks and not self._is_small(source),
                    verification,
                    unfinished,
                )
            ),
        )

    @property
    def _looks(self) -> bool:
        """Whether what is read is looked at."""
        return self.verify or self.checksum is not None

    def _unfinished(self, source: Source, place: Place) -> "Partial | None":
        """What is to be gone on with, if anything."""
        if not self.resume or self.attributes_only or source.small:
            return None
        from aiocp.partial import Partial

        sync = partial(sync_directory, place.directory, place.readable)
        return Partial(place.directory, place.name, source, self.block_size, sync)

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

    def _fill(self, transfer: FileTransfer, context: Context) -> Steps[None]:
        """Copy all bytes that are not shared, give the file its size and mode, and sync it."""
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
            if transfer.resumed:
                yield from self._read(transfer, context)
        yield context, transfer, transfer.size
        if transfer.failed:
            raise what_stopped(transfer)

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


def rung(transfer: FileTransfer, context: Context, streamed: bool) -> str:
    """How the data was carried, as CopyResult calls it."""
    if transfer.cloned:
        return "reflink"
    if streamed:
        return "stream"
    if context.plain:
        return "plain"
    return "aio-direct" if transfer.read_direct and transfer.write_direct else "aio-buffered"


def _notes(
    how: direct.Direct,
    transfer: FileTransfer,
    context: Context,
    by_blocks: bool,
    verification: "Verification | None",
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
