"""Does what the options ask for: copies each operand, or measures."""

import os
import signal
import stat
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from itertools import chain
from types import FrameType
from typing import TYPE_CHECKING

from aiocp.errors import Cancelled
from aiocp.exit_status import Exit
from aiocp.operands import How, Operands
from aiocp.options import Options, UsageError
from aiocp.progress import Bar, Lines, Progress
from aiocp.quoting import quoted
from aiocp.request import request
from aiocp.said import Said

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from aiocp.receipt import Receipt


class Signals:
    """Turns the signals that end a program into a `cancel` for the copy.

    The copy is then stopped where it can be: what is in flight is drained and the temporary
    removed. Further signals change nothing, and an ignored signal (nohup) stays ignored. SIGUSR1
    asks how far it is, as of dd.
    """

    def __init__(self) -> None:
        self.number = 0
        self.progress: Progress | None = None  # of what is being copied, for SIGUSR1

    def take(self) -> None:
        """From now on; until then they end the process at once."""
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._take)
        if signal.getsignal(signal.SIGUSR1) is not signal.SIG_IGN:
            signal.signal(signal.SIGUSR1, self._tell)

    def _take(self, number: int, _: FrameType | None) -> None:
        self.number = self.number or number

    def _tell(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.tell()

    def is_set(self) -> bool:
        """Whether one has come."""
        return self.number != 0


def perform(options: Options) -> int:
    """Copy, or measure; the exit status. Raises UsageError; OSError from standard output."""
    if options.probe is not None:
        return _probe(options)
    with ExitStack() as held:
        return _copy(options, held)


def _copy(options: Options, held: ExitStack) -> int:
    """Copy each operand; the exit status. What is `held` is to be let go of then."""
    said, signals = Said(options), Signals()
    how, pairs = request(
        options,
        cancel=signals,
        ask=(lambda _: True) if options.dry_run else said.ask,
        warn=said.warn,
        on_entry=said.entry if said.listens else None,
        on_error=said.error,
    )
    try:
        executor = held.enter_context(_executor(options))
    except ConnectionError as error:
        said.error(error)
        said.end(sync=options.sync)
        return said.status
    how = how._replace(common=how.common | {"executor": executor})
    signals.take()
    said.receipt = held.enter_context(_receipt(options, pairs))
    operands = _operands(options, how)
    copy = operands.copy
    show = _show(False if options.dry_run else options.progress)
    for source, destination in pairs:
        try:
            with show(os.path.basename(source.rstrip("/"))) as progress:
                said.progress = signals.progress = progress
                result = copy(source, destination, progress=progress)
        except OSError as error:
            said.error(error)
        except Cancelled as stopped:
            whole = " as a whole" if os.path.isdir(source) else ""
            words = "; ".join([f"{quoted(source)} was not copied{whole}", *stopped.args])
            said.stopped(signals.number, words)
            break
        else:
            if result is not None:
                said.result(result)
    said.end(sync=options.sync)
    return said.status


def _probe(options: Options) -> int:
    """Measure, instead of copying; the exit status."""
    assert options.probe is not None
    if options != Options([], probe=options.probe, plot=options.plot, as_json=options.as_json):
        raise UsageError("--probe copies nothing: it goes with --plot and --json only")
    from aiocp.report import report

    signals = Signals()
    signals.take()
    try:
        done = report(options.probe, options.plot, options.as_json, signals)
    except Cancelled:
        name = signal.Signals(signals.number).name
        print(f"aiocp: stopped by {name}: nothing is left of the probe", file=sys.stderr)
        return Exit(128 + signals.number)
    return Exit.DONE if done else Exit.NOT_COPIED


def _executor(options: Options) -> "AbstractContextManager[Executor | None]":
    """Who copies, if others are to. Raises UsageError; ConnectionError where it is entered."""
    if options.dask is None or options.dry_run:
        return nullcontext()
    from aiocp.dask_client import connect

    return connect(options.dask)


def _receipt(
    options: Options, pairs: list[tuple[str, str]]
) -> "AbstractContextManager[Receipt | None]":
    """The file for what --checksum says, if there is to be one. Raises UsageError."""
    if options.checksum is None or options.dry_run:
        return nullcontext()
    if (path := options.checksum.file) is None:
        if not options.as_json and any(_is_stdout(destination) for _, destination in pairs):
            raise UsageError("--checksum prints where the copy goes: give it a file, ALGO=FILE")
        return nullcontext()
    from aiocp.receipt import Receipt

    try:
        return Receipt(path, chain(*pairs))
    except OSError as error:
        raise UsageError(f"cannot write {path!r}: {error.strerror}") from None


def _is_stdout(path: str) -> bool:
    """Whether a file is what we print to, and is no terminal or other device."""
    with suppress(OSError):
        out = os.fstat(sys.stdout.fileno())
        return os.path.samestat(out, os.stat(path)) and not stat.S_ISCHR(out.st_mode)
    return False


def _operands(options: Options, how: How) -> Operands:
    if not options.dry_run:
        return Operands(how)
    from aiocp.dry_run import DryRun

    return DryRun(how)


def _show(asked: bool | None) -> type[Progress]:
    """How to show progress: by default as a bar on a terminal, and else not."""
    if asked or (asked is None and sys.stderr.isatty()):
        return Bar if sys.stderr.isatty() else Lines
    return Progress
