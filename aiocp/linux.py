"""The Linux calls that `os` lacks, and open files that clean up after themselves.

A `File` owns its descriptor, and a temporary name if it has one, in C: `close` reports errors, and
where an exception cuts in before that, the last reference to go closes it and removes the name.
"""

import fcntl
import os
from struct import calcsize, unpack
from typing import Self

from aiocp._linux import ffi, lib

_AT_FDCWD = -100
_EINTR = 4
_PATH_MAX = 4096  # with the NUL at its end
_FICLONE = 0x40049409
_GETFLAGS, _NOCOW = 0x80086601, 0x00800000

_KERNEL = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))

# now, because cffi aborts when two threads build a type
_BUILT = [ffi.typeof(f"struct aiocp_{name}").fields for name in ("file", "tally")]
_NAMES, _FILES = ffi.typeof("const char **"), ffi.typeof("unsigned long long **")
_file_open, _file_close = lib.file_open, lib.file_close


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))


class File:
    """An open file, closed at the latest when it is no longer referenced.

    As a context manager for what is only read: what close(2) says is passed over.
    """

    __slots__ = ("_file",)

    def __init__(self) -> None:
        self._file = ffi.gc(lib.file_new(), lib.file_free)

    @classmethod
    def open(
        cls, path: bytes, flags: int, mode: int = 0o600, *, dir_fd: int | None = None
    ) -> "File":
        """Open as `os.open` does, close-on-exec. Raises OSError from openat(2)."""
        file = cls()
        at = _AT_FDCWD if dir_fd is None else dir_fd
        while (result := _file_open(file._file, at, path, flags, mode)) == -_EINTR:
            pass  # signal handlers have run between these bytecodes (PEP 475)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return file

    @classmethod
    def open_far(cls, path: bytes, flags: int, *, dir_fd: int | None = None) -> "File":
        """Open a path that may be longer than PATH_MAX, directory by directory then."""
        above: File | None = None
        while len(path) >= _PATH_MAX:
            end = path.rindex(b"/", 0, _PATH_MAX - 1)
            above = cls.open(path[: end or 1], os.O_PATH | os.O_DIRECTORY, dir_fd=dir_fd)
            dir_fd, path = above.fileno(), path[end + 1 :]
        return cls.open(path, flags, dir_fd=dir_fd)

    @classmethod
    def create_named(cls, name: bytes, flags: int, mode: int = 0o600, *, dir_fd: int) -> "File":
        """Create a file under a temporary name that goes with it unless `link` or `replace` ran."""
        file = cls()
        while (result := lib.file_open_named(file._file, dir_fd, name, flags, mode)) == -_EINTR:
            pass
        _check(result)
        return file

    @classmethod
    def open_kept(cls, name: bytes, flags: int, *, dir_fd: int) -> "File":
        """Open a file whose name was kept, no symbolic link; it stays unless `link`, `replace` or
        `unkeep` runs. Raises OSError from openat(2)."""
        file = cls()
        while (result := lib.file_open_kept(file._file, dir_fd, name, flags)) == -_EINTR:
            pass
        _check(result)
        return file

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        fd: int = self._file.fd
        return fd

    def path(self) -> bytes:
        """Its absolute path, as it is now. Raises OSError, ENAMETOOLONG for a long one."""
        return os.fsencode(os.readlink(f"/proc/self/fd/{self.fileno()}"))

    @property
    def named(self) -> bool:
        """Whether a temporary name exists for the file."""
        return bool(self._file.named)

    def flush(self) -> None:
        """Raise now what `close` would raise, with the file still open and without its name."""
        _check(lib.file_flush(self._file))

    def keep(self, name: bytes, *, dir_fd: int) -> None:
        """Give a file that has none, or a temporary one, a name that stays when it is closed, until
        it gets its own by `link` or `replace`. Raises FileExistsError where the name is taken."""
        _check(lib.file_keep(self._file, dir_fd, name))

    def unkeep(self) -> None:
        """Have the name that was kept be a temporary one, which `close` removes."""
        lib.file_unkeep(self._file)

    def link(self, name: bytes, *, dir_fd: int) -> None:
        """Give the file its name. Raises FileExistsError where the name is taken."""
        _check(lib.file_link(self._file, dir_fd, name))

    def replace(self, name: bytes, *, temporary: bytes, dir_fd: int) -> None:
        """Give the file the name of another, atomically; `temporary` is used in between."""
        _check(lib.file_replace(self._file, dir_fd, temporary, name))

    def close(self) -> None:
        """Close, and remove the temporary name. Raises OSError from close(2); idempotent."""
        if (result := _file_close(self._file)) < 0:
            raise OSError(-result, os.strerror(-result))

    def let_go(self) -> None:
        """Close what was only read, so that close(2) has nothing to tell."""
        _file_close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()


