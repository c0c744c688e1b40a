"""What of a source tree is wanted."""

from collections.abc import Callable
from typing import NamedTuple

# whether a path below the root is meant, and it is told whether that is a directory
Test = Callable[[bytes, bool], bool]


class Selection(NamedTuple):
    """Of directories everything but what `exclude` names; of what is in them only what `include`
    names, and all that is in directories which it names."""

    exclude: Test | None = None
    include: Test | None = None

    @property
    def filters(self) -> bool:
        """Whether it is to be asked of each path."""
        return self.exclude is not None or self.include is not None

    def asked(self, by: Callable[[Test], Test]) -> "Selection":
        """The same, of which `by` makes what is called instead."""
        return Selection(self.exclude and by(self.exclude), self.include and by(self.include))

    def includes(self, path: bytes, *, is_directory: bool) -> bool:
        """Whether a file is included, or all that is in a directory."""
        return self.include is None or self.include(path, is_directory)

    def takes(self, path: bytes, is_directory: bool, included: bool) -> bool:
        """Whether to copy something, or to look into it; `included` if all next to it is."""
        if self.exclude is not None and self.exclude(path, is_directory):
            return False
        return is_directory or included or self.includes(path, is_directory=False)


EVERYTHING = Selection()
