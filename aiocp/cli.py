"""The command line: arguments to options, errors to messages and exit codes."""

import json
import os
import re
import signal
import sys
from dataclasses import asdict
from enum import IntEnum
from pathlib import Path
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

UsageError: Any = typer.BadParameter.__base__  # click's, wherever this typer keeps it

EPILOG = "Exit status: 0 everything is copied and on the disk, 1 something is not, 2 wrong usage."
HOW = ("auto", "always", "never")


class Exit(IntEnum):
    """Exit statuses."""

    DONE = 0
    NOT_COPIED = 1
    USAGE = 2
    INTERRUPTED = 128 + signal.SIGINT


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
    sources: Annotated[list[str], typer.Argument(metavar="SRC", help="What to copy.")],
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
    status = Exit.DONE
    for source in sources:
        try:
            result = _copy(source, destination, progress, depth, block_size, direct)
        except OSError as error:
            _complain(error)
            status = Exit.NOT_COPIED
        else:
            _report(result, verbose, as_json)
    raise typer.Exit(status)


def _copy(
    source: str, destination: str, progress: bool | None, depth: int, block_size: int, direct: Any
) -> CopyResult:
    if progress or (progress is None and sys.stderr.isatty()):
        from aiocp.progress import Bar

        with Bar(Path(source).name) as bar:
            return copy_file(
                source,
                destination,
                depth=depth,
                block_size=block_size,
                direct=direct,
                progress=bar.update,
            )
    return copy_file(source, destination, depth=depth, block_size=block_size, direct=direct)


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
        return int(command.main(arguments, prog_name="aiocp", standalone_mode=False) or Exit.DONE)
    except UsageError as error:
        message = error.format_message().rstrip(".")
        print(f"aiocp: {message[0].lower()}{message[1:]}; try 'aiocp --help'", file=sys.stderr)
        return Exit.USAGE
    except KeyboardInterrupt:
        print("aiocp: interrupted", file=sys.stderr)
        return Exit.INTERRUPTED


def main() -> NoReturn:
    """The entry point of the `aiocp` command."""
    sys.exit(run(sys.argv[1:]))
