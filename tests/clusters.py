"""Clusters on this machine: a Dask scheduler and its workers, each a process of its own.

They are forked by one process (this file, run as a program) that has loaded distributed and is one
thread: so they take neither time nor memory for it, and what is not yet a worker can first see
other files than the rest, or another aiocp. They end with it, and it ends with the tests, however
these end.
"""

import asyncio
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from filesystems import scratch_directory

if TYPE_CHECKING:  # half a second
    from concurrent.futures import Executor

    from distributed import Client, Scheduler, Worker


@dataclass(frozen=True)
class Node:
    """A scheduler or worker."""

    pid: int
    address: str

    @property
    def name(self) -> str:
        """What aiocp calls a worker."""
        return f"{os.uname().nodename}:{self.pid}"


@dataclass(frozen=True)
class Odd:
    """What is to be odd about a worker: `mounts` are directories that it sees elsewhere, each as
    (what, where), `version` that of its aiocp, "" for none at all, `uid` whose process it is."""

    mounts: Sequence[tuple[str, str]] = ()
    version: str | None = None
    uid: int = 0


class Nursery:
    """The process whose children all of them are."""

    def __init__(self, scratch: Path) -> None:
        self._log = scratch / "log"
        self._process = subprocess.Popen(
            [sys.executable, __file__, scratch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # the terminal's interrupt is not for it
        )

    @contextmanager
    def node(self, scheduler: Node | None, odd: Odd | None = None) -> Iterator[Node]:
        """A scheduler, or a worker of one, of one thread; killed at the end."""
        address = scheduler and scheduler.address
        node = Node(**self._ask("start", scheduler=address, **asdict(odd or Odd())))
        try:
            yield node
        finally:
            self._ask("end", pid=node.pid)

    def _ask(self, action: str, **what: object) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([action, what]), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        assert answer is not None, self._log.read_text()
        return answer

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def nursery() -> Iterator[Nursery]:
    with scratch_directory() as scratch:
        process = Nursery(scratch)
        try:
            yield process
        finally:
            process.close()


@dataclass
class Cluster:
    """A scheduler and its workers."""

    scheduler: Node
    workers: list[Node]
    _nursery: Nursery = field(repr=False)
    _stack: ExitStack = field(repr=False)

    @contextmanager
    def client(self) -> "Iterator[Client]":
        from distributed import Client

        with Client(self.scheduler.address) as client:
            yield client

    @contextmanager
    def executor(self) -> "Iterator[Executor]":
        with self.client() as client:
            yield client.get_executor(pure=False)

    @contextmanager
    def another(self, odd: Odd) -> Iterator[Node]:
        """One more worker for a while."""
        with self._nursery.node(self.scheduler, odd) as worker:
            yield worker
        self.settle()

    def kill(self, pid: int) -> None:
        """Kill one of the workers."""
        os.kill(pid, signal.SIGKILL)
        self.workers = [worker for worker in self.workers if worker.pid != pid]

    def restore(self, count: int) -> None:
        """Have as many workers again, all of them idle."""
        while len(self.workers) < count:
            worker = self._nursery.node(self.scheduler)
            self.workers.append(self._stack.enter_context(worker))
        self.settle()

    def settle(self) -> None:
        """Wait until the scheduler knows of these workers and no other, and none does anything."""
        with self.client() as client:
            client.run_on_scheduler(_has_only, {worker.address for worker in self.workers})
            client.run(_is_idle)


@contextmanager
def cluster(nursery: Nursery, count: int = 4) -> Iterator[Cluster]:
    """A scheduler and `count` workers on loopback."""
    with ExitStack() as stack:
        scheduler = stack.enter_context(nursery.node(None))
        workers = [stack.enter_context(nursery.node(scheduler)) for _ in range(count)]
        yield Cluster(scheduler, workers, nursery, stack)


async def _has_only(addresses: set[str], dask_scheduler: "Scheduler") -> None:
    """Runs in a scheduler, until these are its workers."""
    while dask_scheduler.workers.keys() != addresses:
        await asyncio.sleep(0.01)


async def _is_idle(dask_worker: "Worker") -> None:
    """Runs in a worker, until it runs nothing else, wanted or not."""
    while dask_worker.active_threads:
        await asyncio.sleep(0.01)


# --- the program ---------------------------------------------------------------------------------

DEATH_SIGNAL, SECURE_BITS = 1, 28  # of prctl(2)
KEEP_CAPABILITIES = 1 << 2  # SECBIT_NO_SETUID_FIXUP
NEW_NAMESPACE, BIND, RECURSIVE, PRIVATE = 1 << 17, 1 << 12, 1 << 14, 1 << 18

_LIBC = ctypes.CDLL(None, use_errno=True)


def serve(scratch: Path) -> None:
    """Start and end what is asked for, until there is nobody to ask."""
    import dask
    import distributed  # noqa: F401 - for all children

    dask.config.set({"temporary-directory": str(scratch)})
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    for line in sys.stdin:
        action, what = json.loads(line)
        print(json.dumps(ACTIONS[action](scratch, **what)), flush=True)


def start(scratch: Path, **what: Any) -> dict[str, object] | None:
    """Fork a node; where it is, None where it could not live."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _grow(scratch, writer, **what)
    os.close(writer)
    with open(reader) as file:
        address = file.read()
    if not address:
        os.waitpid(child, 0)
        return None
    return {"pid": child, "address": address}


def end(scratch: Path, pid: int) -> int:
    """Kill a node, which may be dead already."""
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


ACTIONS: dict[str, Callable[..., object]] = {"start": start, "end": end}


def _grow(
    scratch: Path,
    writer: int,
    scheduler: str | None,
    mounts: list[tuple[str, str]],
    version: str | None,
    uid: int,
) -> NoReturn:
    """In the child: become a node, until it is done."""
    try:
        log = os.open(scratch / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        for fd in (0, 1, 2):
            os.dup2(log, fd)
        if mounts:
            _see(mounts)
        if version is not None:
            _have(version, scratch)
        if uid:  # which may see all that root may see
            _check(_LIBC.prctl(SECURE_BITS, KEEP_CAPABILITIES))
            os.setuid(uid)
        _check(_LIBC.prctl(DEATH_SIGNAL, signal.SIGKILL))  # which another user would be rid of
        asyncio.run(_live(writer, scheduler))
    except BaseException:  # noqa: BLE001 - a child must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(0)


def _see(mounts: list[tuple[str, str]]) -> None:
    """Have a view of one's own of the file system."""
    _check(_LIBC.unshare(NEW_NAMESPACE))
    _check(_LIBC.mount(None, b"/", None, RECURSIVE | PRIVATE, None))
    for what, where in mounts:
        _check(_LIBC.mount(os.fsencode(what), os.fsencode(where), None, BIND, None))


def _have(version: str, scratch: Path) -> None:
    """Have an aiocp of that version, by what is known of those that are installed, or none."""
    if not version:
        sys.modules["aiocp"] = None  # type: ignore[assignment]
        return
    known = scratch / version / f"aiocp-{version}.dist-info" / "METADATA"
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text(f"Metadata-Version: 2.1\nName: aiocp\nVersion: {version}\n")
    sys.path.insert(0, str(known.parents[1]))


def _check(status: int) -> None:
    if status < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


async def _live(writer: int, scheduler: str | None) -> None:
    from distributed import Scheduler, Worker

    on = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    node: Any  # their bases are not typed
    if scheduler is None:
        node = Scheduler(dashboard=False, **on)
    else:
        node = Worker(scheduler, nthreads=1, memory_limit=0, **on)
    async with node:
        with open(writer, "w") as file:
            file.write(node.address)
        await node.finished()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
