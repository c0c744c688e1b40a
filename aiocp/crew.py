"""An executor whose workers do parts of a copy; the coordinator's side of it.

    muster   every worker says who it is and what it sees, before the first byte
    give     a part is submitted while fewer are with the executor than it has use for
    take     what has come back is handed to whoever gave the part
    lease    a file that the workers look at: when it goes they stop

Which worker does a part, and whether another does it again, is the executor's business. Where one
fails as a whole nothing more is given to it, and the copy ends.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import suppress
from errno import ECONNABORTED, ENOEXEC, EPERM, ESTALE
from functools import partial
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Self, TypeVar

from aiocp import lease, worker
from aiocp.errors import Cancel, Cancelled, ExecutorFailed, look, operation
from aiocp.linux import File, birth_time
from aiocp.result import Worker
from aiocp.share import Batch, BatchDone, Done, Ground, Range, pack

# As many parts are with the executor as its workers have in hand, and as wait to be the next
_AHEAD = 2
_WAIT = 0.1  # seconds after which whoever waits looks at `cancel` again
_COUNT_EVERY = 5.0  # seconds after which the workers are counted again
_SETTLE = 5.0  # seconds for the workers to stop in

# Evaluated by a worker, who may not have what could be called by its name: who it is, whose, and
# which aiocp it has, None for none
_WHO = """(lambda os, util, metadata: (
    f"{os.uname().nodename}:{os.getpid()}",
    os.geteuid(),
    util.find_spec("aiocp")
    and next((found.version for found in metadata.distributions(name="aiocp")), ""),
))(*map(__import__("importlib").import_module, ("os", "importlib.util", "importlib.metadata")))"""

T = TypeVar("T")
Then = Callable[[Done | OSError], object]


class Crew:
    """The workers of an executor.

    `pending` counts the parts that are not taken yet, `hands` how many are done at once, as far as
    is known. To be waited for as a Stage is, but not for longer than a moment.
    """

    def __init__(self, executor: Executor, cancel: Cancel | None) -> None:
        """Ask the workers who they are. Raises ExecutorFailed where one cannot do its part."""
        self.pending = 0
        self._executor, self._cancel = executor, cancel
        self._given: dict[Future[Done], Then] = {}
        self._ended: SimpleQueue[Future[Done]] = SimpleQueue()
        self._waited_for: list[Future[Done]] = []
        self._lease: File | None = None
        client = getattr(executor, "_client", None)  # Dask's
        self._client: Any = client if hasattr(client, "nthreads") else None
        self.hands, self._counted = 1, -inf
        self._counting: Future[int] | None = None
        self._shares: dict[str, Worker] = {}
        self._ask()

    # --- who they are ---

    def _ask(self) -> None:
        _, user, version = eval(_WHO)
        for name, theirs, found in self._everyone(eval, _WHO):
            if found is None:
                raise ExecutorFailed(ENOEXEC, f"worker {name} has no aiocp")
            if found != version:
                raise ExecutorFailed(ENOEXEC, f"worker {name} has aiocp {found}, not {version}")
            if theirs != user:
                raise ExecutorFailed(EPERM, f"worker {name} runs as user {theirs}, not {user}")

    def _everyone(self, call: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What a call gives that every worker makes, as far as the executor can ask each.

        Raises ExecutorFailed, Cancelled.
        """
        try:
            if self._client is None:
                count = self._capacity()
                return self._answers(
                    [self._executor.submit(call, *arguments) for _ in range(count)]
                )
            # asks those who are busy as well
            (answers,) = self._answers([_beside(partial(self._client.run, call, *arguments))])
            # by way of the scheduler, which loads what is called
            self._answers([self._executor.submit(call, *arguments)])
            return list(answers.values())
        except (Cancelled, ExecutorFailed):
            raise
        except Exception as error:
            raise _failed(error) from error

    def _answers(self, asked: "list[Future[Any]]") -> list[Any]:
        while wait(asked, timeout=_WAIT).not_done:
            look(self._cancel)
        return [future.result() for future in asked]

    def _capacity(self) -> int:
        """How many parts the workers do at once, as far as the executor says."""
        if self._client is not None:
            return max(1, sum(map(int, self._client.nthreads().values())))
        for known in ("num_workers", "_max_workers"):
            if isinstance(number := getattr(self._executor, known, None), int):
                return max(1, number)
        return os.cpu_count() or 1

    def muster(self, source: bytes, source_fd: int, directory: bytes, directory_fd: int) -> Ground:
        """Have every worker see the source and the directory at the destination, both open here.

        Raises ExecutorFailed, which names the one that does not; OSError.
        """
        self._lease, name, token = lease.create(directory_fd)
        born = os.fstat(source_fd).st_ino, birth_time(source_fd)
        ground = Ground(
            os.path.abspath(source),
            born,
            os.path.join(os.path.abspath(directory), name),
            token,
            os.geteuid(),
        )
        self._everyone(worker.fit, pack(ground))
        return ground

    # --- what they do ---

    @property
    def full(self) -> bool:
        """Whether the executor has as many parts as it has use for."""
        if self._counting is not None and self._counting.done():
            if self._counting.exception() is None:  # else it will say so of a part
                self.hands = self._counting.result()
            self._counting, self._counted = None, monotonic()
        if self._counting is None and monotonic() >= self._counted + _COUNT_EVERY:
            self._counting = _beside(self._capacity)
        return self.pending >= _AHEAD * self.hands

    def give(self, part: Batch | Range, then: Then) -> None:
        """Have a part done; `then` is called with what became of it, in `take`.

        Raises ExecutorFailed.
        """
        try:
            future = self._executor.submit(worker.run, pack(part))
        except Exception as error:
            raise _failed(error) from error
        self.pending += 1
        self._given[future] = then
        future.add_done_callback(self._ended.put)

    def done(self) -> bool:
        """Whether one has come back."""
        return bool(self._waited_for) or not self._ended.empty()

    def wait(self) -> None:
        """Wait a moment for one to come back."""
        if not self.done():
            with suppress(Empty):
                self._waited_for.append(self._ended.get(timeout=_WAIT))

    def take(self) -> None:
        """Hand on what has come back. Raises ExecutorFailed, Cancelled."""
        future = self._waited_for.pop() if self._waited_for else self._ended.get()
        self.pending -= 1
        self._given.pop(future)(self._outcome(future))

    def _outcome(self, future: "Future[Done]") -> Done | OSError:
        try:
            done = future.result()
        except ExecutorFailed:
            raise
        except OSError as error:
            return error if error.errno else _failed(error)  # a connection's, which has none
        except Cancelled:
            if self._cancel is not None and self._cancel.is_set():
                raise
            raise ExecutorFailed(ESTALE, "the lease is gone") from None
        except (BrokenExecutor, CancelledError) as error:
            raise _failed(error) from error
        except Exception as error:  # noqa: BLE001 - of this part, whose workers were lost too often
            return _failed(error)
        self._count(done)
        return done

    def _count(self, done: Done) -> None:
        what, name = done.what, done.worker
        before = self._shares.get(name) or Worker(name, 0, 0, 0, 0.0, 0.0, 0, 0)
        moved = before.bytes + (what.bytes if isinstance(what, BatchDone) else what.bytes_written)
        busy = before.busy + done.busy
        self._shares[name] = Worker(
            name,
            before.batches + 1,
            before.files + (what.files if isinstance(what, BatchDone) else 0),
            moved,
            busy,
            moved / busy,
            max(before.depth, done.depth.asked),
            max(before.peak_in_flight, done.depth.peak),
        )

    @property
    def workers(self) -> tuple[Worker, ...]:
        """What each has done."""
        return tuple(self._shares[name] for name in sorted(self._shares))

    # --- how it ends ---

    def release(self) -> None:
        """Let the lease go. Raises OSError from unlinkat(2)."""
        file, self._lease = self._lease, None
        if file is not None:
            with operation("remove lease"):
                file.close()

    def close(self) -> None:
        """Have what is not done stopped, and wait for it, unless a worker does not answer."""
        with suppress(OSError):
            self.release()
        if self._given:
            wait(self._given, timeout=_SETTLE)
            for future in self._given:
                future.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _beside(call: Callable[[], T]) -> "Future[T]":
    """Have a thread make a call that may not come back."""
    future: Future[T] = Future()

    def make() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is taken
            future.set_exception(error)

    threading.Thread(target=make, name="aiocp-ask", daemon=True).start()
    return future


def _failed(error: BaseException) -> ExecutorFailed:
    """The error for what an executor has raised."""
    words = " ".join(str(error).split())
    if isinstance(error, CancelledError) and not words:  # as of Dask's, without a scheduler
        words = "it has dropped what it was given"
    failed = ExecutorFailed(
        ECONNABORTED, f"the executor failed: {type(error).__name__}{': ' * bool(words)}{words}"
    )
    failed.__cause__ = error
    return failed
