"""The binding against the real kernel: what each function takes, gives and refuses."""

import array
import errno
import inspect
import mmap
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiocp import _libaio, libaio
from aiocp.libaio import (
    IO_CMD_NOOP,
    IO_CMD_POLL,
    IO_CMD_PREAD,
    IO_CMD_PREADV,
    IO_CMD_PWRITE,
    IO_CMD_PWRITEV,
    IOCB_FLAG_IOPRIO,
    IOCB_FLAG_RESFD,
    POLLHUP,
    POLLIN,
    POLLOUT,
    POLLRDNORM,
    RWF_APPEND,
    RWF_DSYNC,
    RWF_NOWAIT,
    RWF_SYNC,
    Context,
    Event,
    Iocb,
    io_cancel,
    io_destroy,
    io_fdsync,
    io_fsync,
    io_getevents,
    io_pgetevents,
    io_poll,
    io_prep_fdsync,
    io_prep_fsync,
    io_prep_poll,
    io_prep_pread,
    io_prep_preadv,
    io_prep_preadv2,
    io_prep_pwrite,
    io_prep_pwritev,
    io_prep_pwritev2,
    io_queue_init,
    io_queue_release,
    io_queue_run,
    io_set_callback,
    io_set_eventfd,
    io_setup,
    io_submit,
)
from filesystems import mounted, unavailable

CONTENT = bytes(range(256)) * 16


@pytest.fixture
def ctx() -> Iterator[Context]:
    with io_setup(8) as ctx:
        yield ctx


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def never() -> Iterator[int]:
    """An eventfd to poll; it becomes readable when a test writes to it."""
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def polling(fd: int) -> Iocb:
    iocb = Iocb()
    io_prep_poll(iocb, fd, POLLIN)
    return iocb


def reading(fd: int, size: int = 1) -> Iocb:
    iocb = Iocb()
    io_prep_pread(iocb, fd, bytearray(size), 0)
    return iocb


def result(ctx: Context, iocb: Iocb) -> int:
    """Submit one iocb and return the `res` of its event."""
    assert io_submit(ctx, [iocb]) == 1
    (event,) = io_getevents(ctx, 1, 1)
    assert event.obj is iocb
    assert event.res2 == 0
    return event.res


# The module


def test_public_names_are_pinned() -> None:
    """The public names are libaio's own, its constants, and three classes."""
    assert set(libaio.__all__) == {
        *("Context", "Event", "Iocb"),
        *("io_setup", "io_destroy", "io_queue_init", "io_queue_release", "io_queue_run"),
        *("io_submit", "io_getevents", "io_pgetevents", "io_cancel"),
        *("io_prep_pread", "io_prep_pwrite", "io_prep_preadv", "io_prep_pwritev"),
        *("io_prep_preadv2", "io_prep_pwritev2", "io_prep_poll", "io_prep_fsync"),
        *("io_prep_fdsync", "io_poll", "io_fsync", "io_fdsync"),
        *("io_set_callback", "io_set_eventfd"),
        *("IO_CMD_PREAD", "IO_CMD_PWRITE", "IO_CMD_FSYNC", "IO_CMD_FDSYNC", "IO_CMD_POLL"),
        *("IO_CMD_NOOP", "IO_CMD_PREADV", "IO_CMD_PWRITEV"),
        *("IOCB_FLAG_RESFD", "IOCB_FLAG_IOPRIO"),
        *("RWF_HIPRI", "RWF_DSYNC", "RWF_SYNC", "RWF_NOWAIT", "RWF_APPEND", "RWF_NOAPPEND"),
        *("RWF_ATOMIC", "RWF_DONTCACHE"),
        *("POLLIN", "POLLPRI", "POLLOUT", "POLLERR", "POLLHUP", "POLLNVAL", "POLLRDNORM"),
        *("POLLRDBAND", "POLLWRNORM", "POLLWRBAND", "POLLMSG", "POLLRDHUP"),
    }


def test_every_function_of_the_header_is_here() -> None:
    """Nothing that libaio.h declares is missing."""
    header = Path("/usr/include/libaio.h")
    if not header.exists():
        unavailable("libaio.h is not installed")
    declared = re.findall(
        r"^(?:extern|static inline) \w+ (io_\w+)\(", header.read_text(), re.MULTILINE
    )
    assert declared
    assert set(declared) <= set(libaio.__all__)


@pytest.mark.parametrize("name", libaio.__all__)
def test_everything_public_is_documented(name: str) -> None:
    """Functions and classes have a docstring; the members of classes too."""
    thing = getattr(libaio, name)
    if isinstance(thing, int):
        return
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for attribute, member in vars(thing).items():
            if not attribute.startswith("_") and isinstance(member, property):
                assert member.__doc__, attribute


