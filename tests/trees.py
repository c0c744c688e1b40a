"""Hostile source trees, and how a copy of one is compared with it.

`make_tree` is every kind, name and attribute; `make_deep` and `make_wide` are the shapes that take
longer, `make_refused` what an ordinary user may not copy all of.
"""

import hashlib
import os
import random
import re
import socket
import stat
import subprocess
from collections.abc import Collection, Iterator
from contextlib import suppress
from errno import E2BIG, ENOSPC
from pathlib import Path
from typing import NamedTuple

KIB, MIB = 1 << 10, 1 << 20
SECOND = 10**9  # in nanoseconds

NAMES = (
    b"plain",
    b"with space",
    b"new\nline",
    b"\xff\xfe",
    b"-dash",
    b"*?[",
    b"x" * 255,
    b".hidden",
    b"\x80" * 255,
    b"ends in\n",
    b"\x01\x1b[31m\x7f",
    b"back\\slash",
    b"'both\"quotes",
    b"...",
    b" ",
    b"~",
    b".plain.aiocp-0123456789abcdef",
    b"--",
)
SIZES = (0, 1, 511, 4096, 4097, 11 * KIB, 256 * KIB, 256 * KIB + 1, MIB, 2 * MIB + 777)
MODES = (0o644, 0o600, 0o755, 0o444, 0o4755, 0o2755, 0o1777, 0o000, 0o7777)
# before 1970, when it began, beyond 32 bits, and between two seconds
TIMES = (-SECOND * 10**9 - 1, -1, 0, 1, 2**32 * SECOND + SECOND - 1, 9 * 10**9 * SECOND + 123)


