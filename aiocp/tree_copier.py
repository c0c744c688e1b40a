"""copy_tree(), its options and its result; the copying is TreeCopy's."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from aiocp import metadata
from aiocp.asked import (
    Link,
    Progress,
    StrPath,
    check_block_size,
    check_checksum,
    check_depth,
    check_executor,
    check_link,
    check_resume,
    check_verify,
    paced_block_size,
    which_pace,
    which_reflink,
)
from aiocp.backup import NONE, SUFFIX, check_backup
from aiocp.budget import Budget, budget
from aiocp.context import Context, Contexts
from aiocp.errors import Cancel
from aiocp.extents import Sparse
from aiocp.hard_links import HardLinks
from aiocp.outcome import Outcome
from aiocp.plan import Plan
from aiocp.priority import lowered
from aiocp.reflink import Reflink
from aiocp.result import TreeResult
from aiocp.selection import Selection, Test, select
from aiocp.tree_copy import Reap, TreeCopy, Wait
from aiocp.tree_options import Replace, TreeOptions

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from aiocp.checksum import Algorithm
    from aiocp.pace import Pace

# As many bytes as copy_file has in flight, in blocks that small files fill better: 20,000 of them
# on ext4, cold, took 0.88 s at 256 x 256K, 0.90 at 128 x 256K, 1.0 at 64 x 256K and at 64 x 1M
TREE_DEPTH = 256
TREE_BLOCK_SIZE = 256 << 10


def copy_tree(
    src: StrPath,
    dst: StrPath,
    *,
    depth: int = TREE_DEPTH,
    block_size: int = TREE_BLOCK_SIZE,
    sparse: Sparse = "auto",
    reflink: Reflink = "auto",
    preserve: Iterable[str] = (),
    follow_symlinks: bool = False,
    one_file_system: bool = False,
    exclude: Test | None = None,
    include: Test | None = None,
    files: Iterable[StrPath] | None = None,
    recursive: bool = True,
    replace: Replace | None = None,
    remove_destination: bool = False,
    backup: str = NONE,
    suffix: str | bytes = SUFFIX,
    link: Link | None = None,
    attributes_only: bool = False,
    copy_contents: bool = False,
    keep_directory_symlink: bool = False,
    force: bool = False,
    sync: bool = True,
    verify: bool = False,
    checksum: "Algorithm | None" = None,
    resume: bool = False,
    allow_changed: bool = False,
    links: HardLinks | None = None,
    plan: Plan | None = None,
    on_entry: Callable[[Outcome], object] | None = None,
    on_error: Callable[[OSError], object] | None = None,
    bwlimit: "int | Pace | None" = None,
    idle: bool = False,
    progress: Progress | None = None,
    progress_files: Progress | None = None,
    totals: bool = True,
    executor: "Executor | None" = None,
    cancel: Cancel | None = None,
) -> TreeResult:
    """Copy the directory `src` to `dst`, which becomes it or, if it exists, is merged into.

    On return everything that was copied is whole, in place and on the disk.

    Arguments:
        depth, block_size, sparse, reflink, sync, verify, allow_changed, remove_destination, backup,
            suffix, attributes_only, force, bwlimit, idle, cancel: as for `copy_file`, for all files
            together; depth is less where RLIMIT_NOFILE does not allow two descriptors for each.
        checksum: as for `copy_file`, of each file: the `Outcome` has it.
        resume: as for `copy_file`, for each large file; and what is there is left alone if it is
            of the source's size and not older, as finished by an earlier copy.
        preserve: of "mode", "ownership", "timestamps", "links" (hard links within the tree),
            "context" (the SELinux one), "xattr", or "all": all of them, the last two where
            possible. Without "mode" a new file has the source's permission bits less the umask, or
            with "default-mode" 0666 (directories 0777) less the umask. Symbolic links, FIFOs,
            sockets and device nodes are made anew in any case.
        follow_symlinks: copy what symbolic links point to instead of the links.
        one_file_system: do not go into directories on other file systems.
        link: make directories only, and in them "hard" links in place of everything else, or
            "symbolic" ones, for which `src` has to be absolute; what is there is replaced only with
            `force`, `remove_destination` or a backup.
        copy_contents: read FIFOs and devices to their end, in place of making new ones.
        keep_directory_symlink: take a symbolic link to a directory that is at the destination for
            that directory, whoever has put it there.
        exclude: called with a path below `src` (bytes) and whether it is a directory; what it says
            True of is not copied.
        include: called likewise; of files only what it says True of is copied, and all that is in
            directories which it says True of. Others are looked into, and made if they come to have
            something in them. What is excluded is not included.
        files: copy only what has these names, relative to `src`, and the directories above it;
            `dst` gets its attributes only if "." is one of them. Each that is not there, or leads
            out of `src`, is an error; links on the way are followed with `follow_symlinks`.
        recursive: False: of directories that `files` names nothing but themselves.
        replace: called with the path below `src`, the stat of what is to be copied and the stat of
            what has its name at the destination; what it says False of stays as it is.
        links: with "links", what earlier calls that were given the same have copied: a file that
            has another name there becomes a link to that.
        plan: copy nothing, only find out what would be copied, and what could not be: a
            `aiocp.plan.Plan`. What earlier calls that were given the same would have copied counts
            as there.
        on_entry: called with an `Outcome` for each entry that was copied, or left alone.
        on_error: called with each OSError as it happens; nothing is raised at the end then.
        progress: called as `progress(bytes_done, bytes_total)` while files are written. The total
            is counted ahead of the copy, in a thread beside it, and so grows for a while.
        progress_files: called as `progress_files(files_done, files_total)`, just before `progress`:
            all that is no directory.
        totals: False: nothing is counted for these two, totals are 0.
        executor: whose workers copy the files, in place of this process: any of concurrent.futures,
            Dask's `Client.get_executor()`, mpi4py's MPIPoolExecutor. Each must have this version of
            aiocp, this user, and see both trees under the same paths, which it is asked first.
            `depth` and `block_size` are those of each worker. Of a file that is not digested and
            has 512 MiB or more several copy a part each. What may be done by a worker that is then
            lost is done again by another, if the executor does so.

    Raises:
        ExecutorFailed: an OSError: a worker cannot do its part, or the executor itself has failed.
        ExceptionGroup: of the OSErrors of all that was not copied, unless there is `on_error`. Its
            `result` attribute is the TreeResult.
        OSError: where `src` cannot be opened or `dst` not be made.
        Cancelled: `cancel` was set; what was copied by then stays.
        ValueError: as from `copy_file`; `bwlimit` with an executor.
    """
    return prepare(
        src,
        dst,
        depth=depth,
        block_size=block_size,
        sparse=sparse,
        reflink=reflink,
        preserve=preserve,
        follow_symlinks=follow_symlinks,
        one_file_system=one_file_system,
        exclude=exclude,
        include=include,
        files=files,
        recursive=recursive,
        replace=replace,
        remove_destination=remove_destination,
        backup=backup,
        suffix=suffix,
        link=link,
        attributes_only=attributes_only,
        copy_contents=copy_contents,
        keep_directory_symlink=keep_directory_symlink,
        force=force,
        sync=sync,
        verify=verify,
        checksum=checksum,
        resume=resume,
        allow_changed=allow_changed,
        links=links,
        plan=plan,
        on_entry=on_entry,
        on_error=on_error,
        bwlimit=bwlimit,
        idle=idle,
        progress=progress,
        progress_files=progress_files,
        totals=totals,
        executor=executor,
        cancel=cancel,
    ).copy()


def prepare(
    src: StrPath,
    dst: StrPath,
    *,
    depth: int,
    block_size: int,
    sparse: Sparse,
    reflink: Reflink,
    preserve: Iterable[str],
    follow_symlinks: bool,
    one_file_system: bool,
    exclude: Test | None,
    include: Test | None,
    files: Iterable[StrPath] | None,
    recursive: bool,
    replace: Replace | None,
    remove_destination: bool,
    backup: str,
    suffix: str | bytes,
    link: Link | None,
    attributes_only: bool,
    copy_contents: bool,
    keep_directory_symlink: bool,
    force: bool,
    sync: bool,
    verify: bool,
    checksum: "Algorithm | None",
    resume: bool,
    allow_changed: bool,
    links: HardLinks | None,
    plan: Plan | None,
    on_entry: Callable[[Outcome], object] | None,
    on_error: Callable[[OSError], object] | None,
    bwlimit: "int | Pace | None",
    idle: bool,
    progress: Progress | None,
    progress_files: Progress | None,
    totals: bool,
    executor: "Executor | None",
    cancel: Cancel | None,
) -> "TreeCopier":
    """A copier of these arguments of copy_tree(). Raises ValueError."""
    check_verify(verify, sync)
    check_resume(resume, sync, in_place=False)
    sync, verify = sync and plan is None, verify and plan is None
    check_depth(depth)
    check_block_size(block_size)
    check_link(link)
    check_checksum(checksum, contents=link is None and not attributes_only)
    check_executor(executor, bwlimit)
    if executor is not None:
        import aiocp.spread_tree  # noqa: F401 - now, while no file is open
    counted = totals and (progress is not None or progress_files is not None)
    pace = which_pace(bwlimit)
    how = TreeOptions(
        block_size=paced_block_size(block_size, pace),
        sparse=sparse,
        reflink=which_reflink(reflink, sparse),
        preserve=metadata.attributes(preserve),
        follow=follow_symlinks,
        sync=sync,
        verify=verify,
        checksum=checksum,
        resume=resume and plan is None,
        allow_changed=allow_changed,
        replace=_unless_finished(replace) if resume else replace,
        remove=remove_destination,
        backup=check_backup(backup, suffix),
        link=link,
        attributes_only=attributes_only,
        copy_contents=copy_contents,
        keep_links=keep_directory_symlink,
        force=force,
        pace=pace,
    )
    limits = budget(depth, walks=2 if counted else 1)
    return TreeCopier(
        (os.fsencode(src), os.fsencode(dst)),
        how,
        depth,
        limits if plan is None else limits._replace(depth=1),  # nothing will be in flight
        one_file_system,
        select(exclude, include, files, recursive),
        HardLinks() if links is None else links,
        on_entry,
        on_error,
        idle,
        progress,
        progress_files,
        totals,
        cancel,
        plan,
        executor,
    )


class TreeCopier(NamedTuple):
    """How to copy a tree; `copy` does it, and so does whoever waits for what `steps` gives."""

    names: tuple[bytes, bytes]
    how: TreeOptions
    depth: int
    limits: Budget
    one_file_system: bool
    selection: Selection
    links: HardLinks
    on_entry: Callable[[Outcome], object] | None
    on_error: Callable[[OSError], object] | None
    idle: bool
    progress: Progress | None
    progress_files: Progress | None
    totals: bool
    cancel: Cancel | None
    plan: Plan | None
    executor: "Executor | None"

    def copy(self, contexts: Contexts = Context) -> TreeResult:
        """Copy the tree."""
        begun = perf_counter()
        if self.plan is not None:
            contexts = partial(Context, aio=False)
        with (
            lowered(idle=self.idle),
            contexts(self.limits.depth, self.how.block_size, idle=self.idle) as context,
        ):
            copy = self.begin()  # its threads inherit the priority
            try:
                with closing(self.steps(copy, context, context.reap)) as steps:
                    for on in steps:
                        if on is not None and not isinstance(on, Context | float):
                            on.wait()
            finally:
                copy.close()
            return self.result(copy, context, begun)

    def begin(self) -> TreeCopy:
        """What a copy knows while it is made; to be closed."""
        kind: Callable[..., TreeCopy] = TreeCopy
        if self.plan is not None:
            from aiocp.dry_tree import DryTree

            kind = partial(DryTree, self.plan)
        elif self.executor is not None and self.how.link is None and not self.how.attributes_only:
            from aiocp.crew import Crew
            from aiocp.spread_tree import SpreadTree

            with self._named():  # before there are threads: an executor may fork
                crew = Crew(self.executor, self.cancel)
            kind = partial(SpreadTree, crew, self.idle, self.depth)
        return kind(
            self.names,
            self.how,
            self.limits,
            self.links,
            on_entry=self.on_entry,
            on_error=self.on_error,
            progress=self.progress,
            progress_files=self.progress_files,
            totals=self.totals,
            cancel=self.cancel,
        )

    def steps(self, copy: TreeCopy, context: Context, reap: Reap) -> Generator[Wait, None, None]:
        """Make a copy, but for the waiting: TreeCopy.steps()."""
        with self._named():
            yield from copy.steps(context, reap, self.one_file_system, self.selection)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Give an error the names of both trees."""
        try:
            yield
        except OSError as error:
            error.filename, error.filename2 = map(os.fsdecode, self.names)
            raise

    def result(self, copy: TreeCopy, context: Context, begun: float) -> TreeResult:
        """What a copy comes to. Raises ExceptionGroup if there are errors that nobody was told."""
        source, destination = map(os.fsdecode, self.names)
        outcomes, workers = copy.outcomes, copy.workers
        result = TreeResult(
            source,
            destination,
            files=outcomes.files,
            directories=outcomes.directories,
            links=outcomes.links,
            specials=outcomes.specials,
            bytes=outcomes.bytes,
            holes=outcomes.holes,
            reflinked=outcomes.reflinked,
            errors=tuple(outcomes.errors),
            depth=max((one.depth for one in workers), default=context.depth),
            peak_in_flight=max(context.peak_in_flight, *(one.peak_in_flight for one in workers), 0),
            synced=self.how.sync,
            verified=self.how.verify,
            syncs=copy.syncs,
            elapsed=perf_counter() - begun,
            workers=workers,
        )
        if outcomes.errors and self.on_error is None:
            group = ExceptionGroup(f"{len(outcomes.errors)} not copied", outcomes.errors)
            group.result = result  # type: ignore[attr-defined]
            raise group
        return result


def _unless_finished(replace: Replace | None) -> Replace:
    """What is not to be replaced besides: what an earlier copy has finished."""
    from aiocp.partial import is_finished

    def wanted(path: bytes, seen: os.stat_result, existing: os.stat_result) -> bool:
        if is_finished(seen, existing):
            return False
        return replace is None or replace(path, seen, existing)

    return wanted