@pytest.mark.parametrize(
    ("value", "name"),
    [
        *((libaio.IO_CMD_PREAD, "IOCB_CMD_PREAD"), (libaio.IO_CMD_PWRITE, "IOCB_CMD_PWRITE")),
        *((libaio.IO_CMD_FSYNC, "IOCB_CMD_FSYNC"), (libaio.IO_CMD_FDSYNC, "IOCB_CMD_FDSYNC")),
        *((libaio.IO_CMD_POLL, "IOCB_CMD_POLL"), (libaio.IO_CMD_NOOP, "IOCB_CMD_NOOP")),
        *((libaio.IO_CMD_PREADV, "IOCB_CMD_PREADV"), (libaio.IO_CMD_PWRITEV, "IOCB_CMD_PWRITEV")),
    ],
)
def test_commands_are_the_kernels(value: int, name: str) -> None:
    """The opcodes are those of linux/aio_abi.h."""
    header = Path("/usr/include/linux/aio_abi.h")
    if not header.exists():
        unavailable("linux/aio_abi.h is not installed")
    match = re.search(rf"{name}\s*=\s*(\d+)", header.read_text())
    assert match
    assert int(match[1]) == value


# io_setup, io_destroy


@pytest.mark.parametrize("setup", [io_setup, io_queue_init])
@pytest.mark.parametrize(
    ("maxevents", "expected"),
    [(0, errno.EINVAL), (-1, errno.EINVAL), (1 << 30, errno.EINVAL)],
)
def test_setup_refuses(setup: Callable[[int], Context], maxevents: int, expected: int) -> None:
    """A number of events that is none is EINVAL."""
    with pytest.raises(OSError, match=re.escape(os.strerror(expected))) as caught:
        setup(maxevents)
    assert caught.value.errno == expected


def test_setup_beyond_the_systems_limit_is_eagain() -> None:
    """More events than fs.aio-max-nr allows is EAGAIN: BlockingIOError."""
    limit = int(Path("/proc/sys/fs/aio-max-nr").read_text())
    if limit >= 0x08000000:
        unavailable("fs.aio-max-nr is as high as io_setup counts")
    with pytest.raises(BlockingIOError):
        io_setup(limit + 1)


def test_setup_tells_the_ring_the_kernel_granted() -> None:
    """`maxevents` is what was asked for; the ring, read from the kernel's mapping, holds more."""
    with io_setup(100) as ctx:
        assert ctx.maxevents == 100
        assert ctx.ring_entries is not None
        assert ctx.ring_entries >= 100


def aio_rings() -> int:
    """How many AIO rings the kernel has mapped into this process."""
    return Path("/proc/self/maps").read_text().count("/[aio]")


class OtherRing:
    """The extension as it would be where the mapped ring says something else."""

    def __init__(self, entries: int) -> None:
        self._entries = entries

    def ring_entries(self, ctx: object) -> int:
        return self._entries

    def __getattr__(self, name: str) -> Any:
        return getattr(_libaio.lib, name)


def test_setup_with_a_ring_smaller_than_asked_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring that cannot hold what was asked for is refused, and the context destroyed."""
    rings = aio_rings()
    monkeypatch.setattr(libaio, "lib", OtherRing(7))
    with pytest.raises(OSError, match="holds 7 of 8 events"):
        io_setup(8)
    assert aio_rings() == rings


def test_setup_where_the_ring_is_unknown(monkeypatch: pytest.MonkeyPatch, fd: int) -> None:
    """Where the mapping is not one we know `ring_entries` is None, and all works."""
    monkeypatch.setattr(libaio, "lib", OtherRing(0))
    with io_setup(8) as ctx:
        assert ctx.ring_entries is None
        assert result(ctx, reading(fd)) == 1


def test_contexts_are_separate(fd: int) -> None:
    """Setting up again makes another context; a destroyed one stays destroyed."""
    with io_setup(8) as first:
        assert result(first, reading(fd)) == 1
    with io_setup(8) as second:
        assert first.closed
        assert not second.closed
        with pytest.raises(ValueError, match="destroyed"):
            io_submit(first, [reading(fd)])
        assert result(second, reading(fd)) == 1


def test_setup_of_a_context_in_use_changes_nothing(ctx: Context, fd: int) -> None:
    """`__init__` on a live context, C's "io_setup on a reused context", leaves it as it is."""
    rings = aio_rings()
    ctx.__init__(8)  # type: ignore[misc]
    assert aio_rings() == rings
    assert result(ctx, reading(fd)) == 1


@pytest.mark.parametrize("destroy", [io_destroy, io_queue_release])
def test_use_after_destroy_is_a_value_error(destroy: Callable[[Context], None], never: int) -> None:
    """Every function refuses a destroyed context."""
    ctx = io_queue_init(1)
    destroy(ctx)
    assert ctx.closed
    iocb = polling(never)
    calls: list[Callable[[], object]] = [
        lambda: io_submit(ctx, [iocb]),
        lambda: io_submit(ctx, []),
        lambda: io_getevents(ctx, 1, 1),
        lambda: io_getevents(ctx, 0, 1, timeout=0),
        lambda: io_pgetevents(ctx, 1, 1, sigmask=[]),
        lambda: io_cancel(ctx, iocb),
        lambda: io_queue_run(ctx),
        lambda: io_poll(ctx, iocb, print, never, POLLIN),
        lambda: io_fsync(ctx, iocb, print, never),
        lambda: io_fdsync(ctx, iocb, print, never),
        lambda: io_destroy(ctx),
        lambda: io_queue_release(ctx),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="destroyed"):
            call()
    io_prep_poll(iocb, never, POLLIN)  # idle


