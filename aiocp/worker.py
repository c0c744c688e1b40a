"""What runs in an executor's workers: one part of a copy after the other, each complete in itself.

fit      once for each copy: this is the coordinator's aiocp, user, source and destination
lease    a part stops when the lease is gone, and so does one that has not begun
done     what is answered is synced
"""

import os
import traceback
from errno import ENOENT, ENOEXEC, EPERM, ESTALE
from time import perf_counter

from aiocp import lease
from aiocp.errors import Cancel, ExecutorFailed, look
from aiocp.linux import File, birth_time
from aiocp.priority import lowered
from aiocp.share import Batch, BatchDone, Depth, Done, Ground, Range, RangeDone, unpack, version

_FIT: set[bytes] = set()  # the tokens of copies for which this process is fit


def name() -> str:
    """What a worker is called: its host and process."""
    return f"{os.uname().nodename}:{os.getpid()}"


def fit(message: bytes) -> str:
    """See that the ground is what the coordinator sees; the worker. Raises ExecutorFailed."""
    ground = unpack(message)
    if not isinstance(ground, Ground):
        raise _unfit(ENOEXEC, f"has aiocp {version()}, which is not the coordinator's")
    _be_fit(ground)
    return name()


def run(message: bytes) -> Done:
    """Do one part. Raises ExecutorFailed, Cancelled, and OSError where none of it was done."""
    try:
        return _run(message)
    except BaseException as error:  # which an executor may keep, with all that its frames have open
        traceback.clear_frames(error.__traceback__)
        raise


def _run(message: bytes) -> Done:
    begun = perf_counter()
    part = unpack(message)
    if part is None or isinstance(part, Ground):
        raise _unfit(ENOEXEC, f"has aiocp {version()}, which is not the coordinator's")
    cancel = lease.Lease(part.ground.lease)
    look(cancel)
    if part.ground.token not in _FIT:
        _be_fit(part.ground)
    with lowered(idle=part.idle):
        what, depth = _copy(part, cancel)
    return Done(name(), perf_counter() - begun, depth, what)


def _copy(part: Batch | Range, cancel: Cancel) -> tuple[BatchDone | RangeDone, Depth]:
    if isinstance(part, Batch):
        from aiocp.part_tree import copy_batch

        return copy_batch(part, cancel)
    from aiocp.range_copy import copy_range

    return copy_range(part, cancel)


def _be_fit(ground: Ground) -> None:
    if (user := os.geteuid()) != ground.user:
        raise _unfit(EPERM, f"runs as user {user}, not {ground.user}")
    source = os.fsdecode(ground.source)
    try:
        with File.open(ground.source, os.O_RDONLY) as file:
            born = os.fstat(file.fileno()).st_ino, birth_time(file.fileno())
    except OSError as error:
        raise _unfit(error.errno, f"cannot open {source!r}: {error.strerror}") from None
    if born != ground.born:
        raise _unfit(ESTALE, f"sees another {source!r}")
    directory = os.fsdecode(os.path.dirname(ground.lease))
    try:
        same = lease.has(ground.lease, ground.token)
    except OSError as error:
        raise _unfit(error.errno, f"does not see the coordinator's {directory!r}") from None
    if not same:
        raise _unfit(ESTALE, f"sees another {directory!r}")
    _FIT.add(ground.token)


def _unfit(errno: int | None, words: str) -> ExecutorFailed:
    return ExecutorFailed(errno or ENOENT, f"worker {name()} {words}")
