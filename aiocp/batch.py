"""New small files by the batch: opened together, written, put in place together.

    open      every file is opened; what is in memory is copied at once, the rest is for the engine
    transfer  its bytes are read into it, and it is synced, if that is not done for many at once
    place     every file that was written gets its name, if its source is still what it was

`open` and `place` take a millisecond or more and need no GIL: calls for a side thread, during which
nothing else of the batch is to be touched.
"""

import os
from collections.abc import Iterator
from errno import ESTALE
from typing import Any

from aiocp import direct, engine, metadata
from aiocp._batch import ffi, lib
from aiocp.errors import SourceChanged, fail
from aiocp.reflink import Reflink
from aiocp.source import SMALL, shrank

CAPACITY: int = lib.CAPACITY  # files of a batch at most

# now, because cffi aborts when two threads build a type
_BUILT = [ffi.typeof(f"struct {name}").fields for name in ("aiocp_batch", "small_file")]

_OTHER, _OPEN, _WRITTEN, _UNFINISHED = lib.OTHER, lib.OPEN, lib.WRITTEN, lib.UNFINISHED
_FAILED = lib.FAILED
_add, _finish = lib.batch_add, lib.batch_finish

_CLONE = {"never": lib.NEVER, "auto": lib.AUTO, "always": lib.ALWAYS}
_DOING = {
    lib.OPEN_SOURCE: "open source",
    lib.READ: "read",
    lib.OPEN_DESTINATION: "open destination",
    lib.WRITE: "write",
    lib.SET_ATTRIBUTES: "set attributes",
    lib.LOOK: "look at source",
    lib.CLOSE: "close",
    lib.LINK: "link",
    lib.RENAME: "rename",
}


class SmallFile(engine.Transfer):
    """A file of a batch that is still to be read, or that is only to be synced."""

    def __init__(self, batch: "Batch", index: int, file: Any, *, read: bool) -> None:
        super().__init__()
        self.batch, self.index = batch, index
        self.read_fd, self.write_fd = file.source, file.copy
        self.sync = batch.sync
        if read:
            self.extents = ((0, file.size),)
            if alignment := file.alignment:
                self.alignment, self.read_direct = alignment, True

    def undirect(self, step: engine.Step) -> None:
        super().undirect(step)
        direct.switch_off(self.read_fd)

    def written(self) -> None:
        if self.extents:
            self.batch.finish(self.index)