def test_leaving_the_block_destroys() -> None:
    """The context manager destroys the context, once."""
    rings = aio_rings()
    with io_setup(1) as ctx:
        assert aio_rings() == rings + 1
        io_destroy(ctx)
    assert ctx.closed
    assert aio_rings() == rings


# io_submit


def descriptor(path: Path, kind: str) -> int:
    match kind:
        case "none":
            return -1
        case "pipe":
            reader, writer = os.pipe()
            os.close(reader)
            return writer
        case "directory":
            return os.open(path.parent, os.O_RDONLY)
    flags = {"rw": os.O_RDWR, "ro": os.O_RDONLY, "wo": os.O_WRONLY, "path": os.O_PATH}
    return os.open(path, flags[kind])


@pytest.mark.parametrize(
    ("kind", "prep", "arguments", "attributes", "expected"),
    [
        ("none", io_prep_pread, (bytearray(1), 0), {}, errno.EBADF),
        ("none", io_prep_poll, (POLLIN,), {}, errno.EBADF),
        ("none", io_prep_fsync, (), {}, errno.EBADF),
        ("path", io_prep_pread, (bytearray(1), 0), {}, errno.EBADF),
        ("wo", io_prep_pread, (bytearray(1), 0), {}, errno.EBADF),
        ("wo", io_prep_preadv, ([bytearray(1)], 0), {}, errno.EBADF),
        ("ro", io_prep_pwrite, (b"x", 0), {}, errno.EBADF),
        ("ro", io_prep_pwritev, ([b"x"], 0), {}, errno.EBADF),
        ("rw", io_prep_pread, (bytearray(1), -1), {}, errno.EINVAL),
        ("rw", io_prep_pwrite, (b"x", -1), {}, errno.EINVAL),
        ("directory", io_prep_pread, (bytearray(1), 0), {}, errno.EINVAL),
        ("pipe", io_prep_fsync, (), {}, errno.EINVAL),
        ("rw", io_prep_preadv, ([bytearray(1)] * 1025, 0), {}, errno.EINVAL),
        ("rw", io_prep_preadv2, ([bytearray(1)], 0, 1 << 30), {}, errno.EOPNOTSUPP),
        ("rw", io_prep_poll, (1 << 16,), {}, errno.EINVAL),
        ("rw", io_prep_fsync, (), {"offset": 1}, errno.EINVAL),
        ("rw", io_prep_fsync, (), {"aio_lio_opcode": IO_CMD_NOOP}, errno.EINVAL),
        ("rw", io_prep_pread, (bytearray(1), 0), {"aio_lio_opcode": 99}, errno.EINVAL),
        ("rw", io_prep_pread, (bytearray(1), 0), {"flags": 1, "resfd": 0xFFFFF}, errno.EBADF),
        (
            *("rw", io_prep_pread, (bytearray(1), 0)),
            *({"flags": IOCB_FLAG_IOPRIO, "aio_reqprio": -1}, errno.EINVAL),
        ),
    ],
)
def test_submit_refuses(
    ctx: Context,
    path: Path,
    kind: str,
    prep: Callable[..., None],
    arguments: tuple[Any, ...],
    attributes: dict[str, int],
    expected: int,
) -> None:
    """What the kernel refuses is raised with its errno, and the iocb is idle again."""
    fd = descriptor(path, kind)
    iocb = Iocb()
    prep(iocb, fd, *arguments)
    for name, value in attributes.items():
        setattr(iocb, name, value)
    with pytest.raises(OSError, match=re.escape(os.strerror(expected))) as caught:
        io_submit(ctx, [iocb])
    assert caught.value.errno == expected
    io_prep_fsync(iocb, fd)
    assert io_getevents(ctx, 0, 1, timeout=0) == []
    if fd >= 0:
        os.close(fd)


def test_submit_of_nothing_takes_nothing(ctx: Context) -> None:
    """No iocbs: 0."""
    assert io_submit(ctx, []) == 0


def test_submit_takes_what_comes_before_a_bad_iocb(ctx: Context, fd: int) -> None:
    """A bad iocb in the middle: those before it are taken, it and those after it stay idle."""
    good, bad, after = reading(fd), reading(-1), reading(fd)
    assert io_submit(ctx, [good, bad, after]) == 1
    assert [event.obj for event in io_getevents(ctx, 1, 8, timeout=0)] == [good]
    with pytest.raises(OSError, match="Bad file descriptor"):
        io_submit(ctx, [bad, after])
    assert result(ctx, after) == 1


def test_submit_takes_any_iterable_of_iocbs_only(ctx: Context, fd: int) -> None:
    """A generator will do; anything else in it raises, before the kernel sees any of it."""
    assert io_submit(ctx, (reading(fd) for _ in range(3))) == 3
    assert len(io_getevents(ctx, 3, 3)) == 3
    with pytest.raises(AttributeError):
        io_submit(ctx, [reading(fd), None])  # type: ignore[list-item]
    assert io_getevents(ctx, 0, 1) == []


