"""Threads that make calls in the order given, while their owner goes on."""

import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class _Raised(NamedTuple):
    error: BaseException


class Awaited(Protocol):
    """What makes calls elsewhere: one waits for a result to be there, at least for a moment."""

    def wait(self) -> None: ...
    def done(self) -> bool: ...


class Stage(Generic[T]):
    """One step of a pipeline: give it calls, take their results.

    What pays is a call that is done without the GIL. Where no thread is to be had the calls are
    made at once. `pending` counts those whose result is not taken yet.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self.pending = 0
        calls: SimpleQueue[Callable[[], T] | None] = SimpleQueue()
        results: SimpleQueue[T | _Raised] = SimpleQueue()
        self._calls, self._results = calls, results
        self._waited_for: deque[T | _Raised] = deque()
        self._told: list[Callable[[], object]] = []
        self._threads: list[threading.Thread] = []
        # at the latest when nobody has the stage any more; daemons, so that nobody waits for them
        self._end = weakref.finalize(self, calls.put, None)
        with suppress(RuntimeError):  # RLIMIT_NPROC, a cgroup's pids.max
            for _ in range(threads):
                thread = threading.Thread(
                    target=_run, args=(calls, results, self._told), name=name, daemon=True
                )
                thread.start()
                self._threads.append(thread)

    def give(self, call: Callable[[], T]) -> None:
        """Have a call made as soon as a thread is free for it."""
        self.pending += 1
        if self._threads:
            self._calls.put(call)
        else:
            _make(call, self._results, self._told)

    def tell(self, told: Callable[[], object]) -> None:
        """Have this called, by any thread, whenever there is one more result to be taken."""
        self._told.append(told)

    def wait(self) -> None:
        """Wait for a result to be there."""
        if not self.done():
            self._waited_for.append(self._results.get())

    def done(self) -> bool:
        """Whether a result is there to be taken without waiting."""
        return bool(self._waited_for) or not self._results.empty()

    def take(self) -> T:
        """The next result. Raises what the call has raised."""
        result = self._waited_for.popleft() if self._waited_for else self._results.get()
        self.pending -= 1
        if isinstance(result, _Raised):
            raise result.error
        return result

    def forget(self) -> None:
        """Have the calls that are not begun not made."""
        with suppress(Empty):
            while True:
                self._calls.get_nowait()
                self.pending -= 1

    def close(self) -> None:
        """Forget the calls that are not begun, and wait for those that are."""
        self.forget()
        self._end()
        for thread in self._threads:
            thread.join()


def _run(
    calls: "SimpleQueue[Callable[[], T] | None]",
    results: "SimpleQueue[T | _Raised]",
    told: Sequence[Callable[[], object]],
) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the owner
    while (call := calls.get()) is not None:
        _make(call, results, told)
        del call  # and what it holds
    calls.put(None)  # for the next thread


def _make(
    call: Callable[[], T],
    results: "SimpleQueue[T | _Raised]",
    told: Sequence[Callable[[], object]],
) -> None:
    try:
        results.put(call())
    except BaseException as error:  # noqa: BLE001 - raised again where the result is taken
        results.put(_Raised(error))
    for tell in told:
        tell()
