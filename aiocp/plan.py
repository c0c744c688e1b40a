"""What a dry run would have made by now: where operands meet, that counts as being there."""

import os
import stat
from contextlib import suppress

Key = bytes  # an absolute path, links in it but for the last name followed


class Plan:
    """What would be where.

    Nothing is kept of what is in a tree that would be copied but the tree: what would be in the
    copy is what is in the source.
    """

    def __init__(self) -> None:
        # stat, what it is a copy of, or, of a link that is none, where it leads
        self._made: dict[Key, tuple[os.stat_result, bytes, bool]] = {}
        self._trees: dict[Key, tuple[bytes, bool]] = {}

    def add(
        self, path: bytes, source: bytes, seen: os.stat_result, link: str | None = None
    ) -> None:
        """There would be a copy of what was `seen` at `source`, or a "symbolic" link to it, or one
        more name of it."""
        if link == "symbolic":
            seen = _another(seen, stat.S_IFLNK | 0o777)
        elif link is None:
            seen = _another(seen)
        self._made[_key(path)] = seen, os.path.abspath(source), link == "symbolic"

    def add_tree(self, path: bytes, source: bytes, *, follow: bool) -> None:
        """There would be a copy of a tree, of what links in it point to if these are followed."""
        self._trees[_key(path)] = os.path.abspath(source), follow

    def look(self, path: bytes, *, follow: bool) -> os.stat_result | None:
        """The stat of what would have a path; None where nothing would that is not there now."""
        if not self._made and not self._trees:
            return None
        key = _key(path)
        found = self._look(key)
        if not follow:
            return found and found[0]
        if found is None:
            led_to = self._look(os.path.realpath(path))
            return led_to and led_to[0]
        if not stat.S_ISLNK(found[0].st_mode):
            return found[0]
        with suppress(OSError):
            text = found[1] if found[2] else os.readlink(found[1])
            path = os.path.join(os.path.dirname(key), text)
            led_to = self._look(os.path.realpath(path))
            return led_to[0] if led_to else os.stat(path)
        return None

    def _look(self, key: Key) -> tuple[os.stat_result, bytes, bool] | None:
        if key in self._made:
            return self._made[key]
        above = key
        while above != b"/":
            if above in self._trees:
                source, follow = self._trees[above]
                path = source + key[len(above) :]
                with suppress(OSError):
                    return _another(os.stat(path, follow_symlinks=follow)), path, False
            above = os.path.dirname(above)
        return None


def _key(path: bytes) -> Key:
    head, name = os.path.split(path.rstrip(b"/"))
    if name in (b"", b".", b".."):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(head or b"."), name)


def _another(seen: os.stat_result, mode: int | None = None) -> os.stat_result:
    """The stat of a copy: like that of the source, but no file has it."""
    rest = (seen.st_uid, seen.st_gid, seen.st_size, *seen[7:10])
    facts = (mode or seen.st_mode, seen.st_ino, -1 - seen.st_dev, 1, *rest)
    return os.stat_result(facts, {"st_mtime_ns": seen.st_mtime_ns})
