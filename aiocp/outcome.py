"""What became of one thing that was to be copied."""

from typing import NamedTuple


class Outcome(NamedTuple):
    """Something that was copied, or left alone: what `on_entry` is called with.

    `method` is a rung of the ladder ("aio-direct", "aio-buffered", "plain", "stream") for what has
    contents, else "attributes", "directory", "special" (links, FIFOs, sockets, device nodes),
    "hard-link", "symbolic-link", or "skipped" where what is there was not to be replaced. `backup`
    is the name that what was there has now, `removed` tells that it went, without a backup, and
    left nothing to what has its name now. `notes` are those of CopyResult.
    """

    source: str
    destination: str
    method: str
    backup: str | None = None
    removed: bool = False
    notes: tuple[str, ...] = ()
