"""The I/O priority of a thread: idle, while it copies for somebody who is in no hurry."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from aiocp.linux import set_io_priority

_IDLE = 3 << 13  # IOPRIO_CLASS_IDLE, of which there are no levels: ioprio_set(2)


@contextmanager
def lowered(*, idle: bool) -> Iterator[tuple[str, ...]]:
    """Have this thread, and those that it starts meanwhile, use the disk when nobody else does, if
    they are to be `idle`. Gives what there is to say of it: why it could not be had."""
    if not idle:
        yield ()
        return
    try:
        before = set_io_priority(_IDLE)
    except OSError as error:  # a seccomp profile
        yield (f"not idle: {error.strerror}",)
        return
    try:
        yield ()
    finally:
        with suppress(OSError):  # a real-time one, that is only root's to give
            set_io_priority(before)
