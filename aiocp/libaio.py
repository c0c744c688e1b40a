"""The binding: libaio's functions by their own names, Python values in and out.

The real library and the real static inlines of its header, compiled by cffi. A negative return is
raised as `OSError(errno, strerror)`. The classic program, as in libaio's io(3):

    >>> import os, tempfile
    >>> from aiocp.libaio import *
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = os.path.join(directory, "greeting")
    ...     fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    ...     ctx = io_setup(10)
    ...     iocb = Iocb()
    ...     io_prep_pwrite(iocb, fd, b"hello", 0)
    ...     iocb.data = "any object"
    ...     taken = io_submit(ctx, [iocb])
    ...     while not (events := io_getevents(ctx, 1, 1, timeout=0.5)):
    ...         pass  # half a second has gone by
    ...     print(taken, events[0].data, events[0].obj is iocb, events[0].res)
    ...     print(os.pread(fd, 100, 0))
    ...     os.close(fd)
    ...     io_destroy(ctx)
    1 any object True 5
    b'hello'

What the kernel may touch lives until its event is reaped, whatever the caller drops: the context
holds what was submitted to it, and a context that is dropped is destroyed, which waits for what is
in flight, before its buffers go. An iocb in flight cannot be changed, prepared or submitted again
(`ValueError`), a destroyed context not be used (`ValueError`), nor one in a forked child of its
process (`RuntimeError`). Buffers stay exported, so a bytearray cannot be resized (`BufferError`),
from the prep until the event is reaped or the iocb prepared again.

Several threads may use one context, and signal handlers follow PEP 475. None of it needs a lock.
CPython runs signal handlers and other threads only at calls, at function entry and at the end of a
loop's turn, so lines below that have none of these are one step; the comments say which.
"""

from __future__ import annotations

import math
import os
import select
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from errno import EAGAIN, EBUSY, EINTR, EINVAL
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from aiocp._libaio import ffi, lib

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike, ReadableBuffer, WriteableBuffer

    Callback = Callable[["Context", "Iocb", int, int], object]

__all__ = [
    "IOCB_FLAG_IOPRIO",
    "IOCB_FLAG_RESFD",
    "IO_CMD_FDSYNC",
    "IO_CMD_FSYNC",
    "IO_CMD_NOOP",
    "IO_CMD_POLL",
    "IO_CMD_PREAD",
    "IO_CMD_PREADV",
    "IO_CMD_PWRITE",
    "IO_CMD_PWRITEV",
    "POLLERR",
    "POLLHUP",
    "POLLIN",
    "POLLMSG",
    "POLLNVAL",
    "POLLOUT",
    "POLLPRI",
    "POLLRDBAND",
    "POLLRDHUP",
    "POLLRDNORM",
    "POLLWRBAND",
    "POLLWRNORM",
    "RWF_APPEND",
    "RWF_ATOMIC",
    "RWF_DONTCACHE",
    "RWF_DSYNC",
    "RWF_HIPRI",
    "RWF_NOAPPEND",
    "RWF_NOWAIT",
    "RWF_SYNC",
    "Context",
    "Event",
    "Iocb",
    "io_cancel",
    "io_destroy",
    "io_fdsync",
    "io_fsync",
    "io_getevents",
    "io_pgetevents",
    "io_poll",
    "io_prep_fdsync",
    "io_prep_fsync",
    "io_prep_poll",
    "io_prep_pread",
    "io_prep_preadv",
    "io_prep_preadv2",
    "io_prep_pwrite",
    "io_prep_pwritev",
    "io_prep_pwritev2",
    "io_queue_init",
    "io_queue_release",
    "io_queue_run",
    "io_set_callback",
    "io_set_eventfd",
    "io_setup",
    "io_submit",
]