def test_an_iocb_in_flight_is_left_alone(ctx: Context, fd: int, never: int) -> None:
    """In flight it cannot be submitted, prepared or changed, and is as it was afterwards."""
    iocb = polling(never)
    io_submit(ctx, [iocb])
    with io_setup(1) as other, pytest.raises(ValueError, match="in flight"):
        io_submit(other, [iocb])
    changes: list[Callable[[], object]] = [
        lambda: io_submit(ctx, [iocb]),
        lambda: io_prep_pread(iocb, fd, bytearray(1), 0),
        lambda: io_prep_preadv2(iocb, fd, [], 0, 0),
        lambda: io_prep_poll(iocb, fd, 0),
        lambda: io_prep_fsync(iocb, fd),
        lambda: io_set_callback(iocb, print),
        lambda: io_set_eventfd(iocb, never),
        lambda: io_poll(ctx, iocb, print, never, POLLIN),
        *(
            lambda name=name: setattr(iocb, name, getattr(iocb, name))
            for name, member in vars(Iocb).items()
            if isinstance(member, property)
        ),
    ]
    for change in changes:
        with pytest.raises(ValueError, match="in flight"):
            change()
    os.eventfd_write(never, 1)
    assert io_getevents(ctx, 1, 1) == [Event(None, iocb, POLLIN, 0)]


def test_the_same_iocb_twice_is_refused(ctx: Context, fd: int) -> None:
    """An iocb that comes twice in one submit: ValueError, and nothing is submitted."""
    iocb, other = reading(fd), reading(fd)
    with pytest.raises(ValueError, match="twice"):
        io_submit(ctx, [other, iocb, iocb])
    assert io_getevents(ctx, 0, 8) == []
    assert io_submit(ctx, [other, iocb]) == 2


def test_an_iocb_can_be_submitted_again(ctx: Context, path: Path, fd: int) -> None:
    """After its event an iocb is submitted again as it is, with its buffer as it then is."""
    iocb, buffer = Iocb(), bytearray(8)
    io_prep_pread(iocb, fd, buffer, 0)
    iocb.data = "data"
    assert result(ctx, iocb) == 8
    os.pwrite(fd, b"another!", 0)
    buffer += b"and more"
    io_submit(ctx, [iocb])
    assert io_getevents(ctx, 1, 1)[0].data == "data"
    assert buffer == b"another!and more"
    del buffer[7:]
    with pytest.raises(ValueError, match="nbytes 8 is not within 0 to 7"):
        io_submit(ctx, [iocb])


def test_oversubmission_is_eagain_until_reaped(ctx: Context, never: int) -> None:
    """Submitting more than the ring holds: EAGAIN, for ever; after reaping there is room again."""
    iocbs = [polling(never) for _ in range(10_000)]
    taken = io_submit(ctx, iocbs)
    assert ctx.maxevents <= taken < len(iocbs)
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            io_submit(ctx, iocbs[taken:])
    del iocbs[taken:]
    os.eventfd_write(never, 1)
    events = io_getevents(ctx, len(iocbs), len(iocbs))
    assert sorted(map(id, iocbs)) == sorted(id(event.obj) for event in events)
    assert result(ctx, polling(never)) == POLLIN


# Reads, writes, syncs


def test_reads_and_writes(ctx: Context, path: Path, fd: int) -> None:
    """pwrite puts the buffer at the offset, pread fills the buffer from there: short at the end."""
    iocb, buffer = Iocb(), bytearray(10)
    io_prep_pwrite(iocb, fd, b"hello", 4090)
    assert result(ctx, iocb) == 5
    assert path.read_bytes() == CONTENT[:4090] + b"hello" + CONTENT[4095:]
    io_prep_pread(iocb, fd, buffer, 4090)
    assert result(ctx, iocb) == 6
    assert buffer == b"hello\xff\0\0\0\0"
    io_prep_pread(iocb, fd, buffer, 4096)
    assert result(ctx, iocb) == 0


@pytest.mark.parametrize("flags", [None, 0, RWF_DSYNC])
def test_vectored_reads_and_writes(ctx: Context, path: Path, fd: int, flags: int | None) -> None:
    """The buffers of a vector are one after the other in the file, whatever their sizes."""
    iocb = Iocb()
    sizes = [1, 0, 3000, 95]
    data, buffers = [os.urandom(size) for size in sizes], [bytearray(size) for size in sizes]
    if flags is None:
        io_prep_pwritev(iocb, fd, data, 7)
        assert result(ctx, iocb) == 3096
        io_prep_preadv(iocb, fd, buffers, 7)
    else:
        io_prep_pwritev2(iocb, fd, data, 7, flags)
        assert iocb.aio_rw_flags == flags
        assert result(ctx, iocb) == 3096
        io_prep_preadv2(iocb, fd, buffers, 7, 0)
    assert result(ctx, iocb) == 3096
    assert list(map(bytes, buffers)) == data
    assert path.read_bytes() == CONTENT[:7] + b"".join(data) + CONTENT[3103:]


def test_a_vector_of_1024_and_of_none(ctx: Context, fd: int) -> None:
    """1024 buffers are the most the kernel takes; none is nothing to do."""
    iocb, buffers = Iocb(), [bytearray(4) for _ in range(1024)]
    io_prep_preadv(iocb, fd, buffers, 0)
    assert result(ctx, iocb) == 4096
    assert b"".join(buffers) == CONTENT
    io_prep_preadv(iocb, fd, (), 0)
    assert result(ctx, iocb) == 0