class Batch:
    """A number of files, and the directories that they are copied from and to.

    `sync` is how each file is synced before it is placed. `waiting` and `transferred` are for
    whoever drives the transfers, to count those that have not ended, and their bytes. `data` is
    what `enter` was given for each directory, and `counts` how many files of it are this batch's to
    place. Closes all its descriptors at the latest when it is no longer referenced; what was not
    placed is gone then.
    """

    def __init__(
        self,
        preserve: frozenset[str],
        sync: engine.Sync,
        *,
        allow_changed: bool = False,
        replace: bool = True,
        holes: bool = False,
        alone: bool = False,
        at_once: bool = True,
    ) -> None:
        """`preserve` as for metadata.carry; `allow_changed` accepts sources that change, `replace`
        takes the place of files that have the name, and their owner and mode; with `holes` files
        that have some are not for the batch. `alone` is for a single file: it is read by waiting
        for it if it is not in memory, and what its mode lacks is left to the kernel. What is in
        memory is not copied `at_once` where the engine is to have it wait for its turn."""
        self.sync, self.waiting, self.transferred = sync, 0, 0
        self.data: list[Any] = []
        self.counts: list[int] = []
        self._preserve = preserve
        self._errors: dict[int, OSError] = {}
        self._read: set[int] = set()  # through an engine
        self._batch = batch = ffi.gc(lib.batch_new(), lib.batch_free)
        if not batch:
            raise MemoryError
        self._files = batch.files
        for name in preserve & metadata.ATTRIBUTES:
            setattr(batch, name, True)
        batch.default_mode = metadata.DEFAULT_MODE in preserve
        batch.allow_changed, batch.replace, batch.holes = allow_changed, replace, holes
        batch.small, batch.alone, batch.at_once = SMALL, alone, at_once

    def __len__(self) -> int:
        nr: int = self._batch.nr
        return nr

    @property
    def placed(self) -> int:
        """How many files have got their names."""
        return int(self._batch.placed)

    @property
    def cloned(self) -> int:
        """How many of those share the blocks of their sources."""
        return int(self._batch.cloned)

    @property
    def size(self) -> int:
        """How many bytes are in those."""
        return int(self._batch.bytes)

    def enter(
        self,
        data: Any,
        source_fd: int,
        target_fd: int,
        *,
        alignment: int = 0,
        mask: int = 0,
        fresh: bool = False,
        acl: bool = True,
        flush: bool = True,
        clone: Reflink = "never",
    ) -> None:
        """Take the files added from now on from one directory to another; the batch copies both
        descriptors.

        Arguments:
            source_fd: -1 where the files are given open.
            alignment: of direct reads from there, in bytes; 0 where it is not known.
            mask: the bits that the mode of a new file lacks in the target.
            acl: whether that may be because of a default ACL.
            fresh: whether nothing is there but what this copy puts there.
            flush: whether closing a file there may tell of an error.
            clone: whether files are to share the blocks of their sources.

        Raises OSError from fcntl(2).
        """
        result = lib.batch_directory(
            self._batch, source_fd, target_fd, alignment, mask, fresh, acl, flush, _CLONE[clone]
        )
        if result < 0:
            raise fail(-result, "open directory")
        self.data.append(data)
        self.counts.append(0)

    def add(self, name: bytes, source_fd: int = -1) -> int:
        """Add a file of the directory that was entered last, with its source if that is open; how
        many there are.

        Raises OSError from fcntl(2), of an open source.
        """
        nr: int = _add(self._batch, name, source_fd)
        if nr < 0:
            raise fail(-nr, "open source")
        self.counts[-1] += 1
        return nr

    def open(self) -> "Batch":
        """Open all files, and copy what is in memory."""
        lib.batch_open(self._batch)
        return self

    def transfers(self, alignments: dict[int, int], block_size: int) -> Iterator[SmallFile]:
        """What is to be driven through an engine; of each `written` or `failed` is to be told.

        `alignments` remembers by device what direct reads ask for.
        """
        for index in range(len(self)):
            file = self._files[index]
            state = file.state
            if state == _OPEN and not (file.alignment or file.in_memory):
                self._read_directly(index, file, alignments, block_size)
                state = file.state
            elif state == _UNFINISHED:
                self._finish(index, file)
                state = file.state
            if state == _OPEN:
                self._read.add(index)
            if state == _OPEN or (state == _WRITTEN and self.sync):
                yield SmallFile(self, index, file, read=state == _OPEN)

    def _read_directly(
        self, index: int, file: Any, alignments: dict[int, int], block_size: int
    ) -> None:
        try:
            if alignment := direct.switch_on(file.source, "auto", block_size):
                # what one file refuses another may take
                alignments[file.device] = file.alignment = alignment
        except OSError as error:
            self.failed(index, fail(error.errno or ESTALE, "open source"))

    def others(self) -> Iterator[tuple[int, int]]:
        """After `open`: what is not for a batch, and the descriptor of its source's directory."""
        for index in range(len(self)):
            file = self._files[index]
            if file.state == _OTHER:
                self.counts[file.directory] -= 1
                yield index, lib.batch_source(self._batch, index)

    def name(self, index: int) -> bytes:
        name: bytes = ffi.string(self._files[index].name)
        return name

    def where(self, index: int) -> Any:
        """The `data` of a file's directory."""
        return self.data[self._files[index].directory]

    def in_memory(self, index: int) -> bool:
        """Whether all of a file's source was in the page cache when it was opened."""
        return bool(self._files[index].in_memory)

    def finish(self, index: int) -> None:
        """Give a file whose bytes are in it its attributes. Raises OSError, those of `carry`."""
        if _finish(self._batch, index) == 1:
            return
        file = self._files[index]
        if file.state == _UNFINISHED:
            self._finish(index, file)
        if file.state == _FAILED:
            raise self._error(index, file)

    def _finish(self, index: int, file: Any) -> None:
        """Carry over attributes that took more than a call that simply succeeds."""
        try:
            seen = os.fstat(file.source)
            early = self._preserve - {"timestamps"}  # reading has changed the source's
            metadata.carry(file.source, seen, file.copy, early, file.bits)
            if (result := lib.batch_set_times(self._batch, index)) < 0:
                raise OSError(-result, os.strerror(-result))
            file.state = _WRITTEN
        except OSError as error:
            self.failed(index, fail(error.errno or ESTALE, "set attributes"))

    def failed(self, index: int, error: OSError) -> None:
        """Do not place a file."""
        self._files[index].state = _FAILED
        self._errors[index] = error

    def fail_all(self, errno: int, operation: str) -> None:
        """Do not place any file that was written."""
        for index in range(len(self)):
            if self._files[index].state == _WRITTEN:
                self.failed(index, fail(errno, operation))

    def seal(self) -> None:
        """See of all that was written that its source did not change, and let the source go."""
        lib.batch_seal(self._batch)

    def place(self) -> "Batch":
        """Give every file that was written its name."""
        lib.batch_place(self._batch)
        return self

    def refused(self) -> Iterator[Any]:
        """After `open`: the `data` of directories to which nothing can be cloned."""
        for index, data in enumerate(self.data):
            if lib.batch_refused(self._batch, index):
                yield data

    def copied(self) -> Iterator[tuple[int, str, int]]:
        """What was placed, how its data was carried, as CopyResult calls it, and its size."""
        for index in range(len(self)):
            file = self._files[index]
            if file.state == lib.PLACED:
                read = "aio-buffered" if index in self._read else "plain"
                yield index, "reflink" if file.cloned else read, file.size

    def failures(self) -> Iterator[tuple[int, OSError]]:
        """What was not placed and is no other's, with its error."""
        for index in range(len(self)):
            file = self._files[index]
            if file.state == _FAILED:
                yield index, self._error(index, file)

    def _error(self, index: int, file: Any) -> OSError:
        if index in self._errors:
            return self._errors[index]
        if file.step == lib.SHRANK:
            return shrank()
        if file.step == lib.CHANGED:
            return SourceChanged(ESTALE, "source changed while being copied")
        if file.step == lib.REPLACED:
            return SourceChanged(ESTALE, "source was replaced while being opened")
        return fail(file.error, _DOING[file.step])

    def close(self) -> None:
        """Close everything that is still open. Idempotent."""
        lib.batch_close(self._batch)
