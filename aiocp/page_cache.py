"""What of an open source is in the page cache, and a way to read that: not by direct I/O.

Direct reads go past the cache, and wait for what is not written back yet. A read with RWF_NOWAIT
begins to read ahead where something is missing, so the cache is asked first.
"""

import os
from contextlib import suppress

from aiocp.linux import File, cached_bytes


class PageCache:
    """Of a file of which something is in memory when it is opened. `fd` is not direct."""

    def __init__(self, file: File) -> None:
        self._file = file
        self.fd = file.fileno()

    @classmethod
    def of(cls, fd: int, size: int) -> "PageCache | None":
        """The cache of an open file of that size; None if nothing of it is there or can be read."""
        try:
            if not cached_bytes(fd, 0, 0)[0]:
                return None
            file = File.open(b"/proc/self/fd/%d" % fd, os.O_RDONLY)
            os.preadv(file.fileno(), [bytearray(1)], size, os.RWF_NOWAIT)  # nothing to read ahead
        except OSError:  # no cachestat(2), no /proc, no RWF_NOWAIT on this file system
            return None
        return cls(file)

    def has(self, offset: int, length: int) -> bool:
        """Whether a range is in memory, or would have to be written back first by a direct read."""
        with suppress(OSError):  # no more than where to read it
            cached, dirty = cached_bytes(self.fd, offset, length)
            return dirty or cached >= length
        return False

    def close(self) -> None:
        self._file.let_go()
