"""A FUSE file system that passes through to a directory, and fails as it is told.

    faulty_fuse.py BACKING MOUNTPOINT --rules FILE --log FILE --gate FIFO
                   [--direct-io] [--volatile] [--threads]

The rules are JSON, and read again when the file changes. Every operation is written to the log, one
to a line, before it is done or refused. There is no O_TMPFILE: libfuse 3.14 does not know of it.

With --volatile it is a disk with a write cache instead: what was written is there to be read, and
reaches the backing file when it is synced. A `power` rule loses what was not. With --threads a call
that is held does not keep others from being served.
"""

import argparse
import errno
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from filesystems import loop_device, run, scratch_directory, sparse_file, unavailable

PAGE = 4096
TIMEOUT = 60  # seconds

_serials = itertools.count()  # equal rules set anew count anew


@dataclass
class Rule:
    """What is to go wrong: the first that matches a call of `operation` decides.

    `error` is the errno to answer, `length` the most bytes to move instead; with `hold` the call
    waits until it is let go, and all others with it unless there are threads. The first `skip`
    calls are let through, and so are those after the next `times`. Only what touches the bytes from
    `start` up to `end` counts and, with `direct`, only what is done with O_DIRECT; with a `name`
    only what is done to files and directories that have it, or a temporary one made from it.
    """

    operation: str
    error: int = 0
    length: int = sys.maxsize
    hold: bool = False
    skip: int = 0
    times: int = sys.maxsize
    start: int = 0
    end: int = sys.maxsize
    direct: bool = False
    name: str = ""
    seen: int = 0

    def apply(
        self, operation: str, offset: int, length: int, direct: bool, name: str
    ) -> int | None:
        """The bytes to move, None where it does not apply. Raises the error."""
        if operation != self.operation or (self.direct and not direct):
            return None
        if self.name not in ("", name):
            return None
        if offset >= self.end or offset + max(length, 1) <= self.start:
            return None
        self.seen += 1
        if not self.skip < self.seen <= self.skip + self.times:
            return None
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return min(length, self.length)


@dataclass(frozen=True)
class FaultyDirectory:
    """A mounted one: what is written below `mount_point` is found below `backing`."""

    backing: Path
    mount_point: Path
    rules_file: Path
    log: Path
    gate: Path  # a FIFO

    def fail(self, *rules: Rule) -> None:
        """From now on go by these rules only, and log anew."""
        self.log.write_text("")
        new = self.rules_file.with_suffix(".new")
        new.write_text(json.dumps([next(_serials), [asdict(rule) for rule in rules]]))
        new.replace(self.rules_file)

    def served(self, operation: str, name: str = "") -> int:
        """How often it was asked for `operation` since the rules changed, of a `name` if given."""
        lines = [line.split("\t") for line in self.log.read_text().splitlines()]
        return sum(line[0] == operation and name in ("", line[1]) for line in lines)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait until a call is held, as a rule says; let it go at the end."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                gate = os.open(self.gate, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError as error:
                if error.errno != errno.ENXIO or time.monotonic() > deadline:
                    raise
                time.sleep(0.001)
        try:
            yield
        finally:
            os.write(gate, b".")
            os.close(gate)


@contextmanager
def faulty_directory(*options: str) -> Iterator[FaultyDirectory]:
    """Mount an empty one, with the command's `options`; without any rule yet."""
    if not os.access("/dev/fuse", os.W_OK):
        unavailable("FUSE needs root and /dev/fuse")
    with scratch_directory() as scratch:
        faulty = FaultyDirectory(
            *(scratch / name for name in ("backing", "mnt", "rules", "log", "gate"))
        )
        faulty.backing.mkdir()
        faulty.mount_point.mkdir()
        os.mkfifo(faulty.gate)
        faulty.fail()
        command: list[str | Path] = [sys.executable, __file__, *options]
        command += ["--rules", faulty.rules_file, "--log", faulty.log, "--gate", faulty.gate]
        command += [faulty.backing, faulty.mount_point]
        with ExitStack() as afterwards, fuse_server(command, faulty.mount_point):
            try:
                yield faulty
            finally:  # whatever is held, or comes to be
                gate = os.open(faulty.gate, os.O_RDWR)
                afterwards.callback(os.close, gate)
                os.write(gate, bytes(PAGE))


