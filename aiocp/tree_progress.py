"""How far the copy of a tree is, told of what is done and how much there is."""

import os
import stat
from collections.abc import Callable

from aiocp.asked import Progress
from aiocp.count import Count


class TreeProgress:
    """Calls `on_bytes` with (bytes_done, bytes_total), `on_files` with (files_done, files_total).

    Files are all that is no directory. `count` makes what counts the totals, ahead of the copy;
    None: they are 0. What is counted but not copied is taken off them by `passed`.
    """

    def __init__(
        self,
        on_bytes: Progress | None,
        on_files: Progress | None,
        count: Callable[[], Count] | None,
    ) -> None:
        self._on_bytes, self._on_files, self._make = on_bytes, on_files, count
        self._count: Count | None = None
        self._passed_bytes = self._passed_files = 0
        self._told = (0, 0)

    def begin(self) -> None:
        """Begin to count."""
        if self._make is not None:
            self._count = self._make()

    def passed(self, seen: os.stat_result) -> None:
        """That an entry of that status is not copied."""
        self._passed_files += 1
        if stat.S_ISREG(seen.st_mode):
            self._passed_bytes += seen.st_size

    def report(self, bytes_done: int, files_done: int, *, through: bool = False) -> None:
        """Tell it, if more is done; when all is `through`, what is done is the total."""
        if (bytes_done, files_done) == self._told and not through:
            return
        self._told = bytes_done, files_done
        bytes_total = files_total = 0
        if self._count is not None and through:
            bytes_total, files_total = self._told
        elif self._count is not None:
            bytes_total = max(bytes_done, self._count.size - self._passed_bytes)
            files_total = max(files_done, self._count.entries - self._passed_files)
        if self._on_files is not None:
            self._on_files(files_done, files_total)
        if self._on_bytes is not None:
            self._on_bytes(bytes_done, bytes_total)

    def close(self) -> None:
        """Stop counting."""
        if self._count is not None:
            self._count.close()
