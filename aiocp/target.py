"""A destination directory of a tree: open while something is to be put into it, then finished.

What is to be put in place counts as waiting in its target, a target in its parent. The last to
arrive finishes it: its attributes, which its entries would have changed, and its sync.
"""

import os
import stat
from contextlib import suppress
from errno import ESTALE

from aiocp import metadata
from aiocp.backup import Backups
from aiocp.errors import fail, operation
from aiocp.linux import File, close_may_fail
from aiocp.transfer import DirectorySync
from aiocp.tree import Directory

# How many directories on the way down are kept open; those above, but the root, are opened again
# from the one below
KEPT_OPEN = 32

_CLOSED = File()
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Target:
    """A destination directory that something is still to be put into.

    `mask` is what new files in it are denied, `acl` whether a default ACL says so, `flush` whether
    closing a file there may fail. `together` tells that its files, and itself, are synced with the
    whole file system. `bits` is the mode to give it if that is preserved.
    """

    __slots__ = (
        "acl",
        "backups",
        "bits",
        "child",
        "created",
        "directory",
        "failed",
        "file",
        "flush",
        "mask",
        "parent",
        "stat",
        "together",
        "waiting",
    )

    def __init__(
        self,
        file: File,
        directory: Directory,
        parent: "Target | None",
        *,
        created: bool,
        backups: Backups | None = None,
    ) -> None:
        self.file, self.directory, self.parent, self.created = file, directory, parent, created
        self.backups = backups
        self.stat = os.fstat(file.fileno())
        self.mask, self.acl = metadata.creation_mask(file.fileno())
        alike = parent is not None and parent.stat.st_dev == self.stat.st_dev
        self.flush: bool = parent.flush if parent and alike else close_may_fail(file.fileno())
        self.together: bool = parent.together if parent and alike else False
        self.bits = stat.S_IMODE(directory.stat.st_mode)
        self.failed = False  # whether it is told that something is wrong with it
        self.child: Target | None = None  # the last that was entered
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

    def look(self, name: bytes, *, follow: bool) -> os.stat_result | None:
        """The stat of what has a name there, None if nothing has it."""
        try:
            return os.stat(name, dir_fd=self.fd(), follow_symlinks=follow)
        except FileNotFoundError:
            return None

    def park_above(self) -> None:
        """Park the directory that is too far up to be needed soon."""
        above: Target | None = self
        for _ in range(KEPT_OPEN):
            if above is None:
                return
            above = above.parent
        if above is not None and above.parent is not None:
            above.park()

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

    def let_go(self) -> None:
        """Close the finished directory."""
        if self.parent is not None and self.parent.child is self:
            with suppress(OSError):  # told when the parent is needed
                self.parent.opened()
        self.file.let_go()


class TargetSync(DirectorySync):
    """The sync of a target that everything is in."""

    def __init__(self, target: Target) -> None:
        super().__init__(target.fd())
        self.target = target


def make_directory(path: bytes, parent: Target | None, *, follow: bool) -> tuple[File, bool]:
    """Make a directory, in a target unless it is the first, or take the one that is there, with
    `follow` through a symbolic link; whether it is made.

    Raises OSError from mkdirat(2), openat(2).
    """
    dir_fd = None if parent is None else parent.fd()
    with operation("make directory"):
        created = True
        try:
            os.mkdir(path, 0o700, dir_fd=dir_fd)
        except FileExistsError:
            created = False
        return open_target(path, dir_fd, follow=follow and not created), created


def open_target(path: bytes, dir_fd: int | None, *, follow: bool) -> File:
    """Open a directory that is there. Raises OSError from openat(2)."""
    return File.open(path, _DIRECTORY & ~os.O_NOFOLLOW if follow else _DIRECTORY, dir_fd=dir_fd)
