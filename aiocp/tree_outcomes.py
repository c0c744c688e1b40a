"""What became of the entries of a tree: counted, and told as it happens."""

import os
from collections.abc import Callable

from aiocp.backup import Replaced
from aiocp.outcome import Outcome


class TreeOutcomes:
    """Counts what is copied, as TreeResult has it, and keeps the `errors` of what is not.

    `names` are those of the tree on both sides; what became of an entry is told with its path below
    them. `on_entry` is called with each Outcome, `on_error` with each OSError. `moved` are the
    bytes that no engine has written, for the progress.
    """

    def __init__(
        self,
        names: tuple[bytes, bytes],
        on_entry: Callable[[Outcome], object] | None,
        on_error: Callable[[OSError], object] | None,
    ) -> None:
        self.on_entry, self._on_error = on_entry, on_error
        self.files = self.directories = self.links = self.specials = self.bytes = 0
        self.holes = self.reflinked = self.moved = 0
        self.errors: list[OSError] = []
        self._names = names
        self._above = [os.fsdecode(os.path.join(name, b"")) for name in names]

    def count(
        self,
        path: bytes,
        method: str,
        replaced: Replaced,
        kind: str,
        *,
        is_link: bool = False,
        digest: str | None = None,
    ) -> None:
        """Count, and tell of, what was made at once."""
        if is_link:
            self.links += 1
        elif method == "special":
            self.specials += 1
        else:
            self.files += 1
        existed, backup = replaced.existed, replaced.backup
        self.tell(path, method, kind, existed, backup, digest=digest)

    def tell(
        self,
        path: bytes,
        method: str,
        kind: str,
        existed: bool = False,
        backup: bytes | None = None,
        size: int = 0,
        digest: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Tell what became of an entry."""
        if self.on_entry is None:
            return
        source, destination = self._both(path)
        kept = None
        if backup is not None:
            kept = os.fsdecode(os.path.join(os.path.dirname(os.fsencode(destination)), backup))
        removed = existed and backup is None
        how = method, kept, removed, kind, size, digest, notes
        self.on_entry(Outcome(source, destination, *how))

    def failed(self, path: bytes, error: BaseException) -> None:
        """Take down what was not copied."""
        if not isinstance(error, OSError):
            raise error
        error.filename, error.filename2 = self._both(path)
        self.errors.append(error)
        if self._on_error is not None:
            self._on_error(error)

    def _both(self, path: bytes) -> tuple[str, str]:
        """The names of an entry on both sides; those of the tree for the empty path."""
        if not path:
            return os.fsdecode(self._names[0]), os.fsdecode(self._names[1])
        below = os.fsdecode(path)
        return self._above[0] + below, self._above[1] + below
