"""Copies to await: driven by the running asyncio loop, which an eventfd wakes for completions.

All files of a loop that have the same depth and block size share one context and one engine, so
that hundreds at once have no more in flight than one; a tree has its own. No thread does any of
that; only a stream, a pipe or a character device, for which one may have to wait without end, is
copied in one, and so is a file with holes, or a tree, whose digests are to be taken.
"""

import asyncio
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import ECANCELED
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from weakref import WeakKeyDictionary, finalize

from aiocp import tree_loop
from aiocp.asked import DEFAULT_BLOCK_SIZE, DEFAULT_DEPTH, Link, Progress, StrPath
from aiocp.backup import NONE, SUFFIX
from aiocp.context import Context
from aiocp.copier import prepare
from aiocp.direct import Direct
from aiocp.engine import Engine, Transfer
from aiocp.errors import fail
from aiocp.extents import Sparse, may_have_holes
from aiocp.file_copier import FileCopier, Steps, Work, paths
from aiocp.hard_links import HardLinks
from aiocp.outcome import Outcome
from aiocp.plan import Plan
from aiocp.reflink import Reflink
from aiocp.result import CopyResult, TreeResult
from aiocp.selection import Test
from aiocp.tree_copier import TREE_BLOCK_SIZE, TREE_DEPTH, TreeCopier
from aiocp.tree_copier import prepare as prepare_tree
from aiocp.tree_loop import descriptors_for, settled
from aiocp.tree_options import Replace

if TYPE_CHECKING:
    from aiocp.checksum import Algorithm
    from aiocp.pace import Pace

__all__ = ["copy_file", "copy_tree"]

T = TypeVar("T")
P = ParamSpec("P")


async def copy_file(
    src: StrPath,
    dst: StrPath,
    *,
    depth: int = DEFAULT_DEPTH,
    block_size: int = DEFAULT_BLOCK_SIZE,
    direct: Direct = "auto",
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
    attributes_only: bool = False,
    into_directory: bool = True,
    bwlimit: "int | Pace | None" = None,
    idle: bool = False,
    progress: Progress | None = None,
) -> CopyResult:
    """Copy a file as `aiocp.copy_file` does: with its arguments, its result and its errors.

    Copies of one loop with the same `depth`, `block_size` (bytes), `bwlimit` (bytes per second) and
    `idle` share a context: these are for all of them together. `progress` is called by the loop.
    Opening, making and naming files is done in the loop too, and so are digests, a block at a time;
    but a file that has holes is copied in a thread if there is to be a `checksum`, since what is in
    its holes takes its time.

    Raises asyncio.CancelledError where the task is cancelled: what is in flight is waited for, and
    what was there before still is, unless written in place.
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
        executor=None,
        cancel=None,
    )
    source, destination, names = paths(src, dst, into_directory)
    try:
        zeroes = checksum is not None and _has_holes(source)
        if _is_stream(source) or _is_stream(destination) or zeroes:
            return await _file_in_thread(how, source, destination, names)
        with _driver(how, bwlimit) as driver:
            steps = how._replace(shared=driver.context).steps(source, destination, names)
            return await driver.drive(steps, progress)
    except OSError as error:
        error.filename, error.filename2 = names
        raise


async def copy_tree(
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
) -> TreeResult:
    """Copy a directory as `aiocp.copy_tree` does: with its arguments, its result and its errors.

    Each tree has a context of its own, with `depth` blocks of `block_size` bytes; as many trees are
    copied at once as RLIMIT_NOFILE has descriptors for, the others wait. What is given to be called
    is called by the loop, `exclude` and `include` also by the thread that counts the totals.
    Opening, making and naming is done in the loop too, some 2 ms at a time, but for small files,
    which side threads open and name. With `copy_contents`, which may keep one waiting for ever, and
    `checksum`, which digests holes without end, a thread copies the tree.

    Raises asyncio.CancelledError where the task is cancelled: what is in flight is waited for, and
    what is in place by then stays.
    """
    how = prepare_tree(
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
        executor=None,
        cancel=None,
    )
    if copy_contents or checksum is not None:
        async with descriptors_for(how):
            return await _tree_in_thread(how)
    return await tree_loop.copy_tree(how)


def _is_stream(path: bytes) -> bool:
    """Whether a file can only be read or written from its beginning to its end."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False  # it is new, or the error is told where it is opened
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _has_holes(path: bytes) -> bool:
    with suppress(OSError):
        return may_have_holes(os.stat(path))
    return False


async def _file_in_thread(
    how: FileCopier, source: bytes, destination: bytes, names: tuple[str, str]
) -> CopyResult:
    stop = threading.Event()
    copier = how._replace(progress=how.progress and _by_loop(how.progress), cancel=stop)
    return await _in_thread(partial(copier.copy, source, destination, names), stop)


