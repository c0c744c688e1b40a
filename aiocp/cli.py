"""The command line: arguments to options, errors to messages and exit codes."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from aiocp import arguments
from aiocp.context import MAX_DEPTH
from aiocp.copier import (
    DEFAULT_BLOCK_SIZE,
    DEFAULT_DEPTH,
    CopyResult,
    check_block_size,
    check_depth,
)
from aiocp.errors import Cancelled
from aiocp.metadata import WHERE_POSSIBLE
from aiocp.operands import How, Operands

if TYPE_CHECKING:
    from aiocp.tree_copier import TreeResult

    Result = CopyResult | TreeResult

UsageError: Any = typer.BadParameter.__base__  # click's, wherever this typer keeps it

EPILOG = "Exit status: 0 everything is copied and on the disk, 1 something is not, 2 wrong usage."
HOW = ("auto", "always", "never")
UPDATES = ("all", "none", "older")


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


def _how(text: str) -> str:
    """One of the three values of several options, or what abbreviates it."""
    found = [how for how in HOW if how.startswith(text)]
    if len(found) != 1:
        raise typer.BadParameter(f"takes {', '.join(HOW)}, not {text!r}")
    return found[0]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"aiocp {version('aiocp')}")
        raise typer.Exit


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


# panels of --help
COPYING, KEEPING, EXISTING, TRANSFER, OUTPUT = (
    "What is copied",
    "What is kept",
    "What is there already",
    "How it is carried",
    "What is said",
)


def _flag(panel: str, words: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=words, rich_help_panel=panel, **more)


@app.command(epilog=EPILOG, no_args_is_help=False)
def aiocp(
    operands: Annotated[
        list[str],
        typer.Argument(metavar="SRC... DST", help="What to copy, and its new name or directory."),
    ],
    recursive: Annotated[
        bool, _flag(COPYING, "Directories with all that is in them.", "-r", "-R", "--recursive")
    ] = False,
    archive: Annotated[bool, _flag(COPYING, "-rP --preserve=all", "-a", "--archive")] = False,
    no_links: Annotated[
        bool, _flag(COPYING, "Symbolic links as links: default with -r.", "-P", "--no-dereference")
    ] = False,
    all_links: Annotated[
        bool, _flag(COPYING, "What they point to: default without -r.", "-L", "--dereference")
    ] = False,
    operand_links: Annotated[
        bool, _flag(COPYING, "What they point to, for each SRC itself only.", "-H")
    ] = False,
    one_file_system: Annotated[
        bool, _flag(COPYING, "Go into no other file systems.", "-x", "--one-file-system")
    ] = False,
    exclude: Annotated[
        list[str] | None,
        _flag(COPYING, "Not these, as in .gitignore, below SRC.", "--exclude", metavar="PATTERN"),
    ] = None,
    exclude_from: Annotated[
        list[str] | None,
        _flag(COPYING, "Not what a file's lines name.", "--exclude-from", metavar="FILE"),
    ] = None,
    target: Annotated[
        str | None,
        _flag(COPYING, "The directory to copy into.", "-t", "--target-directory", metavar="DIR"),
    ] = None,
    no_target: Annotated[
        bool,
        _flag(COPYING, "DST is never a directory to copy into.", "-T", "--no-target-directory"),
    ] = False,
    strip: Annotated[
        bool,
        _flag(
            COPYING,
            "Take slashes off the ends of SRC, if DST is a directory.",
            "--strip-trailing-slashes",
        ),
    ] = False,
    preserve: Annotated[
        list[str] | None,
        _flag(
            KEEPING,
            "Of mode, ownership, timestamps (these if there is no list), links, context, xattr,"
            " all.",
            "--preserve",
            metavar="[=LIST]",
        ),
    ] = None,
    no_preserve: Annotated[
        list[str] | None, _flag(KEEPING, "Not these.", "--no-preserve", metavar="LIST")
    ] = None,
    usual: Annotated[bool, _flag(KEEPING, "--preserve=mode,ownership,timestamps", "-p")] = False,
    links: Annotated[bool, _flag(KEEPING, "-P --preserve=links", "-d")] = False,
    no_clobber: Annotated[
        bool, _flag(EXISTING, "Leave existing files alone.", "-n", "--no-clobber")
    ] = False,
    interactive: Annotated[
        bool, _flag(EXISTING, "Ask before replacing one.", "-i", "--interactive")
    ] = False,
    update: Annotated[
        str,
        _flag(
            EXISTING,
            "Replace all, none, or (-u) older ones.",
            "-u",
            "--update",
            metavar="[=all|none|older]",
            show_default=False,
        ),
    ] = "all",
    force: Annotated[
        bool,
        _flag(
            EXISTING, "Replace what may not be opened; write to devices in use.", "-f", "--force"
        ),
    ] = False,
    remove_destination: Annotated[
        bool, _flag(EXISTING, "Make new files, also for links.", "--remove-destination")
    ] = False,
    in_place: Annotated[
        bool, _flag(EXISTING, "Write into the file, do not replace it.", "--in-place")
    ] = False,
    depth: Annotated[
        Any,
        _flag(TRANSFER, "Blocks in flight, 1 to 65536.", "--depth", metavar="N", parser=_depth),
    ] = str(DEFAULT_DEPTH),
    block_size: Annotated[
        Any,
        _flag(
            TRANSFER,
            "Bytes per block: 4096, 64K, 1M, 1MiB.",
            "--block-size",
            metavar="SIZE",
            parser=_block_size,
        ),
    ] = f"{DEFAULT_BLOCK_SIZE >> 20}M",
    direct: Annotated[
        Any,
        _flag(
            TRANSFER,
            "O_DIRECT: auto (where possible), always, never.",
            "--direct",
            metavar="HOW",
            parser=_how,
        ),
    ] = HOW[0],
    sparse: Annotated[
        Any,
        _flag(
            TRANSFER,
            "Holes: auto (where SRC has them), always (for zeroes too), never.",
            "--sparse",
            metavar="WHEN",
            parser=_how,
        ),
    ] = HOW[0],
    reflink: Annotated[
        Any,
        _flag(
            TRANSFER,
            "Share SRC's blocks: auto (where possible), always (also without WHEN), never.",
            "--reflink",
            metavar="[=WHEN]",
            parser=_how,
        ),
    ] = HOW[0],
    sync: Annotated[
        bool, _flag(TRANSFER, "Exit when it is on the disk, or as cp does.", "--sync/--no-sync")
    ] = True,
    allow_changed: Annotated[
        bool, _flag(TRANSFER, "Accept a source that changes meanwhile.", "--allow-changed")
    ] = False,
    progress: Annotated[
        bool | None,
        _flag(OUTPUT, "A bar; by default on a terminal only.", "--progress/--no-progress"),
    ] = None,
    verbose: Annotated[
        bool, _flag(OUTPUT, "Say what was copied, and how.", "-v", "--verbose")
    ] = False,
    as_json: Annotated[
        bool, _flag(OUTPUT, "One JSON object for each SRC copied.", "--json")
    ] = False,
    version: Annotated[
        bool, _flag(OUTPUT, "Print the version.", "--version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Copy SRC to DST, or each SRC into the directory DST, through Linux AIO.

    Exit status 0 means that the copy is whole, in place and on the disk.
    """
    # archive, usual, links and no_preserve have become other options: see arguments.MEANS
    pairs = _pairs(operands, target, no_target, strip)
    if recursive and (in_place or direct != "auto"):
        raise UsageError("--in-place and --direct are for single files, not for -r")
    if reflink == "always" and sparse != "auto":
        raise UsageError(f"--reflink=always goes with --sparse=auto, not --sparse={sparse}")
    if update not in UPDATES:
        raise UsageError(
            f"invalid value for '--update': takes {', '.join(UPDATES)}, not {update!r}"
        )
    signals = Signals()
    status = Exit.DONE

    def complain(error: OSError) -> None:
        nonlocal status
        _complain(error)
        status = Exit.NOT_COPIED

    run = Operands(
        How(
            recursive=recursive,
            follow="none"
            if no_links
            else "operands"
            if operand_links
            else "all"
            if all_links or not recursive
            else "none",
            preserve=_preserved(preserve or []),
            update=update,  # type: ignore[arg-type] # looked at above
            existing="keep" if no_clobber else "ask" if interactive else "replace",
            one_file_system=one_file_system,
            exclude=_excluded(exclude, exclude_from) if exclude or exclude_from else None,
            ask=_ask,
            warn=lambda words: print(f"aiocp: warning: {words}", file=sys.stderr),
            on_error=complain,
            common={
                "depth": depth,
                "block_size": block_size,
                "sparse": sparse,
                "reflink": reflink,
                "sync": sync,
                "allow_changed": allow_changed,
                "remove_destination": remove_destination,
                "force": force,
                "cancel": signals,
            },
            file={"direct": direct, "in_place": in_place},
        )
    )
    copy: Callable[[str, str], Result | None] = run.copy
    if progress or (progress is None and sys.stderr.isatty()):
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
            raise typer.Exit(signals.status()) from None
        else:
            if result is not None:
                _report(result, verbose, as_json)
    raise typer.Exit(status)


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
        holes = f", {result.holes:,} of them holes," if result.holes else ""
        yield (
            f"  {result.size:,} bytes{holes} in {result.elapsed:.3f} s,"
            f" {result.rate / 1e6:,.0f} MB/s,"
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
    command = typer.main.get_command(app)
    known = [
        *command.params,
        *filter(None, [command.get_help_option(command.context_class(command))]),
    ]
    try:
        given = arguments.rewrite(argv, *_options(known))
        status = command.main(given, prog_name="aiocp", standalone_mode=False)
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


def _options(parameters: list[Any]) -> tuple[set[str], set[str]]:
    """The names of all options, and of those that take a value."""
    options = [one for one in parameters if one.param_type_name == "option"]
    names = {name for one in options for name in (*one.opts, *one.secondary_opts)}
    return names, {name for one in options if not one.is_flag for name in one.opts}


def main() -> NoReturn:
    """The entry point of the `aiocp` command.

    Leaves without taking the interpreter down, which would take another 45 ms.
    """
    status = run(sys.argv[1:])
    with suppress(OSError):  # standard output was flushed, and its error reported, by `run`
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
