"""What can be asked of copy_file() and copy_tree(), and what not."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from aiocp.extents import Sparse
    from aiocp.pace import Pace
    from aiocp.reflink import Reflink

StrPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Link = Literal["hard", "symbolic"]
Progress = Callable[[int, int], object]

# By measurement (scripts/bench --sweep, 2 GiB, ext4 and XFS on loop devices, MiB/s of the whole
# command): blocks of 1M at depth 1, 4, 16, 64, 256 gave 684, 1584, 1555, 1373, 1577 on ext4, and
# 740, 1782, 1581, 1438, 1444 on XFS; at depth 64 blocks of 64K, 256K, 1M, 4M gave 1300, 1303, 1373,
# 1589, and 1337, 1458, 1438, 1435. Flat from 4 MiB in flight on there, from 16 MiB on a slower
# disk; with 5 ms of latency it grows with the depth up to 64 and beyond.
DEFAULT_DEPTH = 64
DEFAULT_BLOCK_SIZE = 1 << 20
MAX_DEPTH = 65_536
BLOCK_SIZE_UNIT = 4096
MAX_BLOCK_SIZE = 1 << 30


def check_depth(depth: int) -> None:
    """Raise ValueError unless this is a depth."""
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"depth must be from 1 to {MAX_DEPTH:,}, not {depth}")


def check_block_size(block_size: int) -> None:
    """Raise ValueError unless this is a block size."""
    if not 1 <= block_size <= MAX_BLOCK_SIZE or block_size % BLOCK_SIZE_UNIT:
        raise ValueError(
            f"block size must be a multiple of {BLOCK_SIZE_UNIT} up to 1 GiB, not {block_size}"
        )


def check_link(link: str | None) -> None:
    """Raise ValueError unless this is None or a kind of link."""
    if link not in (None, "hard", "symbolic"):
        raise ValueError(f"link must be None, 'hard' or 'symbolic', not {link!r}")


def check_verify(verify: bool, sync: bool) -> None:
    """Raise ValueError where nothing would be on the disk to be read back.

    What it takes is loaded now, while no file is open.
    """
    if verify:
        import aiocp.verify  # noqa: F401

        if not sync:
            raise ValueError("verify reads what is on the disk: it goes with sync")


def check_checksum(checksum: str | None, *, contents: bool) -> None:
    """Raise ValueError unless this is None or an algorithm, and `contents` are there to digest.

    What it takes is loaded now, while no file is open.
    """
    if checksum is not None:
        import aiocp.reading  # noqa: F401
        from aiocp.checksum import load

        load(checksum)
        if not contents:
            raise ValueError("checksum is of contents: it goes without attributes_only and link")


def check_resume(resume: bool, sync: bool, in_place: bool) -> None:
    """Raise ValueError where nothing could be gone on with.

    What it takes is loaded now, while no file is open.
    """
    if resume:
        import aiocp.partial  # noqa: F401

        if not sync:
            raise ValueError("resume goes on from what is on the disk: it goes with sync")
        if in_place:
            raise ValueError("resume needs a new file: it does not go with in_place")


def check_executor(executor: "Executor | None", bwlimit: "int | Pace | None") -> None:
    """Raise ValueError where many processes would have to keep one rate."""
    if executor is not None and bwlimit is not None:
        raise ValueError("bwlimit is of one process: it does not go with an executor")


def which_pace(bwlimit: "int | Pace | None") -> "Pace | None":
    """What has blocks wait for a rate. Raises ValueError unless it is one."""
    if bwlimit is None:
        return None
    from aiocp.pace import Pace

    return bwlimit if isinstance(bwlimit, Pace) else Pace(bwlimit)


def paced_block_size(block_size: int, pace: "Pace | None") -> int:
    """The size of the blocks of a copy that has a pace: so many that they come smoothly."""
    return block_size if pace is None else pace.block_size(block_size)


def check_when(name: str, when: str) -> None:
    """Raise ValueError unless this is one of the three that several arguments take."""
    if when not in ("auto", "always", "never"):
        raise ValueError(f"{name} must be 'auto', 'always' or 'never', not {when!r}")


def which_reflink(reflink: "Reflink", sparse: "Sparse") -> "Reflink":
    """When to clone: not where holes are asked for that the source may not have, or none.

    Raises ValueError unless both are what they can be, together.
    """
    check_when("sparse", sparse)
    check_when("reflink", reflink)
    if sparse == "auto":
        return reflink
    if reflink == "always":
        raise ValueError(f"reflink 'always' goes with sparse 'auto', not {sparse!r}")
    return "never"
