"""The options of the command: what there is, how it is called, what --help says of it.

Each is declared once, as a field of `Options`. A command line that is in order is read here; what
is not, and --help and --version, is typer's (usage.py), which takes 45 ms to load.
"""

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

from aiocp import arguments
from aiocp.asked import (
    DEFAULT_BLOCK_SIZE,
    DEFAULT_DEPTH,
    MAX_DEPTH,
    check_block_size,
    check_depth,
)

HOW = ("auto", "always", "never")

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class UsageError(Exception):
    """What is wrong with a command line, in words that follow "aiocp: "."""


def parse_size(text: str) -> int:
    """Bytes of "4096", "64K", "1M" or "1MiB"; ValueError for anything else."""
    match = re.fullmatch(r"(\d+)(?:([KMG])(?:iB)?)?", text, re.ASCII)
    if not match:
        raise ValueError(f"takes bytes such as 4096, 64K, 1M or 1MiB, not {text!r}")
    return int(match[1]) * _UNITS[match[2] or ""]


def _block_size(text: str) -> int:
    check_block_size(size := parse_size(text))
    return size


def _depth(text: str) -> int:
    try:
        check_depth(depth := int(text))
    except ValueError:
        raise ValueError(f"takes 1 to {MAX_DEPTH}, not {text!r}") from None
    return depth


def _rate(text: str) -> int:
    from aiocp.pace import check_rate

    check_rate(rate := parse_size(text))
    return rate


class Checksums(NamedTuple):
    """What --checksum asks for: an algorithm, and the file for its lines, None for stdout."""

    algorithm: str
    file: str | None


def _checksum(text: str) -> Checksums:
    from aiocp.checksum import ALGORITHMS

    algorithm, equals, file = text.partition("=")
    if algorithm not in ALGORITHMS or (equals and not file):
        raise ValueError(f"takes {', '.join(ALGORITHMS)}, each also with =FILE, not {text!r}")
    return Checksums(algorithm, file or None)


def _how(text: str) -> str:
    """One of the three values of several options, or what abbreviates it."""
    found = [how for how in HOW if how.startswith(text)]
    if len(found) != 1:
        raise ValueError(f"takes {', '.join(HOW)}, not {text!r}")
    return found[0]


# panels of --help
COPYING, KEEPING, EXISTING, TRANSFER, PROBING, OUTPUT = (
    "What is copied",
    "What is kept",
    "What is there already",
    "How it is carried",
    "Instead of a copy",
    "What is said",
)


class Option(NamedTuple):
    """How an option is called, and what --help says of it.

    `names` are one or several, of a flag that can be taken back as "--sync/--no-sync". `parser`
    makes what the option is of its value's text, or raises ValueError.
    """

    panel: str
    words: str
    names: tuple[str, ...]
    metavar: str | None = None
    parser: Callable[[str], object] | None = None
    show_default: bool = True


def _flag(panel: str, words: str, *names: str, **more: Any) -> Option:
    return Option(panel, words, names, **more)


