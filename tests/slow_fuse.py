"""A FUSE file system in memory, far away: each read, write and sync takes its time, many at once.

    slow_fuse.py MOUNTPOINT --latency SECONDS --log FILE

It speaks the kernel's protocol (linux/fuse.h, 7.31) itself, because what it is for is what
libraries hide: asynchronous direct I/O, and more than the twelve requests in flight that the kernel
allows by itself. One thread reads the requests as they come and answers each when it is due. The
most that were in flight at once is written to the log whenever it grows.

It has directories, regular files, and symbolic links; no O_TMPFILE, as NFS has none. Names take no
time. Space that is reserved takes no memory. How far away it is can be changed while it is mounted,
by an attribute of its root.
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
from itertools import count
from pathlib import Path

from faulty_fuse import fuse_server
from filesystems import scratch_directory, unavailable

LATENCY = 0.005  # seconds
FAR = "user.latency"  # the attribute of its root


@dataclass(frozen=True)
class SlowDirectory:
    """A mounted one."""

    mount_point: Path
    log: Path

    def peak_in_flight(self) -> int:
        """The most reads, writes and syncs that it ever had to answer at once."""
        return int(self.log.read_text() or 0)


def move(mount_point: Path, latency: float) -> None:
    """Have it `latency` seconds away from now on. Raises OSError where something else is."""
    os.setxattr(mount_point, FAR, str(latency).encode())


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

DIRENT = struct.Struct("<QQII")  # node, offset of the next, length of the name, type
FORGOTTEN = struct.Struct("<QQ")  # node, how often it was looked up

READ, WRITE, FSYNC, FSYNCDIR = 15, 16, 20, 30
SLOW = {READ, WRITE, FSYNC, FSYNCDIR}
FORGET, INTERRUPT, BATCH_FORGET = 2, 36, 42  # never answered
PIECE = MAX_WRITE  # bytes that are kept together

Bytes = bytes | bytearray | memoryview


class Refused(Exception):
    """What is answered with an errno."""


@dataclass
class Node:
    """A file, a directory, or a link, in which is written where it leads.

    `names` are those in a directory, as they came, each with its node and its place among all.
    `looked_up` is how often the kernel was told of it, and did not forget it.
    """

    mode: int
    links: int = 1
    times: tuple[int, ...] = (0, 0, 0, 0, 0, 0)  # seconds, then nanoseconds
    size: int = 0
    pieces: dict[int, bytearray] = field(default_factory=dict)
    names: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    looked_up: int = 0

    def resize(self, size: int) -> None:
        last, kept = divmod(size, PIECE)
        for index in [index for index in self.pieces if index > last]:
            del self.pieces[index]
        if last in self.pieces:
            del self.pieces[last][kept:]
        self.size = size

    def write(self, offset: int, data: memoryview) -> None:
        self.size = max(self.size, offset + len(data))
        while data:
            index, start = divmod(offset, PIECE)
            piece = self.pieces.setdefault(index, bytearray())
            if len(piece) < start:
                piece.extend(bytes(start - len(piece)))
            taken = data[: PIECE - start]
            piece[start : start + len(taken)] = taken
            offset, data = offset + len(taken), data[len(taken) :]

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        parts: list[Bytes] = []
        while offset < end:
            index, start = divmod(offset, PIECE)
            taken = min(PIECE - start, end - offset)
            part = memoryview(self.pieces.get(index, b""))[start : start + taken]
            parts += [part, bytes(taken - len(part))]
            offset += taken
        return b"".join(parts)


Answer = Callable[[int, memoryview], Bytes]


class Server:
    """Requests from /dev/fuse, answers to it."""

    def __init__(self, fd: int, latency: float, log: Path) -> None:
        self._fd, self._latency, self._log = fd, latency, log
        self._request = memoryview(bytearray(MAX_WRITE + (64 << 10)))
        self._waiting: deque[tuple[float, int, Callable[[], Bytes]]] = deque()
        self._peak = 0
        self._nodes = {ROOT: Node(stat.S_IFDIR | 0o755, looked_up=1)}
        self._numbers, self._places = count(ROOT + 1), count(1)
        self._answers: dict[int, Answer] = {
            1: self._lookup,
            3: self._getattr,
            4: self._setattr,
            5: self._readlink,
            6: self._symlink,
            9: self._mkdir,
            10: self._unlink,
            11: self._unlink,  # rmdir
            12: self._rename,
            13: self._link,
            17: self._statfs,
            18: lambda node, body: b"",  # release
            21: self._setxattr,
            26: self._init,
            28: self._readdir,
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
        body = self._request[IN_HEADER.size : length]
        if opcode == FORGET:
            self._forget(node, *struct.unpack("<Q", body))
        elif opcode == BATCH_FORGET:
            for each in FORGOTTEN.iter_unpack(body[8:]):
                self._forget(*each)
        if opcode in (FORGET, INTERRUPT, BATCH_FORGET):
            return
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
        blocks = -(-node.size // 512)
        identity = node.mode, node.links, 0, 0, 0, 4096, 0
        return ATTRIBUTES.pack(number, node.size, blocks, *node.times, *identity)

    def _entry(self, number: int) -> bytes:
        self._nodes[number].looked_up += 1
        return ENTRY.pack(number, 0, 1, 1, 0, 0) + self._attributes(number)

    def _forget(self, number: int, times: int) -> None:
        self._nodes[number].looked_up -= times
        self._let_go(number)

    def _let_go(self, number: int) -> None:
        """Drop a node that has no name, and that the kernel does not know."""
        node = self._nodes[number]
        if not (node.links or node.looked_up):
            del self._nodes[number]

    def _make(self, node: int, name: bytes, mode: int) -> int:
        number = next(self._numbers)
        self._nodes[number] = Node(mode, links=0)
        self._put(node, name, number)
        return number

    def _put(self, node: int, name: bytes, number: int) -> None:
        """Give a node a name, which is another's no longer."""
        if name in self._nodes[node].names:
            self._take_away(node, name)
        self._nodes[node].names[name] = number, next(self._places)
        self._nodes[number].links += 1

    def _take_away(self, node: int, name: bytes) -> None:
        number = self._number(node, name)
        if self._nodes[number].names:
            raise Refused(errno.ENOTEMPTY)
        del self._nodes[node].names[name]
        self._nodes[number].links -= 1
        self._let_go(number)

    def _number(self, node: int, name: bytes) -> int:
        names = self._nodes[node].names
        if name not in names:
            raise Refused(errno.ENOENT)
        return names[name][0]

    def _lookup(self, node: int, body: memoryview) -> bytes:
        return self._entry(self._number(node, _names(body)[0]))

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

    def _setxattr(self, node: int, body: memoryview) -> bytes:
        size = struct.unpack_from("<I", body)[0]
        name, value = bytes(body[8:-size]), bytes(body[-size:])
        if (node, name) != (ROOT, FAR.encode() + b"\0"):
            raise Refused(errno.EOPNOTSUPP)
        self._latency = float(value)
        return b""

    def _create(self, node: int, body: memoryview) -> bytes:
        mode = struct.unpack_from("<4xI", body)[0]
        return self._entry(self._make(node, _names(body[16:])[0], mode)) + OPENED

    def _mkdir(self, node: int, body: memoryview) -> bytes:
        mode = struct.unpack_from("<I", body)[0]
        return self._entry(self._make(node, _names(body[8:])[0], stat.S_IFDIR | mode))

    def _symlink(self, node: int, body: memoryview) -> bytes:
        name, leads_to = _names(body)
        number = self._make(node, name, stat.S_IFLNK | 0o777)
        self._nodes[number].write(0, memoryview(leads_to))
        return self._entry(number)

    def _readlink(self, number: int, body: memoryview) -> bytes:
        node = self._nodes[number]
        return node.read(0, node.size)

    def _readdir(self, number: int, body: memoryview) -> bytearray:
        """The names that came after the one that was read last."""
        _, last, size = READ_IN.unpack_from(body)
        found = bytearray()
        for name, (node, place) in self._nodes[number].names.items():
            if place <= last:
                continue
            padded = name + bytes(-len(name) % 8)
            if len(found) + DIRENT.size + len(padded) > size:
                break
            kind = self._nodes[node].mode >> 12
            found += DIRENT.pack(node, place, len(name), kind) + padded
        return found

    def _unlink(self, node: int, body: memoryview) -> bytes:
        self._take_away(node, _names(body)[0])
        return b""

    def _link(self, node: int, body: memoryview) -> bytes:
        number = struct.unpack_from("<Q", body)[0]
        self._put(node, _names(body[8:])[0], number)
        return self._entry(number)

    def _rename(self, node: int, body: memoryview) -> bytes:
        return self._move(node, *struct.unpack_from("<Q", body), *_names(body[8:]))

    def _rename2(self, node: int, body: memoryview) -> bytes:
        to_node, flags = struct.unpack_from("<QI", body)
        if flags:
            raise Refused(errno.EINVAL)
        return self._move(node, to_node, *_names(body[16:]))

    def _move(self, node: int, to_node: int, old: bytes, new: bytes) -> bytes:
        number = self._number(node, old)
        self._put(to_node, new, number)
        del self._nodes[node].names[old]
        self._nodes[number].links -= 1
        return b""

    def _statfs(self, node: int, body: memoryview) -> bytes:
        free = 1 << 20
        return STATFS_OUT.pack(free, free, free, free, free, 4096, 255, 4096, 0)

    def _fallocate(self, node: int, body: memoryview) -> bytes:
        _, offset, length, mode, _ = FALLOCATE_IN.unpack_from(body)
        if mode:
            raise Refused(errno.EOPNOTSUPP)
        file = self._nodes[node]
        file.size = max(file.size, offset + length)
        return b""

    def _read(self, node: int, body: memoryview) -> bytes:
        _, offset, size = READ_IN.unpack_from(body)
        return self._nodes[node].read(offset, size)

    def _write(self, node: int, body: memoryview) -> bytes:
        _, offset, size = WRITE_IN.unpack_from(body)
        self._nodes[node].write(offset, body[WRITE_IN.size : WRITE_IN.size + size])
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
