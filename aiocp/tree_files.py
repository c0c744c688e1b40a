"""The files of a tree that are no batch's, from when they are begun until they have their names."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from aiocp.context import Context
from aiocp.engine import Transfer
from aiocp.hard_links import Identity
from aiocp.placing import Placing
from aiocp.transfer import rung, sync_directory, what_stopped
from aiocp.tree_file import TreeFile
from aiocp.tree_links import TreeLinks
from aiocp.tree_options import TreeOptions
from aiocp.tree_outcomes import TreeOutcomes
from aiocp.tree_targets import TreeTargets

if TYPE_CHECKING:
    from aiocp.reading import Reading
    from aiocp.verify import Verification


class TreeFiles:
    """Has each read again where that is asked for, and puts it, and its other names, in place.

    `placing` holds those that wait for the sync of the file system. `give` is called with each
    transfer that the engine is to do. `context` is that of the engine.
    """

    def __init__(
        self,
        how: TreeOptions,
        outcomes: TreeOutcomes,
        links: TreeLinks,
        targets: TreeTargets,
        placing: Placing,
        give: Callable[[Transfer], object],
    ) -> None:
        self.context: Context | None = None
        self._how, self._outcomes = how, outcomes
        self._links, self._targets, self._placing = links, targets, placing
        self._give = give
        self._open: set[TreeFile] = set()
        # what is read of clones, and of what is on the disk
        self._read_back: dict[Transfer, tuple[Reading | Verification, TreeFile]] = {}

    def add(self, file: TreeFile, identity: Identity | None) -> None:
        """Take a file that is begun; `identity` is given if names are to be linked to it."""
        self._open.add(file)
        if identity is not None:
            self._links.add(file, identity)

    def ended(self, file: TreeFile) -> None:
        """The engine is done with a file."""
        elsewhere = file.cloned or file.streamed  # what no engine has written
        self._outcomes.moved += file.size if elsewhere else file.holes + file.resumed
        if file.cloned and file.observers and not file.failed:
            if file.digests is None:  # the copy is read
                file.let_source_go()
            self.read(file.reading, file)
        else:
            self._copied_whole(file)

    def _copied_whole(self, file: TreeFile) -> None:
        """Have a file placed, or what is on the disk of it compared with what was read before."""
        if file.failed:
            self.commit(file)
        elif file.waits:
            file.let_source_go()
            self._placing.hold(file, 1)
        elif (digests := file.digests) is not None:
            from aiocp.verify import Verification

            file.let_source_go()
            self.read(partial(Verification, file.destination, digests, file.size), file)
        else:
            self.commit(file)

    def read(self, begin: "Callable[[int], Reading | Verification]", file: TreeFile) -> None:
        """Have the engine read what is on the disk of a file."""
        try:
            reading = begin(self._how.block_size)
        except OSError as error:
            file.error = error
            self.commit(file)
        else:
            self._read_back[reading] = reading, file
            self._give(reading)

    def was_read(self, transfer: Transfer) -> None:
        """The engine is done with what it read of a file."""
        from aiocp.reading import Reading

        reading, file = self._read_back.pop(transfer)
        reading.close()
        if not isinstance(reading, Reading):
            file.error = reading.why()
            self.commit(file)
            return
        if reading.failed:
            file.error = what_stopped(reading)
        if file.cloned or file.failed:
            self._copied_whole(file)
        else:  # it was there before, and the rest comes now
            self._give(file)

    def commit(self, file: TreeFile) -> None:
        """Put a finished file, and the names linked to it, in place."""
        try:
            if file.failed:
                raise what_stopped(file)
            self._put_in_place(file)
        except OSError as error:
            if file.unfinished is not None:
                file.unfinished.stopped(error)
            self._outcomes.failed(file.path, error)
            self._links.fail_others(file, error)
        finally:
            self._links.discard(file)
            self._open.discard(file)
            file.close()
        self._targets.arrived(file.target)
        for target, _, _ in file.other_names:
            self._targets.arrived(target)

    def _put_in_place(self, file: TreeFile) -> None:
        destination = file.destination
        destination.commit(flush=file.target.flush)
        if file.unfinished is not None:
            file.unfinished.done()
        if file.place is not None and self._how.sync and not destination.in_place:
            sync_directory(file.place.directory, file.place.readable, destination.fd)
        self._outcomes.files += 1
        self._outcomes.bytes += file.size
        self._outcomes.holes += file.holes
        self._outcomes.reflinked += file.cloned
        if self._outcomes.on_entry is not None:
            assert self.context is not None
            method = rung(file, self.context, file.streamed)
            if self._how.attributes_only:
                method = "attributes"
            unfinished = file.unfinished
            self._outcomes.tell(
                file.path,
                method,
                "file",
                destination.removes,
                destination.backup,
                file.size,
                file.digest,
                () if unfinished is None else tuple(unfinished.notes()),
            )
        self._links.link_others(file)

    def close(self) -> None:
        """Let go of what an exception has left open."""
        for file in self._open:
            file.close()
