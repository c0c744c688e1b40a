"""The command line: arguments to options, errors to messages and exit codes."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from aiocp.context import MAX_DEPTH
from aiocp.copier import (
    DEFAULT_BLOCK_SIZE,
    DEFAULT_DEPTH,
    CopyResult,
    check_block_size,
    check_depth,
    copy_file,
)
from aiocp.errors import Cancelled

UsageError: Any = typer.BadParameter.__base__  # click's, wherever this typer keeps it

EPILOG = "Exit status: 0 everything is copied and on the disk, 1 something is not, 2 wrong usage."
HOW = ("auto", "always", "never")


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


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes of "4096", "64K", "1M" or "1MiB"; ValueError for anything else."""
    match = re.fullmatch(r"(\d+)(?:([KMG])(?:iB)?)?", text, re.ASCII)
    if not match:
        raise ValueError(f"takes bytes such as 4096, 64K, 1M or 1MiB, not {text!r}")
    return int(match[1]) * _UNITS[match[2] or ""]


def _block_size(text: str) -> int:
    try:
        check_block_size(size := parse_size(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return size


def _depth(text: str) -> int:
    try:
        check_depth(depth := int(text))
    except ValueError:
        raise typer.BadParameter(f"takes 1 to {MAX_DEPTH}, not {text!r}") from None
    return depth


def _direct(text: str) -> str:
    if text not in HOW:
        raise typer.BadParameter(f"takes {', '.join(HOW)}, not {text!r}")
    return text


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"aiocp {version('aiocp')}")
        raise typer.Exit


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog=EPILOG, no_args_is_help=False)
def aiocp(
    sources: Annotated[list[str], typer.Argument(metavar="SRC...", help="What to copy.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="The new file, or a directory to copy into.")
    ],
    depth: Annotated[
        Any, typer.Option(metavar="N", parser=_depth, help="Blocks in flight, 1 to 65536.")
    ] = str(DEFAULT_DEPTH),
    block_size: Annotated[
        Any,
        typer.Option(
            metavar="SIZE", parser=_block_size, help="Bytes per block: 4096, 64K, 1M, 1MiB."
        ),
    ] = f"{DEFAULT_BLOCK_SIZE >> 20}M",
    direct: Annotated[
        Any,
        typer.Option(
            metavar="|".join(HOW),
            parser=_direct,
            help="O_DIRECT: where possible, as a must, not at all.",
        ),
    ] = HOW[0],
    sync: Annotated[
        bool, typer.Option("--sync/--no-sync", help="Exit when it is on the disk, or as cp does.")
    ] = True,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Write into an existing file, do not replace it.")
    ] = False,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Accept a source that changes meanwhile.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write to a device that is mounted or in use.")
    ] = False,
    progress: Annotated[
        bool | None,
        typer.Option(
            "--progress/--no-progress", help="A progress bar; by default on a terminal only."
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say what was copied, and how.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each file copied.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Copy SRC to DST, or each SRC into the directory DST, through Linux AIO.

    Exit status 0 means that the copy is whole, in place and on the disk.
    """
    if len(sources) > 1 and not os.path.isdir(destination):
        raise UsageError(f"target {destination!r} is not a directory")
    signals = Signals()
    copy = partial(
        copy_file,
        depth=depth,
        block_size=block_size,
        direct=direct,
        sync=sync,
        in_place=in_place,
        allow_changed=allow_changed,
        force=force,
        cancel=signals,
    )
    if progress or (progress is None and sys.stderr.isatty()):
        copy = partial(_with_bar, copy)
    status = Exit.DONE
    for source in sources:
        try:
            result = copy(source, destination)
        except OSError as error:
            _complain(error)
            status = Exit.NOT_COPIED
        except Cancelled as stopped:
            name = signal.Signals(signals.number).name
            words = "; ".join([f"{_quoted(source)} was not copied", *stopped.args])
            print(f"aiocp: stopped by {name}: {words}", file=sys.stderr)
            raise typer.Exit(signals.status()) from None
        else:
            _report(result, verbose, as_json)
    raise typer.Exit(status)


def _with_bar(copy: Callable[..., CopyResult], source: str, destination: str) -> CopyResult:
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


def _report(result: CopyResult, verbose: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(result)))
    if verbose:
        print(
            f"{_quoted(result.source)} -> {_quoted(result.destination)}\n"
            f"  {result.size:,} bytes in {result.elapsed:.3f} s, {result.rate / 1e6:,.0f} MB/s,"
            f" {result.method}, {result.peak_in_flight} of {result.depth} in flight,"
            f" {'synced' if result.synced else 'not synced'}",
            file=sys.stderr if as_json else sys.stdout,
        )
        for note in result.notes:
            print(f"  {note}", file=sys.stderr if as_json else sys.stdout)


def run(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    command = typer.main.get_command(app)
    try:
        status = command.main(arguments, prog_name="aiocp", standalone_mode=False)
        sys.stdout.flush()
        return int(status or Exit.DONE)
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
