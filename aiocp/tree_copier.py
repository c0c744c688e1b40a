"""Copy a tree: every file a transfer of its own, all through one engine and one context.

    walk     each entry becomes a transfer (files) or is made at once (links, specials, directories)
    commit   a file whose sync is down gets its name
    leave    a directory whose last entry is in place gets its attributes and is synced, then counts
             as an entry of its parent that is in place

On Btrfs small files are synced together, by syncfs(2), before they get their names. Errors of
single entries are collected, and the rest goes on.
"""

import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from errno import EINVAL, EIO, ESTALE
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from time import perf_counter

from aiocp import metadata, stream
from aiocp.context import Context
from aiocp.copier import (
    DEFAULT_BLOCK_SIZE,
    DEFAULT_DEPTH,
    Progress,
    StrPath,
    check_block_size,
    check_depth,
)
from aiocp.destination import Destination
from aiocp.engine import Engine, Sync, Transfer
from aiocp.errors import Cancel, fail, look, operation
from aiocp.linux import File, close_may_fail, is_btrfs, sync_filesystem
from aiocp.nodes import Identity, copy_node, identity, link_node
from aiocp.source import Source
from aiocp.transfer import DirectorySync, FileTransfer, assert_durable, what_stopped
from aiocp.tree import Directory, Enter, Entry, Step, walk

# Up to this size a file is written through the page cache: one that is synced soon costs no more
# there, and needs neither its space reserved nor its tail cut.
_SMALL = 256 << 10

# How many files wait without a name, in a tree on Btrfs, for one sync of the file system: it costs
# one commit of the transaction, where each file's own sync costs about as much as ten files
_BATCH = 512

# How many directories on the way down are kept open; those above, but the root, are opened again
# from the one below
_KEPT_OPEN = 32

# How many descriptors are left to the rest of the process
_OTHERS = 64

_CLOSED = File()

# whether to replace, given the path, the source's stat and that of what has its name
Replace = Callable[[bytes, os.stat_result, os.stat_result], bool]
# where files with several names were copied to, by device and inode number: path, and what is there
Links = dict[Identity, tuple[bytes, Identity]]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class TreeResult:
    """What was copied: counts, `bytes` of file contents, and `errors`, empty if all went well.

    Each error is an OSError with errno and both file names. `elapsed` is in seconds. `synced` tells
    that everything copied is on the disk, `syncs` how often the whole file system was synced for
    that, in place of single files: on Btrfs, where it is faster.
    """

    source: str
    destination: str
    files: int
    directories: int
    links: int
    specials: int
    bytes: int
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
    depth: int = DEFAULT_DEPTH,
    block_size: int = DEFAULT_BLOCK_SIZE,
    preserve: Iterable[str] = (),
    follow_symlinks: bool = False,
    one_file_system: bool = False,
    exclude: Callable[[bytes, bool], bool] | None = None,
    replace: Replace | None = None,
    remove_destination: bool = False,
    force: bool = False,
    sync: bool = True,
    allow_changed: bool = False,
    links: Links | None = None,
    on_error: Callable[[OSError], object] | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> TreeResult:
    """Copy the directory `src` to `dst`, which becomes it or, if it exists, is merged into.

    On return everything that was copied is whole, in place and on the disk.

    Arguments:
        depth, block_size, sync, allow_changed, remove_destination, force, cancel: as for
            `copy_file`, for all files together; depth is less where RLIMIT_NOFILE does not allow
            two descriptors for each.
        preserve: of "mode", "ownership", "timestamps", "links" (hard links within the tree),
            "context" (the SELinux one), "xattr", or "all": all of them, the last two where
            possible. Without "mode" a new file has the source's permission bits less the umask, or
            with "default-mode" 0666 (directories 0777) less the umask. Symbolic links, FIFOs,
            sockets and device nodes are made anew in any case.
        follow_symlinks: copy what symbolic links point to instead of the links.
        one_file_system: do not go into directories on other file systems.
        exclude: called with a path below `src` (bytes) and whether it is a directory; what it says
            True of is not copied.
        replace: called with the path below `src`, the stat of what is to be copied and the stat of
            what has its name at the destination; what it says False of stays as it is.
        links: with "links", what earlier calls that were given the same have copied: a file that
            has another name there becomes a link to that.
        on_error: called with each OSError as it happens; nothing is raised at the end then.
        progress: called as `progress(bytes_done, 0)` while files are written.

    Raises:
        ExceptionGroup: of the OSErrors of all that was not copied, unless there is `on_error`. Its
            `result` attribute is the TreeResult.
        OSError: where `src` cannot be opened or `dst` not be made.
        Cancelled: `cancel` was set; what was copied by then stays.
        ValueError: depth, block_size or preserve out of range.
    """
    check_depth(depth)
    check_block_size(block_size)
    names = os.fsdecode(src), os.fsdecode(dst)
    copier = _TreeCopier(
        names=(os.fsencode(src), os.fsencode(dst)),
        block_size=block_size,
        preserve=metadata.attributes(preserve),
        replace=replace,
        remove=remove_destination,
        force=force,
        links={} if links is None else links,
        follow=follow_symlinks,
        sync=sync,
        allow_changed=allow_changed,
        on_error=on_error,
        progress=progress,
        cancel=cancel,
    )
    begun = perf_counter()
    with Context(_affordable(depth), block_size) as context:
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


