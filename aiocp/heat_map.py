"""What was measured as a picture: a PNG with depth up, block size across, and rates as colours."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EEXIST

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from aiocp.errors import fail, operation
from aiocp.linux import File, temporary_name
from aiocp.place import Place
from aiocp.probe import Probe
from aiocp.quoting import size_name
from aiocp.sweep import BLOCK_SIZES, DEPTHS


class Picture:
    """A file that is to be: in place once it is drawn."""

    def __init__(self, place: Place) -> None:
        """Create it under a temporary name. Raises OSError; EEXIST for what is no regular file."""
        self._directory, self._name = place.directory.fileno(), place.name
        with operation("create"):
            _refuse_special(self._name, self._directory)
            self._temporary = temporary_name(self._name)
            self._file = File.create_named(
                self._temporary, os.O_WRONLY, 0o666, dir_fd=self._directory
            )

    def draw(self, probe: Probe) -> None:
        """Draw, and put it in place. Raises OSError."""
        picture = png(probe)
        with operation("write"):
            with open(self._file.fileno(), "wb", closefd=False) as file:
                file.write(picture)
            self._file.replace(self._name, temporary=self._temporary, dir_fd=self._directory)

    def close(self) -> None:
        self._file.close()


@contextmanager
def picture(path: str) -> Iterator[Picture]:
    """The picture that is to have a path, which may be there already. Raises OSError."""
    with Place(os.fsencode(path)) as place:
        drawn = Picture(place)
        try:
            yield drawn
        finally:
            drawn.close()


def _refuse_special(name: bytes, dir_fd: int) -> None:
    """/dev/stdout would be replaced by a file."""
    try:
        mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise fail(EEXIST, "no regular file")


def png(probe: Probe) -> bytes:
    """The heat map of a probe's sweep; what is recommended has a frame."""
    rates = {(point.depth, point.block_size): point.rate / 1e6 for point in probe.sweep}
    rows = [[rates.get((depth, block), float("nan")) for block in BLOCK_SIZES] for depth in DEPTHS]
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(rows, aspect="auto", origin="lower")
    axes.set_xticks(range(len(BLOCK_SIZES)), map(size_name, BLOCK_SIZES))
    axes.set_yticks(range(len(DEPTHS)), map(str, DEPTHS))
    axes.set_xlabel("block size")
    axes.set_ylabel("depth")
    what = "copied in" if probe.kind == "directory" else "read from"
    axes.set_title(f"MB/s {what} {probe.path}", parse_math=False)
    best = max(rates.values())
    for (depth, block), rate in rates.items():
        at = BLOCK_SIZES.index(block), DEPTHS.index(depth)
        color = "white" if rate < 0.6 * best else "black"
        axes.text(*at, f"{rate:,.0f}", ha="center", va="center", color=color)
    if probe.recommended:
        x = BLOCK_SIZES.index(probe.recommended.block_size) - 0.5
        y = DEPTHS.index(probe.recommended.depth) - 0.5
        axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="red", linewidth=2))
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    return drawn.getvalue()