def test_append_flag_writes_at_the_end(ctx: Context, path: Path, fd: int) -> None:
    """RWF_APPEND: at the end, wherever the offset says."""
    iocb = Iocb()
    io_prep_pwritev2(iocb, fd, [b"end"], 0, RWF_APPEND)
    assert result(ctx, iocb) == 3
    assert path.read_bytes() == CONTENT + b"end"


@pytest.mark.parametrize(
    "buffer",
    [
        bytearray(16),
        memoryview(bytearray(32))[16:],
        array.array("d", [0, 0]),
        mmap.mmap(-1, 16),
        memoryview(bytearray(16)).cast("I", (2, 2)),
    ],
    ids=lambda buffer: type(buffer).__name__,
)
def test_reads_into_any_writable_buffer(ctx: Context, fd: int, buffer: Any) -> None:
    """Any writable contiguous object with the buffer protocol is filled itself."""
    iocb = Iocb()
    io_prep_pread(iocb, fd, buffer, 32)
    assert iocb.buf is buffer
    assert iocb.nbytes == 16
    assert result(ctx, iocb) == 16
    assert bytes(memoryview(buffer).cast("B")) == CONTENT[32:48]


@pytest.mark.parametrize(
    ("prep", "buffer", "error"),
    [
        (io_prep_pread, b"bytes", BufferError),
        (io_prep_pread, memoryview(b"bytes"), BufferError),
        (io_prep_pread, memoryview(bytearray(8))[::2], BufferError),
        (io_prep_pread, None, TypeError),
        (io_prep_pread, 5, TypeError),
        (io_prep_pread, [bytearray(1)], TypeError),
        (io_prep_preadv, bytearray(1), TypeError),
        (io_prep_preadv, [bytearray(1), b"bytes"], BufferError),
        (io_prep_pwrite, "text", TypeError),
        (io_prep_pwrite, memoryview(b"bytes")[::2], BufferError),
        (io_prep_pwrite, (b"bytes",), TypeError),
        (io_prep_pwritev, b"bytes", TypeError),
        (io_prep_pwritev, ["text"], TypeError),
    ],
)
def test_buffers_that_will_not_do(
    fd: int, prep: Callable[..., None], buffer: Any, error: type[Exception]
) -> None:
    """No buffer, not contiguous, read-only for a read, flat for a vector or the other way round."""
    iocb = Iocb()
    with pytest.raises(error):
        prep(iocb, fd, buffer, 0)
    assert iocb.buf is None


@pytest.mark.parametrize("prep", [io_prep_fsync, io_prep_fdsync])
def test_sync(ctx: Context, fd: int, path: Path, prep: Callable[[Iocb, int], None]) -> None:
    """Files and directories sync, descriptors without write permission too."""
    directory = os.open(path.parent, os.O_RDONLY)
    iocb = Iocb()
    for target in (fd, directory):
        prep(iocb, target)
        assert result(ctx, iocb) == 0
    os.close(directory)


def test_objects_with_a_fileno(ctx: Context, path: Path) -> None:
    """A descriptor may be given as an object that has one."""
    with path.open("rb") as file:
        iocb, buffer = Iocb(), bytearray(3)
        io_prep_pread(iocb, file, buffer, 1)
        assert iocb.aio_fildes == file.fileno()
        assert result(ctx, iocb) == 3
        assert buffer == CONTENT[1:4]
        io_prep_fsync(iocb, file)
        assert result(ctx, iocb) == 0


@pytest.mark.root
@pytest.mark.parametrize(("offset", "size"), [(0, 100), (100, 4096), (0, 4095)])
def test_misaligned_direct_io_is_an_event(
    ctx: Context, mount_point: Callable[[str], Path], offset: int, size: int
) -> None:
    """O_DIRECT with an unaligned offset or length: taken, and the event says -EINVAL."""
    path = mount_point("ext4") / "misaligned"
    path.write_bytes(bytes(1 << 16))
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    iocb, buffer = Iocb(), mmap.mmap(-1, 8192)
    io_prep_pread(iocb, fd, memoryview(buffer)[:4096], 0)
    assert result(ctx, iocb) == 4096
    io_prep_pread(iocb, fd, memoryview(buffer)[:size], offset)
    assert result(ctx, iocb) == -errno.EINVAL
    os.close(fd)
    path.unlink()


@pytest.mark.root
def test_a_full_file_system_is_an_event(ctx: Context) -> None:
    """ENOSPC: the write that no longer fits is short, the next one's event says -ENOSPC."""
    with mounted("tmpfs", 1 << 20) as directory, (directory / "file").open("wb") as file:
        iocb = Iocb()
        io_prep_pwrite(iocb, file, bytes((1 << 20) + 1), 0)
        assert result(ctx, iocb) == 1 << 20
        io_prep_pwrite(iocb, file, b"x", 1 << 20)
        assert result(ctx, iocb) == -errno.ENOSPC


def test_the_file_size_limit_is_an_event(ctx: Context, path: Path, fd: int) -> None:
    """RLIMIT_FSIZE: short up to the limit, at it -EFBIG (Python ignores SIGXFSZ)."""
    iocb = Iocb()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        io_prep_pwrite(iocb, fd, b"0123456789", 4995)
        short = result(ctx, iocb)
        io_prep_pwrite(iocb, fd, b"x", 5000)
        none = result(ctx, iocb)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (short, none) == (5, -errno.EFBIG)
    assert path.read_bytes()[4995:] == b"01234"


