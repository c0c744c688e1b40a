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

Several threads may use one context, and signal handlers follow PEP 475. None of it needs a lock,
which an exception in a handler could leave held. CPython runs handlers and other threads only at
calls, on entering a function, at the end of a loop's turn and, through the garbage collector, when
it allocates a container or frees an object. Lines that do none of this are one step: the comments
say which.
"""

from __future__ import annotations

import math
import os
import select
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from errno import EAGAIN, EBUSY, EINTR, EINVAL
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from aiocp._libaio import ffi, lib

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike, ReadableBuffer, WriteableBuffer

    Callback = Callable[["Context", "Iocb", int, int], object]

# cffi builds types on first use and aborts when threads do that at the same time: do it now.
for _name in dir(lib):
    getattr(lib, _name)
for _name in (
    "aiocp_batch",
    "aiocp_context",
    "io_event",
    "io_iocb_common",
    "iocb",
    "iovec",
    "timespec",
):
    _fields = ffi.typeof(f"struct {_name}").fields

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

    `lent` holds what the kernel may touch, first what an iocb points to, then the buffers' exports.
    Whoever may let the kernel touch it keeps a reference, so nothing is ever freed by a decision,
    only by the last reference. It is None when the event was reaped.
    """

    __slots__ = ("buf", "lent", "limit")

    def __init__(self, opcode: int, buf: Any) -> None:
        vectored = isinstance(buf, tuple)
        if buf is not None and opcode in (_FLAT if vectored else _VECTORED):
            raise TypeError(f"opcode {opcode} takes {'one buffer' if vectored else 'a tuple'}")
        buffers = buf if vectored else () if buf is None else (buf,)
        writable = opcode in _READS
        exports = [ffi.from_buffer(buffer, require_writable=writable) for buffer in buffers]
        target = exports[0] if exports else ffi.NULL
        self.limit = len(exports[0]) if exports else 0
        if vectored:
            target = ffi.new("struct iovec[]", [(export, len(export)) for export in exports])
            self.limit = len(exports)
        self.buf = buf
        self.lent: Any = (target, exports)


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
    __slots__ = ("__weakref__", "_data", "_ledger", "_prepared")

    _prepared: tuple[Any, _Memory]  # the struct iocb, the memory it points to
    _ledger: _Ledger  # that of the context it was last submitted to

    key = _field("key", "Set by the kernel, to check `io_cancel`.")
    aio_rw_flags = _field("aio_rw_flags", "`RWF_*` flags.")
    aio_reqprio = _field("aio_reqprio", "The I/O priority, with `IOCB_FLAG_IOPRIO` in `flags`.")
    aio_fildes = _field("aio_fildes", "The file descriptor.")
    offset = _field("offset", "The position in the file, in bytes.", common=True)
    flags = _field("flags", "`IOCB_FLAG_*` flags.", common=True)
    resfd = _field("resfd", "The eventfd, with `IOCB_FLAG_RESFD` in `flags`.", common=True)

    def __init__(self) -> None:
        self._ledger = _NOWHERE
        self._prepared = (ffi.new("struct iocb *"), _Memory(IO_CMD_NOOP, None))
        self._data: Any = None

    def _check_idle(self) -> None:
        c, submitted = self._prepared[0], self._ledger.submitted
        if c in submitted:  # from here on one step
            submission = submitted[c]
            if submission.place < submission.taken[0]:
                raise ValueError("this iocb is in flight")
            del submitted[c]  # an interrupted io_submit has left it

    def _change(self, opcode: int, buf: Any, nbytes: int) -> None:
        """Take what leads the kernel to memory, if that lets it reach only the held buffers."""
        self._check_idle()
        try:
            memory = _Memory(opcode, buf)
        except (TypeError, BufferError) as error:
            raise ValueError(f"opcode {opcode} cannot use this buffer: {error}") from error
        if not 0 <= nbytes <= memory.limit:
            raise ValueError(f"nbytes {nbytes} is not within 0 to {memory.limit}")
        c = ffi.new("struct iocb *", self._prepared[0][0])
        c.aio_lio_opcode = opcode
        self._point(c, memory, nbytes)

    def _point(self, c: Any, memory: _Memory, nbytes: int) -> None:
        """Point a new struct iocb to its memory and make it this iocb's."""
        common = lib.iocb_common(c)
        if c.aio_lio_opcode != IO_CMD_POLL:  # which has its mask in the place of buf
            common.buf = memory.lent[0]
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
    place: int  # in the io_submit; in flight if among those taken
    taken: Any  # how many were, `_UNKNOWN` until known


