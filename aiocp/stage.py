"""Threads that make calls in the order given, while their owner goes on."""

import signal
import threading
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
        self._calls: SimpleQueue[Callable[[], T] | None] = SimpleQueue()
        self._results: SimpleQueue[T | _Raised] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        with suppress(RuntimeError):  # RLIMIT_NPROC, a cgroup's pids.max
            for _ in range(threads):
                thread = threading.Thread(target=self._run, name=name)
                thread.start()
                self._threads.append(thread)

    def give(self, call: Callable[[], T]) -> None:
        """Have a call made as soon as a thread is free for it."""
        self.pending += 1
        if self._threads:
            self._calls.put(call)
        else:
            self._make(call)

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
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the owner
        while (call := self._calls.get()) is not None:
            self._make(call)

    def _make(self, call: Callable[[], T]) -> None:
        result: T | _Raised
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - raised again where the result is taken
            result = _Raised(error)
        self._results.put(result)
