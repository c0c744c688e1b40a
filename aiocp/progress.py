"""How far a copy is: as a bar, as lines, or told when somebody asks for it."""

import sys
import time
from typing import Self

_EVERY = 1.0  # seconds between two lines


class Progress:
    """What is done of an operand; shows nothing by itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._done = self._total = 0
        self._begun = time.monotonic()

    def update(self, bytes_done: int, bytes_total: int) -> None:
        """Take note of `bytes_done` of `bytes_total`, 0 for an unknown total."""
        self._done, self._total = bytes_done, bytes_total

    def line(self) -> str:
        """How far it is, in words: bytes, rate, time to go."""
        seconds = time.monotonic() - self._begun
        rate = self._done / seconds if seconds else 0.0
        words = f"{self.name}: {size(self._done)}"
        if self._total:
            words += f" of {size(self._total)}, {100 * self._done // self._total} %"
        words += f", {size(int(rate))}/s, {_clock(seconds)}"
        if self._total and rate:
            words += f", {_clock((self._total - self._done) / rate)} to go"
        return words

    def tell(self) -> None:
        """Print how far it is."""
        print(f"aiocp: {self.line()}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Show it for the last time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Lines(Progress):
    """A line a second, and one at the end: for a log."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._next = self._begun + _EVERY

    def update(self, bytes_done: int, bytes_total: int) -> None:
        super().update(bytes_done, bytes_total)
        if (now := time.monotonic()) >= self._next:
            self._next = now + _EVERY
            self.tell()

    def close(self) -> None:
        if self._done:
            self.tell()


class Bar(Progress):
    """A tqdm bar on stderr, drawn at most ten times a second."""

    def __init__(self, name: str) -> None:
        from tqdm import tqdm  # which takes as long to load as all of aiocp

        super().__init__(name)
        self._bar = tqdm(
            desc=name, total=0, unit="B", unit_scale=True, unit_divisor=1024, dynamic_ncols=True
        )

    def update(self, bytes_done: int, bytes_total: int) -> None:
        super().update(bytes_done, bytes_total)
        self._bar.total = bytes_total or None
        self._bar.update(bytes_done - self._bar.n)

    def tell(self) -> None:
        self._bar.clear()
        super().tell()
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


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
