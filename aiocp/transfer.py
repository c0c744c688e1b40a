"""What the engine transfers: the blocks of a file, the sync of a directory."""

import os
from errno import EINVAL, EIO, EROFS

from aiocp import direct, engine
from aiocp.destination import Destination
from aiocp.errors import fail, operation
from aiocp.linux import File
from aiocp.source import Source, shrank

_DOING = {
    engine.Step.READING: "read",
    engine.Step.WRITING: "write",
    engine.Step.SYNCING: "sync",
}


class FileTransfer(engine.Transfer):
    """The blocks of one file, then what its source and destination want done before the sync."""

    def __init__(
        self,
        source: Source,
        destination: Destination,
        *,
        sync: bool,
        allow_changed: bool,
        must_be_direct: bool,
    ) -> None:
        super().__init__()
        self.source, self.destination = source, destination
        self._allow_changed, self._must_be_direct = allow_changed, must_be_direct
        self.read_fd, self.write_fd = source.fd, destination.fd
        self.read_direct, self.write_direct = bool(source.alignment), bool(destination.alignment)
        self.alignment = max(source.alignment, destination.alignment, 1)
        if not sync or not destination.seekable:
            self.sync = engine.Sync.NONE
        self.size = 0

    def padding(self, offset: int, length: int) -> bytes:
        return self.destination.padding(offset, length)

    def undirect(self, step: engine.Step) -> None:
        if self._must_be_direct:
            raise fail(EINVAL, f"{_DOING[step]} with O_DIRECT")
        super().undirect(step)
        direct.switch_off(self.read_fd if step is engine.Step.READING else self.write_fd)

    def written(self) -> None:
        self.source.check(self._allow_changed)
        self.destination.finish(self.size, self.source)


class DirectorySync(engine.Transfer):
    """The sync of a directory in which a name was put in place."""

    sync = engine.Sync.FSYNC

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.write_fd = fd


def assert_durable(fd: int) -> None:
    """Look at a directory after its sync, for an error that the sync did not tell.

    An XFS that has shut down syncs directories without an error, but stats nothing. Where the sync
    of another has failed, that of ext4 and Btrfs has nothing to do any more and succeeds, but they
    take no new file. Raises OSError.
    """
    with operation("sync"):
        os.fstat(fd)
        try:
            File.open(b".", os.O_TMPFILE | os.O_WRONLY, dir_fd=fd)
        except OSError as error:
            if error.errno in (EIO, EROFS):
                raise


def what_stopped(transfer: engine.Transfer) -> BaseException:
    """The error that stopped a transfer, with its operation and offset."""
    if transfer.error is not None:
        return transfer.error
    failure = transfer.failure
    assert failure is not None
    step, errno, offset = failure
    if step is engine.Step.READING and errno == 0:
        return shrank()
    at = "" if step is engine.Step.SYNCING else f" at offset {offset}"
    return fail(errno, _DOING[step] + at)
