"""Threads that make calls in the order given, while their owner goes on."""

import signal
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class _Raised(NamedTuple):
    error: BaseException


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
        self._threads: list[threading.Thread] = []
        # at the latest when nobody has the stage any more; daemons, so that nobody waits for them
        self._end = weakref.finalize(self, _end, calls, threads)
        with suppress(RuntimeError):  # RLIMIT_NPROC, a cgroup's pids.max
            for _ in range(threads):
                thread = threading.Thread(
                    target=_run, args=(calls, results), name=name, daemon=True
                )
                thread.start()
                self._threads.append(thread)

    def give(self, call: Callable[[], T]) -> None:
        """Have a call made as soon as a thread is free for it."""
        self.pending += 1
        if self._threads:
            self._calls.put(call)
        else:
            self._results.put(_outcome(call))

    def done(self) -> bool:
        """Whether a result is there to be taken without waiting."""
        return not self._results.empty()

    def take(self) -> T:
        """The next result. Raises what the call has raised."""
        result = self._results.get()
        self.pending -= 1
        if isinstance(result, _Raised):
            raise result.error
        return result

    def close(self) -> None:
        """Forget the calls that are not begun, and wait for those that are."""
        with suppress(Empty):
            while True:
                self._calls.get_nowait()
        self._end()
        for thread in self._threads:
            thread.join()


def _run(calls: "SimpleQueue[Callable[[], T] | None]", results: "SimpleQueue[T | _Raised]") -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the owner
    while (call := calls.get()) is not None:
        results.put(_outcome(call))
        del call  # and what it holds


def _end(calls: "SimpleQueue[Callable[[], T] | None]", threads: int) -> None:
    for _ in range(threads):
        calls.put(None)


def _outcome(call: Callable[[], T]) -> T | _Raised:
    try:
        return call()
    except BaseException as error:  # noqa: BLE001 - raised again where the result is taken
        return _Raised(error)
