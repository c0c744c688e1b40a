"""A FUSE file system in memory, far away: each read, write and sync takes its time, many at once.

    slow_fuse.py MOUNTPOINT --latency SECONDS --log FILE

It speaks the kernel's protocol (linux/fuse.h, 7.31) itself, because what it is for is what
libraries hide: asynchronous direct I/O, and more than the twelve requests in flight that the kernel
allows by itself. One thread reads the requests as they come and answers each when it is due. The
most that were in flight at once is written to the log whenever it grows.

One directory, regular files, no O_TMPFILE.
"""

import argparse
import ctypes
import errno
import os
import select
import stat
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from faulty_fuse import fuse_server
from filesystems import scratch_directory, unavailable

LATENCY = 0.005  # seconds


@dataclass(frozen=True)
class SlowDirectory:
    """A mounted one."""

    mount_point: Path
    log: Path

    def peak_in_flight(self) -> int:
        """The most reads, writes and syncs that it ever had to answer at once."""
        return int(self.log.read_text() or 0)


@contextmanager
def slow_directory(latency: float = LATENCY) -> Iterator[SlowDirectory]:
    """Mount an empty one whose reads, writes and syncs take `latency` seconds."""
    if not os.access("/dev/fuse", os.W_OK):
        unavailable("FUSE needs root and /dev/fuse")
    with scratch_directory() as scratch:
        slow = SlowDirectory(scratch / "mnt", scratch / "log")
        slow.mount_point.mkdir()
        slow.log.touch()
        command: list[str | Path] = [sys.executable, __file__, slow.mount_point]
        command += ["--latency", str(latency), "--log", slow.log]
        with fuse_server(command, slow.mount_point):
            yield slow


# --- the server ----------------------------------------------------------------------------------

ROOT = 1
MAX_WRITE = 1 << 20
MAX_BACKGROUND = 512  # asynchronous direct I/O counts as background: 12 by default

# of the flags of FUSE_INIT
ASYNC_READ, BIG_WRITES, ASYNC_DIO, NO_OPEN, MAX_PAGES, NO_OPENDIR = (
    1 << bit for bit in (0, 5, 15, 17, 22, 24)
)
FLAGS = ASYNC_READ | BIG_WRITES | ASYNC_DIO | NO_OPEN | MAX_PAGES | NO_OPENDIR

IN_HEADER = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, -, -
OUT_HEADER = struct.Struct("<IiQ")  # length, error, unique
INIT_OUT = struct.Struct("<IIIIHHIIHHIIH22x")
ENTRY = struct.Struct("<QQQQII")  # node, generation, how long name and attributes hold
ATTRIBUTES = struct.Struct("<6Q10I")
ATTRIBUTES_HOLD = struct.Struct("<QII")
OPENED = bytes(16)
READ_IN = WRITE_IN = struct.Struct("<QQI20x")  # -, offset, size
FALLOCATE_IN = struct.Struct("<QQQII")  # -, offset, length, mode, -
SETATTR_IN = struct.Struct("<IIQQQQQQIIIIIIII")
STATFS_OUT = struct.Struct("<5Q4I24x")
SET_MODE, SET_SIZE, SET_MTIME = 1, 8, 32

FORGET, READ, WRITE, FSYNC, FSYNCDIR = 2, 15, 16, 20, 30
SLOW = {READ, WRITE, FSYNC, FSYNCDIR}
NEVER_ANSWERED = {FORGET, 36, 42}  # interrupt, batch forget


class Refused(Exception):
    """What is answered with an errno."""


@dataclass
class Node:
    """A file, or the directory."""

    mode: int
    data: bytearray = field(default_factory=bytearray)
    links: int = 1
    times: tuple[int, ...] = (0, 0, 0, 0, 0, 0)  # seconds, then nanoseconds

    def resize(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))


Bytes = bytes | bytearray | memoryview
Answer = Callable[[int, memoryview], Bytes]


