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
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from errno import EINVAL, EIO, EISDIR, ESTALE
from functools import partial
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from time import perf_counter
from typing import NamedTuple

from aiocp import metadata, stream
from aiocp.backup import NONE, SUFFIX, Backups, Replaced, check_backup
from aiocp.batch import CAPACITY, SMALL, Batch, SmallFile
from aiocp.context import Context
from aiocp.copier import (
    Link,
    Progress,
    StrPath,
    check_block_size,
    check_depth,
    check_link,
    rung,
    which_reflink,
)
from aiocp.destination import Destination
from aiocp.engine import Engine, Sync, Transfer
from aiocp.errors import Cancel, fail, look, operation, same_file
from aiocp.existing import Relation, relation
from aiocp.extents import Sparse
from aiocp.hard_links import HardLinks, Identity, identity
from aiocp.link import hard_link, replaces, symbolic_link
from aiocp.linux import File, dirty_bytes, has_syncfs, sync_filesystem
from aiocp.nodes import copy_node, link_node
from aiocp.outcome import Outcome
from aiocp.place import Place
from aiocp.reflink import Reflink
from aiocp.source import Source
from aiocp.stage import Stage
from aiocp.target import KEPT_OPEN, Target, TargetSync, make_directory
from aiocp.transfer import (
    DirectorySync,
    FileTransfer,
    assert_durable,
    sync_directory,
    what_stopped,
)
from aiocp.tree import Directory, Enter, Entry, Step, walk

# As many bytes as copy_file has in flight, in blocks that small files fill better: 20,000 of them
# on ext4, cold, took 0.88 s at 256 x 256K, 0.90 at 128 x 256K, 1.0 at 64 x 256K and at 64 x 1M
TREE_DEPTH = 256
TREE_BLOCK_SIZE = 256 << 10

# How many small files wait without a name for one sync of the file system, at most and as a
# multiple of the depth. 20,000 files, cold, took 1.3 s on ext4, 1.3 on XFS, 2.1 on Btrfs; each with
# a sync of its own 1.9, 1.9, 4.0
_TOGETHER, _TOGETHER_OF_DEPTH = 1024, 4

# Bytes of other programs that such a sync may write along, about what a disk writes in a second
_OTHERS_DIRTY = 256 << 20

# How many batches may be on their way to be opened, or placed
_AHEAD, _BEHIND = 3, 4

# How many descriptors are left to the rest of the process
_OTHERS = 64

# whether to replace, given the path, the source's stat and that of what has its name
Replace = Callable[[bytes, os.stat_result, os.stat_result], bool]


