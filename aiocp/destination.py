"""An open destination: created without a name, sized, and committed or abandoned.

A new or replaced file has no name until it is whole and synced: `O_TMPFILE`, or where the file
system has none a hidden name that goes with the open file. What must keep its inode (a hard-linked
file, a device, a FIFO, an owner that we may not give to a new file) is written in place.
"""

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from errno import (
    EBUSY,
    EDQUOT,
    EEXIST,
    EINVAL,
    EIO,
    EISDIR,
    ELOOP,
    ENOENT,
    ENOSPC,
    EOPNOTSUPP,
)
from functools import partial
from typing import TYPE_CHECKING, Self

from aiocp import direct, metadata, stream
from aiocp.backup import Backups, keeping
from aiocp.engine import Extent
from aiocp.errors import Cancel, fail, look, operation, same_file
from aiocp.linux import File, allocate, buffers_direct_writes, clone, punch, temporary_name
from aiocp.source import Source
from aiocp.stage import Stage

if TYPE_CHECKING:
    from aiocp.partial import Partial

# what open(2) answers to O_TMPFILE where the kernel or the file system has none
_NO_TMPFILE = (EOPNOTSUPP, EISDIR, ENOENT, EINVAL)


# After so many bytes what was written through the page cache is sent to the disk, unless so many
# times as many are on their way there: then it is waited for
_SEND, _ON_THEIR_WAY = 32 << 20, 4

_CLOSED = File()  # where there is none
_LINKABLE: list[int] = []  # not empty once an unnamed file was found to have a path in /proc