class Options(NamedTuple):
    """Copy SRC to DST, or each SRC into the directory DST, through Linux AIO.

    Exit status 0 means that the copy is whole, in place and on the disk.
    """

    # usual, links and no_preserve have become other options, and archive partly: see
    # arguments.MEANS
    operands: Annotated[
        list[str],
        _flag("", "What to copy, and its new name or directory.", metavar="SRC... DST"),
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
    include: Annotated[
        list[str] | None,
        _flag(COPYING, "Of files only these, below SRC.", "--include", metavar="PATTERN"),
    ] = None
    files_from: Annotated[
        list[str] | None,
        _flag(
            COPYING,
            "What a file's lines name, below SRC, to the same places below DST.",
            "--files-from",
            metavar="FILE",
        ),
    ] = None
    null: Annotated[
        bool, _flag(COPYING, "The names in it end with NUL, not with a line.", "-0", "--null")
    ] = False
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
    verify: Annotated[
        bool, _flag(TRANSFER, "Read it back from the disk, and compare.", "--verify")
    ] = False
    checksum: Annotated[
        Any,
        _flag(
            TRANSFER,
            "Print what sha256sum (ALGO sha256), b2sum (blake2b) or xxh128sum (xxh128) take with -c"
            " to check the copies; or write it to FILE.",
            "--checksum",
            metavar="ALGO[=FILE]",
            parser=_checksum,
        ),
    ] = None
    resume: Annotated[
        bool,
        _flag(TRANSFER, "Go on where --resume was cut off, and skip what is done.", "--resume"),
    ] = False
    allow_changed: Annotated[
        bool, _flag(TRANSFER, "Accept a source that changes meanwhile.", "--allow-changed")
    ] = False
    bwlimit: Annotated[
        Any,
        _flag(
            TRANSFER,
            "Bytes per second at most, from 4096 on: 500K, 100M.",
            "--bwlimit",
            metavar="RATE",
            parser=_rate,
        ),
    ] = None
    idle: Annotated[bool, _flag(TRANSFER, "Use the disk when nobody else does.", "--idle")] = False
    dask: Annotated[
        str | None,
        _flag(
            TRANSFER,
            "Have a Dask scheduler's workers copy: HOST:PORT, tcp:// or tls://HOST:PORT, or its"
            " file.",
            "--dask",
            metavar="ADDRESS",
        ),
    ] = None
    probe: Annotated[
        str | None,
        _flag(
            PROBING,
            "Measure a directory, or read a device or file, and recommend depth and block size.",
            "--probe",
            metavar="PATH",
        ),
    ] = None
    plot: Annotated[
        str | None,
        _flag(PROBING, "With --probe, a heat map, as PNG.", "--plot", metavar="FILE"),
    ] = None
    progress: Annotated[
        bool | None,
        _flag(
            OUTPUT,
            "A bar, lines where it is no terminal, nothing; by default a bar on one.",
            "--progress/--no-progress",
        ),
    ] = None
    dry_run: Annotated[
        bool, _flag(OUTPUT, "Copy nothing, say what would be copied.", "--dry-run")
    ] = False
    verbose: Annotated[
        bool, _flag(OUTPUT, "Name what is copied, as cp does; a summary.", "-v", "--verbose")
    ] = False
    debug: Annotated[bool, _flag(OUTPUT, "And say how it is copied.", "--debug")] = False
    as_json: Annotated[
        bool, _flag(OUTPUT, "JSON objects: each file as it ends, and a summary.", "--json")
    ] = False
    version: Annotated[bool, _flag(OUTPUT, "Print the version.", "--version")] = False


class Declared(NamedTuple):
    """A field of `Options`: its declaration and its type."""

    field: str
    option: Option
    kind: Any

    @property
    def is_flag(self) -> bool:
        return self.kind in (bool, bool | None)


DECLARED = [
    Declared(field, annotated.__metadata__[0], annotated.__origin__)
    for field, annotated in Options.__annotations__.items()
]


class _Meant(NamedTuple):
    declared: Declared
    on: bool  # what a flag of that name says


def _meanings() -> Iterator[tuple[str, _Meant]]:
    for declared in DECLARED:
        for names in declared.option.names:
            for name, on in zip(names.split("/"), (True, False), strict=False):
                yield name, _Meant(declared, on)


_MEANT = dict(_meanings())
_TYPERS = ("--help", "--install-completion", "--show-completion")
VALUED = {name for name, meant in _MEANT.items() if not meant.declared.is_flag}


def rewrite(argv: list[str]) -> list[str]:
    """The arguments as `read`, and typer, understand them: see arguments.py."""
    return arguments.rewrite(argv, {*_MEANT, *_TYPERS}, VALUED)


def read(given: list[str]) -> Options | None:
    """The options that rewritten arguments give; None where they are not in order."""
    end = given.index("--")
    values: dict[str, Any] = {"operands": given[end + 1 :]}
    for argument in given[:end]:
        if argument.startswith("--"):
            name, equals, text = argument.partition("=")
        else:
            name, text = argument[:2], argument[2:]
            equals = text
        if name not in _MEANT:
            return None
        declared, on = _MEANT[name]
        if bool(equals) == declared.is_flag:
            return None
        if declared.is_flag:
            values[declared.field] = on
        elif declared.kind == list[str] | None:
            values.setdefault(declared.field, []).append(text)
        else:
            try:
                parser = declared.option.parser or str
                values[declared.field] = parser(text)
            except ValueError:
                return None
    if not (values["operands"] or "probe" in values) or values.get("version"):
        return None
    return Options(**values)
