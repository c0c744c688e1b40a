"""The command line: runs what the options ask for, errors to messages and exit codes."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from aiocp import arguments
from aiocp.copier import CopyResult
from aiocp.errors import Cancelled
from aiocp.metadata import WHERE_POSSIBLE
from aiocp.operands import How, Operands
from aiocp.options import UPDATES, Options, UsageError, parse

if TYPE_CHECKING:
    from aiocp.tree_copier import TreeResult

    Result = CopyResult | TreeResult


class Exit(IntEnum):
    """Exit statuses; a copy stopped by a signal ends with 128 + its number, as in a shell."""

    DONE = 0
    NOT_COPIED = 1
    USAGE = 2
    HUNG_UP = 128 + signal.SIGHUP
    INTERRUPTED = 128 + signal.SIGINT
    TERMINATED = 128 + signal.SIGTERM


class Signals:
    """Turns the signals that end a program into a `cancel` for the copy.

    The copy is then stopped where it can be: what is in flight is drained and the temporary
    removed. Further signals change nothing, and an ignored signal (nohup) stays ignored.
    """

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._take)

    def _take(self, number: int, _: FrameType | None) -> None:
        self.number = self.number or number

    def is_set(self) -> bool:
        """Whether one has come."""
        return self.number != 0

    def status(self) -> Exit:
        """The exit status for the one that came."""
        return Exit(128 + self.number)


def _copy(options: Options) -> int:
    """Copy each operand; the exit status."""
    pairs = _pairs(options.operands, options.target, options.no_target, options.strip)
    if options.recursive and (options.in_place or options.direct != "auto"):
        raise UsageError("--in-place and --direct are for single files, not for -r")
    if options.update not in UPDATES:
        raise UsageError(
            f"invalid value for '--update': takes {', '.join(UPDATES)}, not {options.update!r}"
        )
    signals = Signals()
    status = Exit.DONE

    def complain(error: OSError) -> None:
        nonlocal status
        _complain(error)
        status = Exit.NOT_COPIED

    run = Operands(
        How(
            recursive=options.recursive,
            follow="none"
            if options.no_links
            else "operands"
            if options.operand_links
            else "all"
            if options.all_links or not options.recursive
            else "none",
            preserve=_preserved(options.preserve or []),
            update=options.update,  # type: ignore[arg-type] # looked at above
            existing="keep" if options.no_clobber else "ask" if options.interactive else "replace",
            one_file_system=options.one_file_system,
            exclude=_excluded(options.exclude, options.exclude_from)
            if options.exclude or options.exclude_from
            else None,
            ask=_ask,
            warn=lambda words: print(f"aiocp: warning: {words}", file=sys.stderr),
            on_error=complain,
            common={
                "depth": options.depth,
                "block_size": options.block_size,
                "sync": options.sync,
                "allow_changed": options.allow_changed,
                "remove_destination": options.remove_destination,
                "force": options.force,
                "cancel": signals,
            },
            file={"direct": options.direct, "in_place": options.in_place},
        )
    )
    copy: Callable[[str, str], Result | None] = run.copy
    if options.progress or (options.progress is None and sys.stderr.isatty()):
        copy = partial(_with_bar, run.copy)
    for source, destination in pairs:
        try:
            result = copy(source, destination)
        except OSError as error:
            complain(error)
        except Cancelled as stopped:
            name = signal.Signals(signals.number).name
            whole = " as a whole" if os.path.isdir(source) else ""
            words = "; ".join([f"{_quoted(source)} was not copied{whole}", *stopped.args])
            print(f"aiocp: stopped by {name}: {words}", file=sys.stderr)
            return signals.status()
        else:
            if result is not None:
                _report(result, options.verbose, options.as_json)
    return status


def _pairs(
    operands: list[str], target: str | None, no_target: bool, strip: bool
) -> list[tuple[str, str]]:
    """What is to be copied, each with its new name."""
    sources, last = (operands[:-1], operands[-1]) if target is None else (operands, target)
    if not sources:
        raise UsageError(f"missing argument 'DST' after {last!r}")
    if no_target and target is not None:
        raise UsageError("--target-directory and --no-target-directory exclude each other")
    if no_target and len(sources) > 1:
        raise UsageError(f"extra argument {operands[2]!r}")
    if no_target:
        return [(sources[0], last)]
    if os.path.isdir(last):
        if strip:  # here only, as in cp
            sources = [source.rstrip("/") or source[:1] for source in sources]
        return [(source, os.path.join(last, _own_name(source))) for source in sources]
    if target is not None or len(sources) > 1:
        raise UsageError(f"target {last!r} is not a directory")
    return [(sources[0], last)]


def _own_name(source: str) -> str:
    """The name of a copy in a directory: that of "..", as with cp, is the directory's own."""
    name = os.path.basename(source.rstrip("/"))
    return name if name not in ("", "..") else "."