class _Ledger:
    """What a context keeps from one call to the next."""

    __slots__ = ("batches", "reaped", "submitted")

    def __init__(self) -> None:
        self.submitted: dict[Any, _Submission] = {}  # what the kernel may touch, by the iocb
        self.batches: dict[Any, None] = {}  # what it hands back in raw events
        self.reaped: list[Event] = []  # what the next call gives


_NOWHERE = _Ledger()
_UNKNOWN = (1 << 31) - 1


class Context:
    """An AIO context, made by `io_setup`; a context manager whose exit destroys it.

    `maxevents` is what was asked for. `ring_entries` is how many completions the kernel's ring
    holds, read from the ring; None where it is not one we know.
    """

    maxevents: int
    ring_entries: int | None

    _c: Any = None
    _ledger: _Ledger

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
        self._ledger = _Ledger()
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
            self._ledger.submitted = {}  # the iocbs that are still there are idle

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
        """Reap from the kernel into the ledger; libaio's answer."""
        c = self._usable()
        batch = ffi.new("struct aiocp_batch *", {"n": -1, "events": nr})
        self._ledger.batches[batch] = None  # before the kernel fills it
        result: int = lib.context_getevents(c, min_nr, nr, batch, timeout, sigmask)
        self._collect()
        return result

    def _collect(self) -> None:
        """Turn raw events into reaped ones: this call's and what interrupted ones have left."""
        ledger = self._ledger
        submitted, batches, reaped = ledger.submitted, ledger.batches, ledger.reaped
        for batch in list(batches):
            n = batch.n  # once: C sets it, whatever thread runs here; -1 until then
            while True:
                done = batch.done  # to the next call one step
                if done >= n:
                    break
                obj = batch.events[done].obj
                submission = submitted[obj]
                raw = batch.events[done]
                event = [Event(submission.data, submission.iocb, raw.res, raw.res2)]
                if batch.done == done:  # nobody else has done it; from here on one step
                    del submitted[obj]
                    submission.memory.lent = None
                    reaped += event
                    batch.done = done + 1
            if n >= 0:
                batches.pop(batch, None)


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
    c, ledger = ctx._usable(), ctx._ledger
    try:
        result = lib.context_destroy(c)
    finally:
        if not c.ctx:  # the kernel has let go
            new: Any = ({}, {}, [])
            old = (ledger.submitted, ledger.batches, ledger.reaped)  # so the next frees nothing
            ledger.submitted, ledger.batches, ledger.reaped = new  # one step
            del old
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
    c, submitted = ctx._usable(), ctx._ledger.submitted
    submissions: dict[Any, _Submission] = {}
    taken = ffi.new("int *", _UNKNOWN)  # set in C, so known whatever is raised on return
    for place, iocb in enumerate(iocbs):
        iocb._check_idle()
        struct, memory = iocb._prepared
        while (lent := memory.lent) is None:  # reaped: take the buffers anew
            iocb.buf = iocb.buf
            struct, memory = iocb._prepared
        if struct in submissions:
            raise ValueError("an iocb comes twice")
        submissions[struct] = _Submission(iocb, memory, lent, iocb.data, place, taken)
    ios = ffi.new("struct iocb *[]", list(submissions))
    try:
        # Entered before the call, because another thread may reap before it returns.
        for struct, submission in submissions.items():
            if submitted.setdefault(struct, submission) is not submission:
                raise ValueError("this iocb is in flight")
            submission.iocb._ledger = ctx._ledger
        result = lib.context_submit(c, len(submissions), ios, taken)
    finally:
        if taken[0] == _UNKNOWN:  # the call was not made
            taken[0] = 0
        for struct, submission in list(submissions.items())[taken[0] :]:
            if struct in submitted and submitted[struct] is submission:  # one step
                del submitted[struct]
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
    reaped = ctx._ledger.reaped
    deadline = None if timeout is None else time.monotonic_ns() + _nanoseconds(timeout)
    ctx._collect()  # before waiting for what an interrupted call may have left
    while True:
        left = ffi.NULL
        if deadline is not None:
            left = _timespec(max(0, deadline - time.monotonic_ns()))
        room = max(0, min(nr - len(reaped), ctx.ring_entries or ctx.maxevents))
        result = ctx._reap(max(0, min(min_nr - len(reaped), room)), room, left, sigmask)
        if result != -EINTR:
            ctx._check(result)
        expired = deadline is not None and time.monotonic_ns() >= deadline
        events = [*reaped]
        del events[nr:]
        head = slice(len(events))
        if expired or len(events) >= min_nr:
            if not events:
                return events
            if reaped and reaped[0] is events[0]:  # no other thread has; one step to the end
                del reaped[head]
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
    count = 0
    while True:
        reaped = ctx._ledger.reaped
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
        if reaped and reaped[0] is event:  # no other thread has; one step to the callback
            del reaped[0]
            callback(ctx, event.obj, event.res, event.res2)
            count += 1


