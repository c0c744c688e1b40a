"""What is known of a copy that was begun: a small file next to its destination.

Two records are written in turn and synced, each with a number and a checksum: whatever a power cut
leaves of the one that was being written, the other is whole.
"""

import os
import stat
import zlib
from errno import EIO, ELOOP, ENOENT
from typing import NamedTuple

from aiocp.errors import fail
from aiocp.linux import File

_MAGIC = b"aiocp journal 1"
_RECORD = 4096  # bytes, of which no more than one is written at a time


class Record(NamedTuple):
    """A copy's source as it was opened, the inode that is to be the copy, and how far that is.

    Bytes up to `synced` are on the disk; `block_size` is that of the copy. No device is among it:
    its number can be another after a restart.
    """

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    partial: int
    block_size: int
    synced: int

    def is_of(self, source: os.stat_result) -> bool:
        """Whether this is still the source."""
        now = (source.st_ino, source.st_size, source.st_mtime_ns, source.st_ctime_ns)
        return (self.inode, self.size, self.mtime_ns, self.ctime_ns) == now


class Journal:
    """The journal called `name` in a directory, which stays the caller's to close."""

    def __init__(self, directory: File, name: bytes) -> None:
        self._directory, self._name = directory, name
        self._file: File | None = None
        self._number = 0

    def read(self) -> Record | None:
        """The latest record that is whole; None where there is none, or not of our making.

        Raises OSError from openat(2) and pread(2).
        """
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            file = File.open(self._name, flags, dir_fd=self._directory.fileno())
        except OSError as error:
            if error.errno in (ENOENT, ELOOP):  # a link is not of our making
                return None
            raise
        fd = file.fileno()
        if not is_of(os.fstat(fd), {os.geteuid()}):
            return None
        found = [_parse(os.pread(fd, _RECORD, at)) for at in (0, _RECORD)]
        self._file = file
        self._number, record = max((one for one in found if one), default=(0, None))
        return record

    def write(self, record: Record) -> None:
        """Have a record on the disk. Raises OSError; FileExistsError where the name is taken."""
        if self._file is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            self._file = File.open(self._name, flags, dir_fd=self._directory.fileno())
        self._number += 1
        fd, text = self._file.fileno(), _text(self._number, record)
        if os.pwrite(fd, text, self._number % 2 * _RECORD) < len(text):
            raise fail(EIO, "write journal")
        os.fdatasync(fd)

    def remove(self) -> bool:
        """Remove it; whether it was there. Raises OSError from unlinkat(2)."""
        self._file = None
        return remove(self._name, self._directory)


def remove(name: bytes, directory: File) -> bool:
    """Remove a file; whether it was there. Raises OSError from unlinkat(2)."""
    try:
        os.unlink(name, dir_fd=directory.fileno())
    except FileNotFoundError:
        return False
    return True


def is_of(seen: os.stat_result, owners: set[int]) -> bool:
    """Whether this is a file that one of these has made, for this purpose: no link to another."""
    return stat.S_ISREG(seen.st_mode) and seen.st_nlink == 1 and seen.st_uid in owners


def _text(number: int, record: Record) -> bytes:
    fields = {"number": number, **record._asdict()}
    lines = [_MAGIC, *(b"%b %d" % (name.encode(), value) for name, value in fields.items())]
    text = b"\n".join(lines)
    return (text + b"\nchecksum %d\n" % zlib.crc32(text)).ljust(_RECORD, b"\0")


def _parse(text: bytes) -> tuple[int, Record] | None:
    """The number and the record that a text is of, if it is whole."""
    numbers = [int(word) for word in text.split()[4::2] if word.isdigit()]
    if len(numbers) != 2 + len(Record._fields):
        return None
    number, *fields, _ = numbers
    record = Record(*fields)
    return (number, record) if text == _text(number, record) else None
