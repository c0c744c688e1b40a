"""The options of the command: what there is, how it is called, what --help says of it.

Each is declared once, as a field of `Options`; `parse` makes one of argv, or says what is wrong.
"""

import re
from typing import Annotated, Any, NamedTuple

import typer

from aiocp import arguments
from aiocp.context import MAX_DEPTH
from aiocp.copier import DEFAULT_BLOCK_SIZE, DEFAULT_DEPTH, check_block_size, check_depth

UsageError: Any = typer.BadParameter.__base__  # click's, wherever this typer keeps it

EPILOG = "Exit status: 0 everything is copied and on the disk, 1 something is not, 2 wrong usage."
HOW = ("auto", "always", "never")

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

        typer.echo(f"aiocp {version('aiocp')}")
        raise typer.Exit


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


_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@_app.command("aiocp", epilog=EPILOG, no_args_is_help=False)
class Options(NamedTuple):
    """Copy SRC to DST, or each SRC into the directory DST, through Linux AIO.

    Exit status 0 means that the copy is whole, in place and on the disk.
    """

    # archive, usual, links and no_preserve have become other options: see arguments.MEANS
    operands: Annotated[
        list[str],
        typer.Argument(metavar="SRC... DST", help="What to copy, and its new name or directory."),
    ]
    recursive: Annotated[
        bool, _flag(COPYING, "Directories with all that is in them.", "-r", "-R", "--recursive")
    ] = False
    archive: Annotated[bool, _flag(COPYING, "-rP --preserve=all", "-a", "--archive")] = False
    no_links: Annotated[
        bool, _flag(COPYING, "Symbolic links as links: default with -r.", "-P", "--no-dereference")
    ] = False
    all_links: Annotated[
        bool, _flag(COPYING, "What they point to: default without -r.", "-L", "--dereference")
    ] = False
    operand_links: Annotated[
        bool, _flag(COPYING, "What they point to, for each SRC itself only.", "-H")
    ] = False
    one_file_system: Annotated[
        bool, _flag(COPYING, "Go into no other file systems.", "-x", "--one-file-system")
    ] = False
    link: Annotated[
        bool, _flag(COPYING, "Other names for files instead of copies.", "-l", "--link")
    ] = False
    symbolic_link: Annotated[
        bool, _flag(COPYING, "Symbolic links instead of copies.", "-s", "--symbolic-link")
    ] = False
    copy_contents: Annotated[
        bool, _flag(COPYING, "With -r, what is in FIFOs and devices.", "--copy-contents")
    ] = False
    exclude: Annotated[
        list[str] | None,
        _flag(COPYING, "Not these, as in .gitignore, below SRC.", "--exclude", metavar="PATTERN"),
    ] = None
    exclude_from: Annotated[
        list[str] | None,
        _flag(COPYING, "Not what a file's lines name.", "--exclude-from", metavar="FILE"),
    ] = None
    target: Annotated[
        str | None,
        _flag(COPYING, "The directory to copy into.", "-t", "--target-directory", metavar="DIR"),
    ] = None
    no_target: Annotated[
        bool,
        _flag(COPYING, "DST is never a directory to copy into.", "-T", "--no-target-directory"),
    ] = False
    parents: Annotated[
        bool, _flag(COPYING, "Into DIR/SRC, with the directories above it.", "--parents")
    ] = False
    strip: Annotated[
        bool,
        _flag(
            COPYING,
            "Take slashes off the ends of SRC, if DST is a directory.",
            "--strip-trailing-slashes",
        ),
    ] = False
    preserve: Annotated[
        list[str] | None,
        _flag(
            KEEPING,
            "Of mode, ownership, timestamps (these if there is no list), links, context, xattr,"
            " all.",
            "--preserve",
            metavar="[=LIST]",
        ),
    ] = None
    no_preserve: Annotated[
        list[str] | None, _flag(KEEPING, "Not these.", "--no-preserve", metavar="LIST")
    ] = None
    attributes_only: Annotated[
        bool, _flag(KEEPING, "This, and no contents.", "--attributes-only")
    ] = False
    context: Annotated[
        list[str] | None,
        _flag(KEEPING, "Nothing: for SELinux.", "-Z", "--context", metavar="[=CTX]"),
    ] = None
    usual: Annotated[bool, _flag(KEEPING, "--preserve=mode,ownership,timestamps", "-p")] = False
    links: Annotated[bool, _flag(KEEPING, "-P --preserve=links", "-d")] = False
    no_clobber: Annotated[
        bool, _flag(EXISTING, "Leave existing files alone.", "-n", "--no-clobber")
    ] = False
    interactive: Annotated[
        bool, _flag(EXISTING, "Ask before replacing one.", "-i", "--interactive")
    ] = False
    update: Annotated[
        str,
        _flag(
            EXISTING,
            "Replace all, none, or (-u) older ones; none-fail: none, which is an error.",
            "-u",
            "--update",
            metavar="[=WHICH]",
            show_default=False,
        ),
    ] = "all"
    force: Annotated[
        bool,
        _flag(
            EXISTING, "Replace what may not be opened; write to devices in use.", "-f", "--force"
        ),
    ] = False
    remove_destination: Annotated[
        bool, _flag(EXISTING, "Make new files, also for links.", "--remove-destination")
    ] = False
    backup: Annotated[
        list[str] | None,
        _flag(
            EXISTING,
            "Keep it: none (off), simple (never), numbered (t), or existing (nil), which is"
            " numbered if there are such and else simple.",
            "-b",
            "--backup",
            metavar="[=HOW]",
        ),
    ] = None
    suffix: Annotated[
        str | None,
        _flag(EXISTING, "Of simple backups: ~ by default.", "-S", "--suffix", metavar="SUFFIX"),
    ] = None
    keep_directory_symlink: Annotated[
        bool,
        _flag(EXISTING, "Follow links to directories in a tree.", "--keep-directory-symlink"),
    ] = False
    in_place: Annotated[
        bool, _flag(EXISTING, "Write into the file, do not replace it.", "--in-place")
    ] = False
    depth: Annotated[
        Any,
        _flag(
            TRANSFER,
            f"Blocks in flight, 1 to 65536: by default {DEFAULT_DEPTH}, in trees 256.",
            "--depth",
            metavar="N",
            parser=_depth,
        ),
    ] = None
    block_size: Annotated[
        Any,
        _flag(
            TRANSFER,
            f"Bytes per block: 4096, 64K, 1MiB; by default {DEFAULT_BLOCK_SIZE >> 20}M, in trees"
            " 256K.",
            "--block-size",
            metavar="SIZE",
            parser=_block_size,
        ),
    ] = None
    direct: Annotated[
        Any,
        _flag(
            TRANSFER,
            "O_DIRECT: auto (where possible), always, never.",
            "--direct",
            metavar="HOW",
            parser=_how,
        ),
    ] = HOW[0]
    sparse: Annotated[
        Any,
        _flag(
            TRANSFER,
            "Holes: auto (where SRC has them), always (for zeroes too), never.",
            "--sparse",
            metavar="WHEN",
            parser=_how,
        ),
    ] = HOW[0]
    reflink: Annotated[
        Any,
        _flag(
            TRANSFER,
            "Share SRC's blocks: auto (where possible), always (also without WHEN), never.",
            "--reflink",
            metavar="[=WHEN]",
            parser=_how,
        ),
    ] = HOW[0]
    sync: Annotated[
        bool, _flag(TRANSFER, "Exit when it is on the disk, or as cp does.", "--sync/--no-sync")
    ] = True
    allow_changed: Annotated[
        bool, _flag(TRANSFER, "Accept a source that changes meanwhile.", "--allow-changed")
    ] = False
    progress: Annotated[
        bool | None,
        _flag(OUTPUT, "A bar; by default on a terminal only.", "--progress/--no-progress"),
    ] = None
    verbose: Annotated[
        bool, _flag(OUTPUT, "Name what is copied, as cp does.", "-v", "--verbose")
    ] = False
    debug: Annotated[bool, _flag(OUTPUT, "And say how it is copied.", "--debug")] = False
    as_json: Annotated[bool, _flag(OUTPUT, "One JSON object for each SRC copied.", "--json")] = (
        False
    )
    version: Annotated[
        bool, _flag(OUTPUT, "Print the version.", "--version", callback=_version, is_eager=True)
    ] = False


def parse(argv: list[str]) -> Options | int:
    """The options that argv gives; an exit status where --help or --version was all it asked for.

    Raises UsageError.
    """
    command = typer.main.get_command(_app)
    known = [
        *command.params,
        *filter(None, [command.get_help_option(command.context_class(command))]),
    ]
    given = arguments.rewrite(argv, *_names(known))
    options: Options | int | None = command.main(given, prog_name="aiocp", standalone_mode=False)
    return options or 0


def _names(parameters: list[Any]) -> tuple[set[str], set[str]]:
    """The names of all options, and of those that take a value."""
    options = [one for one in parameters if one.param_type_name == "option"]
    names = {name for one in options for name in (*one.opts, *one.secondary_opts)}
    return names, {name for one in options if not one.is_flag for name in one.opts}