class Server:
    """Requests from /dev/fuse, answers to it."""

    def __init__(self, fd: int, latency: float, log: Path) -> None:
        self._fd, self._latency, self._log = fd, latency, log
        self._request = memoryview(bytearray(MAX_WRITE + (64 << 10)))
        self._waiting: deque[tuple[float, int, Callable[[], Bytes]]] = deque()
        self._peak = 0
        self._nodes = {ROOT: Node(stat.S_IFDIR | 0o755, links=2)}
        self._names: dict[bytes, int] = {}
        self._answers: dict[int, Answer] = {
            1: self._lookup,
            3: self._getattr,
            4: self._setattr,
            10: self._unlink,
            12: self._rename,
            13: self._link,
            17: self._statfs,
            18: lambda node, body: b"",  # release
            26: self._init,
            29: lambda node, body: b"",  # releasedir
            35: self._create,
            38: lambda node, body: b"",  # destroy
            43: self._fallocate,
            45: self._rename2,
            READ: self._read,
            WRITE: self._write,
            FSYNC: lambda node, body: b"",
            FSYNCDIR: lambda node, body: b"",
        }

    def serve(self) -> None:
        """Answer until the file system is unmounted."""
        while True:
            timeout = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
            select.select([self._fd], [], [], timeout)
            try:
                self._take(os.readv(self._fd, [self._request]))
            except BlockingIOError:
                pass
            except FileNotFoundError:  # that request was taken back
                pass
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                raise
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                _, unique, answer = self._waiting.popleft()
                self._send(unique, answer())

    def _take(self, length: int) -> None:
        """Answer a request, or have it wait for its time."""
        _, opcode, unique, node, *_ = IN_HEADER.unpack_from(self._request)
        if opcode in NEVER_ANSWERED:
            return
        body = self._request[IN_HEADER.size : length]
        try:
            if opcode not in self._answers:
                raise Refused(errno.ENOSYS)
            if opcode not in SLOW:
                self._send(unique, self._answers[opcode](node, body))
                return
            answer: Callable[[], Bytes]
            if opcode == READ:  # the bytes are those of then; the buffer takes the next request
                answer = partial(self._read, node, memoryview(bytes(body)))
            else:
                answer = partial(bytes, self._answers[opcode](node, body))
        except Refused as refused:
            self._send(unique, b"", refused.args[0])
            return
        self._waiting.append((time.monotonic() + self._latency, unique, answer))
        if len(self._waiting) > self._peak:
            self._peak = len(self._waiting)
            self._log.write_text(str(self._peak))

    def _send(self, unique: int, answer: Bytes, error: int = 0) -> None:
        header = OUT_HEADER.pack(OUT_HEADER.size + len(answer), -error, unique)
        with suppress(FileNotFoundError):  # nobody waits for it any more
            os.writev(self._fd, [header, answer])

    def _init(self, node: int, body: memoryview) -> bytes:
        readahead = struct.unpack_from("<I", body, 8)[0]
        pages = MAX_WRITE // 4096
        background = MAX_BACKGROUND, MAX_BACKGROUND * 3 // 4
        return INIT_OUT.pack(7, 31, readahead, FLAGS, *background, MAX_WRITE, 1, pages, 0, 0, 0, 0)

    def _attributes(self, number: int) -> bytes:
        node = self._nodes[number]
        size = len(node.data)
        blocks = -(-size // 512)
        identity = node.mode, node.links, 0, 0, 0, 4096, 0
        return ATTRIBUTES.pack(number, size, blocks, *node.times, *identity)

    def _entry(self, number: int) -> bytes:
        return ENTRY.pack(number, 0, 1, 1, 0, 0) + self._attributes(number)

    def _number(self, name: bytes) -> int:
        if name not in self._names:
            raise Refused(errno.ENOENT)
        return self._names[name]

    def _lookup(self, node: int, body: memoryview) -> bytes:
        return self._entry(self._number(_names(body)[0]))

    def _getattr(self, node: int, body: memoryview) -> bytes:
        return ATTRIBUTES_HOLD.pack(1, 0, 0) + self._attributes(node)

    def _setattr(self, number: int, body: memoryview) -> bytes:
        valid, _, _, size, _, *rest = SETATTR_IN.unpack_from(body)
        node = self._nodes[number]
        if valid & SET_MODE:
            node.mode = rest[6]
        if valid & SET_SIZE:
            node.resize(size)
        if valid & SET_MTIME:
            node.times = tuple(rest[:6])
        return self._getattr(number, body)

    def _create(self, node: int, body: memoryview) -> bytes:
        mode = struct.unpack_from("<4xI", body)[0]
        number = max(self._nodes) + 1
        self._nodes[number] = Node(mode)
        self._names[_names(body[16:])[0]] = number
        return self._entry(number) + OPENED

    def _unlink(self, node: int, body: memoryview) -> bytes:
        name = _names(body)[0]
        self._nodes[self._number(name)].links -= 1
        del self._names[name]
        return b""

    def _link(self, node: int, body: memoryview) -> bytes:
        number = struct.unpack_from("<Q", body)[0]
        self._nodes[number].links += 1
        self._names[_names(body[8:])[0]] = number
        return self._entry(number)

    def _rename(self, node: int, body: memoryview) -> bytes:
        return self._move(*_names(body[8:]))

    def _rename2(self, node: int, body: memoryview) -> bytes:
        if any(body[8:12]):
            raise Refused(errno.EINVAL)
        return self._move(*_names(body[16:]))

    def _move(self, old: bytes, new: bytes) -> bytes:
        self._names[new] = self._number(old)
        del self._names[old]
        return b""

    def _statfs(self, node: int, body: memoryview) -> bytes:
        free = 1 << 20
        return STATFS_OUT.pack(free, free, free, free, free, 4096, 255, 4096, 0)

    def _fallocate(self, node: int, body: memoryview) -> bytes:
        _, offset, length, mode, _ = FALLOCATE_IN.unpack_from(body)
        if mode:
            raise Refused(errno.EOPNOTSUPP)
        data = self._nodes[node].data
        data.extend(bytes(max(0, offset + length - len(data))))
        return b""

    def _read(self, node: int, body: memoryview) -> memoryview:
        _, offset, size = READ_IN.unpack_from(body)
        return memoryview(self._nodes[node].data)[offset : offset + size]

    def _write(self, node: int, body: memoryview) -> bytes:
        _, offset, size = WRITE_IN.unpack_from(body)
        data = self._nodes[node].data
        if offset > len(data):
            data.extend(bytes(offset - len(data)))
        data[offset : offset + size] = body[WRITE_IN.size : WRITE_IN.size + size]
        return struct.pack("<II", size, 0)


def _names(body: memoryview) -> list[bytes]:
    """The names that a request ends with."""
    return bytes(body).split(b"\0")[:-1]


def serve(mount_point: str, latency: float, log: Path) -> None:
    """Mount, and serve until it is unmounted."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    # mount(8) looks at what it has mounted, and nobody would answer
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"aiocp-slow", os.fsencode(mount_point), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "cannot mount", mount_point)
    print("mounted", flush=True)
    Server(fd, latency, log).serve()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint")
    parser.add_argument("--latency", type=float, required=True)
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args(arguments)
    serve(options.mountpoint, options.latency, options.log)


if __name__ == "__main__":
    main(sys.argv[1:])