IO_CMD_PREAD: Final[int] = lib.IO_CMD_PREAD
IO_CMD_PWRITE: Final[int] = lib.IO_CMD_PWRITE
IO_CMD_FSYNC: Final[int] = lib.IO_CMD_FSYNC
IO_CMD_FDSYNC: Final[int] = lib.IO_CMD_FDSYNC
IO_CMD_POLL: Final[int] = lib.IO_CMD_POLL
IO_CMD_NOOP: Final[int] = lib.IO_CMD_NOOP
IO_CMD_PREADV: Final[int] = lib.IO_CMD_PREADV
IO_CMD_PWRITEV: Final[int] = lib.IO_CMD_PWRITEV

# include/uapi/linux/fs.h, with the kernel that brought each; headers in use may be older
RWF_HIPRI: Final = 0x01  # 4.13
RWF_DSYNC: Final = 0x02  # 4.13
RWF_SYNC: Final = 0x04  # 4.13
RWF_NOWAIT: Final = 0x08  # 4.13
RWF_APPEND: Final = 0x10  # 4.16
RWF_NOAPPEND: Final = 0x20  # 6.9
RWF_ATOMIC: Final = 0x40  # 6.11
RWF_DONTCACHE: Final = 0x80  # 6.14

# include/uapi/linux/aio_abi.h
IOCB_FLAG_RESFD: Final = 1 << 0
IOCB_FLAG_IOPRIO: Final = 1 << 1

POLLIN: Final = select.POLLIN
POLLPRI: Final = select.POLLPRI
POLLOUT: Final = select.POLLOUT
POLLERR: Final = select.POLLERR
POLLHUP: Final = select.POLLHUP
POLLNVAL: Final = select.POLLNVAL
POLLRDNORM: Final = select.POLLRDNORM
POLLRDBAND: Final = select.POLLRDBAND
POLLWRNORM: Final = select.POLLWRNORM
POLLWRBAND: Final = select.POLLWRBAND
POLLMSG: Final = select.POLLMSG
POLLRDHUP: Final = select.POLLRDHUP

_READS = (IO_CMD_PREAD, IO_CMD_PREADV)
_FLAT = (IO_CMD_PREAD, IO_CMD_PWRITE)
_VECTORED = (IO_CMD_PREADV, IO_CMD_PWRITEV)


class Event(NamedTuple):
    """A completion: `res` is a byte count, a poll mask, or a negative errno; `res2` always 0."""

    data: Any
    obj: Iocb
    res: int
    res2: int


class _Memory:
    """Buffers kept in place for the kernel, flat (`buf` one object) or vectored (a tuple).

    `lent` holds the buffers' exports and the iovecs. Whoever may let the kernel touch them keeps a
    reference to it, so nothing is ever freed by a decision, only by the last reference. It is None
    when the event was reaped.
    """

    __slots__ = ("address", "buf", "lent", "limit", "vectored")

    def __init__(self, buf: Any, writable: bool) -> None:
        self.buf = buf
        self.vectored = isinstance(buf, tuple)
        buffers = buf if self.vectored else () if buf is None else (buf,)
        exports = [ffi.from_buffer(buffer, require_writable=writable) for buffer in buffers]
        if self.vectored:
            self.address = ffi.new("struct iovec[]", [(export, len(export)) for export in exports])
            self.limit = len(exports)
        else:
            self.address = exports[0] if exports else ffi.NULL
            self.limit = len(exports[0]) if exports else 0
        self.lent: Any = (exports, self.address)


def _field(name: str, doc: str, *, common: bool = False) -> property:
    """A field of `struct iocb` that cannot lead the kernel to memory: freely set while idle."""

    def struct(iocb: Iocb) -> Any:
        c = iocb._prepared[0]
        return lib.iocb_common(c) if common else c

    def get(iocb: Iocb) -> int:
        return int(getattr(struct(iocb), name))

    def put(iocb: Iocb, value: int) -> None:
        iocb._check_idle()
        setattr(struct(iocb), name, value)

    return property(get, put, doc=doc)


