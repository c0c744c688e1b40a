"""What the options ask for: names paired, the environment asked, contradictions refused."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aiocp import arguments
from aiocp.asked import which_pace
from aiocp.backup import METHODS, NONE, SUFFIX, Backups
from aiocp.metadata import WHERE_POSSIBLE
from aiocp.operands import How
from aiocp.options import Options, UsageError

_SELINUX = "/sys/fs/selinux"

_METHODS = {
    **{method: method for method in METHODS},
    "off": "none",
    "t": "numbered",
    "nil": "existing",
    "never": "simple",
}
_UPDATES = {update: update for update in ("all", "none", "none-fail", "older")}


def request(options: Options, **asked: Any) -> tuple[How, list[tuple[str, str]]]:
    """How to copy, and what, each with its new name.

    `asked` are what `How` calls, and `cancel`. Raises UsageError.
    """
    pairs = _pairs(options)
    how = _how(options, **asked)
    _refuse(options, how)
    if options.context:
        _without_context(options.context, how)
    if how.backup and _is_itself(options, *pairs[0]):
        # a copy of a file to itself with a backup can only mean a copy under the backup's name
        return how._replace(backup=None), [(options.operands[0], _backup_of(how, pairs[0][0]))]
    return how, pairs


def _how(options: Options, *, cancel: object, **asked: Any) -> How:
    return How(
        recursive=_walks(options),
        follow=_followed(options),
        preserve=_preserved(options.preserve or []),
        link="hard" if options.link else "symbolic" if options.symbolic_link else None,
        backup=_backup(options),
        copy_contents=options.copy_contents,
        keep_directory_symlink=options.keep_directory_symlink,
        parents=(options.target or options.operands[-1]) if options.parents else None,
        update=_one_of("--update", options.update, _UPDATES),  # type: ignore[arg-type]
        existing="keep" if options.no_clobber else "ask" if options.interactive else "replace",
        common={
            **{
                name: value
                for name, value in (("depth", options.depth), ("block_size", options.block_size))
                if value is not None  # else each has its own default
            },
            "sparse": options.sparse,
            "reflink": options.reflink,
            "sync": options.sync,
            "verify": options.verify,
            "checksum": None if options.checksum is None else options.checksum.algorithm,
            "resume": options.resume,
            "allow_changed": options.allow_changed,
            "remove_destination": options.remove_destination,
            "attributes_only": options.attributes_only,
            "force": options.force,
            "bwlimit": which_pace(options.bwlimit),  # one for all operands
            "idle": options.idle,
            "cancel": cancel,
        },
        file={"direct": options.direct, "in_place": options.in_place},
        tree={
            "one_file_system": options.one_file_system,
            "exclude": _naming([*_lines(options.exclude_from or []), *(options.exclude or [])]),
            "include": _naming(options.include or []),
            "files": None if options.files_from is None else _listed(options),
            "recursive": options.recursive,
        },
        **asked,
    )


def _refuse(options: Options, how: How) -> None:
    """Raise UsageError for options that contradict each other."""
    if options.plot is not None:
        raise UsageError("--plot draws what --probe has measured: it goes with that")
    if options.link and options.symbolic_link:
        raise UsageError("cannot make both hard and symbolic links")
    if how.backup and how.keeps_all:
        raise UsageError("--backup excludes -n, --update=none and --update=none-fail")
    if _walks(options) and (options.in_place or options.direct != "auto"):
        raise UsageError("--in-place and --direct are for single files, not for -r")
    if options.null and options.files_from is None:
        raise UsageError("--null is for --files-from")
    if options.interactive and "-" in (options.files_from or []):
        raise UsageError("--files-from=- leaves -i no answers to read")
    if options.reflink == "always" and options.sparse != "auto":
        words = f"--reflink=always goes with --sparse=auto, not --sparse={options.sparse}"
        raise UsageError(words)
    if options.verify and not options.sync:
        raise UsageError("--verify reads what is on the disk: it excludes --no-sync")
    if options.checksum and (options.attributes_only or how.link):
        raise UsageError("--checksum is of contents: it excludes --attributes-only, --link and -s")
    if options.resume and (not options.sync or options.in_place):
        raise UsageError("--resume excludes --no-sync and --in-place")
    if options.dask is not None and options.bwlimit is not None:
        raise UsageError("--bwlimit is kept by one machine: it excludes --dask")
    if options.dask is not None and options.in_place:
        raise UsageError("--in-place excludes --dask")
    if options.in_place and (how.backup or how.link or how.removes):
        raise UsageError("--in-place excludes --backup, --link, -s and --remove-destination")


def _without_context(contexts: list[str], how: How) -> None:
    """Do as cp does with -Z and --context where there is no SELinux; raise UsageError where it is.

    There the library of SELinux would have to say which context is whose.
    """
    if os.path.exists(_SELINUX):
        raise UsageError("-Z and --context are not for where SELinux is: restorecon(8) does it")
    if any(contexts):
        how.warn("ignoring --context; it requires an SELinux-enabled kernel")


def _walks(options: Options) -> bool:
    """Whether what is in directories is copied."""
    return options.recursive or options.archive or options.files_from is not None


def _followed(options: Options) -> Any:
    """Which symbolic links are followed: "none", "operands" or "all"."""
    if options.no_links:
        return "none"
    if options.operand_links:
        return "operands"
    return "all" if options.all_links or options.link or not _walks(options) else "none"


def _preserved(lists: list[str]) -> frozenset[str]:
    try:
        kept = arguments.preserved(lists)
    except ValueError as error:
        raise UsageError(f"invalid value for '--preserve': {error}") from None
    if "context" in kept and WHERE_POSSIBLE not in kept and not os.path.exists(_SELINUX):
        raise UsageError("cannot preserve a security context without SELinux in the kernel")
    return kept


def _one_of(option: str, value: str, meanings: Mapping[str, str]) -> str:
    try:
        return arguments.in_full(value, meanings)
    except ValueError as error:
        raise UsageError(f"invalid value for '{option}': {error}") from None


# --- backups ---


def _backup(options: Options) -> tuple[str, bytes] | None:
    """How to make backups, as the options and the environment have it; None for not at all."""
    if options.backup is None and options.suffix is None:
        return None
    given = [method for method in options.backup or [] if method]  # -b has none, and keeps one
    if given:
        method = _one_of("--backup", given[-1], _METHODS)
    else:
        variable = "VERSION_CONTROL"
        method = _one_of(f"${variable}", os.environ.get(variable) or "existing", _METHODS)
    suffix = options.suffix
    if suffix is None:
        suffix = os.environ.get("SIMPLE_BACKUP_SUFFIX", "")
    if not suffix or "/" in suffix:
        suffix = SUFFIX
    return None if method == NONE else (method, os.fsencode(suffix))


def _is_itself(options: Options, source: str, destination: str) -> bool:
    named = options.target is None and options.operands == [source, destination]
    return options.force and named and source == destination and os.path.isfile(source)


def _backup_of(how: How, path: str) -> str:
    """The path of the next backup of a file."""
    assert how.backup is not None
    directory, name = os.path.split(path)
    fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        backup = Backups(*how.backup).name(fd, os.fsencode(name))
    finally:
        os.close(fd)
    return os.path.join(directory, os.fsdecode(backup))


# --- names ---


def _pairs(options: Options) -> list[tuple[str, str]]:
    """What is to be copied, each with its new name."""
    operands, target = options.operands, options.target
    sources, last = (operands[:-1], operands[-1]) if target is None else (operands, target)
    if not sources:
        raise UsageError(f"missing argument 'DST' after {last!r}")
    if options.no_target and target is not None:
        raise UsageError("--target-directory and --no-target-directory exclude each other")
    if options.no_target and len(sources) > 1:
        raise UsageError(f"extra argument {operands[2]!r}")
    if options.files_from is not None:
        return [_roots(options, sources, last)]
    if options.no_target or not os.path.isdir(last):
        if options.parents:
            raise UsageError("with --parents, the destination must be a directory")
        if target is not None or len(sources) > 1:
            raise UsageError(f"target {last!r} is not a directory")
        return [(sources[0], last)]
    if options.strip:  # here only, as in cp
        sources = [source.rstrip("/") or source[:1] for source in sources]
    if options.parents:
        return [(source, os.path.join(last, source.strip("/"))) for source in sources]
    return [(source, os.path.join(last, _own_name(source))) for source in sources]


def _roots(options: Options, sources: list[str], last: str) -> tuple[str, str]:
    """The two directories below which the names of --files-from are, links to them followed."""
    if len(sources) > 1 or options.parents:
        raise UsageError("--files-from takes one SRC, and excludes --parents")
    return os.path.join(sources[0], ""), os.path.join(last, "") if os.path.isdir(last) else last


def _own_name(source: str) -> str:
    """The name of a copy in a directory: that of "..", as with cp, is the directory's own."""
    name = os.path.basename(source.rstrip("/"))
    return name if name not in ("", "..") else "."


def _listed(options: Options) -> list[bytes]:
    """The names that --files-from is given."""
    names: list[bytes] = []
    for file in options.files_from or []:
        try:
            with open(0 if file == "-" else file, "rb", closefd=file != "-") as opened:
                names += opened.read().split(b"\0" if options.null else b"\n")
        except OSError as error:
            raise UsageError(f"cannot read {file!r}: {error.strerror}") from None
    return list(filter(None, names))


def _lines(files: list[str]) -> Iterator[str]:
    for file in files:
        try:
            with open(file, errors="surrogateescape") as opened:
                yield from opened.read().splitlines()
        except OSError as error:
            raise UsageError(f"cannot read {file!r}: {error.strerror}") from None


def _naming(patterns: list[str]) -> Callable[[bytes, bool], bool] | None:
    """What tells whether patterns, if there are any, name a path."""
    if not patterns:
        return None
    from pathspec import GitIgnoreSpec

    spec = GitIgnoreSpec.from_lines(patterns)

    def named(path: bytes, is_directory: bool) -> bool:
        return spec.match_file(os.fsdecode(path) + "/" * is_directory)

    return named