class Tally:
    """Entries that are no directories, and bytes of regular files, counted directory by directory.

    `entries` and `size` may be looked at meanwhile, from another thread; with `follow` what
    symbolic links point to counts. With `links` files that may have several names are set aside:
    their bytes are not in `size`.
    """

    def __init__(self, *, follow: bool, links: bool) -> None:
        self._tally = tally = ffi.gc(lib.tally_new(follow, links), lib.tally_free)
        if not tally:
            raise MemoryError
        self._names, self._files = ffi.new(_NAMES), ffi.new(_FILES)

    @property
    def entries(self) -> int:
        return int(self._tally.entries)

    @property
    def size(self) -> int:
        return int(self._tally.bytes)

    def add(self, fd: int) -> list[bytes]:
        """Count a directory from where it is read next; the names of those that are in it.

        Raises OSError from getdents64(2).
        """
        _check(lib.tally_directory(self._tally, fd))
        if not (length := lib.tally_names(self._tally, self._names)):
            return []
        return bytes(ffi.buffer(self._names[0], length)).split(b"\0")[:-1]

    def add_entry(self, fd: int, name: bytes) -> None:
        """Count one entry of a directory, that is none itself."""
        _check(lib.tally_entry(self._tally, fd, name, 0))

    def linked(self) -> list[tuple[int, int, int]]:
        """Device, inode number and size of the files set aside since this was asked last."""
        nr = lib.tally_linked(self._tally, self._files)
        figures = ffi.unpack(self._files[0], 3 * nr) if nr else []
        return list(zip(figures[::3], figures[1::3], figures[2::3], strict=True))

    def stop(self) -> None:
        """Have `add` end at once, now and from now on."""
        self._tally.stop = 1


def replace_node(
    name: bytes,
    *,
    temporary: bytes,
    dir_fd: int,
    fd: int = -1,
    text: bytes | None = None,
    mode: int = 0,
    device: int = 0,
) -> None:
    """Put a link in place of what has its name, atomically; `temporary` is used in between.

    A hard link to the open file `fd`, else a symbolic link to `text`, else a node of that `mode`.
    """
    link = ffi.NULL if text is None else text
    _check(lib.node_replace(dir_fd, temporary, name, fd, link, mode, device))


def temporary_name(name: bytes) -> bytes:
    """A hidden name that says whose it is, and that nothing else has."""
    return hidden_name(name, b".aiocp-" + os.urandom(8).hex().encode())


def hidden_name(name: bytes, suffix: bytes) -> bytes:
    """A hidden name that goes with a name, of which it is cut to 255 bytes, which is NAME_MAX."""
    return b"." + name[: 255 - 1 - len(suffix)] + suffix


def allocate(fd: int, offset: int, length: int) -> None:
    """Reserve `length` bytes from `offset` on and have the file end there or later: fallocate(2).

    Raises OSError: ENOSPC at once where the space is missing, EOPNOTSUPP where the file system
    cannot (glibc's posix_fallocate would then write zeros, which is why it is not used).
    """
    _fallocate(fd, 0, offset, length)


def punch(fd: int, offset: int, length: int) -> None:
    """Make a range of a file or a block device read as zeroes, without writing it.

    Raises OSError from fallocate(2): EOPNOTSUPP where the file system or the device cannot, EINVAL
    for a range that is no multiple of the device's sectors.
    """
    keep_size, punch_hole = 1, 2
    _fallocate(fd, keep_size | punch_hole, offset, length)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    while (result := lib.file_allocate(fd, mode, offset, length)) == -_EINTR:
        pass
    _check(result)