class Iocb:
    """One I/O operation, to be prepared by an `io_prep_*` function, then submitted.

    The attributes are those of `struct iocb` (io_submit(2)); each can be set while the iocb is not
    in flight, else `ValueError`. As in C, preparing sets all of them. After its event is reaped it
    can be submitted again as it is.
    """

    # `_prepared` is replaced, never changed in what leads to memory: whoever has taken both parts
    # in one step can hand them to the kernel, whatever other threads do to the iocb.
    __slots__ = ("__weakref__", "_data", "_prepared", "_submitted")

    _prepared: tuple[Any, _Memory]  # the struct iocb, the memory it points to
    _submitted: dict[Any, _Submission]  # where `_prepared` is in flight if it is

    key = _field("key", "Set by the kernel, to check `io_cancel`.")
    aio_rw_flags = _field("aio_rw_flags", "`RWF_*` flags.")
    aio_reqprio = _field("aio_reqprio", "The I/O priority, with `IOCB_FLAG_IOPRIO` in `flags`.")
    aio_fildes = _field("aio_fildes", "The file descriptor.")
    offset = _field("offset", "The position in the file, in bytes.", common=True)
    flags = _field("flags", "`IOCB_FLAG_*` flags.", common=True)
    resfd = _field("resfd", "The eventfd, with `IOCB_FLAG_RESFD` in `flags`.", common=True)

    def __init__(self) -> None:
        self._submitted = {}
        self._install(ffi.new("struct iocb *"), _Memory(None, writable=False))

    def _install(self, c: Any, memory: _Memory) -> None:
        self._prepared = (c, memory)
        self._data: Any = None

    def _check_idle(self) -> None:
        if self._prepared[0] in self._submitted:
            raise ValueError("this iocb is in flight")

    def _change(self, opcode: int, buf: Any, nbytes: int) -> None:
        """Take what leads the kernel to memory, if that lets it reach only the held buffers."""
        self._check_idle()
        c = ffi.new("struct iocb *", self._prepared[0][0])
        common = lib.iocb_common(c)
        try:
            memory = _Memory(buf, writable=opcode in _READS)
        except (TypeError, BufferError) as error:
            raise ValueError(f"opcode {opcode} cannot use this buffer: {error}") from error
        if buf is not None and opcode in (_FLAT if memory.vectored else _VECTORED):
            raise ValueError(
                f"opcode {opcode} takes {'one buffer' if memory.vectored else 'a tuple'}"
            )
        if not 0 <= nbytes <= memory.limit:
            raise ValueError(f"nbytes {nbytes} is not within 0 to {memory.limit}")
        c.aio_lio_opcode = opcode
        if opcode != IO_CMD_POLL:  # whose mask is in the place of buf
            common.buf = memory.address
        common.nbytes = nbytes
        self._prepared = (c, memory)

    @property
    def data(self) -> Any:
        """Any object, handed back in the `Event`; the callback for `io_queue_run`."""
        return self._data

    @data.setter
    def data(self, data: Any) -> None:
        self._check_idle()
        self._data = data

    @property
    def aio_lio_opcode(self) -> int:
        """An `IO_CMD_*`; to be set only to one that `buf` is good for, else `ValueError`."""
        return int(self._prepared[0].aio_lio_opcode)

    @aio_lio_opcode.setter
    def aio_lio_opcode(self, opcode: int) -> None:
        self._change(opcode, self.buf, self.nbytes)

    @property
    def buf(self) -> Any:
        """The buffer, for a vectored operation the tuple of buffers, or None.

        To be set only to what the opcode can use and holds `nbytes`, else `ValueError`.
        """
        return self._prepared[1].buf

    @buf.setter
    def buf(self, buf: ReadableBuffer | Sequence[ReadableBuffer] | None) -> None:
        self._change(self.aio_lio_opcode, tuple(buf) if isinstance(buf, list) else buf, self.nbytes)

    @property
    def nbytes(self) -> int:
        """How many bytes of `buf`, for a vectored operation how many buffers of it, to transfer.

        To be set only to at most as many as there are, else `ValueError`.
        """
        return int(lib.iocb_common(self._prepared[0]).nbytes)

    @nbytes.setter
    def nbytes(self, nbytes: int) -> None:
        self._change(self.aio_lio_opcode, self.buf, nbytes)


class _Submission(NamedTuple):
    """What lives until the event is reaped."""

    iocb: Iocb
    memory: _Memory
    lent: Any
    data: Any