# Events, eventfd, poll, cancel, callbacks


def test_event_hands_back_iocb_and_data(ctx: Context, fd: int) -> None:
    """`obj` is the very iocb, `data` the very object; preparing clears `data`, as in C."""
    iocb, data = reading(fd), object()
    iocb.data = data
    io_submit(ctx, [iocb])
    (event,) = io_getevents(ctx, 1, 1)
    assert event.obj is iocb
    assert event.data is data
    assert (event.res, event.res2) == (1, 0)
    io_prep_fsync(iocb, fd)
    assert iocb.data is None


@pytest.mark.parametrize(("min_nr", "nr"), [(-1, 1), (2, 1), (0, -1), (-2, -1)])
@pytest.mark.parametrize("timeout", [None, 0])
def test_getevents_refuses(ctx: Context, min_nr: int, nr: int, timeout: float | None) -> None:
    """Numbers of events that make no sense are EINVAL."""
    with pytest.raises(OSError, match="Invalid argument") as caught:
        io_getevents(ctx, min_nr, nr, timeout)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_a_timeout_that_is_none_is_a_value_error(ctx: Context, timeout: float) -> None:
    """A negative timeout, or one that is no number."""
    with pytest.raises(ValueError, match=r"negative|NaN"):
        io_getevents(ctx, 1, 1, timeout)


def test_getevents_gives_at_most_nr(ctx: Context, fd: int) -> None:
    """At least `min_nr`, at most `nr`, of what there is; none when none are wanted."""
    io_submit(ctx, [reading(fd) for _ in range(5)])
    assert io_getevents(ctx, 0, 0) == []
    assert len(io_getevents(ctx, 0, 2)) == 2
    assert len(io_getevents(ctx, 1, 2)) == 2
    assert len(io_getevents(ctx, 1, 1 << 40)) == 1
    assert io_getevents(ctx, 0, 1) == []


def test_getevents_waits_for_more_than_the_ring_holds(fd: int) -> None:
    """`min_nr` may be more than one system call can return."""
    with io_setup(1) as ctx:
        assert ctx.ring_entries is not None
        count = 0
        while count <= ctx.ring_entries:
            count += io_submit(ctx, [reading(fd)])
            ctx._reap(0, 1, _libaio.ffi.new("struct timespec *"), _libaio.ffi.NULL)
        assert len(io_getevents(ctx, count, count)) == count


def test_eventfd_fires_once_per_completion(ctx: Context, fd: int) -> None:
    """Each completion adds 1 to the eventfd, the failed ones too."""
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    iocbs = [reading(fd) for _ in range(3)]
    for iocb in iocbs:
        io_set_eventfd(iocb, eventfd)
        assert iocb.flags == IOCB_FLAG_RESFD
        assert iocb.resfd == eventfd
    for expected in range(1, 4):
        assert io_submit(ctx, iocbs[:expected]) == expected
        assert len(io_getevents(ctx, expected, 8)) == expected
        assert os.eventfd_read(eventfd) == expected
        with pytest.raises(BlockingIOError):
            os.eventfd_read(eventfd)
    os.close(eventfd)


def test_poll_gives_the_mask_that_is_ready(ctx: Context) -> None:
    """`res` of a poll is the mask; it comes when the descriptor is ready and not before."""
    reader, writer = os.pipe()
    waiting, ready = polling(reader), Iocb()
    io_prep_poll(ready, writer, POLLOUT)
    assert io_submit(ctx, [waiting, ready]) == 2
    assert io_getevents(ctx, 1, 2) == [Event(None, ready, POLLOUT, 0)]
    assert io_getevents(ctx, 1, 1, timeout=0.01) == []
    os.write(writer, b"x")
    (event,) = io_getevents(ctx, 1, 1)
    assert event.obj is waiting
    assert event.res & ~POLLRDNORM == POLLIN  # what woke it is not masked by what was asked for
    os.close(writer)
    assert result(ctx, waiting) == POLLIN | POLLHUP
    os.close(reader)


def test_cancel_of_a_poll_is_under_way(ctx: Context, never: int) -> None:
    """EINPROGRESS: the poll is cancelled and its event comes, as always."""
    iocb = polling(never)
    iocb.data = "data"
    io_submit(ctx, [iocb])
    with pytest.raises(OSError, match=r"[Pp]rogress") as caught:
        io_cancel(ctx, iocb)
    assert caught.value.errno == errno.EINPROGRESS
    assert io_getevents(ctx, 1, 1) == [Event("data", iocb, 0, 0)]


def test_cancel_of_anything_else_is_einval(ctx: Context, fd: int, never: int) -> None:
    """EINVAL: file I/O cannot be cancelled, nor what is not in flight here; it goes on."""
    done = reading(fd)
    io_submit(ctx, [done])
    for iocb in (done, polling(never), Iocb()):
        with pytest.raises(OSError, match="Invalid argument") as caught:
            io_cancel(ctx, iocb)
        assert caught.value.errno == errno.EINVAL
    assert io_getevents(ctx, 1, 1) == [Event(None, done, 1, 0)]


