"""Hostile source trees, and how a copy of one is compared with it."""

import os
import random
import socket
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20

NAMES = (
    b"plain",
    b"with space",
    b"new\nline",
    b"\xff\xfe",
    b"-dash",
    b"*?[",
    b"x" * 255,
    b".hidden",
)
SIZES = (0, 1, 511, 4096, 4097, 11 * KIB, 256 * KIB, 256 * KIB + 1, MIB, 2 * MIB + 777)


def make_tree(root: Path, seed: int = 1) -> None:
    """Make a tree of every kind of file and name, with hard links, links, modes, times, xattrs."""
    rng = random.Random(seed)
    root.mkdir()
    top = os.fsencode(root)
    for i, name in enumerate(NAMES):
        _write(top + b"/" + name, rng.randbytes(SIZES[i % len(SIZES)]))
    for depth in range(1, 5):
        directory = top + b"/d" * depth
        os.mkdir(directory)
        for i, size in enumerate(SIZES):
            _write(directory + b"/f%d" % i, rng.randbytes(size))
    os.mkdir(top + b"/empty")
    os.mkdir(top + b"/wide")
    for i in range(300):
        _write(top + b"/wide/%d" % i, rng.randbytes(rng.randrange(3000)))
    os.link(top + b"/plain", top + b"/d/hard")
    os.link(top + b"/plain", top + b"/d/d/d/hard")
    os.link(top + b"/d/f9", top + b"/wide/big")
    os.symlink(b"plain", top + b"/link")
    os.symlink(b"nowhere", top + b"/dangling")
    os.symlink(b"..", top + b"/d/loop")
    os.symlink(b"/" + b"y" * 1000, top + b"/long")
    os.link(top + b"/link", top + b"/d/hardlink of a link", follow_symlinks=False)
    os.mkfifo(top + b"/fifo", 0o640)
    with suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        before = os.getcwd()
        os.chdir(top)
        sock.bind("socket")
        os.chdir(before)
    if os.geteuid() == 0:
        os.mknod(top + b"/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(top + b"/block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
        for i, path in enumerate(sorted(_files(top))):
            os.chown(path, 1000 + i % 3, 2000 + i % 5, follow_symlinks=False)
    for i, path in enumerate(sorted(_files(top))):
        if not os.path.islink(path):
            os.chmod(path, rng.choice((0o644, 0o600, 0o755, 0o444, 0o4755, 0o2755, 0o1777)))
            if os.path.isfile(path) or os.path.isdir(path):
                os.setxattr(path, "user.number", b"%d" % i)
        os.utime(path, ns=(10**18 + i, 10**18 + 2 * i + 1), follow_symlinks=False)
    subprocess.run(["setfacl", "-m", "u:1234:rw", top + b"/plain"], check=True)
    subprocess.run(["setfacl", "-m", "d:u:1234:rwx", top + b"/empty"], check=True)


def _write(path: bytes, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _files(top: bytes) -> list[bytes]:
    """Everything in a tree, itself last."""
    found = []
    for directory, _, files in os.walk(top, topdown=False):
        found += [os.path.join(directory, name) for name in files]
        found += [
            path
            for name in os.listdir(directory)
            if os.path.islink(path := os.path.join(directory, name)) and os.path.isdir(path)
        ]
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
