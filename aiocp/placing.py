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
    of the target `root` is synced, which is counted in `syncs`. Nothing here waits: while it is
    `full` no more is to be begun, and `stage` is what to wait for. `settled` gives what was written
    and is done with: batches are in place then, or know their errors; what is no batch is still to
    be committed, or has the error of the sync.
    """

    def __init__(self, together: int) -> None:
        self.root: Target | None = None
        self.syncs = 0
        self.stage: Stage[_Placed] = Stage("aiocp-place")
        self._together = together
        self._held: list[Written] = []
        self._holding = 0

    @property
    def full(self) -> bool:
        """Whether as much is on its way as may be."""
        return self._holding >= self._together or self.stage.pending >= BEHIND

    def place(self, batch: Batch) -> None:
        """Put in place what is synced, or need not be."""
        self.stage.give(partial(_placed, [batch]))

    def hold(self, written: Written, count: int) -> None:
        """Keep that many files for the next sync of the file system."""
        self._held.append(written)
        self._holding += count
        self._sync_if_many()

    def _sync_if_many(self) -> None:
        if self._holding >= self._together and not self.stage.pending:
            self.rest()

    def rest(self) -> None:
        """Have the file system synced for what is held, however little that is."""
        if self._held:
            held, self._held, self._holding = self._held, [], 0
            self.stage.give(partial(self._sync_and_place, held))

    def settled(self) -> Iterator[Written]:
        """What there is without waiting."""
        while self.stage.pending and self.stage.done():
            written = self._take()
            self._sync_if_many()
            yield from written

    def then(self, call: Callable[[], object]) -> None:
        """Have the side thread call something; what that raises is raised by `settled`."""
        self.stage.give(partial(_called, call))

    def _take(self) -> Sequence[Written]:
        written, failure = self.stage.take()
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
        self.stage.close()


def _called(call: Callable[[], object]) -> _Placed:
    call()
    return (), None


def _placed(written: Sequence[Written]) -> _Placed:
    """Place the batches: the others are committed where their errors are told."""
    for one in written:
        if isinstance(one, Batch):
            one.place()
    return written, None
