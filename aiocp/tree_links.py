"""The files of a tree that have several names: copied once, and linked to the others."""

import os
import stat
from errno import EISDIR, ESTALE
from typing import Protocol

from aiocp.backup import Replaced
from aiocp.errors import fail, operation
from aiocp.hard_links import HardLinks, Identity, identity
from aiocp.linux import File
from aiocp.nodes import link_node
from aiocp.outcome import kind_of
from aiocp.target import Target
from aiocp.tree_file import TreeFile
from aiocp.tree_options import TreeOptions
from aiocp.tree_outcomes import TreeOutcomes


class Linked(Protocol):
    """A file with several names, on its way into `target`; `other_names` are those that are to be
    linked to it, each with its target and its path."""

    target: Target
    name: bytes
    identity: Identity | None
    other_names: list[tuple[Target, bytes, bytes]]

    @property
    def digest(self) -> str | None: ...


class TreeLinks:
    """Gives a file its other names, or keeps them until it is in place.

    `copied` is what is known of those that are, here and in earlier trees; `path` is where the tree
    is copied to.
    """

    def __init__(
        self, path: bytes, how: TreeOptions, copied: HardLinks, outcomes: TreeOutcomes
    ) -> None:
        self.copied = copied
        self._how, self._outcomes = how, outcomes
        self._top = os.path.abspath(path)
        self._in_flight: dict[Identity, Linked] = {}  # of those, what is not in place yet

    def add(self, file: Linked, source: Identity) -> None:
        """Keep the names that come for a file until it is in place."""
        file.identity, self._in_flight[source] = source, file

    def discard(self, file: Linked) -> None:
        """Keep no more names for a file."""
        if file.identity is not None:
            del self._in_flight[file.identity]

    def remember(
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
        self.copied.add(source, directory, name, identity(made), digest)

    def link(
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
        if (copied := self.copied.get(source)) is None:
            return False
        flags = os.O_PATH if self._how.follow else os.O_PATH | os.O_NOFOLLOW
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
        self.refuse_directory(target, name, found)
        replaced = link_node(fd, found, target.fd(), name, backups=target.backups)
        made, kind = replaced or Replaced(), kind_of(found.st_mode)
        self._outcomes.count(path, "hard-link", made, kind, digest=digest)

    def refuse_directory(self, target: Target, name: bytes, seen: os.stat_result) -> None:
        """Raise OSError where a link to a directory has the name of a file that is to be linked."""
        renews = target.created or self._how.remove or self._how.backs_up
        if renews or not stat.S_ISREG(seen.st_mode):
            return
        existing = target.look(name, follow=True)
        if existing is not None and stat.S_ISDIR(existing.st_mode):
            raise fail(EISDIR, "cannot overwrite a directory with what is none")

    def link_others(self, file: TreeFile) -> None:
        """Link the names that came while a file was in flight: it is in place now."""
        if file.identity is None:
            return
        if file.place is None or self._how.follow:
            self.link_names(file, file.identity, file.destination.fd)
        else:  # the link is what gets another name
            flags = os.O_PATH | os.O_NOFOLLOW
            with File.open(file.name, flags, dir_fd=file.target.fd()) as link:
                self.link_names(file, file.identity, link.fileno())

    def fail_others(self, file: Linked, error: OSError) -> None:
        """Tell of each of its other names that the file is not there."""
        for _, _, path in file.other_names:
            self._outcomes.failed(
                path, fail(error.errno or ESTALE, "its first name was not copied")
            )

    def link_names(self, file: Linked, source: Identity, fd: int) -> None:
        """Link its other names to the copy of `source` that is open as `fd`.

        Those furthest down first: the way up to a parked directory begins at the one
        before, and no more than these two are open."""
        with operation("look at copy"):
            found = os.fstat(fd)
        digest = file.digest
        self.remember(source, file.target, file.name, found, digest)
        before: Target | None = None
        names = sorted(file.other_names, key=lambda other: -other[0].directory.depth)
        for target, name, path in names:
            parked = target.file.fileno() < 0
            try:
                self._link_to(fd, target, name, path, found, digest)
            except OSError as error:
                self._outcomes.failed(path, error)
            if parked:
                if before is not None:
                    before.park()
                before = target
        if before is not None:
            before.park()
