"""What is at the destination already, next to the source: another file, or the same, as cp sees it.

To replace a file by a copy of itself loses it, and so does a link in place of what it points to.
"""

import os
import stat
from enum import Enum, auto

# a path, and the directory that it starts from, None for the current one
At = tuple[bytes, int | None]


class Relation(Enum):
    """OTHER may be replaced, SAME is refused, and with DONE there is nothing left to do."""

    OTHER = auto()
    SAME = auto()
    DONE = auto()


def relation(
    source: At,
    seen: os.stat_result,
    destination: At,
    existing: os.stat_result | None = None,
    *,
    followed: bool,
    link: str | None,
    backup: bool,
    remove: bool,
) -> Relation:
    """What the destination is to the source.

    `seen` is the source's stat, `followed` through links or not, `existing` that of what is there,
    through links or, if it is not given, not.
    """
    existing = existing or _stat(destination, follow=False)
    if existing is None:
        return Relation.OTHER
    same = os.path.samestat(seen, existing)
    if link == "hard" and same:
        return Relation.DONE
    if not followed and _is_link(seen) and _is_link(existing):
        if same_entry(source, destination):
            return Relation.SAME
        return Relation.DONE if same and not backup else Relation.OTHER
    if followed and not same:
        renews = backup or remove or link == "symbolic"
        itself = renews and _is_link(existing) and same_entry(source, destination)
        return Relation.SAME if itself else Relation.OTHER
    own, there = (_stat(at, follow=False) for at in (source, destination))
    if own is None or there is None:
        return Relation.OTHER
    one = os.path.samestat(own, there)
    if backup:  # what is there only gets another name
        if one:
            return Relation.SAME if same_entry(source, destination) else Relation.OTHER
        dangles = followed and _is_link(own) and not _is_link(there)
        return Relation.SAME if dangles else Relation.OTHER
    if remove and (_is_link(there) or (one and not same_entry(source, destination))):
        return Relation.OTHER
    if link == "symbolic" and _is_link(there):
        return Relation.OTHER
    if not followed and not _lead_to_one(source, destination):
        return Relation.OTHER
    if link == "hard":
        return Relation.OTHER if _is_link(there) else Relation.DONE
    return Relation.SAME


def same_entry(source: At, destination: At) -> bool:
    """Whether two paths are the same name in the same directory."""
    here, name = os.path.split(source[0].rstrip(b"/"))
    there, other = os.path.split(destination[0].rstrip(b"/"))
    return name == other and _lead_to_one(
        (here or b".", source[1]), (there or b".", destination[1])
    )


def _lead_to_one(one: At, other: At) -> bool:
    first, second = _stat(one), _stat(other)
    return first is not None and second is not None and os.path.samestat(first, second)


def _stat(at: At, *, follow: bool = True) -> os.stat_result | None:
    try:
        return os.stat(at[0], dir_fd=at[1], follow_symlinks=follow)
    except OSError:
        return None


def _is_link(status: os.stat_result) -> bool:
    return stat.S_ISLNK(status.st_mode)
