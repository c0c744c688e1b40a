"""See that what is on the medium is what was read.

    record    each block of the source leaves its digest when it was read
    read      when the copy is synced its blocks are read back, past the page cache
    compare   each must have its digest, and what no block covers must be zeroes

Digests are XXH3 of 128 bits: for what goes wrong by chance, not for what is made to deceive.
"""

import os
from array import array
from collections.abc import Iterator
from errno import EBADMSG, EINVAL
from typing import Protocol

import xxhash

from aiocp import engine, extents
from aiocp.errors import VerificationFailed, fail, operation
from aiocp.reading import Reads, reopen

_DIGEST = 16  # bytes


class Digests:
    """Of each block of a file that was read: 28 bytes a block."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._offsets, self._lengths = array("Q"), array("I")
        self._digests = bytearray()
        self._part = xxhash.xxh3_128()  # of the block that `feed` has begun
        self._fed = 0

    def add(self, offset: int, block: memoryview) -> None:
        """Take note of a block that was read."""
        self._add(offset, len(block), xxhash.xxh3_128_digest(block))

    def _add(self, offset: int, length: int, digest: bytes) -> None:
        self._offsets.append(offset)
        self._lengths.append(length)
        self._digests += digest

    def feed(self, data: memoryview) -> None:
        """Take note of what comes next in a stream."""
        while data:
            room = self._block_size - self._fed % self._block_size
            self._part.update(data[:room])
            self._fed += min(room, len(data))
            if len(data) >= room:
                self._end_block()
            data = data[room:]

    def end(self, size: int) -> None:
        """Take note that all `size` bytes have been read, if they were a stream."""
        if self._fed % self._block_size:
            self._end_block()

    def _end_block(self) -> None:
        start = (self._fed - 1) // self._block_size * self._block_size
        self._add(start, self._fed - start, self._part.digest())
        self._part.reset()

    def __len__(self) -> int:
        return len(self._offsets)

    def block(self, index: int) -> tuple[int, int, bytes]:
        """Offset, length and digest."""
        digest = bytes(self._digests[_DIGEST * index : _DIGEST * (index + 1)])
        return self._offsets[index], self._lengths[index], digest

    def between(self, size: int, start: int = 0) -> Iterator[engine.Extent]:
        """What of `size` bytes, from `start` on, no block covers."""
        if sum(self._lengths) >= size - start:
            return
        done = start
        for start, length in sorted(zip(self._offsets, self._lengths, strict=True)):
            if done < start:
                yield done, start - done
            done = max(done, start + length)
        if done < size:
            yield done, size - done


class Copy(Protocol):
    """What was written, as a Destination is."""

    seekable: bool
    regular: bool

    @property
    def fd(self) -> int: ...


class Verification(Reads):
    """The blocks of a copy that is synced, read back. `close` when it has ended."""

    def __init__(
        self,
        destination: Copy,
        digests: Digests,
        size: int,
        block_size: int,
        *,
        start: int = 0,
        whole: bool = True,
    ) -> None:
        """Open the copy of `size` bytes again, of which those before `start` are no matter; if it
        is not `whole` there may be more of it.

        Raises OSError: EINVAL for what cannot be read back, `VerificationFailed` for another size.
        """
        super().__init__()
        if not destination.seekable:
            raise fail(EINVAL, "verify: a stream cannot be read back")
        with operation("verify: open"):
            self._file, self.alignment = reopen(destination.fd, block_size)
        self.read_fd = fd = self._file.fileno()
        self._regular = destination.regular
        try:
            with operation("verify: look"):
                there = os.fstat(fd).st_size if self._regular else size
        except OSError:
            self.close()
            raise
        if there < size or (whole and there != size):
            self.close()
            raise _mismatch(f"it has {there} bytes, not {size}")
        self.read_direct = bool(self.alignment)
        self.alignment = max(self.alignment, 1)
        self.size, self._start = size, start
        self._digests = digests
        self._expected: dict[int, bytes] = {}  # of what is in flight
        self.extents = self._blocks()

    @property
    def past_the_cache(self) -> bool:
        """Whether what was compared has come from the medium."""
        return self.read_direct

    def _blocks(self) -> Iterator[engine.Extent]:
        for index in range(len(self._digests)):
            offset, length, self._expected[offset] = self._digests.block(index)
            yield offset, length
        for start, length in self._digests.between(self.size, self._start):
            if not self._regular:
                yield start, length
                continue
            for offset, count in extents.find_data(self.read_fd, start + length, 1, start):
                begin = max(start, offset - offset % self.alignment)
                yield begin, offset + count - begin

    def saw(self, offset: int, block: memoryview) -> None:
        expected = self._expected.pop(offset, None)
        if expected is None:
            if bytes(block).count(0) != len(block):
                raise _mismatch(f"there is data where the source has a hole, at offset {offset}")
        elif xxhash.xxh3_128_digest(block) != expected:
            raise _mismatch(f"{len(block)} bytes at offset {offset} are not what was read")

    def why(self) -> OSError | None:
        """Why it has failed, None if it has not."""
        if self.error is not None or self.failure is None:
            return self.error
        _, errno, offset = self.failure
        if errno == 0:
            return _mismatch(f"it ends at offset {offset}")
        return VerificationFailed(errno, f"verify: read at offset {offset}: {os.strerror(errno)}")

    def close(self) -> None:
        self._file.let_go()


def _mismatch(what: str) -> VerificationFailed:
    return VerificationFailed(EBADMSG, f"verify: {what}")