@dataclass(frozen=True, slots=True)
class TreeResult:
    """What was copied: counts, `bytes` of file contents, and `errors`, empty if all went well.

    `reflinked` files share the blocks of their sources; `holes` are bytes that were not written
    because the copies have holes there. Each error is an OSError with errno and both file names.
    `elapsed` is in seconds. `synced` tells that everything copied is on the disk, `syncs` how often
    the whole file system was synced for that, in place of single files: on ext4, XFS and Btrfs,
    where it is faster, and for hard links.
    """

    source: str
    destination: str
    files: int
    directories: int
    links: int
    specials: int
    bytes: int
    holes: int
    reflinked: int
    errors: tuple[OSError, ...]
    depth: int
    peak_in_flight: int
    synced: bool
    syncs: int
    elapsed: float


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
    exclude: Callable[[bytes, bool], bool] | None = None,
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
    allow_changed: bool = False,
    links: HardLinks | None = None,
    on_entry: Callable[[Outcome], object] | None = None,
    on_error: Callable[[OSError], object] | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> TreeResult:
    """Copy the directory `src` to `dst`, which becomes it or, if it exists, is merged into.

    On return everything that was copied is whole, in place and on the disk.

    Arguments:
        depth, block_size, sparse, reflink, sync, allow_changed, remove_destination, backup, suffix,
            attributes_only, force, cancel: as for `copy_file`, for all files together; depth is
            less where RLIMIT_NOFILE does not allow two descriptors for each.
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
        replace: called with the path below `src`, the stat of what is to be copied and the stat of
            what has its name at the destination; what it says False of stays as it is.
        links: with "links", what earlier calls that were given the same have copied: a file that
            has another name there becomes a link to that.
        on_entry: called with an `Outcome` for each entry that was copied, or left alone.
        on_error: called with each OSError as it happens; nothing is raised at the end then.
        progress: called as `progress(bytes_done, 0)` while files are written.

    Raises:
        ExceptionGroup: of the OSErrors of all that was not copied, unless there is `on_error`. Its
            `result` attribute is the TreeResult.
        OSError: where `src` cannot be opened or `dst` not be made.
        Cancelled: `cancel` was set; what was copied by then stays.
        ValueError: as from `copy_file`.
    """
    check_depth(depth)
    check_block_size(block_size)
    check_link(link)
    names = os.fsdecode(src), os.fsdecode(dst)
    budget = _budget(depth)
    copier = _TreeCopier(
        names=(os.fsencode(src), os.fsencode(dst)),
        block_size=block_size,
        sparse=sparse,
        reflink=which_reflink(reflink, sparse),
        preserve=metadata.attributes(preserve),
        replace=replace,
        remove=remove_destination,
        backup=check_backup(backup, suffix),
        link=link,
        attributes_only=attributes_only,
        copy_contents=copy_contents,
        keep_links=keep_directory_symlink,
        force=force,
        links=HardLinks() if links is None else links,
        follow=follow_symlinks,
        sync=sync,
        allow_changed=allow_changed,
        on_entry=on_entry,
        on_error=on_error,
        progress=progress,
        cancel=cancel,
        budget=budget,
    )
    begun = perf_counter()
    with Context(budget.depth, block_size) as context:
        try:
            copier.run(context, one_file_system, exclude)
        except OSError as error:
            error.filename, error.filename2 = names
            raise
        finally:
            copier.close()
    result = TreeResult(
        *names,
        files=copier.files,
        directories=copier.directories,
        links=copier.links,
        specials=copier.specials,
        bytes=copier.bytes,
        holes=copier.holes,
        reflinked=copier.reflinked,
        errors=tuple(copier.errors),
        depth=context.depth,
        peak_in_flight=context.peak_in_flight,
        synced=sync,
        syncs=copier.syncs,
        elapsed=perf_counter() - begun,
    )
    if copier.errors and on_error is None:
        group = ExceptionGroup(f"{len(copier.errors)} not copied", copier.errors)
        group.result = result  # type: ignore[attr-defined]
        raise group
    return result


class _Budget(NamedTuple):
    """What RLIMIT_NOFILE allows: the depth, the files of a batch, and how many wait for a sync."""

    depth: int
    batch: int
    together: int