class Context:
    """An AIO context, made by `io_setup`; a context manager whose exit destroys it.

    `maxevents` is what was asked for. `ring_entries` is how many completions the kernel's ring
    holds, read from the ring; None where it is not one we know.
    """

    maxevents: int
    ring_entries: int | None

    _c: Any = None
    _submitted: dict[Any, _Submission]  # what the kernel may touch, by the struct iocb
    _batches: dict[Any, None]  # what it hands back in raw events, batch by batch
    _reaped: list[Event]  # what the next call gives

    def __new__(cls, maxevents: int) -> Self:
        # From here on the context is destroyed, whatever is raised.
        c = ffi.gc(lib.context_new(), lib.context_free)
        if not c:
            raise MemoryError
        _check(lib.context_setup(c, maxevents))
        self = super().__new__(cls)
        self._c = c
        self.maxevents = maxevents
        self.ring_entries = int(lib.ring_entries(c.ctx)) or None
        self._submitted = {}
        self._batches = {}
        self._reaped = []
        if self.ring_entries is not None and self.ring_entries < maxevents:
            io_destroy(self)
            raise OSError(
                EAGAIN, f"the kernel's ring holds {self.ring_entries} of {maxevents} events"
            )
        return self

    @property
    def closed(self) -> bool:
        """Whether it was destroyed."""
        return bool(self._c.calls < 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.closed:
            io_destroy(self)

    # A destructor because only it runs before the buffers go, cycles included (PEP 442). Its names
    # are bound here: at exit the module's may be gone.
    def __del__(
        self,
        _getpid: Callable[[], int] = os.getpid,
        _destroy: Callable[[Any], int] = lib.context_destroy,
        _warn: Callable[..., None] = warnings.warn,
    ) -> None:
        if self._c is None or self._c.pid != _getpid() or self.closed:
            return
        try:
            _warn(f"context not destroyed: {self!r}", ResourceWarning, source=self)
        finally:
            _destroy(self._c)

    def _usable(self) -> Any:
        """The C struct, if the context is this process's and not destroyed."""
        if self._c.pid != os.getpid():
            raise RuntimeError(
                f"this context belongs to process {self._c.pid}, of which this one is a fork"
            )
        if self.closed:
            raise ValueError("this context was destroyed")
        return self._c

    def _check(self, result: int) -> int:
        """Raise what a call has returned as a negative errno."""
        if result < 0 and self.closed:
            raise ValueError("this context was destroyed")
        return _check(result)

    def _reap(self, min_nr: int, nr: int, timeout: Any, sigmask: Any) -> int:
        """Reap from the kernel into `_reaped`; libaio's answer."""
        c = self._usable()
        batch = ffi.new("struct aiocp_batch *", {"n": -1, "events": nr})
        self._batches[batch] = None  # before the kernel fills it
        result: int = lib.context_getevents(c, min_nr, nr, batch, timeout, sigmask)
        self._collect()
        return result

    def _collect(self) -> None:
        """Turn raw events into `_reaped` ones: this call's and what interrupted ones have left."""
        reaped, submitted = self._reaped, self._submitted
        for batch in list(self._batches):
            while (done := batch.done) < batch.n:
                raw = batch.events[done]
                obj = raw.obj
                iocb, memory, _, data = submitted[obj]  # one step from `done` on
                event = Event(data, iocb, raw.res, raw.res2)
                if batch.done == done < batch.n:  # one step: still ours to do, and done
                    del submitted[obj]
                    memory.lent = None
                    reaped += [event]
                    batch.done = done + 1
            if batch.n >= 0:  # its call has returned
                self._batches.pop(batch, None)

    def _forget(self) -> None:
        """Let go of everything: the kernel has."""
        for batch in list(self._batches):
            batch.n = 0
        self._batches.clear()
        self._submitted.clear()
        self._reaped.clear()


def io_setup(maxevents: int) -> Context:
    """Create a context for at least `maxevents` operations in flight (io_setup(2)).

    Raises `OSError`: EINVAL for less than 1, EAGAIN beyond /proc/sys/fs/aio-max-nr, ENOSYS or
    EPERM where there is no AIO.
    """
    return Context(maxevents)


def io_queue_init(maxevents: int) -> Context:
    """Create a context: `io_setup`, which makes the check that libaio's makes first."""
    return Context(maxevents)


def io_destroy(ctx: Context) -> None:
    """Wait for everything in flight (poll is cancelled) and destroy the context (io_destroy(2)).

    Takes some 30 ms even when idle. Events that were not fetched are gone; every iocb is idle.
    Raises `RuntimeError` while another thread is inside a call on the context.
    """
    c = ctx._usable()
    try:
        result = lib.context_destroy(c)
    finally:
        if not c.ctx:
            ctx._forget()
    if result == -EBUSY:
        raise RuntimeError("another thread is inside a call on this context")
    _check(result)


def io_queue_release(ctx: Context) -> None:
    """Destroy the context: `io_destroy`."""
    io_destroy(ctx)


def io_submit(ctx: Context, iocbs: Iterable[Iocb]) -> int:
    """Submit prepared iocbs; return how many of them, from the first on, were taken.

    Taking only some is normal: submit the others again, after reaping if need be. Raises `OSError`
    when the first is refused (io_submit(2)): EAGAIN (reap, then submit again), EBADF (a bad file
    descriptor or the wrong mode), EINVAL (an opcode, flag, offset or file that AIO does not do).
    Raises `ValueError` for an iocb that is in flight or comes twice.
    """
    c = ctx._usable()
    submissions: dict[Any, _Submission] = {}
    for iocb in iocbs:
        iocb._check_idle()
        if iocb._prepared[1].lent is None:
            iocb.buf = iocb.buf
        struct, memory = iocb._prepared
        if struct in submissions:
            raise ValueError("an iocb comes twice")
        submissions[struct] = _Submission(iocb, memory, memory.lent, iocb.data)
    ios = ffi.new("struct iocb *[]", list(submissions))
    taken = ffi.new("int *")  # set in C, so known whatever is raised on return
    try:
        # Registered before the call, because another thread may reap before it returns.
        for struct, submission in submissions.items():
            if ctx._submitted.setdefault(struct, submission) is not submission:
                raise ValueError("this iocb is in flight")
            submission.iocb._submitted = ctx._submitted
        result = lib.context_submit(c, len(submissions), ios, taken)
    finally:
        for struct, submission in list(submissions.items())[taken[0] :]:
            if ctx._submitted.get(struct) is submission:
                del ctx._submitted[struct]
    return ctx._check(result)


def io_getevents(ctx: Context, min_nr: int, nr: int, timeout: float | None = None) -> list[Event]:
    """Fetch at least `min_nr` and at most `nr` events (io_getevents(2)).

    Fewer than `min_nr` come only when `timeout`, in seconds, is over; None waits for ever. A
    signal's handler runs and the wait goes on (PEP 475); what the handler raises loses no event.
    Raises `OSError` EINVAL unless 0 <= min_nr <= nr.
    """
    return _getevents(ctx, min_nr, nr, timeout, ffi.NULL)


def io_pgetevents(
    ctx: Context,
    min_nr: int,
    nr: int,
    timeout: float | None = None,
    sigmask: Iterable[int] | None = None,
) -> list[Event]:
    """Fetch events as `io_getevents` does, with the signals in `sigmask`, and only these, blocked.

    `sigmask` holds for this thread and this call; None leaves the mask alone. Linux 4.18.
    """
    return _getevents(ctx, min_nr, nr, timeout, ffi.NULL if sigmask is None else _sigset(sigmask))


def _getevents(
    ctx: Context, min_nr: int, nr: int, timeout: float | None, sigmask: Any
) -> list[Event]:
    if not 0 <= min_nr <= nr:
        _check(-EINVAL)
    reaped = ctx._reaped
    deadline = None if timeout is None else time.monotonic_ns() + _nanoseconds(timeout)
    while True:
        left = ffi.NULL
        if deadline is not None:
            left = _timespec(max(0, deadline - time.monotonic_ns()))
        room = max(0, min(nr - len(reaped), ctx.ring_entries or ctx.maxevents))
        result = ctx._reap(max(0, min(min_nr - len(reaped), room)), room, left, sigmask)
        if result != -EINTR:
            ctx._check(result)
        expired = deadline is not None and time.monotonic_ns() >= deadline
        if expired or len(reaped) >= min_nr:
            # To the end one step: what is taken is returned.
            events = reaped[:nr]
            del reaped[:nr]
            return events


def io_cancel(ctx: Context, iocb: Iocb) -> None:
    """Try to cancel an operation in flight (io_cancel(2)); its event comes by `io_getevents`.

    Raises `OSError`: EINPROGRESS when the cancellation is under way, which is how the kernel
    answers for a poll; EINVAL for what cannot be cancelled, all file I/O, or is not in flight.
    """
    ctx._check(lib.context_cancel(ctx._usable(), iocb._prepared[0]))


def io_queue_run(ctx: Context) -> int:
    """Call `callback(ctx, iocb, res, res2)` for every event there is; return how many.

    The callback is the iocb's `data`, set by `io_set_callback`. What one raises propagates, and the
    other events stay. Raises `TypeError` at an event that has none; `io_getevents` fetches it.
    """
    # Not libaio's own, which calls C functions and could not stop at an exception.
    ctx._usable()
    reaped, count = ctx._reaped, 0
    while True:
        if not reaped:
            result = ctx._reap(0, 1, _timespec(0), ffi.NULL)
            if result != -EINTR:
                ctx._check(result)
        if not reaped:
            return count
        event = reaped[0]
        callback = event.data
        if not callable(callback):
            raise TypeError(f"the data of this event is no callback: {callback!r}")
        if reaped and reaped[0] is event:  # one step to the callback: still there, and taken
            del reaped[0]
            callback(ctx, event.obj, event.res, event.res2)
            count += 1


def io_prep_pread(iocb: Iocb, fd: FileDescriptorLike, buffer: WriteableBuffer, offset: int) -> None:
    """Prepare to read from byte `offset` on into `buffer`, as many bytes as it holds (pread(2)).

    `buffer` is any writable contiguous one (else `TypeError` or `BufferError`), not copied. With
    O_DIRECT its address, its length and `offset` have to be aligned, or the event says -EINVAL.
    """
    _prep(iocb, lib.io_prep_pread, fd, buffer, offset)


def io_prep_pwrite(iocb: Iocb, fd: FileDescriptorLike, buffer: ReadableBuffer, offset: int) -> None:
    """Prepare to write `buffer` at byte `offset` (pwrite(2)); see `io_prep_pread`."""
    _prep(iocb, lib.io_prep_pwrite, fd, buffer, offset)


def io_prep_preadv(
    iocb: Iocb, fd: FileDescriptorLike, buffers: Iterable[WriteableBuffer], offset: int
) -> None:
    """Prepare to read into one buffer after the other (preadv(2)), at most 1024 of them."""
    _prep(iocb, lib.io_prep_preadv, fd, tuple(buffers), offset)


def io_prep_pwritev(
    iocb: Iocb, fd: FileDescriptorLike, buffers: Iterable[ReadableBuffer], offset: int
) -> None:
    """Prepare to write one buffer after the other (pwritev(2)), at most 1024 of them."""
    _prep(iocb, lib.io_prep_pwritev, fd, tuple(buffers), offset)


def io_prep_preadv2(
    iocb: Iocb, fd: FileDescriptorLike, buffers: Iterable[WriteableBuffer], offset: int, flags: int
) -> None:
    """Prepare as `io_prep_preadv` does, with `RWF_*` flags (preadv2(2))."""
    _prep(iocb, lib.io_prep_preadv2, fd, tuple(buffers), offset, flags)


def io_prep_pwritev2(
    iocb: Iocb, fd: FileDescriptorLike, buffers: Iterable[ReadableBuffer], offset: int, flags: int
) -> None:
    """Prepare as `io_prep_pwritev` does, with `RWF_*` flags (pwritev2(2))."""
    _prep(iocb, lib.io_prep_pwritev2, fd, tuple(buffers), offset, flags)


def io_prep_poll(iocb: Iocb, fd: FileDescriptorLike, events: int) -> None:
    """Prepare to wait for any of `events`, a mask of `POLL*` (poll(2)). Linux 4.19.

    `res` of the event is the mask of what is ready.
    """
    _prep(iocb, lib.io_prep_poll, fd, None, events)


def io_prep_fsync(iocb: Iocb, fd: FileDescriptorLike) -> None:
    """Prepare to sync a file or directory (fsync(2)). Linux 4.18.

    It covers the writes that are complete, not those in flight with it.
    """
    _prep(iocb, lib.io_prep_fsync, fd, None)


def io_prep_fdsync(iocb: Iocb, fd: FileDescriptorLike) -> None:
    """Prepare to sync a file's data (fdatasync(2)); see `io_prep_fsync`."""
    _prep(iocb, lib.io_prep_fdsync, fd, None)


def io_set_callback(iocb: Iocb, callback: Callback | None) -> None:
    """Have `io_queue_run` call `callback(ctx, iocb, res, res2)`; it takes the place of `data`."""
    iocb.data = callback


def io_set_eventfd(iocb: Iocb, eventfd: FileDescriptorLike) -> None:
    """Have the kernel add 1 to `eventfd` (eventfd(2)) on completion."""
    iocb._check_idle()
    lib.io_set_eventfd(iocb._prepared[0], _fileno(eventfd))


# These three are not the header's inlines, which store a C function and submit in one go.


def io_poll(
    ctx: Context, iocb: Iocb, callback: Callback | None, fd: FileDescriptorLike, events: int
) -> int:
    """Do `io_prep_poll`, `io_set_callback` and `io_submit`, and return its answer."""
    io_prep_poll(iocb, fd, events)
    io_set_callback(iocb, callback)
    return io_submit(ctx, [iocb])


def io_fsync(ctx: Context, iocb: Iocb, callback: Callback | None, fd: FileDescriptorLike) -> int:
    """Do `io_prep_fsync`, `io_set_callback` and `io_submit`, and return its answer."""
    io_prep_fsync(iocb, fd)
    io_set_callback(iocb, callback)
    return io_submit(ctx, [iocb])


def io_fdsync(ctx: Context, iocb: Iocb, callback: Callback | None, fd: FileDescriptorLike) -> int:
    """Do `io_prep_fdsync`, `io_set_callback` and `io_submit`, and return its answer."""
    io_prep_fdsync(iocb, fd)
    io_set_callback(iocb, callback)
    return io_submit(ctx, [iocb])


def _prep(
    iocb: Iocb, prep: Callable[..., None], fd: FileDescriptorLike, buf: Any, *arguments: int
) -> None:
    """Fill a new `struct iocb` by libaio's `prep`, then make it the iocb's."""
    iocb._check_idle()
    memory = _Memory(buf, writable=prep in _READERS)
    span = () if buf is None else (memory.address, memory.limit)
    c = ffi.new("struct iocb *")
    prep(c, _fileno(fd), *span, *arguments)
    iocb._install(c, memory)


_READERS = (lib.io_prep_pread, lib.io_prep_preadv, lib.io_prep_preadv2)


def _fileno(fd: FileDescriptorLike) -> int:
    return fd if isinstance(fd, int) else fd.fileno()


def _check(result: int) -> int:
    """Raise what libaio has returned as a negative errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _nanoseconds(seconds: float) -> int:
    """Rounded up, as PEP 475's functions do, so as not to wake too early."""
    if seconds < 0:
        raise ValueError("timeout must be non-negative")
    return math.ceil(seconds * 1_000_000_000)


def _timespec(nanoseconds: int) -> Any:
    return ffi.new("struct timespec *", divmod(nanoseconds, 1_000_000_000))


def _sigset(signals: Iterable[int]) -> Any:
    mask = ffi.new("sigset_t *")
    lib.sigemptyset(mask)
    for signum in signals:
        if lib.sigaddset(mask, signum) < 0:
            raise ValueError(f"not a signal: {signum}")
    return mask


class Slots:
    """One AIO context with `nr` slots: an iocb, an iovec and a block of buffer each.

    The engine's lean path: nothing is allocated per block, and the methods called once per block
    are the C functions of `struct aiocp_slots` bound to it, unchecked: a slot must be below `nr`
    and queued or in flight once, `skip + length` within the block. All counts live in the struct.

    `perform` does the first of the queue with the plain system call, in place of `submit`: 1
    completion, or -EINTR. `unmap` gives the buffers' memory back; `close` does too, and destroys
    the context, which waits for what is in flight. Not to be used in a forked child (compare
    `pid`), where the buffers are not mapped.
    """

    __slots__ = (
        "_getevents",
        "_res",
        "_slot",
        "_slots",
        "_zero",
        "close",
        "drain",
        "perform",
        "pid",
        "prep_fdsync",
        "prep_fsync",
        "prep_preadv",
        "prep_pwritev",
        "submit",
        "unmap",
    )

    def __init__(self) -> None:
        # From here on the struct is freed, and what it holds with it, whatever is raised.
        slots: Any = ffi.gc(lib.slots_new(), lib.slots_free)
        if not slots:
            raise MemoryError
        self._slots = slots
        self._zero = ffi.new("struct timespec *")
        self.pid = os.getpid()
        self.prep_preadv = partial(lib.slots_prep_preadv, slots)
        self.prep_pwritev = partial(lib.slots_prep_pwritev, slots)
        self.prep_fsync = partial(lib.slots_prep_fsync, slots)
        self.prep_fdsync = partial(lib.slots_prep_fdsync, slots)
        self.submit = partial(lib.slots_submit, slots)
        self.perform = partial(lib.slots_perform, slots)
        self.unmap = partial(lib.slots_unmap, slots)
        self.drain = partial(lib.slots_drain, slots)
        self.close = partial(lib.slots_close, slots)
        self._getevents = partial(lib.slots_getevents, slots)

    def setup(self, maxevents: int) -> None:
        """Create the context, or raise as `io_setup` does: without one, only `perform` works."""
        _check(lib.slots_setup(self._slots, maxevents))

    def resize(self, nr: int, block_size: int) -> None:
        """Have at least `nr` slots of `block_size` bytes; EBUSY while anything is in flight."""
        _check(lib.slots_resize(self._slots, nr, block_size))
        self._slot, self._res = self._slots.slot, self._slots.res

    @property
    def nr(self) -> int:
        return int(self._slots.nr)

    @property
    def maxevents(self) -> int:
        return int(self._slots.maxevents)

    @property
    def block_size(self) -> int:
        return int(self._slots.block_size)

    @property
    def in_flight(self) -> int:
        return int(self._slots.in_flight)

    @property
    def queued(self) -> int:
        return int(self._slots.queued)

    @property
    def peak(self) -> int:
        return int(self._slots.peak)

    @property
    def mapped(self) -> int:
        """Bytes of buffer."""
        return int(self._slots.mapped)

    def getevents(self, min_nr: int, timeout: float | None) -> int:
        """Reap; the number of completions, or a negative errno. `timeout` in seconds."""
        if timeout is None:
            left = ffi.NULL
        elif not timeout:
            left = self._zero
        else:
            left = _timespec(_nanoseconds(timeout))
        result: int = self._getevents(min_nr, left)
        return result

    def completions(self, n: int) -> list[tuple[int, int]]:
        """The `n` completions just reaped, as (slot, res)."""
        return list(zip(ffi.unpack(self._slot, n), ffi.unpack(self._res, n), strict=True))

    def buffer(self, slot: int, start: int = 0, length: int | None = None) -> Any:
        """The block of `slot` from `start` on, not to be used past a `resize` or `close`."""
        size = self._slots.block_size
        if length is None:
            length = size - start
        if not (0 <= slot < self._slots.nr and 0 <= start <= start + length <= size):
            raise ValueError(f"no bytes {start} to {start + length} in slot {slot}")
        return ffi.buffer(self._slots.buffers + slot * size + start, length)
