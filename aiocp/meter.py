"""The line of the progress bar: tqdm's, with files, that leaves out what there is no room for."""

import os
import sys
from collections.abc import Callable
from threading import RLock
from typing import Any

from tqdm import tqdm
from tqdm.utils import disp_len, disp_trim

# what there may be room for, the best first; a bar has at least so many columns
_BAR = 8
_KNOWN = (
    (
        "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{files}"
        " [{elapsed}<{remaining}, {rate_noinv_fmt}]"
    ),
    "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt}{files} {rate_noinv_fmt} {remaining}",
    "{percentage:3.0f}% {n_fmt}/{total_fmt}{files} {rate_noinv_fmt} {remaining}",
    "{percentage:3.0f}% {n_fmt}/{total_fmt} {rate_noinv_fmt} {remaining}",
    "{percentage:3.0f}% {rate_noinv_fmt} {remaining}",
    "{percentage:3.0f}% {n_fmt} {remaining}",
    "{percentage:3.0f}%",
)
_UNKNOWN = (
    "{desc}: {n_fmt}B{files} [{elapsed}, {rate_noinv_fmt}]",
    "{n_fmt}B{files} {rate_noinv_fmt} {elapsed}",
    "{n_fmt}B {rate_noinv_fmt}",
    "{n_fmt}B",
)
_NAME = 4  # a file's name has at most that part of the line
_COLUMNS = 80  # where the terminal does not say

tqdm.set_lock(RLock())  # one between processes takes 10 ms
tqdm.monitor_interval = 0  # no thread that looks whether it is drawn


class Meter(tqdm):  # type: ignore[type-arg]
    """One bar; `shown` while it is the last line on the terminal."""

    def __init__(self, name: str) -> None:
        self._name, self._files, self.shown = name, "", False
        super().__init__(
            total=0,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            mininterval=0,
            miniters=0,
            delay=1e-9,  # not drawn until it is told to
        )

    def show(self, done: int, total: int, files: tuple[int, int] | None) -> None:
        """Draw it: `done` bytes of `total`, 0 if unknown, and files in the same way."""
        self._note(total, files)
        self.update(done - self.n)

    def end(self, done: int, total: int, files: tuple[int, int] | None) -> None:
        """Draw it for the last time, and go on in the next line."""
        self._note(total, files)
        self.n = done
        self.close()
        self.shown = False

    def _note(self, total: int, files: tuple[int, int] | None) -> None:
        self.total = total or None
        self._files = " {:,}/{:,} files".format(*files) if files else ""
        self.shown = True

    def __str__(self) -> str:
        said: dict[str, Any] = {**self.format_dict}
        columns = _columns()
        longest = max(_BAR, columns // _NAME)
        name = self._name
        if disp_len(name) > longest:
            name = disp_trim(name, longest - 1) + "…"
        said.update(prefix=name, files=self._files, ncols=None)
        for form in _KNOWN if self.total else _UNKNOWN:
            said["bar_format"] = form.replace("{bar}", " " * _BAR)
            if disp_len(self.format_meter(**said)) <= columns:
                break
        said.update(bar_format=form, ncols=columns)
        return self.format_meter(**said)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Print over the line before, and nothing that wraps where the terminal got narrower."""

        def print_status(line: str) -> None:
            file.write(f"\r{line}\x1b[K")
            file.flush()

        return print_status


def _columns() -> int:
    """How many there are, but for the last one, in which terminals differ."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:  # it has been hung up
        columns = 0
    return max(1, (columns or _COLUMNS) - 1)
