"""Direct I/O on an open file: switch it on and off, and learn the alignment it asks for."""

import fcntl
import os
import stat
from errno import EINVAL
from struct import unpack
from typing import Literal

from aiocp.errors import fail
from aiocp.linux import direct_alignment

Direct = Literal["auto", "always", "never"]

# Direct I/O on a file goes by whole blocks of this size even where less is allowed: ext4 and XFS
# serialise writes that cover a part of a block.
FILE_BLOCK = 4096

_BLKSSZGET = 0x1268


def switch_on(fd: int, direct: Direct, block_size: int) -> int:
    """Set O_DIRECT on `fd` if `direct` wants it; return the alignment in bytes, 0 for buffered I/O.

    Raises OSError EINVAL for "always" where the file takes no direct I/O in blocks of `block_size`.
    """
    if direct != "never":
        alignment = _alignment(fd)
        if alignment and block_size % alignment == 0 and _set(fd, os.O_DIRECT):
            return alignment
        if direct == "always":
            raise fail(EINVAL, "O_DIRECT")
    _set(fd, 0)
    return 0


def switch_off(fd: int) -> None:
    """Take O_DIRECT off `fd`; what is in flight is not changed by it."""
    _set(fd, 0)


def _alignment(fd: int) -> int:
    status = os.fstat(fd)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        return 0
    told = direct_alignment(fd)
    if stat.S_ISREG(status.st_mode):
        return FILE_BLOCK if told is None else told and max(told, FILE_BLOCK)
    if told is None:
        told = int(unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0])
    return told


def _set(fd: int, flag: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flag)
    except OSError as error:
        if error.errno != EINVAL:
            raise
        return False
    return True
