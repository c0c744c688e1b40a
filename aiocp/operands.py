"""Copy what a command line names, one operand after the other, as cp does.

Regular files, and what is to be read as one, go to `copy_file`, directories to `copy_tree`; links,
FIFOs, sockets and device nodes are made here. What must be known of the operands before is kept
here too: what has just been created is not overwritten, and hard links among them stay links.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from errno import EEXIST, EISDIR, ENOTDIR, ESTALE
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from aiocp.asked import Link
from aiocp.backup import NUMBERED, Backups, Replaced
from aiocp.copier import copy_file
from aiocp.errors import fail, operation, same_file
from aiocp.existing import Relation, relation
from aiocp.hard_links import Copied, HardLinks, identity
from aiocp.linux import File
from aiocp.outcome import Outcome, kind_of
from aiocp.quoting import quoted
from aiocp.result import CopyResult, TreeResult

if TYPE_CHECKING:
    from aiocp.plan import Plan
    from aiocp.progress import Progress

Status = os.stat_result


class How(NamedTuple):
    """How to copy: cp's options; `common` are arguments of both functions, `file`, `tree` of one.

    `follow` says which symbolic links are followed, `backup` is method and suffix, `parents` the
    directory below which those above a source are made, `update` and `existing` say what becomes of
    what is at the destination already. `ask` is called with its name where that is to be asked,
    `warn` with words, `on_entry` and `on_error` as by `copy_tree`; of a file that is an operand the
    former is given the result itself.
    """

    recursive: bool
    follow: Literal["none", "operands", "all"]
    preserve: frozenset[str]
    link: Link | None
    backup: tuple[str, bytes] | None
    copy_contents: bool
    keep_directory_symlink: bool
    parents: str | None
    update: Literal["all", "none", "none-fail", "older"]
    existing: Literal["replace", "keep", "ask"]
    ask: Callable[[str], bool]
    warn: Callable[[str], object]
    on_entry: Callable[[Outcome | CopyResult], object] | None
    on_error: Callable[[OSError], object]
    common: dict[str, Any]
    file: dict[str, Any]
    tree: dict[str, Any]

    @property
    def keeps_all(self) -> bool:
        """Whether nothing that is there is replaced."""
        return self.existing == "keep" or self.update in ("none", "none-fail")

    @property
    def removes(self) -> bool:
        """Whether new files have nothing of what is there."""
        return bool(self.common["remove_destination"])

    def backups(self) -> Backups | None:
        return None if self.backup is None else Backups(*self.backup)

    def backup_arguments(self) -> dict[str, Any]:
        if self.backup is None:
            return {}
        method, suffix = self.backup
        return {"backup": method, "suffix": suffix}


class Operands:
    """One run of the command: `copy` is called once for each operand."""

    plan: "Plan | None" = None  # of a dry run

    def __init__(self, how: How) -> None:
        self.how = how
        self._seen: set[tuple[str | int, ...]] = set()
        self._created: set[tuple[str | int, ...]] = set()
        self._links = HardLinks()

    def copy(
        self, source: str, destination: str, progress: "Progress"
    ) -> CopyResult | TreeResult | None:
        """Copy one, and update `progress`; None where there is nothing to tell.

        Raises OSError, with both file names, for what was not copied; what is below a directory
        goes to `on_error` instead. Raises Cancelled.
        """
        try:
            if self.how.parents is None:
                return self._copy(source, destination, progress)
            with self._parents(os.fsencode(source), os.fsencode(self.how.parents)):
                return self._copy(source, destination, progress)
        except OSError as error:
            error.filename, error.filename2 = source, destination
            raise

    def _parents(self, source: bytes, target: bytes) -> AbstractContextManager[None]:
        """The directories above a source, made below the target."""
        from aiocp.parents import parents

        return parents(
            source,
            target,
            self.how.preserve,
            sync=self.how.common["sync"],
            tell=self._tell_directory,
        )

    def _copy(
        self, source: str, destination: str, progress: "Progress"
    ) -> CopyResult | TreeResult | None:
        with operation("open source"):
            seen = os.stat(os.fsencode(source), follow_symlinks=self.how.follow != "none")
        if stat.S_ISDIR(seen.st_mode):
            return self._directory(source, destination, seen, progress)
        return self._file(source, destination, seen, progress)

    def _directory(
        self, source: str, destination: str, seen: Status, progress: "Progress"
    ) -> TreeResult | None:
        how = self.how
        if not how.recursive:
            raise OSError(EISDIR, "omitting directory, as -r is not given")
        existing = self._look(destination, follow=how.keep_directory_symlink)
        if existing is not None and not stat.S_ISDIR(existing.st_mode):
            raise fail(ENOTDIR, "cannot overwrite what is no directory with a directory")
        if self._again("directory", source, (destination, seen.st_dev, seen.st_ino)):
            return None
        from aiocp.tree_copier import copy_tree

        asked = how.link == "hard" and how.existing == "ask"  # what then is replaced may be
        common = how.common | {"force": True} if asked else how.common
        always = how.update == "all" and how.existing == "replace"
        return copy_tree(
            source,
            destination,
            preserve=how.preserve,
            follow_symlinks=how.follow == "all",
            link=how.link,
            copy_contents=how.copy_contents,
            keep_directory_symlink=how.keep_directory_symlink,
            replace=None if always else partial(self._replace, destination),
            links=self._links,
            plan=self.plan,
            on_entry=how.on_entry,
            on_error=how.on_error,
            progress=progress.update,
            progress_files=progress.update_files,
            totals=progress.shows,
            **common,
            **how.backup_arguments(),
            **how.tree,
        )

    def _file(
        self, source: str, destination: str, seen: Status, progress: "Progress"
    ) -> CopyResult | None:
        """Copy anything but a directory."""
        how = self.how
        is_link = stat.S_ISLNK(seen.st_mode)
        contents = stat.S_ISREG(seen.st_mode) or not (
            is_link or (how.recursive and not how.copy_contents)
        )
        renews = how.removes or how.backup or how.link is not None
        existing = self._look(destination, follow=contents and not renews)
        if not self._wanted(source, destination, seen, existing):
            return None
        linked = how.link != "hard" and self._several_names(seen)
        if linked and self._link(source, destination, seen):
            return None
        result = None
        if how.link is not None:
            self._link_source(how.link, source, destination, seen)
        elif contents:
            result = self._contents(source, destination, existing, progress)
        else:
            self._node(source, destination, seen)
        self._made(destination, seen, linked, None if result is None else result.checksum)
        return result

    def _contents(
        self, source: str, destination: str, existing: Status | None, progress: "Progress"
    ) -> CopyResult | None:
        how = self.how
        # as cp, which removes the link, if it is one, and not what that leads to
        several = existing is not None and existing.st_nlink > 1 and "links" in how.preserve
        several = several and not how.common["attributes_only"]
        return self._copy_file(source, destination, several or how.removes, progress)

    def _copy_file(
        self, source: str, destination: str, remove: bool, progress: "Progress"
    ) -> CopyResult | None:
        """Copy what has contents; `remove` what is there first."""
        how = self.how
        result = copy_file(
            source,
            destination,
            preserve=how.preserve,
            into_directory=False,
            progress=progress.update,
            **how.common | {"remove_destination": remove},
            **how.backup_arguments(),
            **how.file,
        )
        if how.on_entry is not None:
            how.on_entry(result)
        return result

    def _node(self, source: str, destination: str, seen: Status) -> None:
        replace = self.how.common["force"] or not self.how.common["attributes_only"]
        replaced = self._make_node(source, destination, seen, replace)
        self._tell_node(source, destination, "special", kind_of(seen.st_mode), replaced)

    def _make_node(self, source: str, destination: str, seen: Status, replace: bool) -> Replaced:
        from aiocp.nodes import copy_node

        name, backups = os.fsencode(source), self.how.backups()
        with self._place(destination) as (directory, to_name):
            if backups is not None:
                backups.refuse(name, seen, directory, to_name)
            return copy_node(
                seen,
                name,
                None,
                directory,
                to_name,
                self.how.preserve,
                replace=replace,
                backups=backups,
            )

    def _link_source(self, link: Link, source: str, destination: str, seen: Status) -> None:
        from aiocp.link import replaces

        how = self.how
        follow = how.follow != "none"
        only = how.common["attributes_only"]
        removes = how.removes or (replaces(seen, follow=follow) and not only)
        asked = link == "hard" and how.existing == "ask"  # and the answer was yes
        replace = how.common["force"] or removes or asked
        replaced = self._make_link(link, source, destination, seen, replace)
        if replaced is not None:
            if not removes:  # cp, too, says nothing of what only makes way
                replaced = replaced._replace(existed=False)
            kind = "link" if link == "symbolic" else kind_of(seen.st_mode)
            self._tell_node(source, destination, f"{link}-link", kind, replaced)

    def _make_link(
        self, link: Link, source: str, destination: str, seen: Status, replace: bool
    ) -> Replaced | None:
        from aiocp.link import link_file

        return link_file(
            link,
            os.fsencode(source),
            seen,
            os.fsencode(destination),
            follow=self.how.follow != "none",
            replace=replace,
            backups=self.how.backups(),
            preserve=self.how.preserve,
            sync=self.how.common["sync"],
        )

    # --- what is there already ---

    def _wanted(self, source: str, destination: str, seen: Status, existing: Status | None) -> bool:
        """Whether to copy something that is no directory, in the order in which cp refuses."""
        how = self.how
        if not how.backup and self._again("file", source, self._entry(source, seen)):
            return False
        if existing is not None and not self._may_replace(source, destination, seen, existing):
            return False
        if how.backup:
            return True
        link = self._look(destination, follow=False)
        if link and stat.S_ISLNK(link.st_mode) and self._entry(destination, link) in self._created:
            raise OSError(EEXIST, "will not copy through a symbolic link that was just created")
        return True

    def _may_replace(self, source: str, destination: str, seen: Status, existing: Status) -> bool:
        how = self.how
        if not how.keeps_all:
            what = relation(
                (os.fsencode(source), None),
                seen,
                (os.fsencode(destination), None),
                existing,
                followed=how.follow != "none",
                link=how.link,
                backup=how.backup is not None,
                remove=how.removes,
            )
            if what is Relation.SAME:
                raise same_file()
            if what is Relation.DONE:
                return False
        if self._is_finished(seen, existing) or not self._replace(destination, b"", seen, existing):
            self._tell(source, destination, "skipped", kind_of(seen.st_mode))
            return False
        if stat.S_ISDIR(existing.st_mode):
            raise fail(EISDIR, "cannot overwrite a directory with what is none")
        numbered = how.backup is not None and how.backup[0] == NUMBERED
        if not numbered and self._entry(destination, existing) in self._created:
            raise OSError(EEXIST, "will not overwrite what was just created")
        return True

    def _is_finished(self, seen: Status, existing: Status) -> bool:
        """Whether an operand was copied before, and there is no more to resume."""
        if not self.how.common["resume"]:
            return False
        from aiocp.partial import is_finished

        return is_finished(seen, existing)

    def _again(self, kind: str, source: str, key: tuple[str | int, ...]) -> bool:
        """Whether an operand was there before: cp warns, and goes on."""
        if key in self._seen:
            self.how.warn(f"source {kind} {quoted(source)} is given more than once")
            return True
        self._seen.add(key)
        return False

    def _replace(self, destination: str, path: bytes, seen: Status, existing: Status) -> bool:
        """Whether -u, -n and -i let what is there be replaced."""
        how = self.how
        if how.update == "none-fail" and how.existing != "keep":
            raise OSError(EEXIST, "not replacing what is there")
        if how.keeps_all:
            return False
        if how.update == "older" and existing.st_mtime_ns >= seen.st_mtime_ns:
            return False
        if how.existing != "ask":
            return True
        return how.ask(os.path.join(destination, os.fsdecode(path)) if path else destination)

    def _look(self, path: str, *, follow: bool) -> Status | None:
        """The stat of what is there; None for nothing, or nothing that can be told of."""
        try:
            return os.stat(os.fsencode(path), follow_symlinks=follow)
        except OSError:  # opening the destination will say it
            return None

    def _entry(self, path: str, status: Status) -> tuple[str | int, ...]:
        """What tells one name of one file from all others."""
        head, name = os.path.split(path)
        directory = self._look(head or ".", follow=True)  # what is wrong with it who needs it says
        where = (0, 0) if directory is None else (directory.st_dev, directory.st_ino)
        return name, *where, status.st_dev, status.st_ino

    # --- hard links ---

    def _several_names(self, seen: Status) -> bool:
        """Whether another name of a file may come: followed links count as names too."""
        return "links" in self.how.preserve and (seen.st_nlink > 1 or self.how.follow != "none")

    def _made(self, destination: str, seen: Status, linked: bool, digest: str | None) -> None:
        made = self._look(destination, follow=False)
        if made is None:
            return
        self._created.add(self._entry(destination, made))
        if linked:
            directory, name = os.path.split(os.path.abspath(os.fsencode(destination)))
            self._links.add(identity(seen), directory, name, identity(made), digest)

    def _link(self, source: str, destination: str, seen: Status) -> bool:
        """Give what an operand before was copied to another name, if one was."""
        copied = self._links.get(identity(seen))
        if copied is None:
            return False
        replaced = self._make_name(copied, destination)
        self._made(destination, seen, linked=False, digest=None)
        made, kind = replaced or Replaced(), kind_of(seen.st_mode)
        self._tell_node(source, destination, "hard-link", kind, made, copied.checksum)
        return True

    def _make_name(self, copied: Copied, destination: str) -> Replaced | None:
        """Give a copy another name."""
        from aiocp.nodes import link_node

        flags = os.O_PATH | os.O_NOFOLLOW
        with operation("link"), File.open_far(copied.path, flags) as file:
            found = os.fstat(file.fileno())
            if copied.identity != identity(found):
                raise fail(ESTALE, "its first name was replaced meanwhile")
            with self._place(destination) as (directory, name):
                backups = self.how.backups()
                return link_node(file.fileno(), found, directory, name, backups=backups)

    @contextmanager
    def _place(self, destination: str) -> "Iterator[tuple[int, bytes]]":
        """The directory to make something in, synced at the end, and the name."""
        from aiocp.place import Place
        from aiocp.transfer import sync_directory

        with Place(os.fsencode(destination), follow=False) as place:
            yield place.directory.fileno(), place.name
            if self.how.common["sync"]:
                sync_directory(place.directory, place.readable)

    # --- what is said ---

    def _tell_directory(self, source: bytes, destination: bytes) -> None:
        self._tell(os.fsdecode(source), os.fsdecode(destination), "directory", "directory")

    def _tell_node(
        self,
        source: str,
        destination: str,
        method: str,
        kind: str,
        replaced: Replaced,
        digest: str | None = None,
    ) -> None:
        backup = None
        if replaced.backup is not None:
            directory = os.path.dirname(destination)
            backup = os.path.join(directory, os.fsdecode(replaced.backup))
        removed = replaced.existed and backup is None
        self._tell(source, destination, method, kind, backup, removed, digest)

    def _tell(
        self,
        source: str,
        destination: str,
        method: str,
        kind: str,
        backup: str | None = None,
        removed: bool = False,
        digest: str | None = None,
    ) -> None:
        if self.how.on_entry is not None:
            how = method, backup, removed, kind
            self.how.on_entry(Outcome(source, destination, *how, checksum=digest))