@contextmanager
def fuse_server(command: Sequence[str | Path], mount_point: Path) -> Iterator[None]:
    """Run the program that mounts a file system, says a line and serves until it is unmounted."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,  # the terminal's interrupt is not for it
    ) as server:
        assert server.stdout is not None
        if not server.stdout.readline():
            unavailable("the FUSE file system could not be mounted")
        try:
            yield
        finally:
            _unmount(mount_point, server)


def _unmount(mount_point: Path, server: "subprocess.Popen[bytes]") -> None:
    try:
        run("umount", mount_point)
    except OSError:  # busy: the test has left something open
        server.kill()
        run("umount", "--lazy", mount_point)
        raise


@dataclass(frozen=True)
class FaultyDevice:
    """A loop device over a file in a faulty directory: its reads, writes and flushes fail."""

    path: Path
    disk: FaultyDirectory


@contextmanager
def faulty_device(size: int, *options: str) -> Iterator[FaultyDevice]:
    """Attach one of `size` bytes, with 4096-byte sectors."""
    with faulty_directory("--direct-io", *options) as disk:
        sparse_file(disk.backing / "disk", size)
        with loop_device(disk.mount_point / "disk", PAGE) as device:
            try:
                yield FaultyDevice(device, disk)
            finally:
                disk.fail()


# --- the server ----------------------------------------------------------------------------------


class Server:
    """The operations, as mfusepy calls them with its raw_fi; a path is None for an open file."""

    use_ns = True
    flag_nopath = flag_nullpath_ok = True

    def __init__(self, options: argparse.Namespace) -> None:
        self._root: str = options.backing
        self._rules_file: str = options.rules
        self._log = os.open(options.log, os.O_WRONLY | os.O_APPEND)
        self._gate: str = options.gate
        self._direct_io: bool = options.direct_io
        self._cache: dict[int, bytes] | None = {} if options.volatile else None
        self._rules: list[Rule] = []
        self._rules_read = b""
        self._names: dict[int, str] = {}  # of open files
        self._one_asks = Lock()

    def init(self, path: str) -> None:
        print("mounted", flush=True)

    def _ask(
        self,
        operation: str,
        path: str | None,
        fd: int = -1,
        offset: int = 0,
        length: int = 0,
        direct: bool = False,
    ) -> int:
        """How many bytes to move of `length`, by the rules; raises what they say."""
        with self._one_asks:
            moved, hold = self._decide(operation, path, fd, offset, length, direct)
        if hold:
            with open(self._gate, "rb", buffering=0) as gate:
                gate.read(1)
        return moved

    def _decide(
        self, operation: str, path: str | None, fd: int, offset: int, length: int, direct: bool
    ) -> tuple[int, bool]:
        name = self._names.get(fd, "") if path is None else _name(path)
        os.write(self._log, f"{operation}\t{name}\n".encode())
        rules = Path(self._rules_file).read_bytes()
        if rules != self._rules_read:
            self._rules_read = rules
            self._rules = [Rule(**rule) for rule in json.loads(rules)[1]]
        if any(rule.operation == "power" for rule in self._rules):
            if self._cache:
                self._cache = {}
            raise OSError(errno.EIO, "the power is off")
        for rule in self._rules:
            moved = rule.apply(operation, offset, length, direct, name)
            if moved is not None:
                return moved, rule.hold
        return length, False

    def _at(self, path: str) -> str:
        return self._root + path

    def getattr(self, path: str | None, fi: Any = None) -> dict[str, int]:
        status = os.lstat(self._at(path)) if path is not None else os.fstat(fi.fh)
        names = ("ino", "mode", "nlink", "uid", "gid", "size", "blocks", "rdev")
        attributes = {f"st_{name}": getattr(status, f"st_{name}") for name in names}
        for name in ("st_atime", "st_mtime", "st_ctime"):
            attributes[name] = getattr(status, f"{name}_ns")
        return attributes

    def opendir(self, path: str) -> int:
        self._ask("opendir", path)
        return self._opened(path, os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY))

    def _opened(self, path: str, fd: int) -> int:
        self._names[fd] = _name(path)
        return fd

    def readdir(self, path: str | None, fd: int) -> list[tuple[str, dict[str, int], int]]:
        """Names with their inodes: the C library passes over those without, as if removed."""
        self._ask("readdir", path, fd)
        found = []
        for name in [".", "..", *os.listdir(fd)]:
            status = os.lstat(name, dir_fd=fd)
            found.append((name, {"st_ino": status.st_ino, "st_mode": status.st_mode}, 0))
        return found

    def fsyncdir(self, path: str | None, datasync: int, fd: int) -> None:
        self._ask("fsyncdir", path, fd)

    def releasedir(self, path: str | None, fd: int) -> None:
        os.close(fd)

    def mkdir(self, path: str, mode: int) -> None:
        self._ask("mkdir", path)
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def create(self, path: str, mode: int, fi: Any) -> None:
        self._ask("create", path)
        fd = os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        fi.fh = self._opened(path, fd)
        fi.direct_io = self._direct_io

    def open(self, path: str, fi: Any) -> None:
        self._ask("open", path)
        fi.fh = self._opened(path, os.open(self._at(path), os.O_RDWR | fi.flags & os.O_TRUNC))
        fi.direct_io = self._direct_io

    def read(self, path: str | None, length: int, offset: int, fi: Any) -> bytes:
        moved = self._ask("read", path, fi.fh, offset, length, bool(fi.flags & os.O_DIRECT))
        data = os.pread(fi.fh, moved, offset)
        if not self._cache:
            return data
        pages = range(offset, offset + len(data), PAGE)
        return b"".join(
            self._cache.get(at, data[at - offset : at - offset + PAGE]) for at in pages
        )[: len(data)]

    def write(self, path: str | None, data: bytes, offset: int, fi: Any) -> int:
        moved = self._ask("write", path, fi.fh, offset, len(data), bool(fi.flags & os.O_DIRECT))
        if self._cache is None:
            return os.pwrite(fi.fh, data[:moved], offset) if moved else 0
        assert offset % PAGE == moved % PAGE == 0
        for at in range(0, moved, PAGE):
            self._cache[offset + at] = data[at : at + PAGE]
        return moved

    def fsync(self, path: str | None, datasync: int, fi: Any) -> None:
        self._ask("fsync", path, fi.fh)  # that the machine itself may fail is not what is tested
        for offset, page in (self._cache or {}).items():
            os.pwrite(fi.fh, page, offset)
        if self._cache:
            self._cache = {}

    def flush(self, path: str | None, fi: Any) -> None:
        self._ask("flush", path, fi.fh)

    def release(self, path: str | None, fi: Any) -> None:
        os.close(fi.fh)

    def fallocate(self, path: str | None, mode: int, offset: int, length: int, fi: Any) -> None:
        self._ask("fallocate", path, fi.fh)
        if mode:
            raise OSError(errno.EOPNOTSUPP, "only to allocate")
        os.posix_fallocate(fi.fh, offset, length)

    def truncate(self, path: str | None, length: int, fi: Any = None) -> None:
        self._ask("truncate", path, fi.fh if path is None else -1)
        os.truncate(self._at(path) if path is not None else fi.fh, length)

    def chmod(self, path: str, mode: int) -> None:
        self._ask("chmod", path)
        os.chmod(self._at(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        self._ask("chown", path)
        os.chown(self._at(path), uid, gid)

    def rename(self, old: str, new: str, flags: int) -> None:
        self._ask("rename with flags" if flags else "rename", new)
        noreplace = 1
        if flags & ~noreplace:
            raise OSError(errno.EINVAL, "no such flags")
        if flags and os.path.lexists(self._at(new)):
            raise OSError(errno.EEXIST, "taken")
        os.rename(self._at(old), self._at(new))

    def link(self, new: str, old: str) -> None:
        self._ask("link", new)
        os.link(self._at(old), self._at(new))

    def unlink(self, path: str) -> None:
        self._ask("unlink", path)
        os.unlink(self._at(path))


def _name(path: str) -> str:
    """The last name of a path; of a temporary one the name it is to become."""
    name = os.path.basename(path)
    return re.sub(r"\.(.*)\.aiocp-[0-9a-f]{16}", r"\1", name)


def serve(options: argparse.Namespace) -> None:
    """Mount, and serve until it is unmounted."""
    os.environ["FUSE_LIBRARY_NAME"] = "fuse3"
    import mfusepy  # it looks for the library when it is imported

    class Fuse(mfusepy.FUSE):  # type: ignore[misc]
        """With the arguments that mfusepy drops."""

        def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> None:
            self.operations.rename(os.fsdecode(old), os.fsdecode(new), flags)

        def truncate_fuse_3(self, path: bytes | None, length: int, fip: Any) -> None:
            name = None if path is None else os.fsdecode(path)
            self.operations.truncate(name, length, fip.contents if fip else None)

    os.umask(0)  # the kernel has applied the caller's
    Fuse(
        Server(options),
        options.mountpoint,
        raw_fi=True,
        foreground=True,
        nothreads=not options.threads,
        hard_remove=True,
        use_ino=True,
        attr_timeout=0,
        entry_timeout=0,
        fsname="aiocp-test",
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backing")
    parser.add_argument("mountpoint")
    parser.add_argument("--rules", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--gate", required=True)
    parser.add_argument("--direct-io", action="store_true")
    parser.add_argument("--volatile", action="store_true")
    parser.add_argument("--threads", action="store_true")
    serve(parser.parse_args(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
