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


class Making(NamedTuple):
    """How something is to be made: whether it may replace what has its name, and whether that is
    removed, as it is told."""

    method: str
    is_link: bool
    replace: bool
    removes: bool

    def made(self, replaced: Replaced | None) -> Made:
        if replaced is None or not self.removes:  # cp, too, says nothing of what only makes way
            replaced = Replaced(backup=replaced and replaced.backup)
        return Made(self.method, replaced, self.is_link)


def making(how: TreeOptions, seen: os.stat_result) -> Making:
    """How to make something of what was seen."""
    removes = how.remove or (replaces(seen, follow=how.follow) and not how.attributes_only)
    replace = how.force or removes
    if how.link is not None:
        return Making(f"{how.link}-link", how.link == "symbolic", replace, removes)
    is_link = stat.S_ISLNK(seen.st_mode)
    return Making("special", is_link, not how.attributes_only or replace, removes)


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
    if not is_other(how, target, name, from_fd, seen):
        return None
    replaced: Replaced | None
    way, to_fd, backups = making(how, seen), target.fd(), target.backups
    if how.link == "hard":
        sync = how.sync and not target.together
        replaced = hard_link(
            name,
            from_fd,
            seen,
            to_fd,
            name,
            follow=how.follow,
            replace=way.replace,
            backups=backups,
            sync=sync,
        )
    elif how.link == "symbolic":
        replaced = symbolic_link(
            path, seen, to_fd, name, how.preserve, replace=way.replace, backups=backups
        )
    else:
        replaced = copy_node(
            seen,
            name,
            from_fd,
            to_fd,
            name,
            how.preserve,
            replace=way.replace,
            backups=backups,
        )
    return way.made(replaced)


def is_other(
    how: TreeOptions, target: Target, name: bytes, from_fd: int, seen: os.stat_result
) -> bool:
    """Whether what has the name, if anything has, is neither the source nor made of it already."""
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
