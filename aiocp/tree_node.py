"""What a tree has that is made at once: links, FIFOs, sockets and devices, and links to sources."""

import os
import stat
from typing import NamedTuple

from aiocp.backup import Replaced
from aiocp.errors import same_file
from aiocp.existing import Relation, relation
from aiocp.link import hard_link, replaces, symbolic_link
from aiocp.nodes import copy_node
from aiocp.target import Target
from aiocp.tree_options import TreeOptions


class Made(NamedTuple):
    """How something was made, as Outcome calls it, what had its name, whether it is a link."""

    method: str
    replaced: Replaced
    is_link: bool


def make(
    how: TreeOptions,
    target: Target,
    name: bytes,
    from_fd: int,
    path: bytes,
    seen: os.stat_result,
) -> Made | None:
    """Make a node of the source's kind, or a link to the source, which is at `path`; None if it is
    there already.

    Raises SameFileError where the source is there, or what it leads to; OSError.
    """
    if not _is_other(how, target, name, from_fd, seen):
        return None
    replaced: Replaced | None
    method, to_fd, backups = f"{how.link}-link", target.fd(), target.backups
    removes = how.remove or (replaces(seen, follow=how.follow) and not how.attributes_only)
    replace = how.force or removes
    if how.link == "hard":
        sync = how.sync and not target.together
        replaced = hard_link(
            name,
            from_fd,
            seen,
            to_fd,
            name,
            follow=how.follow,
            replace=replace,
            backups=backups,
            sync=sync,
        )
    elif how.link == "symbolic":
        replaced = symbolic_link(
            path, seen, to_fd, name, how.preserve, replace=replace, backups=backups
        )
    else:
        method = "special"
        replaced = copy_node(
            seen,
            name,
            from_fd,
            to_fd,
            name,
            how.preserve,
            replace=not how.attributes_only or replace,
            backups=backups,
        )
    if replaced is None or not removes:  # cp, too, says nothing of what only makes way
        replaced = Replaced(backup=replaced and replaced.backup)
    is_link = how.link == "symbolic" or (not how.link and stat.S_ISLNK(seen.st_mode))
    return Made(method, replaced, is_link)


def _is_other(
    how: TreeOptions, target: Target, name: bytes, from_fd: int, seen: os.stat_result
) -> bool:
    what = relation(
        (name, from_fd),
        seen,
        (name, target.fd()),
        followed=how.follow,
        link=how.link,
        backup=how.backs_up,
        remove=how.remove,
    )
    if what is Relation.SAME:
        raise same_file()
    return what is Relation.OTHER
