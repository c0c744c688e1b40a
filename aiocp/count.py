"""How much a tree is, counted ahead of its copy: by the walk's rules, in a thread beside it.

The threads of a copy share one interpreter, so a directory is looked into by one call that needs no
GIL. What a `selection` is to be asked of takes Python for each entry.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import closing

from aiocp.hard_links import HardLinks, Identities
from aiocp.linux import File, Tally
from aiocp.selection import Selection
from aiocp.stage import Stage
from aiocp.tree import Directory, Enter, Entry, OnError, list_entries, walk


class Count:
    """Counts what is below the directory `root`, from now on, into `entries` and `size`.

    Arguments:
        skip: whether a directory of that status is not gone into.
        links: files that several names lead to are one, and none if they are in these already:
            what earlier copies have made links of. None: each name is a file.
        contents: False: there will be no bytes.
        follow, one_file_system, selection: as of `walk`.
    """

    def __init__(
        self,
        root: int,
        skip: Callable[[os.stat_result], bool],
        *,
        links: HardLinks | None,
        contents: bool,
        follow: bool,
        one_file_system: bool,
        selection: Selection,
    ) -> None:
        self._skip, self._links, self._contents = skip, links, contents
        self._tally = Tally(follow=follow, links=links is not None)
        self._linked = 0  # bytes of files that may have several names
        self._seen = Identities() if links is None else links.identities()
        top = File.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
        self._steps = walk(
            Directory(top, b"", None, b""),
            lambda *_: None,  # the copy meets it too, and tells
            follow=follow,
            one_file_system=one_file_system,
            selection=selection,
            listing=self._look,
        )
        self._stopped = False
        self._stage: Stage[None] = Stage("aiocp-count")
        self._stage.give(self._run)

    @property
    def entries(self) -> int:
        """How many entries are no directories."""
        return self._tally.entries

    @property
    def size(self) -> int:
        """How many bytes are in the regular files among them."""
        return self._tally.size + self._linked if self._contents else 0

    def through(self) -> bool:
        """Whether all of it is counted."""
        return self._stage.done()

    def close(self) -> None:
        """Stop, if it is not through. Raises what should not have been."""
        self._stopped = True
        self._tally.stop()
        while self._stage.pending:
            self._stage.take()
        self._stage.close()

    def _run(self) -> None:
        with closing(self._steps):
            for step in self._steps:
                if self._stopped:
                    return
                if isinstance(step, Enter) and self._skip(step.directory.stat):
                    step.directory.skip = True

    def _look(
        self,
        directory: Directory,
        below: list[bytes],
        on_error: OnError,
        follow: bool,
        selection: Selection,
    ) -> Iterable[Entry]:
        if directory.names is None and not selection.filters:
            below += self._tally.add(directory.fd())
        else:
            for entry in list_entries(directory, below, on_error, follow, selection):
                self._tally.add_entry(directory.fd(), entry.name)
                if self._stopped:
                    break
        for device, inode, size in self._tally.linked():
            if self._seen.add((device, inode)):
                self._linked += size
        return ()
