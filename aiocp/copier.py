"""copy_file(): its arguments, and a FileCopier of them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from aiocp import direct
from aiocp.asked import (
    DEFAULT_BLOCK_SIZE,
    DEFAULT_DEPTH,
    Link,
    Progress,
    StrPath,
    check_block_size,
    check_checksum,
    check_depth,
    check_executor,
    check_resume,
    check_verify,
    check_when,
    paced_block_size,
    which_pace,
    which_reflink,
)
from aiocp.backup import NONE, SUFFIX, check_backup
from aiocp.errors import Cancel
from aiocp.extents import Sparse
from aiocp.file_copier import FileCopier
from aiocp.metadata import attributes
from aiocp.reflink import Reflink
from aiocp.result import CopyResult

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from aiocp.checksum import Algorithm
    from aiocp.pace import Pace


def copy_file(
    src: StrPath,
    dst: StrPath,
    *,
    depth: int = DEFAULT_DEPTH,
    block_size: int = DEFAULT_BLOCK_SIZE,
    direct: direct.Direct = "auto",
    sparse: Sparse = "auto",
    reflink: Reflink = "auto",
    sync: bool = True,
    verify: bool = False,
    checksum: "Algorithm | None" = None,
    resume: bool = False,
    in_place: bool = False,
    allow_changed: bool = False,
    force: bool = False,
    preserve: Iterable[str] = (),
    remove_destination: bool = False,
    backup: str = NONE,
    suffix: str | bytes = SUFFIX,
    link: Link | None = None,
    attributes_only: bool = False,
    into_directory: bool = True,
    bwlimit: "int | Pace | None" = None,
    idle: bool = False,
    progress: Progress | None = None,
    executor: "Executor | None" = None,
    cancel: Cancel | None = None,
) -> CopyResult:
    """Copy a file and its mode; on return the copy is whole, in place and on the disk.

    Arguments:
        src: the file to copy, symbolic links followed.
        dst: the new file, or a directory to copy into under the source's name.
        depth: how many blocks are in flight, 1 to 65,536.
        block_size: bytes per block, a multiple of 4096; memory is depth x block_size.
        direct: "auto" takes O_DIRECT where it is possible, "always" fails where it is not, "never"
            copies through the page cache.
        sparse: "auto" makes holes where the source has them, "always" also of its blocks of zeroes,
            "never" writes everything.
        reflink: "auto" shares the source's blocks where the file system can and `sparse` is "auto",
            instead of copying them, "always" fails where it cannot, "never" copies.
        sync: False leaves the copy to the kernel's writeback, as cp does: a power cut can lose it.
        verify: read the copy back from the disk before it gets its name, and see that each block is
            what was read of the source.
        checksum: "sha256", "blake2b" or "xxh128" (XXH3): the digest that is taken of the bytes as
            they are read. Those of holes are read from nowhere, and take their time all the same.
        resume: go on with what an earlier copy that was to be resumed has left when it was stopped,
            killed or cut off, if the source (inode, size, mtime, ctime) is what it was; leave such
            a thing when this one is: next to `dst`, under a hidden name, with a journal. Not for
            what is written in place or cannot be read twice.
        in_place: write into an existing file instead of replacing it by a new one.
        allow_changed: accept a source whose size, mtime or ctime changed while it was copied; what
            it grew by is not copied. A source that shrank is always an error.
        force: write to a block device that is mounted or otherwise in use, and replace a file that
            may not be opened.
        preserve: as for `copy_tree`; "links" makes a new file of one that has several names.
        remove_destination: make a new file in place of what is there, a symbolic link included,
            that has nothing of the old one's owner, mode and attributes.
        backup: make one of what is there, which then is never without a name: "simple" (its name
            and `suffix`), "numbered" (".~1~" and on), "existing" (numbered where there is such a
            one, else simple) or "none". The new file is made as with `remove_destination`.
        link: make another name for the source ("hard") or a symbolic link to it ("symbolic")
            instead of a copy. What is there is replaced only with `force`, `remove_destination` or
            a backup. The path of a symbolic link is `src` as given; a relative one is refused
            unless `dst` is in the current directory.
        attributes_only: carry over what `preserve` names, and no contents: what is there keeps its
            own, a new file is empty.
        into_directory: False: `dst` is the new file's name in any case, even if it is that of a
            link to a directory.
        bwlimit: how many bytes per second are moved at most, from 4096 on, in blocks of an eighth
            of that at most; those that `verify` reads back count too, those that are shared or
            holes do not. Copies that are given the same `aiocp.pace.Pace` share its rate.
        idle: use the disk when nobody else does, as far as its I/O scheduler makes a difference:
            the idle class of ioprio_set(2).
        progress: called as `progress(bytes_done, bytes_total)` while blocks are written;
            bytes_total is 0 while unknown. What it raises stops the copy and propagates.
        executor: whose workers copy a file of 512 MiB or more, each some of it, as for `copy_tree`:
            not where it is digested, or written in place.
        cancel: a `threading.Event`, looked at whenever a block completes; once set, the copy stops.

    Raises:
        OSError: of the subclass that belongs to errno, with both file names; its strerror names the
            operation. An existing destination is as it was unless it was written in place.
        VerificationFailed: an OSError: what is on the disk is not what was read.
        SourceChanged: an OSError: the source shrank or changed while being copied.
        shutil.SameFileError: an OSError: both are one file.
        ExecutorFailed: an OSError: a worker cannot do its part, or the executor itself has failed.
        Cancelled: `cancel` was set; what was there before still is, unless written in place.
        ValueError: depth, block_size, checksum, bwlimit, preserve, backup, suffix or link out of
            range, or `reflink="always"` with another `sparse` than "auto", `verify` or `resume`
            without `sync`, `resume` with `in_place`, `checksum` where no contents are copied,
            `bwlimit` with an executor.
    """
    how = prepare(
        depth=depth,
        block_size=block_size,
        direct=direct,
        sparse=sparse,
        reflink=reflink,
        sync=sync,
        verify=verify,
        checksum=checksum,
        resume=resume,
        in_place=in_place,
        allow_changed=allow_changed,
        force=force,
        preserve=preserve,
        remove_destination=remove_destination,
        backup=backup,
        suffix=suffix,
        attributes_only=attributes_only,
        bwlimit=bwlimit,
        idle=idle,
        progress=progress,
        executor=executor,
        cancel=cancel,
    )
    return how.copy_or_link(src, dst, link, into_directory)


def prepare(
    *,
    depth: int,
    block_size: int,
    direct: direct.Direct,
    sparse: Sparse,
    reflink: Reflink,
    sync: bool,
    verify: bool,
    checksum: "Algorithm | None",
    resume: bool,
    in_place: bool,
    allow_changed: bool,
    force: bool,
    preserve: Iterable[str],
    remove_destination: bool,
    backup: str,
    suffix: str | bytes,
    attributes_only: bool,
    bwlimit: "int | Pace | None",
    idle: bool,
    progress: Progress | None,
    executor: "Executor | None",
    cancel: Cancel | None,
) -> "FileCopier":
    """A copier of these arguments of copy_file(). Raises ValueError."""
    check_depth(depth)
    check_block_size(block_size)
    check_when("direct", direct)
    check_verify(verify, sync)
    check_checksum(checksum, contents=not attributes_only)
    check_resume(resume, sync, in_place)
    check_executor(executor, bwlimit)
    if executor is not None:
        import aiocp.ranges  # noqa: F401 - now, while no file is open
    pace = which_pace(bwlimit)
    return FileCopier(
        depth,
        paced_block_size(block_size, pace),
        direct,
        sparse,
        which_reflink(reflink, sparse),
        sync,
        verify,
        checksum,
        resume,
        in_place,
        allow_changed,
        force,
        attributes(preserve),
        remove_destination,
        check_backup(backup, suffix),
        attributes_only,
        pace,
        idle,
        progress,
        cancel,
        executor,
    )
