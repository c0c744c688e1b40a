"""What the entries of a directory are: of all, or of those whose names are listed."""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import ENOTDIR, ESTALE

from aiocp.errors import fail, operation
from aiocp.selection import ITSELF, Names, listed

Kind = tuple[bytes, bool, bool]  # a name, whether it is a directory, and a regular file

# Bytes of a directory, for each name that is wanted in it, up to which reading all of it is quicker
# than looking at each: some eight entries on ext4 and XFS
_READ_ALL = 256

_ENCODING = sys.getfilesystemencoding()


def read(fd: int, follow: bool) -> Iterator[Kind]:
    """What all entries are, as the kernel lists them, of links with `follow` what they lead to."""
    with operation("list"), os.scandir(fd) as entries:
        for entry in entries:
            name = entry.name.encode(_ENCODING, "surrogateescape")  # as os.fsencode, but quicker
            try:
                is_directory = entry.is_dir(follow_symlinks=follow)
                is_file = entry.is_file(follow_symlinks=False)
            except OSError:  # a link into nowhere we may look; its copy will say so
                is_directory = is_file = False
            yield name, is_directory, is_file


def look_for(
    fd: int, names: Names, follow: bool, on_error: Callable[[bytes, OSError], None]
) -> Iterator[Kind]:
    """What the entries of these names are; for each path that is listed and not there `on_error`
    is called with that, below the directory, and the error."""
    known: dict[bytes, Kind] = {}
    if os.fstat(fd).st_size <= _READ_ALL * len(names):
        known = {kind[0]: kind for kind in read(fd, follow)}
    for name, below in names.items():
        if name == ITSELF:
            continue
        try:
            kind = known.get(name) or _look(fd, name, follow)
        except OSError as error:
            for path in listed(name, below):
                on_error(path, fail(error.errno or ESTALE, "open source"))
            continue
        if below is not None and not kind[1]:
            for path in listed(name, below):
                if path != name:
                    on_error(path, fail(ENOTDIR, "open source"))
            if ITSELF not in below:
                continue
        yield kind


def _look(fd: int, name: bytes, follow: bool) -> Kind:
    mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
    is_directory = stat.S_ISDIR(mode)
    if follow and stat.S_ISLNK(mode):
        with suppress(OSError):  # as above
            is_directory = stat.S_ISDIR(os.stat(name, dir_fd=fd).st_mode)
    return name, is_directory, stat.S_ISREG(mode)