def _budget(depth: int) -> _Budget:
    """Two descriptors for each slot, and for each file of the batches that are open ahead; one for
    each that waits for its sync or is being synced; those of the directories on the way down. So
    depth bounds them all, and RLIMIT_NOFILE does."""
    limit, _ = getrlimit(RLIMIT_NOFILE)
    room = sys.maxsize if limit == RLIM_INFINITY else limit - 2 * KEPT_OPEN - _OTHERS
    depth = max(1, min(depth, room // 8))
    batch = max(1, min(CAPACITY, depth, room // 32))
    rest = room - 2 * depth - 2 * (_AHEAD + 2) * batch
    return _Budget(depth, batch, max(1, min(_TOGETHER, _TOGETHER_OF_DEPTH * depth, rest // 2)))


class _TreeFile(FileTransfer):
    """A file on its way into a target, and the names that are to be linked to it."""

    def __init__(
        self,
        target: Target,
        name: bytes,
        source: Source,
        destination: Destination,
        sync: Sync,
        allow_changed: bool,
        place: Place | None,
    ) -> None:
        super().__init__(
            source,
            destination,
            sync=sync is not Sync.NONE,
            allow_changed=allow_changed,
            must_be_direct=False,
        )
        if self.sync is not Sync.NONE:
            self.sync = sync
        self.target, self.name = target, name
        self.place = place  # where a link at the destination leads
        self.streamed = False
        self.waits = False  # for the sync of the file system
        self.identity: Identity | None = None  # of the source, if names are to be linked
        self.other_names: list[tuple[Target, bytes, bytes]] = []  # with the path, for messages

    @property
    def path(self) -> bytes:
        """Below the root, for messages."""
        return self.target.directory.join(self.name)

    def let_source_go(self) -> None:
        """Close the source: all of it was read."""
        with suppress(OSError):
            self.source.close()

    def close(self) -> None:
        try:
            self.destination.close()  # its errors were told before the commit, or it is thrown away
        except OSError:
            pass
        finally:
            if self.place is not None:
                with suppress(OSError):
                    self.place.directory.close()
            with suppress(OSError):
                self.source.close()


class _TreeCopier:
    """The state of one copy_tree()."""

    def __init__(
        self,
        *,
        names: tuple[bytes, bytes],
        block_size: int,
        sparse: Sparse,
        reflink: Reflink,
        preserve: frozenset[str],
        follow: bool,
        sync: bool,
        allow_changed: bool,
        replace: Replace | None,
        remove: bool,
        backup: tuple[str, bytes],
        link: Link | None,
        attributes_only: bool,
        copy_contents: bool,
        keep_links: bool,
        force: bool,
        links: HardLinks,
        on_entry: Callable[[Outcome], object] | None,
        on_error: Callable[[OSError], object] | None,
        progress: Progress | None,
        cancel: Cancel | None,
        budget: _Budget,
    ) -> None:
        self.names = names
        self.block_size, self.preserve, self.follow = block_size, preserve, follow
        self.sparse, self.reflink = sparse, reflink
        self.sync, self.allow_changed = sync, allow_changed
        self.replace, self.remove, self.force = replace, remove, force
        self.backup, self.link = backup, link
        self.attributes_only, self.copy_contents = attributes_only, copy_contents
        self.keep_links = keep_links
        self.on_entry, self.on_error = on_entry, on_error
        self.progress, self.cancel = progress, cancel
        self._keeps = backup[0] != NONE
        self.files = self.directories = self.links = self.specials = self.bytes = 0
        self.holes = self.reflinked = 0
        self.errors: list[OSError] = []
        # names in place are durable with the directory's sync; the mode alone is with the data's
        self._attributes = preserve - {"links"}
        attributes = bool(preserve - {"mode", "links"})
        self._file_sync = (Sync.FSYNC if attributes else Sync.FDATASYNC) if sync else Sync.NONE
        self._root: Target | None = None
        self.syncs = 0
        # where each link that is followed is a name of its file, files are not what they seem
        self._batched = not (
            (follow and "links" in preserve) or link or attributes_only or sparse == "always"
        )
        self._budget = budget
        self._adding: Batch | None = None
        self._batches: set[Batch] = set()
        self._ahead: Stage[Batch] = Stage("aiocp-open", threads=2)
        self._behind: Stage[_Placed] = Stage("aiocp-place")
        self._held: list[Batch | _TreeFile] = []  # written, and waiting for the file system's sync
        self._holding = 0
        self._moved = self._reported = 0  # bytes
        self._open: set[_TreeFile] = set()
        self._targets: set[Target] = set()
        self._alignments: dict[int, int] = {}
        # by the destination's device, from which others nothing can be cloned to it
        self._refused: defaultdict[int, set[int]] = defaultdict(set)
        self._stream_block = memoryview(bytearray(SMALL))
        self._copied = links
        self._in_flight: dict[Identity, _TreeFile] = {}  # of those, what is not in place yet
        self._top = os.path.abspath(names[1])
        self._begun: deque[Transfer] = deque()  # directory syncs to hand to the engine

    def run(
        self,
        context: Context,
        one_file_system: bool,
        exclude: Callable[[bytes, bool], bool] | None,
    ) -> None:
        """Copy everything; errors of single entries go into `errors`."""
        with operation("open source"):
            file = File.open(self.names[0], os.O_RDONLY | os.O_DIRECTORY)
            root = Directory(file, b"", None, b"")
        steps = walk(
            root,
            self._failed,
            follow=self.follow,
            one_file_system=one_file_system,
            wanted=None if exclude is None else lambda path, is_dir: not exclude(path, is_dir),
        )
        transfers = self._transfers(steps)
        self._context = context
        engine = Engine(context, transfers)
        with closing(steps), closing(transfers):
            self._drive(engine)
        if self._root is not None and self._root.together:
            try:
                self._sync_together()
            except OSError as error:  # no name that was put in place since the last is durable
                self._failed(b"", error)
        if self.sync and self._root is not None and self._root.created:
            try:
                self._sync_parent(context)
            except OSError as error:
                error.strerror = f"its name is not durable: {error.strerror}"
                self._failed(b"", error)

    def _drive(self, engine: Engine) -> None:
        while True:
            for transfer in engine.run():
                self._look()
                if transfer is not None:
                    self._ended(transfer)
                self._take_placed()
                while self._begun:
                    engine.add(self._begun.popleft())
            if self._held:
                self._sync_held()
            if not self._behind.pending:
                return
            self._take_placed(wait=True)
            while self._begun:
                engine.add(self._begun.popleft())

    def _look(self) -> None:
        """See whether to stop, and tell how far it is."""
        look(self.cancel)
        if self.progress is not None and self._moved != self._reported:
            self._reported = self._moved
            self.progress(self._moved, 0)

    def _sync_parent(self, context: Context) -> None:
        """Have the root's own name on the disk."""
        parent = os.path.dirname(self.names[1].rstrip(b"/")) or b"."
        with operation("sync"):
            file = File.open(parent, os.O_RDONLY | os.O_DIRECTORY)
            for transfer in Engine(context, [DirectorySync(file.fileno())]).run():
                if transfer is not None and transfer.failed:
                    raise what_stopped(transfer)
            assert_durable(file.fileno())
            file.let_go()

    def close(self) -> None:
        """Let go of what an exception has left open."""
        self._ahead.close()
        self._behind.close()
        for batch in self._batches:
            batch.close()
        for transfer in self._open:
            transfer.close()
        for target in self._targets:
            target.file.let_go()

    # --- what the walk gives ---

    def _transfers(self, steps: Iterable[Step]) -> Generator[Transfer, None, None]:
        for step in steps:
            if isinstance(step, Entry):
                if step.is_file and self._batched:
                    if self._wanted(step) and self._add(step.directory, step.name):
                        yield from self._open_batch()
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
        yield from self._open_batch()
        while self._ahead.pending:
            yield from self._opened(self._ahead.take())

    def _wanted(self, entry: Entry) -> bool:
        """Whether to copy a regular file over what has its name."""
        if self.replace is None:
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

    def _add(self, directory: Directory, name: bytes) -> bool:
        """Put what is a regular file by the listing into a batch; whether that is full by it."""
        target: Target = directory.data
        batch = self._adding
        if batch is None:
            together = target.together
            sync = Sync.NONE if together else self._file_sync
            batch = Batch(
                self.preserve,
                sync,
                allow_changed=self.allow_changed,
                replace=not (self.remove or self._keeps),
                holes=self.sparse == "auto",
            )
            self._adding = batch
            self._batches.add(batch)
        if not batch.data or batch.data[-1] is not target:
            try:
                batch.enter(
                    target,
                    directory.fd(),
                    target.fd(),
                    alignment=self._alignments.get(directory.stat.st_dev, 0),
                    mask=target.mask,
                    fresh=target.created,
                    acl=target.acl,
                    flush=target.flush,
                    clone=self._may_clone(directory, target),
                )
            except OSError as error:
                self._failed(directory.join(name), error)
                return False
        target.waiting += 1
        return batch.add(name) >= self._budget.batch

    def _may_clone(self, directory: Directory, target: Target) -> Reflink:
        refused = directory.stat.st_dev in self._refused[target.stat.st_dev]
        return "never" if refused and self.reflink == "auto" else self.reflink

    def _open_batch(self) -> Iterator[Transfer]:
        """Have a batch opened; go on with those that are."""
        batch, self._adding = self._adding, None
        if batch is not None:
            self._ahead.give(batch.open)
        while self._ahead.pending > _AHEAD:
            yield from self._opened(self._ahead.take())

    def _opened(self, batch: Batch) -> Iterator[Transfer]:
        self._look()  # where all is in memory no transfer ends
        self._take_placed()
        for target in batch.refused():
            self._refused[target.stat.st_dev].add(target.directory.stat.st_dev)
        batch.waiting = 1
        for transfer in batch.transfers(self._alignments, self.block_size):
            batch.waiting += 1
            yield transfer
        for index, from_fd in batch.others():
            target = batch.where(index)
            yield from self._other(target, batch.name(index), from_fd, wanted=True)
            self._arrived(target)
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
            if transfer is not None:
                yield transfer
            else:
                look(self.cancel)

    def _enter(self, directory: Directory) -> None:
        """Make, or take, the directory that goes with one of the source's."""
        parent: Target | None = None
        if directory.parent is None:
            directory.data = self._root = self._make_root(directory)
            return
        parent = directory.parent.data
        assert parent is not None
        assert self._root is not None
        if self._root.is_same(directory.stat):
            raise fail(EINVAL, "cannot copy a directory into itself")
        directory.data = self._take(directory, parent, directory.name)
        if not self.keep_links:  # a link's ".." is not where the link is
            parent.park_above()

    def _make_root(self, directory: Directory) -> "Target":
        target = self._take(directory, None, self.names[1])
        if target.is_same(directory.stat):
            raise fail(EINVAL, "cannot copy a directory into itself")
        return target

    def _take(self, directory: Directory, parent: Target | None, path: bytes) -> Target:
        """Make or take a directory, and give it what it can have before its entries; the rest
        would be undone by them."""
        file, created = make_directory(path, parent, follow=parent is None or self.keep_links)
        backups = Backups(*self.backup) if self._keeps else None
        try:
            with operation("make directory"):
                target = Target(file, directory, parent, created=created, backups=backups)
        except OSError:
            file.let_go()  # the error lives on, and all that it knows with it
            raise
        self._targets.add(target)
        if parent is None:
            # other names promise the data of files that are only looked at: all of it, at the end
            together = self.link == "hard" or _syncs_together(file.fileno())
            target.together = self.sync and together
        early = self.preserve - {"timestamps"}
        if early:
            try:
                with operation("set attributes"):
                    target.carry(early)
            except OSError as error:  # what is below can be copied all the same
                target.failed = True
                self._failed(directory.path, error)
        self.directories += 1
        if created:
            self._tell(directory.path, "directory")
        return target

    def _entry(
        self, target: Target, name: bytes, from_fd: int, path: bytes, *, wanted: bool
    ) -> Transfer | None:
        """Begin to copy a file; anything else is copied at once."""
        with operation("open source"):
            seen = os.stat(name, dir_fd=from_fd, follow_symlinks=self.follow)
        if not (wanted or self._may_replace(target, name, path, seen)):
            return None
        if stat.S_ISDIR(seen.st_mode):
            raise fail(ESTALE, "became a directory")
        key = (seen.st_dev, seen.st_ino)
        several = seen.st_nlink > 1 or self.follow  # a link that is followed is a name too
        linked = several and "links" in self.preserve and self.link != "hard"
        if linked and self._link(key, target, name, path):
            return None
        if self.link is None and self._has_contents(seen):
            source = Source(
                name, "auto", self.block_size, dir_fd=from_fd, seen=seen, follow=self.follow
            )
            transfer = self._begin(target, name, source)
            if linked:
                transfer.identity, self._in_flight[key] = key, transfer
            return transfer
        self._make(target, name, from_fd, path, seen)
        if linked:
            made = os.stat(name, dir_fd=target.fd(), follow_symlinks=False)
            self._remember(key, target, name, made)
        return None

    def _make(
        self, target: Target, name: bytes, from_fd: int, path: bytes, seen: os.stat_result
    ) -> None:
        """Make at once what has no contents: a node of the source's kind, or a link to it."""
        if not self._is_other(target, name, from_fd, seen):
            return
        replaced: Replaced | None
        method, to_fd, backups = f"{self.link}-link", target.fd(), target.backups
        removes = self.remove or (replaces(seen, follow=self.follow) and not self.attributes_only)
        replace = self.force or removes
        if self.link == "hard":
            sync = self.sync and not target.together
            replaced = hard_link(
                name,
                from_fd,
                seen,
                to_fd,
                name,
                follow=self.follow,
                replace=replace,
                backups=backups,
                sync=sync,
            )
        elif self.link == "symbolic":
            text = os.path.join(self.names[0], path)
            replaced = symbolic_link(
                text, seen, to_fd, name, self.preserve, replace=replace, backups=backups
            )
        else:
            method = "special"
            replaced = copy_node(
                seen,
                name,
                from_fd,
                to_fd,
                name,
                self.preserve,
                replace=not self.attributes_only or replace,
                backups=backups,
            )
        if replaced is None or not removes:  # cp, too, says nothing of what only makes way
            replaced = Replaced(backup=replaced and replaced.backup)
        is_link = self.link == "symbolic" or (not self.link and stat.S_ISLNK(seen.st_mode))
        self._count(path, method, replaced, is_link=is_link)

    def _has_contents(self, seen: os.stat_result) -> bool:
        """Whether to copy what is in something, rather than to make another of its kind."""
        if stat.S_ISREG(seen.st_mode):
            return True
        return self.copy_contents and not (stat.S_ISLNK(seen.st_mode) or stat.S_ISDIR(seen.st_mode))

    def _remember(
        self, source: Identity, target: Target, name: bytes, made: os.stat_result
    ) -> None:
        """That a file which has other names was copied."""
        directory = os.path.join(self._top, target.directory.path)
        self._copied.add(source, directory, name, identity(made))

    def _may_replace(self, target: Target, name: bytes, path: bytes, seen: os.stat_result) -> bool:
        """Whether what has the name, if anything has, is to be replaced."""
        if self.replace is None:
            return True
        follow = self._writes_through(seen)
        try:
            existing = os.stat(name, dir_fd=target.fd(), follow_symlinks=follow)
        except FileNotFoundError:
            return True
        if self.replace(path, seen, existing):
            return True
        self._tell(path, "skipped")
        return False

    def _writes_through(self, seen: os.stat_result) -> bool:
        """Whether a link at the destination is followed to copy this."""
        renews = self.remove or self._keeps or self.link is not None
        return self._has_contents(seen) and not renews

    def _is_other(self, target: Target, name: bytes, from_fd: int, seen: os.stat_result) -> bool:
        """Whether what is to be made is not there yet.

        Raises SameFileError where the source is, or what it leads to.
        """
        what = relation(
            (name, from_fd),
            seen,
            (name, target.fd()),
            followed=self.follow,
            link=self.link,
            backup=self._keeps,
            remove=self.remove,
        )
        if what is Relation.SAME:
            raise same_file()
        return what is Relation.OTHER

    def _begin(self, target: Target, name: bytes, source: Source) -> "_TreeFile":
        """Open the destination of a file."""
        size = 0 if self.attributes_only else source.size or 0
        place: Place | None = None
        try:
            remove = self.remove
            if not (remove or self._keeps or target.created):
                place, remove = self._behind_link(target, name)
            destination = Destination(
                place.directory if place else target.opened(),
                place.name if place else name,
                source,
                "never" if size <= SMALL else "auto",
                self.block_size,
                preserve=self.preserve,
                mask=None if place else target.mask,
                remove=remove,
                backups=target.backups,
                attributes_only=self.attributes_only,
                wait=self.copy_contents,
                force=self.force,
                cancel=self.cancel,
            )
        except BaseException:
            source.close()
            if place is not None:
                place.directory.close()
            raise
        transfer = _TreeFile(
            target, name, source, destination, self._file_sync, self.allow_changed, place
        )
        try:
            if self.attributes_only or transfer.clone(
                self.reflink, self._refused[target.stat.st_dev]
            ):
                pass
            elif source.size is None:
                transfer.streamed = True
                block = self._stream_block
                for size in stream.copy(source.fd, destination.fd, block, self.cancel):
                    transfer.bytes_read = transfer.bytes_written = size
            else:
                transfer.lay_out(self.sparse, reserve=size > SMALL)
        except BaseException:
            transfer.close()
            raise
        if destination.in_place and "mode" in self.preserve and transfer.sync is Sync.FDATASYNC:
            transfer.sync = Sync.FSYNC  # only the mode of a new file is synced with its data
        light = size <= SMALL or transfer.cloned  # few bytes of it are not on the disk yet
        if target.together and light and not (destination.in_place or place):
            transfer.sync, transfer.waits = Sync.NONE, True
        transfer.size = size
        target.waiting += 1
        self._open.add(transfer)
        return transfer

    def _behind_link(self, target: Target, name: bytes) -> tuple[Place | None, bool]:
        """Where a link leads that has the name, if one has, and whether to remove that instead."""
        fd = target.fd()
        try:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None, False
        if not stat.S_ISLNK(found.st_mode):
            return None, False
        if "links" in self.preserve and not self.attributes_only:
            with suppress(FileNotFoundError):  # a dangling link, refused below
                led_to = os.stat(name, dir_fd=fd)
                if led_to.st_nlink > 1 and not stat.S_ISDIR(led_to.st_mode):
                    return None, True  # as cp, to leave what is linked to alone
        return Place.behind(target.opened(), name), False

    def _link(self, source: Identity, target: Target, name: bytes, path: bytes) -> bool:
        """Give a file that is copied already, or on its way, another name; whether it is."""
        if (transfer := self._in_flight.get(source)) is not None:
            transfer.other_names.append((target, name, path))
            target.waiting += 1
            return True
        if (copied := self._copied.get(source)) is None:
            return False
        flags = os.O_PATH if self.follow else os.O_PATH | os.O_NOFOLLOW
        with operation("link"), File.open_far(copied[0], flags) as file:
            found = os.fstat(file.fileno())
            if copied[1] != identity(found):
                raise fail(ESTALE, "its first name was replaced meanwhile")
            self._link_to(file.fileno(), target, name, path, found)
        return True

    def _link_to(
        self, fd: int, target: Target, name: bytes, path: bytes, found: os.stat_result
    ) -> None:
        if stat.S_ISREG(found.st_mode) and not (target.created or self.remove or self._keeps):
            with suppress(FileNotFoundError):
                if stat.S_ISDIR(os.stat(name, dir_fd=target.fd()).st_mode):
                    raise fail(EISDIR, "cannot overwrite a directory with what is none")
        replaced = link_node(fd, found, target.fd(), name, backups=target.backups)
        self._count(path, "hard-link", replaced or Replaced())

    # --- what the engine gives back ---

    def _ended(self, transfer: Transfer) -> None:
        if isinstance(transfer, SmallFile):
            batch = transfer.batch
            if transfer.failed:
                batch.failed(transfer.index, what_stopped(transfer))
            self._written(batch)
        elif isinstance(transfer, _TreeFile):
            self._moved += transfer.bytes_written + transfer.holes
            if transfer.waits and not transfer.failed:
                transfer.let_source_go()
                self._hold(transfer, 1)
            else:
                self._commit(transfer)
        else:
            assert isinstance(transfer, TargetSync)
            try:
                if transfer.failed:
                    raise what_stopped(transfer)
                assert_durable(transfer.write_fd)
            except OSError as error:
                self._failed(transfer.target.directory.path, error)
            self._arrived(self._settle(transfer.target))

    def _written(self, batch: Batch) -> None:
        """One file less of a batch is to be written; after the last it is placed."""
        batch.waiting -= 1
        if batch.waiting:
            return
        if self.sync and batch.sync is Sync.NONE:
            batch.seal()
            self._hold(batch, len(batch))
        else:
            self._place(partial(_placed, [batch]), _BEHIND)

    def _hold(self, written: "Batch | _TreeFile", count: int) -> None:
        """Keep what has no name yet for one sync of the file system."""
        self._held.append(written)
        self._holding += count
        if self._holding >= self._budget.together:
            self._sync_held()

    def _sync_held(self) -> None:
        held, self._held, self._holding = self._held, [], 0
        self._place(partial(self._sync_and_place, held), 1)

    def _place(self, call: "Callable[[], _Placed]", at_once: int) -> None:
        """Have a call made behind the engine, where not more than that are on their way."""
        while self._behind.pending >= at_once:
            self._take_placed(wait=True)
        self._behind.give(call)

    def _sync_together(self) -> None:
        assert self._root is not None
        with operation("sync"):
            sync_filesystem(self._root.fd())
        assert_durable(self._root.fd())
        self.syncs += 1

    def _sync_and_place(self, held: "list[Batch | _TreeFile]") -> "_Placed":
        """Sync the file system once, then put what has waited for that in place."""
        try:
            self._sync_together()
        except OSError as error:
            return held, error
        return _placed(held)

    def _take_placed(self, *, wait: bool = False) -> None:
        """See what became of what was to be placed."""
        while self._behind.pending and (wait or self._behind.done()):
            held, failure = self._behind.take()
            for one in held:
                if isinstance(one, Batch):
                    if failure is not None:
                        one.fail_all(failure.errno or EIO, "sync")
                    self._batch_placed(one)
                else:
                    if failure is not None:
                        one.error = fail(failure.errno or EIO, "sync")
                    self._commit(one)
            wait = False

    def _batch_placed(self, batch: Batch) -> None:
        for index, error in batch.failures():
            self._failed(batch.where(index).directory.join(batch.name(index)), error)
        if self.on_entry is not None:
            for index, how in batch.copied():
                path = batch.where(index).directory.join(batch.name(index))
                self._tell(path, "plain" if how == "aio-buffered" and self._context.plain else how)
        self.files += batch.placed
        self.reflinked += batch.cloned
        self.bytes += batch.size
        self._moved += batch.size
        for target, count in zip(batch.data, batch.counts, strict=True):
            if count:
                self._arrived(target, count)
        batch.close()
        self._batches.discard(batch)

    def _commit(self, transfer: "_TreeFile") -> None:
        """Put a finished file, and the names linked to it, in place."""
        try:
            if transfer.failed:
                raise what_stopped(transfer)
            self._put_in_place(transfer)
        except OSError as error:
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

    def _put_in_place(self, transfer: "_TreeFile") -> None:
        destination = transfer.destination
        destination.commit(flush=transfer.target.flush)
        if transfer.place is not None and self.sync and not destination.in_place:
            sync_directory(transfer.place.directory, transfer.place.readable)
        self.files += 1
        self.bytes += transfer.size
        self.holes += transfer.holes
        self.reflinked += transfer.cloned
        if self.on_entry is not None:
            method = rung(transfer, self._context, transfer.streamed)
            if self.attributes_only:
                method = "attributes"
            self._tell(transfer.path, method, destination.removes, destination.backup)
        if transfer.identity is None:
            return
        if transfer.place is None or self.follow:
            self._link_others(transfer, transfer.identity, destination.fd)
        else:  # the link is what gets another name
            flags = os.O_PATH | os.O_NOFOLLOW
            with File.open(transfer.name, flags, dir_fd=transfer.target.fd()) as link:
                self._link_others(transfer, transfer.identity, link.fileno())

    def _link_others(self, transfer: "_TreeFile", source: Identity, fd: int) -> None:
        """Link the names of a file that came while it was in flight, those furthest down first:
        the way up to a parked directory begins at the one before, and no more than these two are
        open."""
        found = os.fstat(fd)
        self._remember(source, transfer.target, transfer.name, found)
        before: Target | None = None
        names = sorted(transfer.other_names, key=lambda other: -other[0].directory.depth)
        for target, name, path in names:
            parked = target.file.fileno() < 0
            try:
                self._link_to(fd, target, name, path, found)
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
                    target.finish(self.preserve)
            except OSError as error:
                if not target.failed:
                    self._failed(target.directory.path, error)
            if self.sync and not target.together:
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
            self._targets.discard(target)
            target.let_go()
        return target.parent

    def _count(
        self, path: bytes, method: str, replaced: Replaced, *, is_link: bool = False
    ) -> None:
        """Count, and tell of, what was made at once."""
        if is_link:
            self.links += 1
        elif method == "special":
            self.specials += 1
        else:
            self.files += 1
        self._tell(path, method, replaced.existed, replaced.backup)

    def _tell(
        self, path: bytes, method: str, existed: bool = False, backup: bytes | None = None
    ) -> None:
        if self.on_entry is None:
            return
        source, destination = self._both(path)
        kept = None
        if backup is not None:
            kept = os.fsdecode(os.path.join(os.path.dirname(os.fsencode(destination)), backup))
        self.on_entry(Outcome(source, destination, method, kept, existed and backup is None))

    def _both(self, path: bytes) -> tuple[str, str]:
        """The names of an entry on both sides."""
        source, destination = (os.path.join(name, path) if path else name for name in self.names)
        return os.fsdecode(source), os.fsdecode(destination)

    def _failed(self, path: bytes, error: BaseException) -> None:
        """Take down what was not copied."""
        if not isinstance(error, OSError):
            raise error
        error.filename, error.filename2 = self._both(path)
        self.errors.append(error)
        if self.on_error is not None:
            self.on_error(error)


# what was placed, or not, because of an error that holds for all of it
_Placed = tuple[Sequence["Batch | _TreeFile"], OSError | None]


def _placed(held: "Sequence[Batch | _TreeFile]") -> _Placed:
    """Place the batches: the others are committed where their errors are told."""
    for one in held:
        if isinstance(one, Batch):
            one.place()
    return held, None


def _syncs_together(fd: int) -> bool:
    """Whether to sync the file system as a whole, for many files at once."""
    try:
        return has_syncfs(fd) and dirty_bytes() < _OTHERS_DIRTY
    except OSError:  # what others have to write cannot be told
        return False
