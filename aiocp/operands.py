"""Copy what a command line names, one operand after the other, as cp does.

Regular files, and what is to be read as one, go to `copy_file`, directories to `copy_tree`; links,
FIFOs, sockets and device nodes are made here. What must be known of the operands before is kept
here too: what has just been created is not overwritten, and hard links among them stay links.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EEXIST, EISDIR, ENOTDIR, ESTALE
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from aiocp.copier import CopyResult, Progress, copy_file
from aiocp.errors import fail, operation
from aiocp.linux import File

if TYPE_CHECKING:
    from aiocp.tree_copier import Links, TreeResult


@dataclass(frozen=True, slots=True)
class How:
    """How to copy: cp's options. `common` are arguments of both functions, `file` of the one.

    `follow` says which symbolic links are followed, `update` and `existing` what becomes of what is
    at the destination already; `ask` is called with its name where that is to be asked.
    """

    recursive: bool
    follow: Literal["none", "operands", "all"]
    preserve: frozenset[str]
    update: Literal["all", "none", "older"]
    existing: Literal["replace", "keep", "ask"]
    one_file_system: bool
    exclude: Callable[[bytes, bool], bool] | None
    ask: Callable[[str], bool]
    warn: Callable[[str], object]
    on_error: Callable[[OSError], object]
    common: dict[str, Any]
    file: dict[str, Any]


class Operands:
    """One run of the command: `copy` is called once for each operand."""

    def __init__(self, how: How) -> None:
        self.how = how
        self._seen: set[tuple[str, int, int]] = set()
        self._created: set[str] = set()
        self._links: Links = {}

    def copy(
        self, source: str, destination: str, progress: Progress | None = None
    ) -> "CopyResult | TreeResult | None":
        """Copy one; None where there is nothing to tell.

        Raises OSError, with both file names, for what was not copied; what is below a directory
        goes to `on_error` instead. Raises Cancelled.
        """
        try:
            with operation("open source"):
                seen = os.stat(os.fsencode(source), follow_symlinks=self.how.follow != "none")
            if stat.S_ISDIR(seen.st_mode):
                return self._directory(source, destination, seen, progress)
            if stat.S_ISREG(seen.st_mode):
                return self._file(source, destination, seen, progress)
            if self.how.recursive or stat.S_ISLNK(seen.st_mode):
                self._node(source, destination, seen)
                return None
            return self._file(source, destination, seen, progress)  # read to its end
        except OSError as error:
            error.filename, error.filename2 = source, destination
            raise

    def _directory(
        self, source: str, destination: str, seen: os.stat_result, progress: Progress | None
    ) -> "TreeResult | None":
        if not self.how.recursive:
            raise OSError(EISDIR, "omitting directory, as -r is not given")
        existing = _look(destination, follow=False)
        if existing is not None and not stat.S_ISDIR(existing.st_mode):
            raise fail(ENOTDIR, "cannot overwrite what is no directory with a directory")
        if self._again("directory", source, (destination, seen.st_dev, seen.st_ino)):
            return None
        from aiocp.tree_copier import copy_tree

        how = self.how
        always = how.update == "all" and how.existing == "replace"
        return copy_tree(
            source,
            destination,
            preserve=how.preserve,
            follow_symlinks=how.follow == "all",
            one_file_system=how.one_file_system,
            exclude=how.exclude,
            replace=None if always else partial(self._replace, destination),
            links=self._links,
            on_error=how.on_error,
            progress=progress,
            **how.common,
        )

    def _file(
        self, source: str, destination: str, seen: os.stat_result, progress: Progress | None
    ) -> CopyResult | None:
        remove = self.how.common["remove_destination"]
        existing = _look(destination, follow=not remove)
        if not self._wanted(source, destination, seen, existing):
            return None
        linked = self._several_names(seen)
        if linked and (seen.st_dev, seen.st_ino) in self._links:
            self._link(destination, seen)
            return None
        result = copy_file(
            source,
            destination,
            preserve=self.how.preserve,
            progress=progress,
            **self.how.common,
            **self.how.file,
        )
        self._made(destination, seen, linked)
        return result

    def _node(self, source: str, destination: str, seen: os.stat_result) -> None:
        from aiocp.nodes import copy_node

        existing = _look(destination, follow=False)
        if not self._wanted(source, destination, seen, existing):
            return
        linked = self._several_names(seen)
        if linked and (seen.st_dev, seen.st_ino) in self._links:
            self._link(destination, seen)
            return
        with self._place(destination) as (directory, name):
            copy_node(seen, os.fsencode(source), None, directory, name, self.how.preserve)
        self._made(destination, seen, linked)

    # --- what is there already ---

    def _wanted(
        self, source: str, destination: str, seen: os.stat_result, existing: os.stat_result | None
    ) -> bool:
        """Whether to copy something that is no directory, in the order in which cp refuses."""
        if self._again("file", source, (source, seen.st_dev, seen.st_ino)):
            return False
        if existing is None:
            return True
        if os.path.samestat(existing, seen):
            from shutil import SameFileError

            raise SameFileError(EEXIST, "source and destination are the same file")
        if not self._replace(destination, b"", seen, existing):
            return False
        if stat.S_ISDIR(existing.st_mode):
            raise fail(EISDIR, "cannot overwrite a directory with what is none")
        if destination in self._created:
            raise OSError(EEXIST, "will not overwrite what was just created")
        return True

    def _again(self, kind: str, source: str, key: tuple[str, int, int]) -> bool:
        """Whether an operand was there before: cp warns, and goes on."""
        if key in self._seen:
            self.how.warn(f"source {kind} {source!r} is given more than once")
            return True
        self._seen.add(key)
        return False

    def _replace(
        self, destination: str, path: bytes, seen: os.stat_result, existing: os.stat_result
    ) -> bool:
        """Whether -u, -n and -i let what is there be replaced."""
        how = self.how
        if how.update == "none" or how.existing == "keep":
            return False
        if how.update == "older" and existing.st_mtime_ns >= seen.st_mtime_ns:
            return False
        if how.existing != "ask":
            return True
        return how.ask(os.path.join(destination, os.fsdecode(path)) if path else destination)

    # --- hard links ---

    def _several_names(self, seen: os.stat_result) -> bool:
        """Whether another name of a file may come: followed links count as names too."""
        return "links" in self.how.preserve and (seen.st_nlink > 1 or self.how.follow != "none")

    def _made(self, destination: str, seen: os.stat_result, linked: bool) -> None:
        self._created.add(destination)
        if linked:
            made = os.stat(destination, follow_symlinks=False)
            path = os.path.abspath(os.fsencode(destination))
            self._links[seen.st_dev, seen.st_ino] = path, (made.st_dev, made.st_ino)

    def _link(self, destination: str, seen: os.stat_result) -> None:
        """Give what an operand before was copied to another name."""
        from aiocp.nodes import identity, link_node

        path, copied = self._links[seen.st_dev, seen.st_ino]
        with operation("link"), File.open(path, os.O_PATH | os.O_NOFOLLOW) as file:
            found = os.fstat(file.fileno())
            if copied != identity(found):
                raise fail(ESTALE, "its first name was replaced meanwhile")
            with self._place(destination) as (directory, name):
                link_node(file.fileno(), found, directory, name)
        self._created.add(destination)

    @contextmanager
    def _place(self, destination: str) -> "Iterator[tuple[int, bytes]]":
        """The directory to make something in, synced at the end, and the name."""
        from aiocp.place import Place
        from aiocp.transfer import assert_durable

        with Place(os.fsencode(destination), follow=False) as place:
            yield place.directory.fileno(), place.name
            if self.how.common["sync"]:
                with operation("its name is not durable: sync"):
                    if place.readable:
                        os.fsync(place.directory.fileno())
                        assert_durable(place.directory.fileno())
                    else:
                        os.sync()


def _look(path: str, *, follow: bool) -> os.stat_result | None:
    """The stat of what is there; None for nothing, or nothing that can be told of."""
    try:
        return os.stat(os.fsencode(path), follow_symlinks=follow)
    except OSError:  # opening the destination will say it
        return None
