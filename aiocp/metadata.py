"""Mode, owner and extended attributes: read from an open file, set on an open file."""

import errno
import os
import stat

_ACL = "system.posix_acl_access"
_DEFAULT_ACL = "system.posix_acl_default"

# the kernel drops file capabilities when a file is written, as cp does by writing
_NOT_KEPT = ("security.capability",)
_NO_XATTRS = (errno.ENOTSUP, errno.ENODATA)


def new_mode(source: os.stat_result, directory_fd: int) -> int:
    """The mode that open(2) would give a new file made with the source's permission bits."""
    return stat.S_IMODE(source.st_mode) & 0o777 & ~creation_mask(directory_fd)


def creation_mask(directory_fd: int) -> int:
    """The bits a new file in this directory is denied: by its default ACL, else by the umask."""
    try:
        # by path, because the descriptor is O_PATH for a directory that we may not read
        acl = os.getxattr(f"/proc/self/fd/{directory_fd}", _DEFAULT_ACL)
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
        return _umask()
    return 0o777 & ~_acl_mode(acl)


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


def _xattrs(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
        return []


def _umask() -> int:
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