def clone(fd: int, source_fd: int) -> None:
    """Have all of a file be blocks that it shares with another one: FICLONE.

    Raises OSError: EXDEV, EOPNOTSUPP, EINVAL and others where that cannot be.
    """
    while True:
        try:
            fcntl.ioctl(fd, _FICLONE, source_fd)
        except InterruptedError:
            continue
        return


def cached_bytes(fd: int, offset: int, length: int) -> tuple[int, bool]:
    """How many bytes of a range (0: to the end) are in the page cache, in whole pages, and whether
    some are not written back yet.

    Raises OSError from cachestat(2): ENOSYS before Linux 6.5, EPERM, EOPNOTSUPP.
    """
    dirty = ffi.new("int *")
    cached: int = lib.cached_bytes(fd, offset, length, dirty)
    _check(cached)
    return cached, bool(dirty[0])


def sync_filesystem(fd: int) -> None:
    """Sync the file system that `fd` is on: syncfs(2). Raises OSError EIO, ENOSPC, EDQUOT."""
    if lib.syncfs(fd) < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno))


def direct_alignment(fd: int) -> int | None:
    """The alignment in bytes that direct I/O on this file asks for, of offsets and of memory.

    0: the file takes none. None: the kernel (before 6.1) or the file system does not say.
    """
    memory, offset = ffi.new("unsigned *"), ffi.new("unsigned *")
    if lib.direct_alignment(fd, memory, offset) < 0:
        return None
    return max(int(memory[0]), int(offset[0]))


def birth_time(fd: int) -> int:
    """When a file was made, in nanoseconds since 1970; -1 where the file system does not say."""
    return int(lib.birth_time(fd))


def set_io_priority(priority: int) -> int:
    """Give this thread an I/O priority; the one that it had. Threads that it starts inherit it.

    Raises OSError from ioprio_set(2).
    """
    before: int = lib.io_priority(priority)
    _check(before)
    return before


_BTRFS, _EXT4, _XFS = 0x9123683E, 0xEF53, 0x58465342

# those whose close(2) has nothing to say; next to these tmpfs, F2FS, bcachefs
_SILENT_CLOSE = frozenset({_BTRFS, _EXT4, _XFS, 0x01021994, 0xF2F52010, 0xCA451A4E})

# where syncfs(2) makes all of a file system durable, each file's data, size and name
_SYNCED_WHOLE = frozenset({_BTRFS, _EXT4, _XFS})


def buffers_direct_writes(fd: int) -> bool:
    """Whether a direct write to this file goes through the page cache all the same, and waits for
    the disk: on Btrfs, unless the file has no checksums (ioctl_iflags(2), FS_NOCOW_FL)."""
    if lib.filesystem_type(fd) != _BTRFS:
        return False
    flags = unpack("l", fcntl.ioctl(fd, _GETFLAGS, bytes(calcsize("l"))))[0]
    return not flags & _NOCOW


def close_may_fail(fd: int) -> bool:
    """Whether close(2) can tell of writes that failed late on this file system, as NFS's can."""
    return lib.filesystem_type(fd) not in _SILENT_CLOSE


def has_syncfs(fd: int) -> bool:
    """Whether syncfs(2) makes everything on this file system durable and tells of what was not
    written: since Linux 5.8, on ext4, XFS and Btrfs."""
    return _KERNEL >= (5, 8) and lib.filesystem_type(fd) in _SYNCED_WHOLE


def masks_unnamed_files() -> bool:
    """Whether every file system takes the umask off the mode of a file that O_TMPFILE makes, as it
    does with one that has a name: since Linux 6.0."""
    return _KERNEL >= (6, 0)


def dirty_bytes() -> int:
    """Bytes in memory, of all files, that are still to be written or are being written.

    Raises OSError where there is no /proc.
    """
    file = File.open(b"/proc/meminfo", os.O_RDONLY)
    figures = os.read(file.fileno(), 1 << 16)
    file.let_go()
    lines = [line.split() for line in figures.splitlines()]
    return sum(int(line[1]) << 10 for line in lines if line[0] in (b"Dirty:", b"Writeback:"))