def test_queue_run_calls_the_callbacks(ctx: Context, path: Path, fd: int) -> None:
    """Each event's callback is called with context, iocb, res and res2."""
    calls: list[tuple[Any, ...]] = []

    def callback(*arguments: Any) -> None:
        calls.append(arguments)

    iocbs = [reading(fd, size) for size in (1, 2)]
    for iocb in iocbs:
        io_set_callback(iocb, callback)
    io_submit(ctx, iocbs)
    sync, data_sync, poll = Iocb(), Iocb(), Iocb()
    eventfd = os.eventfd(1)
    assert io_poll(ctx, poll, callback, eventfd, POLLIN) == 1
    assert io_queue_run(ctx) == 3
    assert calls == [(ctx, iocbs[0], 1, 0), (ctx, iocbs[1], 2, 0), (ctx, poll, POLLIN, 0)]
    assert io_queue_run(ctx) == 0
    for submit, iocb in ((io_fsync, sync), (io_fdsync, data_sync)):
        calls.clear()
        assert submit(ctx, iocb, callback, fd) == 1
        while not calls:
            io_queue_run(ctx)
        assert calls == [(ctx, iocb, 0, 0)]
    os.close(eventfd)


def test_queue_run_stops_at_an_exception(ctx: Context, fd: int) -> None:
    """What a callback raises propagates; its own event is done, the others stay."""
    called = []

    def callback(ctx: Context, iocb: Iocb, res: int, res2: int) -> None:
        called.append(iocb)
        if len(called) == 2:
            raise RuntimeError("from the callback")

    iocbs = [reading(fd) for _ in range(4)]
    for iocb in iocbs:
        io_set_callback(iocb, callback)
    io_submit(ctx, iocbs)
    with pytest.raises(RuntimeError, match="from the callback"):
        io_queue_run(ctx)
    assert called == iocbs[:2]
    assert io_queue_run(ctx) == 2
    assert called == iocbs


def test_queue_run_keeps_an_event_without_a_callback(ctx: Context, fd: int) -> None:
    """An event whose iocb has no callback: TypeError, and io_getevents gives it."""
    iocb, other = reading(fd), reading(fd)
    iocb.data = "no callback"
    io_set_callback(other, lambda *_: None)
    io_submit(ctx, [iocb, other])
    for _ in range(2):
        with pytest.raises(TypeError, match="no callback"):
            io_queue_run(ctx)
    assert io_getevents(ctx, 1, 1) == [Event("no callback", iocb, 1, 0)]
    assert io_queue_run(ctx) == 1


def test_a_callback_may_prepare_and_submit_its_iocb(ctx: Context, path: Path, fd: int) -> None:
    """ "When a read completes turn it into a write request": libaio's own aiocp."""
    copy = os.open(path.with_name("copy"), os.O_RDWR | os.O_CREAT, 0o600)
    written = []

    def write_done(ctx: Context, iocb: Iocb, res: int, res2: int) -> None:
        written.append((iocb.offset, res))

    def read_done(ctx: Context, iocb: Iocb, res: int, res2: int) -> None:
        assert res == iocb.nbytes
        io_prep_pwrite(iocb, copy, iocb.buf, iocb.offset)
        io_set_callback(iocb, write_done)
        io_submit(ctx, [iocb])

    for offset in range(0, 4096, 1024):
        iocb = Iocb()
        io_prep_pread(iocb, fd, bytearray(1024), offset)
        io_set_callback(iocb, read_done)
        io_submit(ctx, [iocb])
    assert io_queue_run(ctx) == 8
    assert sorted(written) == [(offset, 1024) for offset in range(0, 4096, 1024)]
    assert os.pread(copy, 5000, 0) == CONTENT
    os.close(copy)


# Iocb


def test_a_prepared_iocb_shows_its_fields(fd: int) -> None:
    """The attributes are the fields of struct iocb."""
    iocb, buffer = Iocb(), bytearray(10)
    io_prep_pwritev2(iocb, fd, [buffer, b"more"], 1 << 40, RWF_SYNC)
    assert iocb.aio_lio_opcode == IO_CMD_PWRITEV
    assert iocb.aio_fildes == fd
    assert iocb.aio_rw_flags == RWF_SYNC
    assert iocb.offset == 1 << 40
    assert iocb.buf == (buffer, b"more")
    assert iocb.nbytes == 2
    assert (iocb.key, iocb.aio_reqprio, iocb.flags, iocb.resfd) == (0, 0, 0, 0)
    io_prep_pread(iocb, fd, buffer, 5)
    assert iocb.aio_lio_opcode == IO_CMD_PREAD
    assert iocb.buf is buffer
    assert (iocb.nbytes, iocb.offset, iocb.aio_rw_flags) == (10, 5, 0)
    other = polling(fd)
    assert other.aio_lio_opcode == IO_CMD_POLL
    assert (other.buf, other.nbytes, other.offset) == (None, 0, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("key", 7), ("aio_rw_flags", RWF_NOWAIT), ("aio_reqprio", -3), ("aio_fildes", -2)),
        *(("offset", -(1 << 63)), ("flags", 3), ("resfd", 9), ("aio_lio_opcode", -7)),
        *(("data", "anything"), ("nbytes", 1), ("buf", (b"x", b"y"))),
    ],
)
def test_harmless_fields_are_freely_set(name: str, value: Any) -> None:
    """What leads the kernel to no memory is the caller's business."""
    iocb = Iocb()
    io_prep_pwritev(iocb, 0, [b"some", b"more"], 0)
    setattr(iocb, name, value)
    assert getattr(iocb, name) == value