def make_tree(root: Path, seed: int = 1) -> None:
    """Make a tree of every kind of file and name, with hard links, links, modes, times, xattrs."""
    rng = random.Random(seed)
    root.mkdir()
    top = os.fsencode(root)
    _make_files(top, rng)
    _make_links(top)
    _make_specials(top)
    _make_extremes(top, rng)
    subprocess.run(["setfacl", "-m", "u:1234:rw", top + b"/plain"], check=True)
    subprocess.run(["setfacl", "-m", "d:u:1234:rwx", top + b"/empty", top + b"/acl"], check=True)
    subprocess.run(["setfacl", "-m", "u:1234:r,m:rx", top + b"/acl/below"], check=True)
    for i, path in enumerate(_files(top)):
        when = TIMES[i // 7 % len(TIMES)] if i % 7 == 0 else 10**18 + 2 * i + 1
        os.utime(path, ns=(10**18 + i, when), follow_symlinks=False)


def _make_files(top: bytes, rng: random.Random) -> None:
    for i, name in enumerate(NAMES):
        _write(top + b"/" + name, rng.randbytes(SIZES[i % len(SIZES)]))
        if i % 3 == 2:
            os.mkdir(top + b"/d" + name[:254])
            _write(top + b"/d" + name[:254] + b"/" + name, name)
    for depth in range(1, 5):
        directory = top + b"/d" * depth
        os.mkdir(directory)
        for i, size in enumerate(SIZES):
            _write(directory + b"/f%d" % i, rng.randbytes(size))
    for name in (b"/empty", b"/wide", b"/acl"):
        os.mkdir(top + name)
    for i in range(300):
        _write(top + b"/wide/%d" % i, rng.randbytes(rng.randrange(3000)))
    # made before the default ACL of their directory: so they are without one
    _write(top + b"/acl/without", b"without")
    _write(top + b"/acl/large", rng.randbytes(MIB))
    os.mkdir(top + b"/acl/below")


def _make_links(top: bytes) -> None:
    os.link(top + b"/plain", top + b"/d/hard")
    os.link(top + b"/plain", top + b"/d/d/d/hard")
    os.link(top + b"/d/f9", top + b"/wide/big")
    for i in range(40):
        os.link(top + b"/d/d/f5", top + b"/wide/hard%d" % i)
    os.symlink(b"plain", top + b"/link")
    os.symlink(b"nowhere", top + b"/dangling")
    os.symlink(b"..", top + b"/d/loop")
    os.symlink(b"\xff\n", top + b"/\xfelink\n")
    os.symlink(b"/" + b"y" * 1000, top + b"/long")
    os.link(top + b"/link", top + b"/d/hardlink of a link", follow_symlinks=False)


def _make_specials(top: bytes) -> None:
    os.mkfifo(top + b"/fifo", 0o640)
    with suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        before = os.getcwd()
        os.chdir(top)
        sock.bind("socket")
        os.chdir(before)
    if os.geteuid() == 0:
        os.mknod(top + b"/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(top + b"/block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
        os.mknod(top + b"/numbers", stat.S_IFCHR | 0o600, os.makedev(511, 2**18 - 1))
        os.link(top + b"/null", top + b"/d/d/null")
    os.link(top + b"/fifo", top + b"/d/fifo")


def _make_extremes(top: bytes, rng: random.Random) -> None:
    """Owners, modes, extended attributes, as many and as large as there can be."""
    paths = _files(top)
    root = os.geteuid() == 0
    for i, path in enumerate(paths):
        if root:
            os.chown(path, 1000 + i % 3, 2000 + i % 5, follow_symlinks=False)
        if not os.path.islink(path):
            os.chmod(path, rng.choice(MODES) if root else rng.choice(MODES[:7]) | 0o600)
            if (os.path.isfile(path) or os.path.isdir(path)) and os.access(path, os.W_OK):
                os.setxattr(path, "user.number", b"%d" % i)
    for name in (b"/d/f1", b"/d/d/d"):
        _fill_xattrs(top + name)
    _grow_xattr(top + b"/d/f2", rng)
    if root:
        os.setxattr(top + b"/d/f3", "trusted.aiocp", bytes(range(256)))
        os.setxattr(top + b"/wide", "trusted.empty", b"")
        # cap_net_raw+ep, as the kernel writes it
        capability = bytes.fromhex("0100000200200000000000000000000000000000")
        os.setxattr(top + b"/d/f4", "security.capability", capability)
    sparse = os.open(top + b"/sparse", os.O_WRONLY | os.O_CREAT)
    for offset in (MIB, 3 * MIB + 4095, 5 * MIB):
        os.pwrite(sparse, b"data", offset)
    os.ftruncate(sparse, 6 * MIB + 1)
    os.close(sparse)
    _write(top + b"/hole", b"")
    os.truncate(top + b"/hole", 100 * KIB)


def _fill_xattrs(path: bytes) -> None:
    """Give it as many extended attributes as it takes, 500 at most."""
    for i in range(500):
        try:
            os.setxattr(path, f"user.{i}", b"%d" % i)
        except OSError as error:
            if error.errno != ENOSPC:
                raise
            return


def _grow_xattr(path: bytes, rng: random.Random) -> None:
    """Give it one that is as large as it takes: from 4 KiB on ext4 to 64 KiB on XFS and tmpfs."""
    fits, too_large = 0, 64 * KIB + 1
    while too_large - fits > 1:
        size = (fits + too_large) // 2
        try:
            os.setxattr(path, "user.large", rng.randbytes(size))
        except OSError as error:
            if error.errno not in (ENOSPC, E2BIG):
                raise
            too_large = size
        else:
            os.removexattr(path, "user.large")  # Btrfs has no room for the old and the new
            fits = size
    os.setxattr(path, "user.large", rng.randbytes(fits))
    assert fits > 1000


def make_deep(root: Path, levels: int = 1500) -> None:
    """Make a directory in a directory and so on: a path more than twice as long as PATH_MAX.

    On the way are files, and hard links between all of it; the last has most of the files.
    """
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    _write(b"first", b"first", fd)
    for level in range(levels):
        name = b"deep%d" % level
        os.mkdir(name, 0o700, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        if level % 100 == 99:
            _write(b"file", name, below)
            os.symlink(name, b"link", dir_fd=below)
            os.link(b"first", b"first", src_dir_fd=fd, dst_dir_fd=below)
        elif level < levels - 1:
            os.link(b"first", b"first", src_dir_fd=fd, dst_dir_fd=below)
        os.close(fd)
        fd = below
    _write(b"last", b"last", fd)
    os.mkdir(b"more", dir_fd=fd)
    more = os.open(b"more", os.O_RDONLY, dir_fd=fd)
    for i in range(100):
        _write(b"%d" % i, b"%d" % i, more)
    os.mkdir(b"more", dir_fd=more)
    most = os.open(b"more", os.O_RDONLY, dir_fd=more)
    os.link(b"last", b"last", src_dir_fd=fd, dst_dir_fd=most)
    os.utime(b"more", ns=(1, 1), dir_fd=more)
    for each in (fd, more, most):
        os.close(each)


def make_wide(root: Path, count: int = 2000) -> None:
    """Make a directory of very many files, one of as many links, and one of many directories."""
    for name in ("files", "links", "directories"):
        (root / name).mkdir(parents=True)
    top = os.fsencode(root)
    for i in range(count):
        _write(top + b"/files/%d" % i, b"%d" % i * (i % 50))
        os.symlink(b"%d" % i, top + b"/links/%d" % i)
        if i % 3 == 0:
            os.link(top + b"/files/%d" % i, top + b"/links/hard%d" % i)
        if i % 10 == 0:
            os.mkdir(top + b"/directories/%d" % i)


def make_refused(root: Path) -> set[bytes]:
    """Make a tree of which others may not read all; what is refused them, each for itself.

    To be made as root, and copied as another user.
    """
    refused = {b"file", b"hard one", b"hard two", b"shut", b"unlisted", b"listed/file"}
    refused |= {b"listed/directory", b"open/file", b"open/new\nline"}
    root.mkdir(mode=0o755)
    top = os.fsencode(root)
    for name in (b"shut", b"unlisted", b"listed", b"open", b"listed/directory", b"fixed"):
        os.mkdir(top + b"/" + name, 0o755)
    for name in refused - {b"shut", b"unlisted", b"listed/directory", b"hard two"}:
        _write(top + b"/" + name, b"secret", mode=0o600)
    os.link(top + b"/hard one", top + b"/hard two")
    for i in range(20):
        for directory in (b"shut", b"unlisted", b"open", b"fixed"):
            _write(top + b"/%b/%d" % (directory, i), b"%d" % i, mode=0o644)
    _write(top + b"/setuid", b"setuid", mode=0o6755)
    _write(top + b"/group", b"group", mode=0o640)
    os.chown(top + b"/group", 1234, 65534)
    _write(top + b"/acl", b"acl", mode=0o600)
    subprocess.run(["setfacl", "-m", "u:65534:r", top + b"/acl"], check=True)
    os.mkfifo(top + b"/fifo", 0o600)
    os.symlink(b"shut/0", top + b"/link")
    for name, mode in ((b"shut", 0o700), (b"unlisted", 0o711), (b"listed", 0o744)):
        os.chmod(top + b"/" + name, mode)
    os.chmod(top + b"/fixed", 0o555)  # its copy is filled all the same
    for i, path in enumerate(_files(top)):
        os.utime(path, ns=(10**18, 10**18 + i), follow_symlinks=False)
    return refused


def _write(path: bytes, data: bytes, dir_fd: int | None = None, mode: int = 0o666) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode, dir_fd=dir_fd)
    with open(fd, "wb") as file:
        file.write(data)


def _files(top: bytes) -> list[bytes]:
    """Everything in a tree in an order that is always the same, directories after what they hold.

    As an ordinary user what can be listed.
    """
    found = []
    for directory, subdirectories, files in os.walk(top, topdown=False):
        links = [name for name in subdirectories if os.path.islink(os.path.join(directory, name))]
        found += [os.path.join(directory, name) for name in sorted(files + links)]
        found.append(directory)
    return found


def differences(one: Path, two: Path, options: str = "-naciHAXS") -> str:
    """What rsync would still do to make `two` the same as `one`: nothing, if it is."""
    command = ["rsync", options, "--delete", f"{one}/", f"{two}/"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


RECENT = 1_600_000_000  # what is older was given its time by a test, or by a copy that keeps it


def everything(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Every path below `top` with all that cp can keep of it, of the times those that are old."""
    found = {}
    for path, rest in snapshot(top).items():
        status = os.lstat(os.fsencode(top) + path)
        when = status.st_mtime_ns if status.st_mtime < RECENT else "new"
        named = os.fsencode(top) + path
        xattrs = [
            (name, os.getxattr(named, name, follow_symlinks=False))
            for name in os.listxattr(named, follow_symlinks=False)
        ]
        found[path] = (*rest, status.st_uid, status.st_gid, when, sorted(xattrs))
    return found


def snapshot(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Every path below `top` with what cp -r keeps of it: kind, mode, size or text, contents."""
    found: dict[bytes, tuple[object, ...]] = {}
    root = os.fsencode(top)
    for path in _files(root):
        status = os.lstat(path)
        what: object = None
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                what = file.read()
        elif stat.S_ISLNK(status.st_mode):
            what = os.readlink(path)
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            what = status.st_rdev
        found[path[len(root) :]] = (status.st_mode, what)
    return found


class Fact(NamedTuple):
    """What cp -a keeps of an entry: `what` is a hash of the bytes, the link's text, or the device,
    `first` the first of the names that it has, if there are several."""

    mode: int
    owner: tuple[int, ...]
    mtime: int
    xattrs: dict[str, bytes]
    what: object
    first: bytes | None

    def is_as(self, other: "Fact | None") -> bool:
        """Whether all is the same but the names."""
        return other is not None and self[:-1] == other[:-1]


Facts = dict[bytes, Fact]  # by the path below the top, which is itself b""


def facts(top: Path) -> Facts:
    """Everything in a tree; no path is too long for it. Nothing if there is none."""
    found: Facts = {}
    first: dict[tuple[int, int], bytes] = {}
    if not top.exists():
        return found
    for path, name, dir_fd in _walk(top):
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=dir_fd)
        status = os.fstat(fd)
        kind = stat.S_IFMT(status.st_mode)
        what: object = None
        if kind == stat.S_IFREG:
            with open(f"/proc/self/fd/{fd}", "rb") as file:
                what = hashlib.file_digest(file, "sha256").hexdigest()
        elif kind == stat.S_IFLNK:
            what = os.readlink(name, dir_fd=dir_fd)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            what = status.st_rdev
        xattrs = _xattrs(fd) if kind in (stat.S_IFREG, stat.S_IFDIR) else {}
        same = None
        if kind != stat.S_IFDIR and status.st_nlink > 1:
            same = first.setdefault((status.st_dev, status.st_ino), path)
        owner = (status.st_uid, status.st_gid)
        os.close(fd)
        found[path] = Fact(status.st_mode, owner, status.st_mtime_ns, xattrs, what, same)
    return found


def flaws(new: Facts, old: Facts, now: Facts, said: Collection[bytes]) -> Iterator[str]:
    """What is wrong with a copy of `new` over `old` that `said` these paths were not copied.

    Each entry is the new one whole, or what was there before and said not to be copied, itself or a
    directory above it. What is said of a directory may be its attributes or its sync; a node or
    link may lack its attributes then.
    """
    for path in old.keys() - new.keys():
        if now.get(path) != old[path]:
            yield f"{path!r}, which has nothing to do with it, has changed"
    if more := now.keys() - old.keys() - new.keys():
        yield f"left behind: {more}"
    for path, wanted in new.items():
        found, before = now.get(path), old.get(path)
        is_directory = stat.S_ISDIR(wanted.mode)
        if wanted.is_as(found):
            if path in said and not is_directory:
                yield f"{path!r} is there, but said not to be"
            first = wanted.first or path
            if first != path and new[first].is_as(now.get(first)) and now[path].first != first:
                yield f"{path!r} is no hard link"
        elif not {path, b"", *_above(path)} & set(said):
            yield f"{path!r} is not said to be wrong: {found} for {wanted}"
        elif is_directory or found == before or (found and found.is_as(before)):
            pass
        elif stat.S_ISREG(wanted.mode) or found is None or found.what != wanted.what:
            yield f"{path!r} is neither old nor new: {found}"


def _above(path: bytes) -> Iterator[bytes]:
    while path := os.path.dirname(path):
        yield path


_QUOTED = r"""((?:'[^']*'|\$'(?:\\.|[^'\\])*'|\\'|"[^"]*")+)"""
_COMPLAINT = re.compile(rf"aiocp: cannot copy {_QUOTED} to {_QUOTED}: ([a-z].*): (.+)")


def complaints(stderr: str, source: Path, copy: Path) -> dict[bytes, str]:
    """What the command says it has not copied, by the path below the source, and why.

    Each is said once, in a line of its own that names both sides; of a directory it may be said
    once for its attributes and once for its sync.
    """
    said: dict[bytes, str] = {}
    lines: set[tuple[bytes, str]] = set()
    for line in stderr.splitlines():
        match = _COMPLAINT.fullmatch(line)
        assert match, line
        one, other = (_unquoted(match[side]) for side in (1, 2))
        path = one.removeprefix(os.fsencode(source)).removeprefix(b"/")
        assert path == other.removeprefix(os.fsencode(copy)).removeprefix(b"/"), line
        assert (path, match[3]) not in lines, line
        assert path not in said or match[3].endswith("sync"), line
        lines.add((path, match[3]))
        said[path] = match[4]
    return said


def _unquoted(word: str) -> bytes:
    """What a shell takes a word for."""
    return subprocess.run(
        ["bash", "-c", f"printf %s {word}"], check=True, capture_output=True
    ).stdout


def _xattrs(fd: int) -> dict[str, bytes]:
    path = f"/proc/self/fd/{fd}"
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


def _walk(top: Path) -> Iterator[tuple[bytes, bytes, int]]:
    """Give each path below `top`, with its name and a descriptor of its directory.

    A directory comes before what it holds. Only one is open at a time.
    """
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield b"", b".", fd
        names: list[bytes] = []
        left = [_listed(fd)]
        while left:
            if not left[-1]:
                left.pop()
                if left:
                    names.pop()
                    fd = _go(fd, b"..")
                continue
            name = left[-1].pop()
            yield b"/".join([*names, name]), name, fd
            if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                fd = _go(fd, name)
                names.append(name)
                left.append(_listed(fd))
    finally:
        os.close(fd)


def _listed(fd: int) -> list[bytes]:
    return sorted(map(os.fsencode, os.listdir(fd)), reverse=True)


def _go(fd: int, name: bytes) -> int:
    """The directory of that name in another, which is closed."""
    to = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
    os.close(fd)
    return to
