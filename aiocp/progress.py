"""How far a copy is: as a bar, as lines, or told when somebody asks for it."""

import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from aiocp.quoting import quoted

if TYPE_CHECKING:
    from aiocp.meter import Meter

_EVERY = 1.0  # seconds between two lines
_DRAWN_EVERY = 0.1  # seconds between two times that a bar is drawn


class Progress:
    """What is done of an operand; shows nothing by itself, so that no tree is counted for it."""

    shows = False

    def __init__(self, name: str) -> None:
        self.name = name if name.isprintable() else quoted(name)
        self._done = self._total = 0
        self._files: tuple[int, int] | None = None  # done, and how many there are
        self._begun = time.monotonic()

    def update(self, bytes_done: int, bytes_total: int) -> None:
        """Take note of `bytes_done` of `bytes_total`, 0 for an unknown total."""
        self._done, self._total = bytes_done, bytes_total

    def update_files(self, files_done: int, files_total: int) -> None:
        """Take note of `files_done` of `files_total`, before the bytes: of a tree."""
        self._files = files_done, files_total

    def line(self) -> str:
        """How far it is, in words: bytes, files, rate, time to go."""
        seconds = time.monotonic() - self._begun
        rate = self._done / seconds if seconds else 0.0
        words = f"{self.name}: {size(self._done)}"
        if self._total:
            words += f" of {size(self._total)}, {100 * self._done // self._total} %"
        if self._files:
            done, total = self._files
            words += f", {done:,} of {total:,} files" if total else f", {done:,} files"
        words += f", {size(int(rate))}/s, {_clock(seconds)}"
        if self._total and rate:
            words += f", {_clock((self._total - self._done) / rate)} to go"
        return words

    def tell(self) -> None:
        """Print how far it is, at any time: a signal handler asks, maybe amidst another print."""
        self.clear()
        _write(f"aiocp: {self.line()}\n")

    def clear(self) -> None:
        """Make room for a message."""

    def close(self) -> None:
        """Show it for the last time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Lines(Progress):
    """A line a second, and one at the end: for a log."""

    shows = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._next = self._begun + _EVERY

    def update(self, bytes_done: int, bytes_total: int) -> None:
        super().update(bytes_done, bytes_total)
        if (now := time.monotonic()) >= self._next:
            self._next = now + _EVERY
            self.tell()

    def close(self) -> None:
        if self._done or self._files:
            self.tell()


class Bar(Progress):
    """A tqdm bar on stderr, the last line of what is there, in as much room as there is.

    Drawn at most ten times a second, all of them together: of many small operands that come one
    after the other some have none.
    """

    shows = True
    _due = 0.0  # when the next may be drawn

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._meter: Meter | None = None
        self._draw()

    def update(self, bytes_done: int, bytes_total: int) -> None:
        super().update(bytes_done, bytes_total)
        self._draw()

    def _draw(self) -> None:
        if time.monotonic() < Bar._due:
            return
        if _in_foreground():
            self._show()
        Bar._due = time.monotonic() + _DRAWN_EVERY

    def _show(self) -> None:
        if self._meter is None:
            from aiocp.meter import Meter  # loads tqdm, which takes as long as all of aiocp

            self._meter = Meter(self.name)
        self._meter.show(self._done, self._total, self._files)

    def clear(self) -> None:
        if self._meter is not None and self._meter.shown:
            self._meter.shown = False
            _write("\r\x1b[K")

    def close(self) -> None:
        if self._meter is not None:
            self._meter.end(self._done, self._total, self._files)


def _in_foreground() -> bool:
    """Whether the terminal is ours, or nobody's: what runs in the background does not write there
    unasked."""
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except OSError:  # it does not control anybody
        return True


def _write(words: str) -> None:
    """Write to stderr, past a buffer that may be in use."""
    with suppress(OSError):  # nobody is there to be told
        os.write(sys.stderr.fileno(), words.encode(errors="backslashreplace"))


def size(count: int) -> str:
    """1023 B, 1.0 KiB, 300.5 MiB, 2.0 GiB."""
    if count < 1024:
        return f"{count} B"
    value, unit = count / 1024, 0
    while value >= 1024 and unit < 3:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def _clock(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
