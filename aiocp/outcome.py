"""What became of one thing that was to be copied."""

import stat
from typing import NamedTuple


class Outcome(NamedTuple):
    """Something that was copied, or left alone: what `on_entry` is called with.

    `method` is a rung of the ladder ("aio-direct", "aio-buffered", "plain", "stream") for what has
    contents, else "attributes", "directory", "special" (links, FIFOs, sockets, device nodes),
    "hard-link", "symbolic-link", "skipped" where what is there was not to be replaced, or "copy"
    where nobody knows, in a dry run, how the contents would be carried. `backup`
    is the name that what was there has now, `removed` tells that it went, without a backup, and
    left nothing to what has its name now. `kind` is "file", "directory", "link" (a symbolic one) or
    "special", and `size` in bytes, of what a file got of the source's contents; `checksum` is the
    digest of these, if it was asked for. `notes` are as those of CopyResult.
    """

    source: str
    destination: str
    method: str
    backup: str | None = None
    removed: bool = False
    kind: str = "file"
    size: int = 0
    checksum: str | None = None
    notes: tuple[str, ...] = ()


def kind_of(mode: int) -> str:
    """What a mode says that it is, as Outcome calls it."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "special"
