"""A copy that can be gone on with after it was interrupted.

    take     what was begun before is opened, if its journal is of this source
    mark     now and then, when what is down is synced, the file gets a name, the first time, and
             the journal is told how far it is
    done     the file gets its own name when it is whole, and the journal goes

What is not worth going on with, a copy that takes some seconds, never has a name before its time.
"""

import fcntl
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import EBUSY, EINVAL, ELOOP, ENOENT
from functools import partial
from time import monotonic

from aiocp.errors import (
    Cancelled,
    SourceChanged,
    VerificationFailed,
    add_words,
    fail,
    operation,
)
from aiocp.journal import Journal, Record, is_of, remove
from aiocp.linux import File, hidden_name
from aiocp.source import Source
from aiocp.stage import Stage

# What may have to be copied again: as much as this, or what was copied in that time if it is less
EVERY_BYTES = 256 << 20
EVERY_SECONDS = 5.0


class Partial:
    """The file that is to be a copy.

    `resumed` are the bytes of it that an earlier copy has left on the disk, `name` is the one that
    it has until it gets its own.
    """

    def __init__(
        self,
        directory: File,
        name: bytes,
        source: Source,
        block_size: int,
        sync_directory: Callable[[], None],
    ) -> None:
        """The copy of `source`, to be called `name` in `directory`, which `sync_directory` syncs;
        the two stay the caller's to close. `block_size` in bytes.

        Raises OSError EINVAL for a source of which one cannot tell whether it changed.
        """
        if not source.tells_changes:
            raise fail(EINVAL, "resume: only files tell whether they changed")
        self.resumed = 0
        self._anew = ""  # why what an earlier copy has left is of no use
        self._refused = ""  # why nothing is kept of this one
        self._directory, self._source, self._block_size = directory, source, block_size
        self._sync_directory = sync_directory
        self.name = _beside(name, b"partial")
        self._journal = Journal(directory, _beside(name, b"journal"))
        self._file: File | None = None
        self._kept = False
        self._reached = 0
        self._marking: Stage[None] | None = None
        self._under_way = False
        self._marked, self._when = 0, monotonic()  # bytes that were moved then

    def take(self, owners: set[int]) -> File | None:
        """What was begun, open for reading and writing; what is of no use is removed.

        It must belong to one of `owners` or to us. Raises OSError, EBUSY while it is being written.
        """
        with operation("resume"):
            file, record = self._locked(), self._journal.read()
            if file is not None and record is not None and record.is_of(self._source.stat):
                seen = os.fstat(file.fileno())
                whole = seen.st_ino == record.partial and seen.st_size >= record.synced
                if whole and is_of(seen, owners | {os.geteuid()}):
                    with suppress(PermissionError):  # vfat takes no modes
                        os.fchmod(file.fileno(), 0o600)
                    self.begin(file)
                    self._kept, self._reached = True, record.synced
                    self.resumed = record.synced - record.synced % self._block_size
                    return file
            if record is not None and not record.is_of(self._source.stat):
                self._anew = "the source has changed"
            elif file is not None:
                self._anew = "what was begun is not whole"
            # the journal first, so that it never speaks of another file
            removed = [self._journal.remove(), remove(self.name, self._directory)]
            if any(removed):
                self._sync_directory()
            return None

    def _locked(self) -> File | None:
        """The file that was begun, if there is one, while no other copy writes it."""
        fd = self._directory.fileno()
        while (file := _open(self.name, fd)) is not None:
            _lock(file)
            with suppress(FileNotFoundError):  # it has got its own name, or was removed
                there = os.stat(self.name, dir_fd=fd, follow_symlinks=False)
                if os.path.samestat(there, os.fstat(file.fileno())):
                    return file
        return None

    # --- while it is written ---

    def begin(self, file: File) -> None:
        """Have `file` be what is written."""
        self._file = file

    def keep(self) -> None:
        """Have the file its name before anything of it is there. Raises OSError."""
        if not self._kept:
            self._write(0)

    def due(self, moved: int) -> bool:
        """Whether to sync it now, so many bytes having been moved."""
        if self._under_way and not self._has_marked():
            return False
        now = monotonic()
        if self._refused:
            return False
        if moved - self._marked < EVERY_BYTES and now - self._when < EVERY_SECONDS:
            return False
        self._marked, self._when = moved, now
        self._under_way = True
        return True

    def mark(self, offset: int) -> None:
        """Have it known, by a side thread, that all before `offset` is on the disk."""
        if self._marking is None:
            self._marking = Stage("aiocp-journal")
        self._marking.give(partial(self._write, offset))

    def _has_marked(self) -> bool:
        """Whether what was due is done."""
        if self._marking is None or not self._marking.done():
            return False
        self._take_mark(self._marking)
        return True

    def _take_mark(self, marking: Stage[None]) -> None:
        self._under_way = False
        try:
            marking.take()
        except OSError as error:
            self._refused = error.strerror or str(error)

    def _write(self, offset: int) -> None:
        file, source = self._file, self._source.stat
        assert file is not None
        record = Record(
            source.st_ino,
            source.st_size,
            source.st_mtime_ns,
            source.st_ctime_ns,
            os.fstat(file.fileno()).st_ino,
            self._block_size,
            offset,
        )
        with operation("keep what is copied"):
            if self._kept:
                self._journal.write(record)
            else:
                _lock(file)
                file.keep(self.name, dir_fd=self._directory.fileno())
                self._kept = True
                try:
                    self._journal.write(record)
                    self._sync_directory()
                except BaseException:
                    self._drop()
                    raise
        self._reached = offset

    # --- how it ends ---

    def settle(self) -> None:
        """Wait until nothing of this is under way any more."""
        if self._marking is not None:
            while self._marking.pending:
                self._take_mark(self._marking)

    def stopped(self, error: OSError | Cancelled) -> None:
        """Add to an error what is kept; nothing is of what turned out to be wrong."""
        self.close()
        if isinstance(error, SourceChanged | VerificationFailed):
            self._drop()
        elif self._kept:
            add_words(error, f"{self._reached:,} bytes are kept for --resume")

    def _drop(self) -> None:
        """Have nothing that could be gone on with: the journal goes, and the file when closed."""
        if self._kept and self._file is not None:
            self._kept = False
            with suppress(OSError):  # without its file it says nothing
                self._journal.remove()
            self._file.unkeep()

    def done(self) -> None:
        """Have the journal go: the file has its name. Raises OSError from unlinkat(2)."""
        if self._kept:
            self._kept = False
            with operation("remove journal"):
                self._journal.remove()

    def notes(self) -> Iterator[str]:
        """What could not be had as asked, and why."""
        if self._anew:
            yield f"resume: begun anew, as {self._anew}"
        if self._refused:
            yield f"resume: nothing was kept meanwhile: {self._refused}"

    def close(self) -> None:
        """Wait for the side thread; idempotent."""
        if self._marking is not None:
            self._marking.close()


