"""Ahead of the engine: the small files of a tree on their way to be opened, a batch at a time."""

from collections import defaultdict
from collections.abc import Callable

from aiocp.batch import Batch
from aiocp.reflink import Reflink
from aiocp.stage import Stage
from aiocp.target import Target
from aiocp.tree import Directory


class Opening:
    """Fills batches and has two side threads open them.

    `make` makes an empty batch of files for that target, `capacity` is how many files it takes.
    `alignments` remembers by source device what direct reads ask for, `refused` by destination
    device from which others nothing can be cloned to it. Nothing here waits: `stage` is what to
    wait for where too many batches are on their way.
    """

    def __init__(self, make: Callable[[Target], Batch], capacity: int, reflink: Reflink) -> None:
        self.alignments: dict[int, int] = {}
        self.refused: defaultdict[int, set[int]] = defaultdict(set)
        self._make, self._capacity, self._reflink = make, capacity, reflink
        self._filling: Batch | None = None
        self._batches: set[Batch] = set()
        self.stage: Stage[Batch] = Stage("aiocp-open", threads=2)

    def add(self, directory: Directory, name: bytes) -> bool:
        """Add what is a regular file by the listing; whether a batch is full by it.

        Raises OSError where the directories cannot be had.
        """
        target: Target = directory.data
        batch = self._filling
        if batch is None:
            self._filling = batch = self._make(target)
            self._batches.add(batch)
        if not batch.data or batch.data[-1] is not target:
            batch.enter(
                target,
                directory.fd(),
                target.fd(),
                alignment=self.alignments.get(directory.stat.st_dev, 0),
                mask=target.mask,
                fresh=target.created,
                acl=target.acl,
                flush=target.flush,
                clone=self._may_clone(directory, target),
            )
        target.waiting += 1
        return batch.add(name) >= self._capacity

    def _may_clone(self, directory: Directory, target: Target) -> Reflink:
        refused = directory.stat.st_dev in self.refused[target.stat.st_dev]
        return "never" if refused and self._reflink == "auto" else self._reflink

    def open(self) -> None:
        """Have what was added opened."""
        batch, self._filling = self._filling, None
        if batch is not None:
            self.stage.give(batch.open)

    def take(self) -> Batch:
        """The next batch that is opened."""
        batch = self.stage.take()
        for target in batch.refused():
            self.refused[target.stat.st_dev].add(target.directory.stat.st_dev)
        return batch

    def let_go(self, batch: Batch) -> None:
        """Close a batch that is done with."""
        batch.close()
        self._batches.discard(batch)

    def close(self) -> None:
        """Let go of what an exception has left open; nothing may be placing it any more."""
        self.stage.close()
        for batch in self._batches:
            batch.close()
