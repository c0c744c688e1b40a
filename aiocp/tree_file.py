"""A file of a tree that is no batch's: large, with several names, or over something special."""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from aiocp.destination import Destination
from aiocp.engine import Sync
from aiocp.errors import Cancel, operation
from aiocp.hard_links import Identity
from aiocp.linux import File
from aiocp.place import Place
from aiocp.source import SMALL, Source
from aiocp.target import Target
from aiocp.transfer import FileTransfer, resumable, sync_before_name
from aiocp.tree_options import TreeOptions

if TYPE_CHECKING:
    from aiocp.partial import Partial


class TreeFile(FileTransfer):
    """A file on its way into a target, and the names that are to be linked to it."""

    def __init__(
        self,
        target: Target,
        name: bytes,
        source: Source,
        destination: Destination,
        sync: Sync,
        allow_changed: bool,
        place: Place | None,
        unfinished: "Partial | None",
    ) -> None:
        super().__init__(
            source,
            destination,
            sync=sync is not Sync.NONE,
            allow_changed=allow_changed,
            must_be_direct=False,
            unfinished=unfinished,
        )
        if self.sync is not Sync.NONE:
            self.sync = sync
        self.target, self.name = target, name
        self.place = place  # where a link at the destination leads
        self.streamed = False
        self.waits = False  # for the sync of the file system
        self.identity: Identity | None = None  # of the source, if names are to be linked
        self.other_names: list[tuple[Target, bytes, bytes]] = []  # with the path, for messages

    @property
    def path(self) -> bytes:
        """Below the root, for messages."""
        return self.target.directory.join(self.name)

    def let_source_go(self) -> None:
        """Close the source: all of it was read."""
        with suppress(OSError):
            self.source.close()

    def close(self) -> None:
        if self.unfinished is not None:
            self.unfinished.close()
        try:
            self.destination.close()  # its errors were told before the commit, or it is thrown away
        except OSError:
            pass
        finally:
            if self.place is not None:
                with suppress(OSError):
                    self.place.directory.close()
            with suppress(OSError):
                self.source.close()


def begin(
    how: TreeOptions,
    target: Target,
    name: bytes,
    source: Source,
    *,
    refused: set[int],
    block: memoryview,
    named: bool = False,
    cancel: Cancel | None,
) -> TreeFile:
    """Open the destination of a file, and clone it or lay it out for the engine.

    `refused` are the devices from which nothing can be cloned there; what has no size is copied at
    once, through `block`. Closes the source where it raises.
    """
    size = 0 if how.attributes_only else source.size or 0
    kind = partial(Destination, named=named)
    destination, place, unfinished = open_destination(how, target, name, source, cancel, kind)
    transfer = TreeFile(
        target, name, source, destination, how.file_sync, how.allow_changed, place, unfinished
    )
    try:
        transfer.record(
            verify=how.verify, checksum=how.checksum, block_size=how.block_size, cancel=cancel
        )
        if how.attributes_only or transfer.clone(how.reflink, refused):
            pass
        elif source.size is None:
            transfer.streamed = True
            for _ in transfer.copy_stream(block, cancel, pace=how.pace):
                pass
            size = transfer.size
        else:
            transfer.lay_out(how.sparse, reserve=not source.small)
    except BaseException:
        transfer.close()
        raise
    if destination.in_place and transfer.sync is not Sync.NONE:
        transfer.sync = sync_before_name(how.preserve, in_place=True)
    light = size <= SMALL or transfer.cloned  # few bytes of it are not on the disk yet
    if target.together and light and not (destination.in_place or place or how.verify):
        transfer.sync, transfer.waits = Sync.NONE, True
    transfer.size = size
    target.waiting += 1
    return transfer


def open_destination(
    how: TreeOptions,
    target: Target,
    name: bytes,
    source: Source,
    cancel: Cancel | None,
    kind: Callable[..., Destination] = Destination,
) -> "tuple[Destination, Place | None, Partial | None]":
    """The destination of a file, where a link leads that has its name, if one is followed, and what
    it goes on with.

    Closes the source where it raises.
    """
    place: Place | None = None
    try:
        remove = how.remove
        if not (remove or how.backs_up or target.created):
            with operation("open destination"):
                place, remove = _behind_link(how, target, name)
        directory = place.directory if place else target.opened()
        to_name = place.name if place else name
        readable = place is None or place.readable
        unfinished = _unfinished(how, source, directory, to_name, readable)
        destination = kind(
            directory,
            to_name,
            source,
            "auto",
            how.block_size,
            preserve=how.preserve,
            mask=None if place else target.mask,
            remove=remove,
            backups=target.backups,
            attributes_only=how.attributes_only,
            unfinished=unfinished,
            wait=how.copy_contents,
            force=how.force,
            cancel=cancel,
        )
    except BaseException:
        source.close()
        if place is not None:
            place.directory.close()
        raise
    return destination, place, None if destination.in_place else unfinished


def _unfinished(
    how: TreeOptions, source: Source, directory: File, name: bytes, readable: bool
) -> "Partial | None":
    """What is to be gone on with, of a file that tells whether it changed."""
    if not how.resume or how.attributes_only or source.small or not source.tells_changes:
        return None
    return resumable(source, directory, name, how.block_size, readable)


def _behind_link(how: TreeOptions, target: Target, name: bytes) -> tuple[Place | None, bool]:
    """Where a link leads that has the name, if one has, and whether to remove that instead."""
    fd = target.fd()
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None, False
    if not stat.S_ISLNK(found.st_mode):
        return None, False
    if "links" in how.preserve and not how.attributes_only:
        with suppress(FileNotFoundError):  # a dangling link, refused below
            led_to = os.stat(name, dir_fd=fd)
            if led_to.st_nlink > 1 and not stat.S_ISDIR(led_to.st_mode):
                return None, True  # as cp, to leave what is linked to alone
    return Place.behind(target.opened(), name), False