def is_finished(seen: os.stat_result, existing: os.stat_result) -> bool:
    """Whether what is there may be taken for a copy: a file of the same size, and not older."""
    files = stat.S_ISREG(seen.st_mode) and stat.S_ISREG(existing.st_mode)
    same = files and seen.st_size == existing.st_size
    return same and seen.st_mtime_ns <= existing.st_mtime_ns


def _beside(name: bytes, what: bytes) -> bytes:
    """A hidden name that goes with a name, and with no other that is as long."""
    suffix = b".aiocp-" + what
    hidden = hidden_name(name, suffix)
    if hidden == b"." + name + suffix:
        return hidden
    return hidden_name(name, b"-%08x" % zlib.crc32(name) + suffix)


def _open(name: bytes, directory: int) -> File | None:
    """Open what was begun; None for what is not there or a link."""
    flags = os.O_RDWR | os.O_NONBLOCK
    try:
        try:
            return File.open_kept(name, flags, dir_fd=directory)
        except PermissionError:  # it had the source's mode already
            with File.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory) as file:
                if is_of(os.fstat(file.fileno()), {os.geteuid()}):
                    os.chmod(f"/proc/self/fd/{file.fileno()}", 0o600)
            return File.open_kept(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in (ENOENT, ELOOP):
            return None
        raise


def _lock(file: File) -> None:
    """Have no other copy write to it. Raises OSError EBUSY where one does."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise fail(EBUSY, "another copy to it is under way") from None
