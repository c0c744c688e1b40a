"""What a copy has come to: of a file, of a tree."""

from typing import NamedTuple


class Worker(NamedTuple):
    """What one worker of an executor has done of a copy.

    `name` is its host and process, "host:pid"; `batches` counts what it was given: batches of files
    and ranges of large ones. `bytes` are those of contents that it has copied, `busy` the seconds
    that it took, and `rate` bytes per second of those; `peak_in_flight` is the most that it had in
    flight, of a `depth`.
    """

    name: str
    batches: int
    files: int
    bytes: int
    busy: float
    rate: float
    depth: int
    peak_in_flight: int


class CopyResult(NamedTuple):
    """What happened, not what was asked.

    `size`, `bytes_read`, `bytes_written` and `block_size` are in bytes, `elapsed` in seconds, and
    `rate` in bytes per second; `bytes_cached` of those read were in the page cache. `method` is the
    rung that carried the data: "aio-direct" (O_DIRECT on both sides), "aio-buffered", "plain"
    (preadv and pwritev), "stream" (read and write), or "reflink": none was carried, the copy shares
    the source's blocks; "attributes", "hard-link" or "symbolic-link" where that was all there was
    to do. `holes` are bytes that were not written because the copy has holes there: with
    `bytes_written`, and the bytes that were `resumed`, there from an earlier copy, they are `size`.
    `backup` is the name of the backup, None without one, and
    `removed` tells that what was there is gone and has left nothing to the new file. `notes` says
    what could not be had as asked, and why. `checksum` is the digest of the copy, if one was asked
    for, in hexadecimal digits. `workers` are those of an executor that have had a part in it.
    """

    source: str
    destination: str
    size: int
    bytes_read: int
    bytes_cached: int
    bytes_written: int
    holes: int
    resumed: int
    method: str
    depth: int
    peak_in_flight: int
    block_size: int
    direct_read: bool
    direct_write: bool
    in_place: bool
    backup: str | None
    removed: bool
    synced: bool
    verified: bool
    checksum: str | None
    elapsed: float
    rate: float
    notes: tuple[str, ...]
    workers: tuple[Worker, ...] = ()

    @property
    def kind(self) -> str:
        """As that of an Outcome."""
        return "link" if self.method == "symbolic-link" else "file"


class TreeResult(NamedTuple):
    """What was copied: counts, `bytes` of file contents, and `errors`, empty if all went well.

    `reflinked` files share the blocks of their sources; `holes` are bytes that were not written
    because the copies have holes there. Each error is an OSError with errno and both file names.
    `elapsed` is in seconds. `synced` tells that everything copied is on the disk, `syncs` how often
    the whole file system was synced for that, in place of single files: on ext4, XFS and Btrfs,
    where it is faster, and for hard links. `workers` are those of an executor that have had a part
    in it; `syncs` are theirs, too, `depth` and `peak_in_flight` the largest of them.
    """

    source: str
    destination: str
    files: int
    directories: int
    links: int
    specials: int
    bytes: int
    holes: int
    reflinked: int
    errors: tuple[OSError, ...]
    depth: int
    peak_in_flight: int
    synced: bool
    verified: bool
    syncs: int
    elapsed: float
    workers: tuple[Worker, ...] = ()