def _affordable(depth: int) -> int:
    """The depth that RLIMIT_NOFILE allows: two descriptors for each slot, those of the directories
    on the way down on both sides, and some for who else is in this process."""
    limit, _ = getrlimit(RLIMIT_NOFILE)
    if limit == RLIM_INFINITY:
        return depth
    return max(1, min(depth, (limit - 2 * _KEPT_OPEN - _OTHERS - _batch()) // 2))


def _batch() -> int:
    """How many files may wait for one sync: a fourth of the descriptors at most."""
    limit, _ = getrlimit(RLIMIT_NOFILE)
    return _BATCH if limit == RLIM_INFINITY else max(1, min(_BATCH, limit // 4))


class _Target:
    """A destination directory that something is still to be put into."""

    __slots__ = (
        "bits",
        "child",
        "created",
        "directory",
        "failed",
        "file",
        "flush",
        "made",
        "mask",
        "parent",
        "stat",
        "together",
        "waiting",
    )

    def __init__(
        self, file: File, directory: Directory, parent: "_Target | None", created: bool
    ) -> None:
        self.file, self.directory, self.parent, self.created = file, directory, parent, created
        self.stat = os.fstat(file.fileno())
        self.mask = metadata.creation_mask(file.fileno())
        self.made: set[int] = set()  # modes that the kernel gives new files here as asked
        self.flush = close_may_fail(file.fileno())
        self.bits = stat.S_IMODE(directory.stat.st_mode)  # to preserve
        self.failed = False  # whether it is told that its attributes cannot be set
        self.together = False  # whether its files, and itself, are synced with the file system
        self.child: _Target | None = None  # the last that was entered
        self.waiting = 1  # entries not in place yet, and the walk itself
        if parent is not None:
            parent.waiting += 1
            parent.child = self

    def fd(self) -> int:
        return self.opened().fileno()

    def opened(self) -> File:
        """The directory's file, opened again from below if it is parked.

        Raises OSError ESTALE where it was moved meanwhile.
        """
        if self.file.fileno() >= 0:
            return self.file
        below, levels = self, 0
        while below.file.fileno() < 0:
            if below.child is None:
                raise fail(ESTALE, "open directory again")
            below, levels = below.child, levels + 1
        file = below.file
        with operation("open directory again"):
            for _ in range(levels):
                file = File.open(b"..", _DIRECTORY, dir_fd=file.fileno())
            if not self.is_same(os.fstat(file.fileno())):
                raise fail(ESTALE, "moved while being copied")
        self.file = file
        return file

    def park(self) -> None:
        """Close the directory for now; those who have it for a file in flight keep it."""
        self.file = _CLOSED

    def is_same(self, status: os.stat_result) -> bool:
        return os.path.samestat(self.stat, status)

    def carry(self, preserve: frozenset[str]) -> None:
        """Give the directory its owner, ACLs and extended attributes.

        Its mode for as long as entries are put in is nobody else's business if it is new.
        """
        source = self.directory
        self.bits &= 0o1777  # unless it is known who the owner is
        try:
            self.bits = metadata.carry(source.fd(), source.stat, self.fd(), preserve, None)
        finally:
            meanwhile = 0o700 if self.created else stat.S_IMODE(self.stat.st_mode)
            os.fchmod(self.fd(), meanwhile)

    def finish(self, preserve: frozenset[str]) -> None:
        """Give the directory what its entries would have changed, or what would keep them out."""
        source = self.directory.stat
        if "mode" in preserve:
            os.fchmod(self.fd(), self.bits)
        elif self.created:  # as mkdir(2) would
            mode = source.st_mode & stat.S_ISVTX | metadata.new_mode(source.st_mode, preserve)
            mode &= ~(self.parent or self).mask
            os.fchmod(self.fd(), mode | (self.stat.st_mode & stat.S_ISGID))
        if "timestamps" in preserve:
            os.utime(self.fd(), ns=(source.st_atime_ns, source.st_mtime_ns))


class _TreeFile(FileTransfer):
    """A file on its way into a target, and the names that are to be linked to it."""

    def __init__(
        self,
        target: _Target,
        name: bytes,
        source: Source,
        destination: Destination,
        sync: Sync,
        allow_changed: bool,
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
        self.waits = False  # for the sync of the file system
        self.linked: _Linked | None = None
        self.other_names: list[tuple[_Target, bytes, bytes]] = []  # with the path, for messages

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
            with suppress(OSError):
                self.source.close()


class _TargetSync(DirectorySync):
    """The sync of a target that everything is in."""

    def __init__(self, target: _Target) -> None:
        super().__init__(target.fd())
        self.target = target


class _Linked:
    """A file with several names of which the first is copied: in flight, or where it is."""

    __slots__ = ("identity", "key", "path", "transfer")

    def __init__(
        self,
        key: tuple[int, int],
        path: bytes,
        identity: Identity = (0, 0),
        *,
        transfer: _TreeFile | None = None,
    ) -> None:
        self.key, self.path, self.transfer, self.identity = key, path, transfer, identity


class _TreeCopier:
    """The state of one copy_tree()."""

    def __init__(
        self,
        *,
        names: tuple[bytes, bytes],
        block_size: int,
        preserve: frozenset[str],
        follow: bool,
        sync: bool,
        allow_changed: bool,
        replace: Replace | None,
        remove: bool,
        force: bool,
        links: "Links",
        on_error: Callable[[OSError], object] | None,
        progress: Progress | None,
        cancel: Cancel | None,
    ) -> None:
        self.names = names
        self.block_size, self.preserve, self.follow = block_size, preserve, follow
        self.sync, self.allow_changed = sync, allow_changed
        self.replace, self.remove, self.force, self.links_before = replace, remove, force, links
        self.on_error, self.progress, self.cancel = on_error, progress, cancel
        self.files = self.directories = self.links = self.specials = self.bytes = 0
        self.errors: list[OSError] = []
        # names in place are durable with the directory's sync; the mode alone is with the data's
        self._attributes = preserve - {"links"}
        attributes = bool(preserve - {"mode", "links"})
        self._file_sync = (Sync.FSYNC if attributes else Sync.FDATASYNC) if sync else Sync.NONE
        self._root: _Target | None = None
        self.syncs = 0
        self._held: list[_TreeFile] = []  # written, and waiting for the file system's sync
        self._batch = _batch()
        self._open: set[_TreeFile] = set()
        self._targets: set[_Target] = set()
        self._alignments: dict[int, int] = {}
        self._stream_block = memoryview(bytearray(_SMALL))
        self._linked: dict[tuple[int, int], _Linked] = {}
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
        moved = reported = 0
        while True:
            for transfer in engine.run():
                look(self.cancel)
                if transfer is not None:
                    self._ended(transfer)
                    moved += transfer.bytes_written
                    while self._begun:
                        engine.add(self._begun.popleft())
                if self.progress is not None and moved != reported:
                    reported = moved
                    self.progress(moved, 0)
            if not self._held:
                return
            self._commit_held()
            while self._begun:
                engine.add(self._begun.popleft())

    def _sync_parent(self, context: Context) -> None:
        """Have the root's own name on the disk."""
        parent = os.path.dirname(self.names[1].rstrip(b"/")) or b"."
        with operation("sync"), File.open(parent, os.O_RDONLY | os.O_DIRECTORY) as file:
            for transfer in Engine(context, [DirectorySync(file.fileno())]).run():
                if transfer is not None and transfer.failed:
                    raise what_stopped(transfer)
            assert_durable(file.fileno())

    def close(self) -> None:
        """Let go of what an exception has left open."""
        for transfer in self._open:
            transfer.close()
        for target in self._targets:
            target.file.let_go()
        top = os.path.abspath(self.names[1])
        for key, linked in self._linked.items():
            if linked.transfer is None:
                self.links_before[key] = (os.path.join(top, linked.path), linked.identity)

    # --- what the walk gives ---

    def _transfers(self, steps: Iterable[Step]) -> Generator[Transfer, None, None]:
        for step in steps:
            if isinstance(step, Entry):
                target: _Target = step.directory.data
                try:
                    if step.is_file and not self.follow and self.replace is None:
                        transfer = self._file(target, step)
                    else:
                        transfer = self._entry(target, step, step.directory.join(step.name))
                except OSError as error:
                    self._failed(step.directory.join(step.name), error)
                    continue
                if transfer is not None:
                    yield transfer
                else:
                    look(self.cancel)
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

    def _enter(self, directory: Directory) -> None:
        """Make, or take, the directory that goes with one of the source's."""
        parent: _Target | None = None
        if directory.parent is None:
            directory.data = self._root = self._make_root(directory)
            return
        parent = directory.parent.data
        assert parent is not None
        assert self._root is not None
        if self._root.is_same(directory.stat):
            raise fail(EINVAL, "cannot copy a directory into itself")
        with operation("make directory"):
            created = _make_directory(directory.name, parent.fd())
            file = File.open(directory.name, _DIRECTORY, dir_fd=parent.fd())
            try:
                directory.data = self._take(file, directory, parent, created)
            except OSError:
                file.let_go()  # the error lives on, and all that it knows with it
                raise
        above: _Target | None = parent
        for _ in range(_KEPT_OPEN):
            if above is None:
                return
            above = above.parent
        if above is not None and above.parent is not None:
            above.park()

    def _make_root(self, directory: Directory) -> "_Target":
        with operation("make directory"):
            created = _make_directory(self.names[1], None)
            flags = _DIRECTORY if created else _DIRECTORY & ~os.O_NOFOLLOW
            file = File.open(self.names[1], flags)
            target = self._take(file, directory, None, created)
        if target.is_same(directory.stat):
            raise fail(EINVAL, "cannot copy a directory into itself")
        return target

    def _take(
        self, file: File, directory: Directory, parent: "_Target | None", created: bool
    ) -> "_Target":
        """What a directory can be given before its entries; the rest would be undone by them."""
        target = _Target(file, directory, parent, created)
        self._targets.add(target)
        if parent is not None and self._root is not None:
            same = target.stat.st_dev == self._root.stat.st_dev
            target.together = self._root.together and same
        else:
            target.together = self.sync and is_btrfs(file.fileno())
        early = self.preserve - {"timestamps"}
        if early:
            try:
                with operation("set attributes"):
                    target.carry(early)
            except OSError as error:  # what is below can be copied all the same
                target.failed = True
                self._failed(directory.path, error)
        self.directories += 1
        return target

    def _file(self, target: _Target, entry: Entry) -> Transfer | None:
        """Begin to copy what is a regular file by the listing."""
        source = Source.of_listing(
            entry.name, entry.directory.fd(), self.block_size, self._alignments
        )
        seen = source.stat
        linked = seen.st_nlink > 1 and "links" in self.preserve
        key = (seen.st_dev, seen.st_ino)
        path = entry.directory.join(entry.name) if linked else b""
        if linked and (before := self._copied(key)):
            source.close()
            self._link(before, target, entry.name, path)
            return None
        transfer = self._begin(target, entry.name, source)
        if linked:
            self._linked[key] = transfer.linked = _Linked(key, path, transfer=transfer)
        return transfer

    def _entry(self, target: _Target, entry: Entry, path: bytes) -> Transfer | None:
        """Begin to copy a file; anything else is copied at once."""
        from_fd = entry.directory.fd()
        with operation("open source"):
            seen = os.stat(entry.name, dir_fd=from_fd, follow_symlinks=self.follow)
        if self.replace is not None and not self._may_replace(target, entry.name, path, seen):
            return None
        key = (seen.st_dev, seen.st_ino)
        several = seen.st_nlink > 1 or self.follow  # a link that is followed is a name too
        linked = several and "links" in self.preserve and not stat.S_ISDIR(seen.st_mode)
        if linked and (before := self._copied(key)):
            self._link(before, target, entry.name, path)
            return None
        if stat.S_ISREG(seen.st_mode):
            source = Source(
                entry.name, "auto", self.block_size, dir_fd=from_fd, seen=seen, follow=self.follow
            )
            transfer = self._begin(target, entry.name, source)
            if linked:
                self._linked[key] = transfer.linked = _Linked(key, path, transfer=transfer)
            return transfer
        if stat.S_ISDIR(seen.st_mode):
            raise fail(ESTALE, "became a directory")
        copy_node(seen, entry.name, from_fd, target.fd(), entry.name, self.preserve)
        if stat.S_ISLNK(seen.st_mode):
            self.links += 1
        else:
            self.specials += 1
        if linked:
            made = os.stat(entry.name, dir_fd=target.fd(), follow_symlinks=False)
            self._linked[key] = _Linked(key, path, identity(made))
        return None

    def _copied(self, key: Identity) -> "_Linked | None":
        """What a file with several names was copied to, in this tree or one before it."""
        if key in self.links_before and key not in self._linked:
            self._linked[key] = _Linked(key, *self.links_before[key])
        return self._linked.get(key)

    def _may_replace(self, target: _Target, name: bytes, path: bytes, seen: os.stat_result) -> bool:
        """Whether what has the name, if anything has, is to be replaced."""
        assert self.replace is not None
        try:
            existing = os.stat(name, dir_fd=target.fd(), follow_symlinks=False)
        except FileNotFoundError:
            return True
        return self.replace(path, seen, existing)

    def _begin(self, target: _Target, name: bytes, source: Source) -> "_TreeFile":
        """Open the destination of a file."""
        size = source.size or 0
        try:
            if size <= _SMALL and target.created:  # nothing is there but what was put there
                mode = metadata.new_mode(source.stat.st_mode, self.preserve) & ~target.mask
                destination = Destination.small(
                    target.opened(), name, mode, target.made, self._attributes
                )
            else:
                destination = Destination(
                    target.opened(),
                    name,
                    source,
                    "never" if size <= _SMALL else "auto",
                    self.block_size,
                    preserve=self.preserve,
                    mask=target.mask,
                    remove=self.remove,
                    wait=False,
                    force=self.force,
                    cancel=self.cancel,
                )
        except BaseException:
            source.close()
            raise
        transfer = _TreeFile(target, name, source, destination, self._file_sync, self.allow_changed)
        try:
            if source.size is None:
                block = self._stream_block
                for size in stream.copy(source.fd, destination.fd, block, self.cancel):
                    transfer.bytes_read = transfer.bytes_written = size
            else:
                if size > _SMALL:
                    destination.size(size)
                transfer.extents = [(0, size)]
        except BaseException:
            transfer.close()
            raise
        if target.together and size <= _SMALL and not destination.in_place:
            transfer.sync, transfer.waits = Sync.NONE, True
        transfer.size = size
        target.waiting += 1
        self._open.add(transfer)
        return transfer

    def _link(self, linked: "_Linked", target: _Target, name: bytes, path: bytes) -> None:
        """Give a file that is copied already, or on its way, another name."""
        if linked.transfer is not None:
            linked.transfer.other_names.append((target, name, path))
            target.waiting += 1
            return
        assert self._root is not None
        with (
            operation("link"),
            File.open_far(linked.path, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._root.fd()) as file,
        ):
            found = os.fstat(file.fileno())
            if linked.identity != identity(found):
                raise fail(ESTALE, "its first name was replaced meanwhile")
            self._link_to(file.fileno(), target, name, found)

    def _link_others(self, transfer: "_TreeFile", found: os.stat_result) -> None:
        """Give a file that is in place its other names, those furthest down first: the way up to a
        parked directory begins at the one before, and no more than these two are open."""
        before: _Target | None = None
        names = sorted(transfer.other_names, key=lambda other: -other[0].directory.depth)
        for target, name, path in names:
            parked = target.file.fileno() < 0
            try:
                self._link_to(transfer.destination.fd, target, name, found)
            except OSError as error:
                self._failed(path, error)
            if parked:
                if before is not None:
                    before.park()
                before = target
        if before is not None:
            before.park()

    def _link_to(self, fd: int, target: _Target, name: bytes, found: os.stat_result) -> None:
        link_node(fd, found, target.fd(), name)
        self.files += 1

    # --- what the engine gives back ---

    def _ended(self, transfer: Transfer) -> None:
        if isinstance(transfer, _TreeFile):
            if transfer.waits and not transfer.failed:
                transfer.let_source_go()
                self._held.append(transfer)
                if len(self._held) >= self._batch:
                    self._commit_held()
            else:
                self._commit(transfer)
        else:
            assert isinstance(transfer, _TargetSync)
            try:
                if transfer.failed:
                    raise what_stopped(transfer)
                assert_durable(transfer.write_fd)
            except OSError as error:
                self._failed(transfer.target.directory.path, error)
            self._arrived(self._settle(transfer.target))

    def _sync_together(self) -> None:
        assert self._root is not None
        with operation("sync"):
            sync_filesystem(self._root.fd())
        assert_durable(self._root.fd())
        self.syncs += 1

    def _commit_held(self) -> None:
        """Sync the file system once, then put what has waited for that in place."""
        held, self._held = self._held, []
        failure: OSError | None = None
        try:
            self._sync_together()
        except OSError as error:
            failure = error
        for transfer in held:
            if failure is not None:
                transfer.error = fail(failure.errno or EIO, "sync")
            self._commit(transfer)

    def _commit(self, transfer: "_TreeFile") -> None:
        """Put a finished file, and the names linked to it, in place."""
        linked = transfer.linked
        try:
            if transfer.failed:
                raise what_stopped(transfer)
            transfer.destination.commit(flush=transfer.target.flush)
            self.files += 1
            self.bytes += transfer.size
            if linked:
                with operation("look at copy"):
                    found = os.fstat(transfer.destination.fd)
                self._link_others(transfer, found)
                linked.transfer, linked.identity = None, identity(found)
        except OSError as error:
            self._failed(transfer.path, error)
            for _, _, path in transfer.other_names:
                self._failed(path, fail(error.errno or ESTALE, "its first name was not copied"))
            if linked:
                del self._linked[linked.key]
        finally:
            self._open.discard(transfer)
            transfer.close()
        self._arrived(transfer.target)
        for target, _, _ in transfer.other_names:
            self._arrived(target)

    def _arrived(self, target: _Target | None) -> None:
        """One thing less is to be put into a directory; after the last it is finished."""
        while target is not None:
            target.waiting -= 1
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
                    self._begun.append(_TargetSync(target))
                except OSError as error:
                    self._failed(target.directory.path, error)
                else:
                    return
            target = self._settle(target)

    def _settle(self, target: _Target) -> _Target | None:
        """Let go of a finished directory; the one that it counts as an entry of."""
        parent = target.parent
        if parent is not None:
            with suppress(OSError):  # told when the parent is needed
                if parent.child is target:
                    parent.opened()
            target.file.let_go()
            self._targets.discard(target)
        return parent

    def _failed(self, path: bytes, error: BaseException) -> None:
        """Take down what was not copied."""
        if not isinstance(error, OSError):
            raise error
        source, destination = (os.path.join(name, path) if path else name for name in self.names)
        error.filename, error.filename2 = os.fsdecode(source), os.fsdecode(destination)
        self.errors.append(error)
        if self.on_error is not None:
            self.on_error(error)


def _make_directory(name: bytes, dir_fd: int | None) -> bool:
    """Make a directory; whether it was not there yet."""
    try:
        os.mkdir(name, 0o700, dir_fd=dir_fd)
    except FileExistsError:
        return False
    return True