async def _tree_in_thread(how: TreeCopier) -> TreeResult:
    stop = threading.Event()
    copier = how._replace(
        how=how.how._replace(replace=how.how.replace and _by_loop(how.how.replace)),
        selection=how.selection.asked(_by_loop),
        on_entry=how.on_entry and _by_loop(how.on_entry),
        on_error=how.on_error and _by_loop(how.on_error),
        progress=how.progress and _by_loop(how.progress),
        progress_files=how.progress_files and _by_loop(how.progress_files),
        cancel=stop,
    )
    return await _in_thread(copier.copy, stop)


async def _in_thread(copy: Callable[[], T], stop: threading.Event) -> T:
    copying = asyncio.get_running_loop().run_in_executor(None, copy)
    try:
        return await asyncio.shield(copying)
    except asyncio.CancelledError:
        stop.set()
        await settled(copying)
        raise


def _by_loop(call: Callable[P, T]) -> Callable[P, T]:
    """What has the loop make a call, for another thread."""
    loop = asyncio.get_running_loop()

    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        async def make() -> T:
            return call(*args, **kwargs)

        return asyncio.run_coroutine_threadsafe(make(), loop).result()

    return called


class _Waiting:
    """Somebody who waits for the end of a transfer of `total` bytes."""

    def __init__(self, ended: "asyncio.Future[None]", progress: Progress | None, total: int):
        self.ended, self.progress, self.total = ended, progress, total
        self.reported = 0
        self.raised: BaseException | None = None  # by `progress`

    def report(self, transfer: Transfer) -> None:
        """Tell how far it is, if it has moved; what that raises stops it."""
        done = transfer.moved
        if self.progress is None or done == self.reported or self.raised is not None:
            return
        self.reported = done
        try:
            self.progress(done, self.total)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self.raised = error
            _stop(transfer)


def _stop(transfer: Transfer) -> None:
    """Have no more blocks of a transfer begun; it ends when none is in flight."""
    transfer.error = transfer.error or fail(ECANCELED, "copy")


class _Driver:
    """A context and an engine, which a loop drives while anybody waits for them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, how: FileCopier) -> None:
        self.users = 0
        self._loop = loop
        self._waiting: dict[Transfer, _Waiting] = {}
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._close = finalize(self, os.close, self._eventfd)
        self.context = Context(how.depth, how.block_size, idle=how.idle)
        self._engine = Engine(self.context, (), how.pace)
        self._timer: asyncio.TimerHandle | None = None  # for a block that waits for the pace
        self.context.notify(self._eventfd)
        loop.add_reader(self._eventfd, self._told)

    def close(self) -> None:
        self._loop.remove_reader(self._eventfd)
        self._stop_timer()
        self.context.close()
        self._close()

    async def drive(self, steps: Steps[CopyResult], progress: Progress | None) -> CopyResult:
        """Drive all transfers of a copy."""
        raised: BaseException | None = None
        while True:
            try:
                work = next(steps) if raised is None else steps.throw(raised)
            except StopIteration as end:
                result: CopyResult = end.value
                return result
            raised = None
            try:
                await self._end_of(work, progress)
            except BaseException as error:  # noqa: BLE001 - thrown where the transfer was given
                raised = error

    async def _end_of(self, work: Work, progress: Progress | None) -> None:
        _, transfer, total = work
        waiting = _Waiting(self._loop.create_future(), progress if total else None, total)
        self._waiting[transfer] = waiting
        self._engine.add(transfer)
        self._advance()
        try:
            await asyncio.shield(waiting.ended)
        except asyncio.CancelledError:
            _stop(transfer)
            self._advance()
            await settled(waiting.ended)
            raise
        if waiting.raised is not None:
            raise waiting.raised

    def _told(self) -> None:
        """Take what has completed."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        finished = self._engine.complete(self.context.reap_now())
        for transfer, waiting in self._waiting.items():
            waiting.report(transfer)
        self._ended(finished)
        self._advance()

    def _advance(self) -> None:
        while finished := self._engine.start():
            self._ended(finished)
        if self.context.refused or self._engine.ready:
            self._loop.call_soon(self._told)
        self._stop_timer()
        if self._engine.delay is not None:
            self._timer = self._loop.call_later(self._engine.delay, self._advance)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ended(self, transfers: Iterable[Transfer]) -> None:
        for transfer in transfers:
            self._waiting.pop(transfer).ended.set_result(None)


_drivers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[object, ...], _Driver]]
_drivers = WeakKeyDictionary()


@contextmanager
def _driver(how: FileCopier, bwlimit: object) -> Iterator[_Driver]:
    """The running loop's driver of such copies, for as long as it is in use."""
    loop = asyncio.get_running_loop()
    drivers = _drivers.setdefault(loop, {})
    kind = how.depth, how.block_size, bwlimit, how.idle
    driver = drivers.get(kind)
    if driver is None:
        driver = drivers[kind] = _Driver(loop, how)
    driver.users += 1
    try:
        yield driver
    finally:
        driver.users -= 1
        if not driver.users:
            del drivers[kind]
            driver.close()
