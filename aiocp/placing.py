"""Behind the engine: what a tree has written gets its names, after one sync for many of them."""

from collections.abc import Callable, Iterator, Sequence
from errno import EIO
from functools import partial

from aiocp.batch import Batch
from aiocp.budget import BEHIND
from aiocp.errors import fail, operation
from aiocp.linux import sync_filesystem
from aiocp.stage import Stage
from aiocp.target import Target
from aiocp.transfer import assert_durable
from aiocp.tree_file import TreeFile

Written = Batch | TreeFile
# what was placed, or not, because of an error that holds for all of it
_Placed = tuple[Sequence[Written], OSError | None]


class Placing:
    """Has a side thread put batches in place.

    What waits without a name is held until there are `together` files of it: then the file system
    of the target `root` is synced, which is counted in `syncs`. Each method but `sync` gives what
    was written and is settled meanwhile: batches are in place then, or know their errors; what is
    no batch is still to be committed, or has the error of the sync.
    """

    def __init__(self, together: int) -> None:
        self.root: Target | None = None
        self.syncs = 0
        self._together = together
        self._held: list[Written] = []
        self._holding = 0
        self._stage: Stage[_Placed] = Stage("aiocp-place")

    def place(self, batch: Batch) -> Iterator[Written]:
        """Put in place what is synced, or need not be."""
        return self._give(partial(_placed, [batch]), BEHIND)

    def hold(self, written: Written, count: int) -> Iterator[Written]:
        """Keep that many files for the next sync of the file system."""
        self._held.append(written)
        self._holding += count
        if self._holding >= self._together:
            yield from self._sync_held()

    def _sync_held(self) -> Iterator[Written]:
        held, self._held, self._holding = self._held, [], 0
        return self._give(partial(self._sync_and_place, held), 1)

    def _give(self, call: Callable[[], _Placed], at_once: int) -> Iterator[Written]:
        """Have a call made where not more than that are on their way."""
        while self._stage.pending >= at_once:
            yield from self._take()
        self._stage.give(call)

    def settled(self) -> Iterator[Written]:
        """What there is without waiting."""
        while self._stage.pending and self._stage.done():
            yield from self._take()

    def rest(self) -> Iterator[Written]:
        """What was given until now and is still on its way, waiting for it."""
        if self._held:
            yield from self._sync_held()
        if self._stage.pending:
            yield from self._take()

    @property
    def pending(self) -> bool:
        """Whether anything is on its way."""
        return bool(self._held or self._stage.pending)

    def _take(self) -> Sequence[Written]:
        written, failure = self._stage.take()
        if failure is not None:
            for one in written:
                if isinstance(one, Batch):
                    one.fail_all(failure.errno or EIO, "sync")
                else:
                    one.error = fail(failure.errno or EIO, "sync")
        return written

    def sync(self) -> None:
        """Sync the file system. Raises OSError: what was put in place since the last is lost."""
        assert self.root is not None
        with operation("sync"):
            sync_filesystem(self.root.fd())
            assert_durable(self.root.fd())
        self.syncs += 1

    def _sync_and_place(self, held: Sequence[Written]) -> _Placed:
        try:
            self.sync()
        except OSError as error:
            return held, error
        return _placed(held)

    def close(self) -> None:
        """Wait for the call that is being made, and forget the others."""
        self._stage.close()


def _placed(written: Sequence[Written]) -> _Placed:
    """Place the batches: the others are committed where their errors are told."""
    for one in written:
        if isinstance(one, Batch):
            one.place()
    return written, None
