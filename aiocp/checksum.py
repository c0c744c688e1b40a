"""One digest of a whole file, of its bytes as they are read: what `sha256sum` would say of it.

Holes are not read; they are zeroes all the same, and to digest these takes as long as it takes to
digest so many bytes.
"""

import os
from collections.abc import Callable
from typing import Any, Literal, get_args

from aiocp.errors import Cancel, look

Algorithm = Literal["sha256", "blake2b", "xxh128"]
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)

_ZEROES = memoryview(bytes(256 << 10))
_MEANS = {ord("\\"): b"\\\\", ord("\n"): b"\\n", ord("\r"): b"\\r"}


def load(algorithm: str) -> Callable[[], Any]:
    """What begins a digest; loads it, which takes some files and milliseconds.

    Raises ValueError unless this is one of ALGORITHMS.
    """
    if algorithm == "xxh128":
        from xxhash import xxh3_128

        return xxh3_128
    if algorithm in ALGORITHMS:
        import hashlib

        begin: Callable[[], Any] = getattr(hashlib, algorithm)
        return begin
    raise ValueError(f"checksum must be {', '.join(ALGORITHMS[:-1])} or {ALGORITHMS[-1]}")


class Checksum:
    """The digest of a file whose blocks come in order."""

    def __init__(self, algorithm: Algorithm, cancel: Cancel | None = None) -> None:
        self._digest = load(algorithm)()
        self._cancel = cancel
        self._done = 0  # bytes

    def add(self, offset: int, block: memoryview) -> None:
        """Digest a block, and zeroes between it and the one before. Raises Cancelled."""
        self._zeroes(offset)
        self.feed(block)

    def feed(self, data: memoryview) -> None:
        """Digest what comes next."""
        self._digest.update(data)
        self._done += len(data)

    def end(self, size: int) -> None:
        """Digest zeroes up to the end of the file, if it ends with a hole. Raises Cancelled."""
        self._zeroes(size)

    def _zeroes(self, end: int) -> None:
        assert self._done <= end, "blocks out of order"
        while self._done < end:
            look(self._cancel)
            self.feed(_ZEROES[: end - self._done])

    def hex(self) -> str:
        """The digest of all there was, as text."""
        text: str = self._digest.hexdigest()
        return text


def line(digest: str, path: str) -> bytes:
    """What `sha256sum`, `b2sum` and `xxh128sum` print of a file, and take with -c.

    A name with a backslash or an end of line is escaped, and the line then begins with a backslash.
    """
    name = os.fsencode(path)
    if name == b"-":  # which would mean standard input
        name = b"./-"
    escaped = b"".join(_MEANS.get(byte) or bytes((byte,)) for byte in name)
    return b"\\" * (escaped != name) + digest.encode() + b"  " + escaped + b"\n"