class Destination:
    """A destination opened for writing.

    `in_place` tells that its bytes are changed under its name, `touched` that some of it was
    changed before the first write, `removes` that what is there goes and leaves nothing to the new
    file, and `backup`, once committed, the name that it has kept. `alignment` is 0 for buffered
    writes, `seekable` False for what only takes a stream. `through_cache` tells that it could take
    direct writes, and why it would be slower: they go through the page cache all the same.
    """

    def __init__(
        self,
        directory: File,
        name: bytes,
        source: Source,
        how: direct.Direct,
        block_size: int,
        *,
        in_place: bool = False,
        force: bool = False,
        follow: bool = False,
        preserve: frozenset[str] = frozenset(),
        mask: int | None = None,
        remove: bool = False,
        backups: Backups | None = None,
        attributes_only: bool = False,
        unfinished: "Partial | None" = None,
        wait: bool = True,
        named: bool = False,
        cancel: Cancel | None = None,
    ) -> None:
        """Open the destination of a copy of `source`; what is there stays as it is until `commit`.

        `directory` stays the caller's to close. `in_place` asks for an existing file to be written
        under its name; `force` for a block device to be written although it is in use, and for a
        file that may not be opened to be replaced; `follow` is that of its `Place`; `preserve`
        names attributes of the source to carry over; `mask` is the directory's, if it is known
        (metadata.creation_mask); `remove` asks for a new file that has nothing of the one there,
        and so do `backups`, which keep that; with `attributes_only` the contents stay, and a new
        file has none; a new file goes on with what is `unfinished`, and another copy with that;
        a new file that is `named` has a hidden name from now on, `temporary`, by which others may
        open it; `cancel` ends the wait for a FIFO's reader.

        Raises OSError, the operation in its text: those of open(2) and statx(2), EBUSY for a device
        in use, ENOSPC for one that is too small; `shutil.SameFileError`; `Cancelled`.
        """
        self.file = self._old = _CLOSED
        self.directory, self.name = directory, name
        self.in_place = in_place
        self.touched = False
        self._force, self._wait, self._cancel = force, wait, cancel
        self._follow = follow
        self._preserve, self._mask, self._remove = preserve, mask, remove or backups is not None
        self._backups, self._attributes_only = backups, attributes_only
        self._unfinished, self._named = unfinished, named
        self.temporary = b""
        self.backup: bytes | None = None
        self._mode: int | None = None
        self._exact = False  # whether the size is not to be changed
        self._behind: Stage[None] | None = None
        self._sent = 0  # bytes that are on their way from memory to the disk
        try:
            with operation("open destination"):
                self._choose(source)
                self._find_out(how, source, block_size)
        except BaseException:
            self.close()
            raise

    @property
    def fd(self) -> int:
        return self.file.fileno()

    def _choose(self, source: Source) -> None:
        """Open what there is to be opened, in the light of what has the name."""
        existing = self._look()
        if existing and os.path.samestat(existing, source.stat) and not self._remove:
            raise same_file()
        self.replaces = existing is not None
        several = "links" in self._preserve and not self._attributes_only
        if existing and (self._remove or (several and existing.st_nlink > 1)):
            existing = None  # as cp, which removes it first
        try:
            self._open(existing, source)
        except PermissionError:
            if existing is None or not self._force or stat.S_ISBLK(existing.st_mode):
                raise
            existing = None
            self._open(None, source)
        self.removes = self.replaces and existing is None

    def _find_out(self, how: direct.Direct, source: Source, block_size: int) -> None:
        """Find out what the open file takes."""
        mode = os.fstat(self.fd).st_mode
        self.regular = stat.S_ISREG(mode)
        self.seekable = self.regular or stat.S_ISBLK(mode)
        if how == "auto" and (source.small or source.size is None or self._attributes_only):
            how = "never"
        self.through_cache = how == "auto" and buffers_direct_writes(self.fd)
        if self.through_cache:
            how = "never"
        self.alignment = direct.switch_on(self.fd, how, block_size) if self.seekable else 0

    def _stat(self) -> os.stat_result | None:
        """The stat of what has the name, None if nothing has it."""
        try:
            return os.stat(self.name, dir_fd=self.directory.fileno(), follow_symlinks=self._follow)
        except FileNotFoundError:
            return None

    def _look(self) -> os.stat_result | None:
        if (seen := self._stat()) is None:
            return None
        if stat.S_ISLNK(seen.st_mode) and not self._remove:  # planted since it was resolved
            raise fail(ELOOP, "open destination")
        if stat.S_ISDIR(seen.st_mode):
            raise fail(EISDIR, "open destination")
        return seen

    def _open(self, existing: os.stat_result | None, source: Source) -> None:
        if existing is None:
            self.in_place = False
            self.file = self._create(source.stat.st_uid)
            if _takes_modes(self.fd):
                if self._mask is None:
                    self._mask, _ = metadata.creation_mask(self.directory.fileno())
                self._mode = metadata.new_mode(source.stat.st_mode, self._preserve) & ~self._mask
        elif self._replaceable(existing):
            self._open_replacement(existing, source)
        else:
            self.in_place = True
            self._exact = self._attributes_only
            self.file = self._open_existing(existing)
            if stat.S_ISBLK(existing.st_mode) and not self._attributes_only:
                check_size(self.fd, source)

    def _replaceable(self, existing: os.stat_result) -> bool:
        """Whether a new file can take the place of what is there."""
        whole = stat.S_ISREG(existing.st_mode) and existing.st_nlink == 1
        return whole and not (self.in_place or self._attributes_only)

    def _open_existing(self, existing: os.stat_result) -> File:
        directory = self.directory.fileno()
        flags = os.O_WRONLY if self._follow else os.O_WRONLY | os.O_NOFOLLOW
        if stat.S_ISBLK(existing.st_mode):
            file = self._open_device(flags)
        elif not stat.S_ISFIFO(existing.st_mode):
            file = File.open(self.name, flags | os.O_NONBLOCK, dir_fd=directory)
        else:
            self._refuse_fifo(existing)
            file = stream.open_writer(self.name, flags, directory, self._cancel)
        if not os.path.samestat(os.fstat(file.fileno()), existing):
            raise fail(EEXIST, "replaced while being opened")
        return file

    def _open_device(self, flags: int) -> File:
        """Open a block device; with O_EXCL, EBUSY for one that is mounted or claimed."""
        flags |= 0 if self._force else os.O_EXCL
        try:
            return File.open(self.name, flags, dir_fd=self.directory.fileno())
        except OSError as error:
            if error.errno == EBUSY:
                raise fail(EBUSY, "mounted or in use, and not forced") from error
            raise

    def _refuse_fifo(self, existing: os.stat_result) -> None:
        """Raise OSError for a FIFO whose reader is not to be waited for."""
        if stat.S_ISFIFO(existing.st_mode) and not self._wait:
            raise fail(EEXIST, "not writing into a FIFO")

    def _open_replacement(self, existing: os.stat_result, source: Source) -> None:
        """A new file like the old one; where it cannot be made like it, the old one in place."""
        self._old = self._open_existing(existing)  # refuses what cp may not write either
        try:
            self.file = self._create(source.stat.st_uid, existing.st_uid)
            takes_modes = _takes_modes(self.fd)
            mode = metadata.keep(self._old.fileno(), self.fd)
            if takes_modes:
                self._mode = mode
                os.fchmod(self.fd, 0o600)
        except PermissionError:
            self.file.close()
            self.file, self.in_place, self._mode = self._old, True, None

    def _create(self, *owners: int) -> File:
        """A file without a name, or what was begun and may belong to one of `owners` by now."""
        unfinished, directory = self._unfinished, self.directory.fileno()
        if unfinished is None:
            if not self._named:
                return self._create_new()
            self.temporary = temporary_name(self.name)
            return File.create_named(self.temporary, os.O_RDWR, dir_fd=directory)
        file = unfinished.take({*owners})
        if file is None:
            file = self._create_new()
            unfinished.begin(file)
        if self._named:
            unfinished.keep()
            self.temporary = unfinished.name
        return file

    def _create_new(self) -> File:
        directory = self.directory.fileno()
        try:
            file = File.open(b".", os.O_TMPFILE | os.O_RDWR, dir_fd=directory)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
        else:
            if _is_linkable(file.fileno()):
                return file
        return File.create_named(temporary_name(self.name), os.O_RDWR, dir_fd=directory)

    def clone(self, source: Source) -> None:
        """Take the source's blocks as its own, all of them. Raises OSError from FICLONE."""
        self._exact = False  # it has what the source has by now
        try:
            clone(self.fd, source.fd)
        except OSError as error:
            # an end within a block is cloned only to where the destination ends as well
            size = source.size or 0
            longer = error.errno == EINVAL and 0 < size < os.fstat(self.fd).st_size
            self.touched = self.in_place and (longer or error.errno in (EIO, ENOSPC, EDQUOT))
            if not longer:
                raise
            os.ftruncate(self.fd, size)
            clone(self.fd, source.fd)

    def size(self, length: int) -> None:
        """Reserve `length` bytes: no write has to extend the file, and a full disk shows now.

        Raises OSError ENOSPC, EDQUOT, EFBIG. A direct write that extends a file is done inside
        io_submit, one after another.
        """
        if not self.regular:
            return
        with operation("allocate"):
            padded, before = self._padded(length), os.fstat(self.fd).st_size
            try:
                allocate(self.fd, 0, padded)
            except OSError as error:
                if error.errno != EOPNOTSUPP:
                    if os.fstat(self.fd).st_size > before:  # ext4 keeps what it could reserve
                        os.ftruncate(self.fd, before)
                    raise
                if before < padded:
                    os.ftruncate(self.fd, padded)
            self.touched = before < padded

    def make_hole(self, length: int) -> None:
        """Be nothing but a hole of `length` bytes, into which data is to be written."""
        with operation("truncate"):
            if self.in_place:
                os.ftruncate(self.fd, 0)
                self.touched = True
            os.ftruncate(self.fd, self._padded(length))

    def reserve(self, data: Iterable[Extent]) -> None:
        """Reserve space for extents in a hole: a full disk shows now. Raises OSError as `size`.

        Before the first write, because fallocate(2) waits for all direct I/O on the file.
        """
        with operation("allocate"):
            for start, length in data:
                look(self._cancel)
                try:
                    allocate(self.fd, start, length)
                except OSError as error:
                    if error.errno != EOPNOTSUPP:
                        raise
                    return

    def punch(self, offset: int, length: int) -> bool:
        """Have zeroes there without writing them; whether that is possible."""
        try:
            punch(self.fd, offset, length)
        except OSError:  # if it is no refusal, the writing of the zeroes will say it
            return False
        self.touched = True
        return True

    def _padded(self, length: int) -> int:
        """To where the last direct write of `length` bytes goes."""
        unit = self.alignment or 1
        return -(-length // unit) * unit

    def wrote(self, length: int) -> None:
        """Leave the page cache to others: of the `length` bytes that are written by now the last go
        to the disk, and those before, which are there, out of memory.

        In a side thread, since writing back is as much work as writing: checksums.
        """
        if not self.through_cache or length - self._sent < _SEND:
            return
        if self._behind is None:
            self._behind = Stage("aiocp-write-back")
        start, self._sent = max(0, self._sent - _SEND), length
        self._behind.give(partial(self._forget, start, length - start))
        while self._behind.pending > _ON_THEIR_WAY:
            self._behind.take()

    def _forget(self, offset: int, length: int) -> None:
        """Have a range written back, or if it is, out of the page cache; length 0: to the end."""
        with suppress(OSError):  # no more than advice
            os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_DONTNEED)

    def finish(self, length: int, source: Source) -> None:
        """Cut the file to `length` bytes and give it its attributes: the last before the sync."""
        if not self.regular:
            return
        if not self._exact:
            with operation("truncate"):
                if os.fstat(self.fd).st_size != length:
                    os.ftruncate(self.fd, length)
        if self._mode is None and not self._preserve:
            return
        with operation("set attributes"):
            metadata.carry(source.fd, source.stat, self.fd, self._preserve, self._mode)

    def commit(self, *, flush: bool = True) -> None:
        """Put the finished file under its name; `flush` if closing it may tell of an error."""
        if self.through_cache:  # synced by now
            self._forget(0, 0)
        if self.in_place:
            return
        directory = self.directory.fileno()
        doing = "close"
        try:
            if flush:
                self.file.flush()
            if self.replaces:
                doing = "rename"
                with keeping(self._backups, directory, self.name) as self.backup:
                    temporary = temporary_name(self.name)
                    self.file.replace(self.name, temporary=temporary, dir_fd=directory)
            else:
                doing = "link"
                self.file.link(self.name, dir_fd=directory)
        except OSError as error:
            if hasattr(error, "operation"):  # of the backup
                raise
            raise fail(error.errno or EINVAL, doing) from error

    def padding(self, offset: int, length: int) -> bytes:
        """What follows the copy's last byte in its last aligned unit: a file is cut there anyway,
        a device keeps its own bytes."""
        if self.regular:
            return bytes(length)
        with (
            operation("read the device's last block"),
            File.open(self.name, os.O_RDONLY, dir_fd=self.directory.fileno()) as device,
        ):
            return os.pread(device.fileno(), length, offset)

    def close(self) -> None:
        """Close; what was not committed is gone. Raises OSError from close(2); idempotent."""
        if self._behind is not None:
            self._behind.close()
        try:
            self.file.close()
        except OSError as error:
            raise fail(error.errno or EINVAL, "close") from error
        finally:
            if self._old is not _CLOSED:
                with suppress(OSError):  # what is said of the file that was replaced is no matter
                    self._old.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(*([OSError] if kind else [])):  # the first error is the one to report
            self.close()


def _takes_modes(fd: int) -> bool:
    """Whether the file system took the 0600 of a new file.

    vfat gives every file the mode of the mount, and answers EPERM to a change of it.
    """
    return not os.fstat(fd).st_mode & 0o177


def _is_linkable(fd: int) -> bool:
    """Whether there is a /proc, through which an unnamed file is linked."""
    if not _LINKABLE and os.path.exists(f"/proc/self/fd/{fd}"):
        _LINKABLE.append(fd)
    return bool(_LINKABLE)


def check_size(device: int, source: Source) -> None:
    """Refuse a device that is smaller than what is to be copied to it."""
    size = os.lseek(device, 0, os.SEEK_END)
    os.lseek(device, 0, os.SEEK_SET)
    if source.size is not None and size < source.size:
        raise fail(ENOSPC, f"device has {size} bytes, source {source.size}")
