"""Mode, owner and extended attributes: read from an open file, set on an open file."""

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from aiocp.linux import File

_ACL = "system.posix_acl_access"
_DEFAULT_ACL = "system.posix_acl_default"

# the kernel drops file capabilities when a file is written, as cp does by writing
_NOT_KEPT = ("security.capability",)
_NO_XATTRS = (errno.ENOTSUP, errno.ENODATA)

# what a file system, or an ordinary user, has to say to an attribute that another can have
_NOT_POSSIBLE = (*_NO_XATTRS, errno.EPERM, errno.EACCES, errno.ENOSPC, errno.E2BIG, errno.ERANGE)


# what can be preserved, by cp's names
ATTRIBUTES = frozenset({"mode", "ownership", "timestamps", "links", "context", "xattr"})

# next to them: ALL is all of them, WHERE_POSSIBLE that xattr and context need not succeed, as with
# cp -a; with DEFAULT_MODE new files get 0666, directories 0777, less the umask, whatever the
# source's mode
ALL, WHERE_POSSIBLE, DEFAULT_MODE = "all", "where-possible", "default-mode"

_CONTEXT = "security.selinux"


def attributes(names: Iterable[str]) -> frozenset[str]:
    """The set that the functions here take, from names out of ATTRIBUTES and those next to them.

    Raises ValueError for any other.
    """
    kept = frozenset([names] if isinstance(names, str) else names)
    if unknown := kept - ATTRIBUTES - {ALL, WHERE_POSSIBLE, DEFAULT_MODE}:
        raise ValueError(f"cannot preserve {', '.join(sorted(unknown))}")
    return kept - {ALL} | ATTRIBUTES | {WHERE_POSSIBLE} if ALL in kept else kept


def new_mode(source_mode: int, preserve: frozenset[str]) -> int:
    """The permission bits that something new is made with where its mode is not preserved."""
    if DEFAULT_MODE not in preserve:
        return source_mode & 0o777
    return 0o777 if stat.S_ISDIR(source_mode) or stat.S_ISSOCK(source_mode) else 0o666


def carry(
    source_fd: int | str,
    source: os.stat_result,
    fd: int,
    preserve: frozenset[str],
    mode: int | None,
) -> int:
    """Give an open file or directory those attributes of the source's that are to be preserved.

    In the only order that works: the owner, whose change clears setuid bits and capabilities; the
    extended attributes; the mode and the ACL, which may deny the writing of attributes; the times.
    `mode` is for where the mode is not preserved; None leaves it. As with cp, an ordinary user who
    may not give files away keeps them, then without their setuid, setgid and (files) sticky bits.
    Returns the mode that preserving it means.

    Raises OSError from fchown(2), fchmod(2), fsetxattr(2), utimensat(2).
    """
    bits = stat.S_IMODE(source.st_mode)
    if "ownership" in preserve and not _give(fd, source.st_uid, source.st_gid):
        bits &= 0o1777 if stat.S_ISDIR(source.st_mode) else 0o777
    if preserve & {"xattr", "context", "mode"}:
        _carry_xattrs(source_fd, fd, preserve)
    if "mode" in preserve:
        os.chmod(fd, bits)
    elif mode is not None:
        os.chmod(fd, mode)
    if "timestamps" in preserve:
        os.utime(fd, ns=(source.st_atime_ns, source.st_mtime_ns))
    return bits


def carry_to_name(
    source: os.stat_result, directory_fd: int, name: bytes, preserve: frozenset[str], kind: int
) -> None:
    """Give a link, FIFO, socket or device node, whose S_IFMT is `kind`, the source's owner, mode
    and times.

    Raises OSError ESTALE where something else has taken the name since it was made.
    """
    if not preserve & {"ownership", "mode", "timestamps"}:
        return
    node = File.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory_fd)
    try:
        found = os.fstat(node.fileno())
        if stat.S_IFMT(found.st_mode) != kind or found.st_nlink > 1:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        path = f"/proc/self/fd/{node.fileno()}"  # which leads to the node, even if that is a link
        if "ownership" in preserve:
            with suppress(PermissionError):
                os.chown(path, source.st_uid, source.st_gid)
        if "mode" in preserve and kind != stat.S_IFLNK:
            os.chmod(path, stat.S_IMODE(source.st_mode))
        if "timestamps" in preserve:
            os.utime(path, ns=(source.st_atime_ns, source.st_mtime_ns))
    finally:
        node.let_go()


def _give(fd: int, uid: int, gid: int) -> bool:
    """Change the owner if need be; whether user and group are now these."""
    for owner in ((uid, gid), (-1, gid)):
        try:
            os.fchown(fd, *owner)
        except PermissionError:
            continue
        return owner[0] == uid or os.fstat(fd).st_uid == uid
    return False


def _carry_xattrs(source_fd: int | str, fd: int, preserve: frozenset[str]) -> None:
    names = [name for name in _xattrs(source_fd) if _belongs_to(name) in preserve]
    for name in names:
        try:
            os.setxattr(fd, name, os.getxattr(source_fd, name))
        except OSError as error:
            optional = WHERE_POSSIBLE in preserve and _belongs_to(name) != "mode"
            if not optional or error.errno not in _NOT_POSSIBLE:
                raise
    if "mode" in preserve:  # an ACL that only the directory's default has given
        for acl in (_ACL, _DEFAULT_ACL):
            if acl in _xattrs(fd) and acl not in names:
                os.removexattr(fd, acl)


def _belongs_to(xattr: str) -> str:
    if xattr in (_ACL, _DEFAULT_ACL):
        return "mode"
    return "context" if xattr == _CONTEXT else "xattr"


def creation_mask(directory_fd: int) -> tuple[int, bool]:
    """The bits a new file in this directory is denied, and whether by a default ACL, which comes
    before the umask."""
    try:
        # by path, because the descriptor is O_PATH for a directory that we may not read
        acl = os.getxattr(f"/proc/self/fd/{directory_fd}", _DEFAULT_ACL)
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
        return umask(), False
    return 0o777 & ~_acl_mode(acl), True


def keep(old_fd: int, new_fd: int) -> int:
    """Give a file the owner, ACL and extended attributes of the one it replaces; return the mode.

    Raises OSError where this process may not.
    """
    old, new = os.fstat(old_fd), os.fstat(new_fd)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.fchown(new_fd, old.st_uid, old.st_gid)
    for name in _xattrs(old_fd):
        if name not in _NOT_KEPT:
            os.setxattr(new_fd, name, os.getxattr(old_fd, name))
    mode = stat.S_IMODE(old.st_mode)
    if _ACL in _xattrs(new_fd) and _ACL not in _xattrs(old_fd):  # from the directory's default
        os.removexattr(new_fd, _ACL)
    if os.geteuid() != 0:  # as the kernel does when such a file is written
        mode &= ~(stat.S_ISUID | stat.S_ISGID)
    return mode


def _xattrs(fd: int | str) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
        return []


def umask() -> int:
    """The process's umask, without changing it for a moment as umask(2) must."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    raise OSError(errno.ENOSYS, "no Umask in /proc/self/status (Linux 4.7)")


def _acl_mode(acl: bytes) -> int:
    """The permission bits of a POSIX ACL in the kernel's form: a version, then 8-byte entries."""
    entries = {
        int.from_bytes(acl[at : at + 2], "little"): int.from_bytes(acl[at + 2 : at + 4], "little")
        for at in range(4, len(acl), 8)
    }
    owner, group, mask, other = 0x01, 0x04, 0x10, 0x20
    return entries[owner] << 6 | entries.get(mask, entries[group]) << 3 | entries[other]