def test_an_iocb_filled_in_by_hand(ctx: Context, fd: int) -> None:
    """Setting the fields is as good as preparing."""
    iocb, buffer = Iocb(), bytearray(8)
    iocb.aio_fildes = fd
    iocb.buf = buffer
    iocb.nbytes = 4
    iocb.offset = 16
    assert result(ctx, iocb) == 4
    assert buffer == CONTENT[16:20] + bytes(4)
    iocb.aio_lio_opcode = IO_CMD_PWRITE
    iocb.offset = 0
    assert result(ctx, iocb) == 4
    assert os.pread(fd, 5, 0) == CONTENT[16:20] + CONTENT[4:5]


def test_poll_keeps_its_mask(ctx: Context, never: int) -> None:
    """The poll mask, in the place of `buf`, outlives a change of `nbytes`."""
    iocb = polling(never)
    iocb.nbytes = 0
    os.eventfd_write(never, 1)
    assert result(ctx, iocb) == POLLIN
    assert result(ctx, iocb) == POLLIN


@pytest.mark.parametrize(
    ("prep", "buffer", "name", "value"),
    [
        (io_prep_pread, bytearray(8), "nbytes", 9),
        (io_prep_pread, bytearray(8), "nbytes", -1),
        (io_prep_pread, bytearray(8), "buf", bytearray(7)),
        (io_prep_pread, bytearray(8), "buf", b"12345678"),
        (io_prep_pread, bytearray(8), "buf", [bytearray(8)] * 8),
        (io_prep_pread, bytearray(8), "buf", None),
        (io_prep_pread, bytearray(8), "buf", "12345678"),
        (io_prep_pread, bytearray(8), "aio_lio_opcode", IO_CMD_PREADV),
        (io_prep_pread, bytearray(8), "aio_lio_opcode", IO_CMD_PWRITEV),
        (io_prep_preadv, [bytearray(8)], "nbytes", 2),
        (io_prep_preadv, [bytearray(8)], "buf", []),
        (io_prep_preadv, [bytearray(8)], "buf", bytearray(8)),
        (io_prep_preadv, [bytearray(8)], "buf", [b"12345678"]),
        (io_prep_preadv, [bytearray(8)], "aio_lio_opcode", IO_CMD_PREAD),
        (io_prep_pwrite, b"12345678", "aio_lio_opcode", IO_CMD_PREAD),
        (io_prep_pwritev, [b"12345678"], "aio_lio_opcode", IO_CMD_PREADV),
        (io_prep_pwritev, [b"12345678"], "aio_lio_opcode", IO_CMD_PWRITE),
    ],
)
def test_memory_outside_the_buffers_is_refused(
    fd: int, prep: Callable[..., None], buffer: Any, name: str, value: Any
) -> None:
    """A field that would lead the kernel outside the held buffers: ValueError, nothing changed."""
    iocb = Iocb()
    prep(iocb, fd, buffer, 0)
    before = (iocb.buf, iocb.nbytes, iocb.aio_lio_opcode)
    with pytest.raises(ValueError, match=r"nbytes|opcode"):
        setattr(iocb, name, value)
    assert (iocb.buf, iocb.nbytes, iocb.aio_lio_opcode) == before


@pytest.mark.parametrize("opcode", [IO_CMD_PREAD, IO_CMD_PREADV, IO_CMD_PWRITE, IO_CMD_PWRITEV])
def test_an_iocb_without_memory_transfers_nothing(ctx: Context, fd: int, opcode: int) -> None:
    """A poll's mask is never taken for an address."""
    iocb = polling(fd)
    iocb.aio_lio_opcode = opcode
    with pytest.raises(ValueError, match="nbytes"):
        iocb.nbytes = 1
    assert result(ctx, iocb) == 0


# libaio's own system calls


def traced(program: str, *options: str) -> tuple[str, str]:
    """Run a Python program under strace; its output and the trace."""
    if shutil.which("strace") is None:
        unavailable("strace is not installed")
    process = subprocess.run(
        ["strace", "-f", *options, sys.executable, "-c", "from aiocp.libaio import *\n" + program],
        capture_output=True,
        text=True,
    )
    if "ptrace" in process.stderr:
        unavailable("strace may not trace here")
    assert process.returncode == 0, process.stderr
    return process.stdout, process.stderr


REAP = """
iocb, ctx = Iocb(), io_setup(1)
with open("/dev/zero", "rb") as file:
    io_prep_pread(iocb, file, bytearray(5), 0)
    io_submit(ctx, [iocb])
print(io_getevents(ctx, 1, 1)[0].res, io_getevents(ctx, 1, 1, timeout=0.001))
io_destroy(ctx)
"""


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_getevents_where_io_pgetevents_is_refused(error: str) -> None:
    """Old seccomp profiles refuse the io_pgetevents that libaio reaps by: then io_getevents."""
    output, trace = traced(REAP, "-e", f"inject=io_pgetevents:error={error}")
    assert output == "5 []\n"
    assert "io_getevents(" in trace