def io_prep_pread(iocb: Iocb, fd: FileDescriptorLike, buffer: WriteableBuffer, offset: int) -> None:
    """Prepare to read from byte `offset` on into `buffer`, as many bytes as it holds (pread(2)).

    `buffer` is any writable contiguous one (else `TypeError` or `BufferError`), not copied. With
    O_DIRECT its address, its length and `offset` have to be aligned, or the event says -EINVAL.
    """
    _prep_buffer(iocb, lib.io_prep_pread, fd, buffer, offset)


def io_prep_pwrite(iocb: Iocb, fd: FileDescriptorLike, buffer: ReadableBuffer, offset: int) -> None:
    """Prepare to write `buffer` at byte `offset` (pwrite(2)); see `io_prep_pread`."""
    _prep_buffer(iocb, lib.io_prep_pwrite, fd, buffer, offset)


def io_prep_preadv(
    iocb: Iocb, fd: FileDescriptorLike, buffers: Iterable[WriteableBuffer], offset: int
) -> None:
    """Prepare to read into one buffer after the other (preadv(2)), at most 1024 of them."""
    _prep_buffer(iocb, lib.io_prep_preadv, fd, tuple(buffers), offset)


def io_prep_pwritev(
    iocb: Iocb, fd: FileDescriptorLike, buffers: Iterable[ReadableBuffer], offset: int
) -> None:
    """Prepare to write one buffer after the other (pwritev(2)), at most 1024 of them."""
    _prep_buffer(iocb, lib.io_prep_pwritev, fd, tuple(buffers), offset)


def io_prep_preadv2(
    iocb: Iocb, fd: FileDescriptorLike, buffers: Iterable[WriteableBuffer], offset: int, flags: int
) -> None:
    """Prepare as `io_prep_preadv` does, with `RWF_*` flags (preadv2(2))."""
    _prep_buffer(iocb, lib.io_prep_preadv2, fd, tuple(buffers), offset, flags)


def io_prep_pwritev2(
    iocb: Iocb, fd: FileDescriptorLike, buffers: Iterable[ReadableBuffer], offset: int, flags: int
) -> None:
    """Prepare as `io_prep_pwritev` does, with `RWF_*` flags (pwritev2(2))."""
    _prep_buffer(iocb, lib.io_prep_pwritev2, fd, tuple(buffers), offset, flags)


def io_prep_poll(iocb: Iocb, fd: FileDescriptorLike, events: int) -> None:
    """Prepare to wait for any of `events`, a mask of `POLL*` (poll(2)). Linux 4.19.

    `res` of the event is the mask of what is ready.
    """
    _prep(iocb, lib.io_prep_poll, fd, events)


def io_prep_fsync(iocb: Iocb, fd: FileDescriptorLike) -> None:
    """Prepare to sync a file or directory (fsync(2)). Linux 4.18.

    It covers the writes that are complete, not those in flight with it.
    """
    _prep(iocb, lib.io_prep_fsync, fd)


def io_prep_fdsync(iocb: Iocb, fd: FileDescriptorLike) -> None:
    """Prepare to sync a file's data (fdatasync(2)); see `io_prep_fsync`."""
    _prep(iocb, lib.io_prep_fdsync, fd)


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


def _prep(iocb: Iocb, prep: Callable[..., None], fd: FileDescriptorLike, *arguments: int) -> None:
    """Prepare by libaio's `prep` what takes no buffer."""
    iocb._check_idle()
    c = ffi.new("struct iocb *")
    prep(c, _fileno(fd), *arguments)
    iocb._point(c, _Memory(c.aio_lio_opcode, None), 0)
    iocb.data = None


def _prep_buffer(
    iocb: Iocb, prep: Callable[..., None], fd: FileDescriptorLike, buf: Any, *arguments: int
) -> None:
    """Prepare by libaio's `prep`, then point to the buffer as its opcode needs it."""
    if buf is None:
        raise TypeError("a buffer is needed, not None")
    iocb._check_idle()
    c = ffi.new("struct iocb *")
    prep(c, _fileno(fd), ffi.NULL, 0, *arguments)
    memory = _Memory(c.aio_lio_opcode, buf)
    iocb._point(c, memory, memory.limit)
    iocb.data = None


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
