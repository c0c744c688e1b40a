"""Many copies with one set of buffers and one AIO context."""

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from aiocp import copier, tree_copier
from aiocp.asked import (
    DEFAULT_BLOCK_SIZE,
    DEFAULT_DEPTH,
    Link,
    Progress,
    StrPath,
    check_block_size,
    check_depth,
)
from aiocp.context import Context, Contexts, release
from aiocp.direct import Direct
from aiocp.errors import Cancel
from aiocp.extents import Sparse
from aiocp.hard_links import HardLinks
from aiocp.outcome import Outcome
from aiocp.plan import Plan
from aiocp.reflink import Reflink
from aiocp.result import CopyResult, TreeResult
from aiocp.selection import Test
from aiocp.slots import Slots
from aiocp.tree_options import Replace

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from aiocp.checksum import Algorithm
    from aiocp.pace import Pace


class _OfBoth(TypedDict, total=False):
    sparse: Sparse
    reflink: Reflink
    sync: bool
    verify: bool
    checksum: "Algorithm | None"
    resume: bool
    allow_changed: bool
    force: bool
    preserve: Iterable[str]
    remove_destination: bool
    backup: str
    suffix: str | bytes
    link: Link | None
    attributes_only: bool
    bwlimit: "int | Pace | None"
    idle: bool
    progress: Progress | None
    executor: "Executor | None"
    cancel: Cancel | None


class _OfFiles(TypedDict, total=False):
    direct: Direct
    in_place: bool
    into_directory: bool


class _OfTrees(TypedDict, total=False):
    follow_symlinks: bool
    one_file_system: bool
    exclude: Test | None
    include: Test | None
    files: Iterable[StrPath] | None
    recursive: bool
    replace: Replace | None
    copy_contents: bool
    keep_directory_symlink: bool
    links: HardLinks | None
    plan: Plan | None
    on_entry: Callable[[Outcome], object] | None
    on_error: Callable[[OSError], object] | None
    progress_files: Progress | None
    totals: bool


class FileOptions(_OfBoth, _OfFiles):
    """The options of `copy_file` but `depth` and `block_size`."""


class TreeOptions(_OfBoth, _OfTrees):
    """The options of `copy_tree` but `depth` and `block_size`."""


class Options(_OfBoth, _OfFiles, _OfTrees):
    """Those of both."""


class Copier:
    """Copies files and trees, as often as one likes, with one context and one set of buffers.

        with Copier(depth=64, preserve=("mode",)) as copier:
            copier.copy_file("disk.img", "/backup/disk.img")
            copier.copy_tree("photos", "/backup/photos")

    They are there from the beginning of the `with` statement to its end, depth x block_size bytes.
    What is not given to a copy is as it was given to the Copier. A thread that finds the context in
    use, or a function that a copy calls, copies with another for as long as it takes; and so does a
    forked child.

    Arguments:
        depth: how many blocks are in flight, 1 to 65,536, of files and of trees.
        block_size: bytes per block, a multiple of 4096.
        options: of `copy_file` and `copy_tree`; those that only one of them has are for its copies.

    Raises:
        ValueError: depth or block_size out of range, any other option when a copy is begun; and
            what is done outside the `with` statement, or inside with another one.
        TypeError: neither has such an option.
        OSError: there is no memory for the buffers (by the `with` statement).
    """

    def __init__(
        self,
        *,
        depth: int = DEFAULT_DEPTH,
        block_size: int = DEFAULT_BLOCK_SIZE,
        **options: Unpack[Options],
    ) -> None:
        check_depth(depth)
        check_block_size(block_size)
        for name in options:
            if name not in _FILE_DEFAULTS and name not in _TREE_DEFAULTS:
                raise TypeError(f"Copier() got an unexpected keyword argument {name!r}")
        self._options: dict[str, Any] = {"depth": depth, "block_size": block_size, **options}
        self._kept: deque[Slots] | None = None

    def __enter__(self) -> Self:
        if self._kept is not None:
            raise ValueError("the Copier is in use by another with statement")
        kept: deque[Slots] = deque()
        Context(self._options["depth"], self._options["block_size"], kept=kept).close()
        self._kept = kept
        return self

    def __exit__(self, *_: object) -> None:
        kept, self._kept = self._kept, None
        while kept:
            release(kept.pop())

    def copy_file(self, src: StrPath, dst: StrPath, **options: Unpack[FileOptions]) -> CopyResult:
        """Copy a file: `aiocp.copy_file`, with its options, its result and its errors."""
        contexts = self._contexts()
        arguments = self._arguments(_FILE_DEFAULTS, options)
        link, into_directory = arguments.pop("link"), arguments.pop("into_directory")
        how = copier.prepare(**arguments)._replace(contexts=contexts)
        return how.copy_or_link(src, dst, link, into_directory)

    def copy_tree(self, src: StrPath, dst: StrPath, **options: Unpack[TreeOptions]) -> TreeResult:
        """Copy a directory: `aiocp.copy_tree`, with its options, its result and its errors."""
        contexts = self._contexts()
        arguments = self._arguments(_TREE_DEFAULTS, options)
        return tree_copier.prepare(src, dst, **arguments).copy(contexts)

    def _contexts(self) -> Contexts:
        if self._kept is None:
            raise ValueError("a Copier copies within its with statement")
        return partial(Context, kept=self._kept)

    def _arguments(
        self, defaults: dict[str, Any], options: FileOptions | TreeOptions
    ) -> dict[str, Any]:
        """What a function is given: the options of the call, or those of the Copier that it has."""
        unknown = [name for name in options if name not in defaults]
        if unknown:
            raise TypeError(f"there is no option {unknown[0]!r}")
        own = {name: self._options[name] for name in self._options.keys() & defaults.keys()}
        return {**defaults, **own, **options}


_FILE_DEFAULTS: dict[str, Any] = copier.copy_file.__kwdefaults__ or {}
_TREE_DEFAULTS: dict[str, Any] = tree_copier.copy_tree.__kwdefaults__ or {}