def _preserved(lists: list[str]) -> frozenset[str]:
    try:
        kept = arguments.preserved(lists)
    except ValueError as error:
        raise UsageError(f"invalid value for '--preserve': {error}") from None
    if "context" in kept and WHERE_POSSIBLE not in kept and not os.path.exists("/sys/fs/selinux"):
        raise UsageError("cannot preserve a security context without SELinux in the kernel")
    return kept


def _excluded(patterns: list[str] | None, files: list[str] | None) -> Callable[[bytes, bool], bool]:
    """What tells whether patterns, those in files before those given, name a path."""
    from pathspec import GitIgnoreSpec

    lines = []
    for file in files or []:
        try:
            lines += Path(file).read_text(errors="surrogateescape").splitlines()
        except OSError as error:
            raise UsageError(f"cannot read {file!r}: {error.strerror}") from None
    spec = GitIgnoreSpec.from_lines([*lines, *(patterns or [])])

    def named(path: bytes, is_directory: bool) -> bool:
        return spec.match_file(os.fsdecode(path) + "/" * is_directory)

    return named


def _ask(path: str) -> bool:
    print(f"aiocp: replace {_quoted(path)}? ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()[:1] in ("y", "Y")


def _with_bar(
    copy: "Callable[..., Result | None]", source: str, destination: str
) -> "Result | None":
    from aiocp.progress import Bar

    with Bar(Path(source).name) as bar:
        return copy(source, destination, progress=bar.update)


def _complain(error: OSError) -> None:
    print(
        f"aiocp: cannot copy {_quoted(error.filename)} to {_quoted(error.filename2)}:"
        f" {error.strerror}",
        file=sys.stderr,
    )


def _quoted(path: str) -> str:
    """A path as one printable word: control characters and undecodable bytes are escaped."""
    return repr(path)


def _report(result: "Result", verbose: bool, as_json: bool) -> None:
    if as_json:
        fields = {name: getattr(result, name) for name in result.__dataclass_fields__}
        print(json.dumps(fields, default=str))
    if verbose:
        for line in _described(result):
            print(line, file=sys.stderr if as_json else sys.stdout)


def _described(result: "Result") -> Iterator[str]:
    names = f"{_quoted(result.source)} -> {_quoted(result.destination)}"
    how = (
        f"{result.peak_in_flight} of {result.depth} in flight,"
        f" {'synced' if result.synced else 'not synced'}"
    )
    if isinstance(result, CopyResult):
        yield names
        yield (
            f"  {result.size:,} bytes in {result.elapsed:.3f} s, {result.rate / 1e6:,.0f} MB/s,"
            f" {result.method}, {how}"
        )
        for note in result.notes:
            yield f"  {note}"
    else:
        yield (
            f"{names}: {result.files:,} files, {result.directories:,} directories,"
            f" {result.links:,} links, {result.specials:,} special files,"
            f" {result.bytes:,} bytes in {result.elapsed:.3f} s, {how}"
        )


def run(argv: list[str]) -> int:
    """Run the command; return its exit status."""
    try:
        options = parse(argv)
        status = _copy(options) if isinstance(options, Options) else options
        sys.stdout.flush()
        return status
    except UsageError as error:
        message = error.format_message().rstrip(".")
        print(f"aiocp: {message[0].lower()}{message[1:]}; try 'aiocp --help'", file=sys.stderr)
        return Exit.USAGE
    except KeyboardInterrupt:  # before the signals were taken
        return Exit.INTERRUPTED
    except OSError as error:
        print(f"aiocp: cannot write to standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return Exit.NOT_COPIED


def main() -> NoReturn:
    """The entry point of the `aiocp` command.

    Leaves without taking the interpreter down, which would take another 45 ms.
    """
    status = run(sys.argv[1:])
    with suppress(OSError):  # standard output was flushed, and its error reported, by `run`
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
