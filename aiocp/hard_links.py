"""Where files with several names were copied to: the one thing that grows with a tree.

Some 70 bytes for each such file, and those of its digest if it has one; a million of them in 70 MB,
where a dict of tuples takes 400: a hash table of inode numbers for each source device, in two
arrays, and behind it one record for each file in one long bytearray.
"""

import os
from array import array
from struct import Struct
from typing import NamedTuple

Identity = tuple[int, int]  # device and inode number

# index of the directory, inode number of the copy, length of the name and of the digest behind it
_RECORD = Struct("<IQBB")
_EMPTY = 0  # no file has this inode number
_HASH = 0x9E3779B97F4A7C15  # Knuth's multiplier: inode numbers come in runs
_REMEMBERED = 1024  # directories whose index is known


def identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


class Copied(NamedTuple):
    """What a source was copied to, the identity that this had, and its digest if it has one."""

    path: bytes
    identity: Identity
    checksum: str | None = None


class HardLinks:
    """By the identity of a source: what is known of its copy."""

    def __init__(self) -> None:
        self._tables: dict[int, _Table] = {}
        self._directories: list[tuple[bytes, int]] = []  # path and device
        self._indices: dict[tuple[bytes, int], int] = {}
        self._records = bytearray()

    def __len__(self) -> int:
        return sum(table.used for table in self._tables.values())

    def add(
        self,
        source: Identity,
        directory: bytes,
        name: bytes,
        copy: Identity,
        checksum: str | None = None,
    ) -> None:
        """Remember that `source` was copied to `name` in `directory`, an absolute path."""
        table = self._tables.get(source[0])
        if table is None:
            table = self._tables[source[0]] = _Table()
        table.set(source[1], len(self._records))
        index, digest = self._index(directory, copy[0]), bytes.fromhex(checksum or "")
        self._records += _RECORD.pack(index, copy[1], len(name), len(digest))
        self._records += name + digest

    def get(self, source: Identity) -> Copied | None:
        """What `source` was copied to, None if it was not."""
        table = self._tables.get(source[0])
        at = None if table is None else table.get(source[1])
        if at is None:
            return None
        index, inode, length, digest = _RECORD.unpack_from(self._records, at)
        at += _RECORD.size
        directory, device = self._directories[index]
        name = bytes(self._records[at : at + length])
        at += length
        checksum = self._records[at : at + digest].hex() or None
        return Copied(os.path.join(directory, name), (device, inode), checksum)

    def identities(self) -> "Identities":
        """Those of all that was added until now."""
        return Identities({device: table.copy() for device, table in self._tables.items()})

    def _index(self, directory: bytes, device: int) -> int:
        """Of a directory; one that was not needed for long may get another."""
        known = directory, device
        index = self._indices.get(known)
        if index is None:
            if len(self._indices) >= _REMEMBERED:
                self._indices.clear()
            index = self._indices[known] = len(self._directories)
            self._directories.append(known)
        return index


class Identities:
    """A set of identities."""

    def __init__(self, tables: "dict[int, _Table] | None" = None) -> None:
        self._tables = tables or {}

    def add(self, one: Identity) -> bool:
        """Put one in; whether it was not there."""
        table = self._tables.get(one[0])
        if table is None:
            table = self._tables[one[0]] = _Table()
        used = table.used
        table.set(one[1], 0)
        return table.used > used


class _Table:
    """A hash table from inode numbers to offsets, by open addressing."""

    def __init__(self) -> None:
        self.used = 0
        self._resize(6)

    def _resize(self, bits: int) -> None:
        self._shift, self._mask = 64 - bits, (1 << bits) - 1
        self._keys = array("Q", [_EMPTY]) * (1 << bits)
        self._values = array("Q", [0]) * (1 << bits)

    def _slot(self, inode: int) -> int:
        """Where an inode number is, or is to be put."""
        keys, mask = self._keys, self._mask
        slot = (inode * _HASH & 0xFFFFFFFFFFFFFFFF) >> self._shift
        while keys[slot] not in (inode, _EMPTY):
            slot = (slot + 1) & mask
        return slot

    def copy(self) -> "_Table":
        same = _Table()
        same.used, same._shift, same._mask = self.used, self._shift, self._mask
        same._keys, same._values = self._keys[:], self._values[:]
        return same

    def get(self, inode: int) -> int | None:
        slot = self._slot(inode)
        return self._values[slot] if self._keys[slot] == inode else None

    def set(self, inode: int, value: int) -> None:
        if self.used * 4 > self._mask * 3:
            keys, values = self._keys, self._values
            self._resize(64 - self._shift + 1)
            for key, old in zip(keys, values, strict=True):
                if key != _EMPTY:
                    slot = self._slot(key)
                    self._keys[slot], self._values[slot] = key, old
        slot = self._slot(inode)
        self.used += self._keys[slot] == _EMPTY
        self._keys[slot], self._values[slot] = inode, value
