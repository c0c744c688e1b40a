"""Declare to cffi the few Linux calls that `os` lacks, as `aiocp._linux`: build time only.

Everything that must be cleaned up on every way out, an open file and a temporary name, is owned by
a C struct that is filled in the same call as the system call: an exception raised between any two
bytecodes finds either nothing to clean up or something that knows how.
"""

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef(
    """
    struct aiocp_file { int fd; int named; ...; };
    struct aiocp_file *file_new(void);
    int file_open(struct aiocp_file *f, int dir_fd, const char *path, int flags, unsigned mode);
    int file_open_named(struct aiocp_file *f, int dir_fd, const char *name, int flags,
                        unsigned mode);
    int file_open_kept(struct aiocp_file *f, int dir_fd, const char *name, int flags);
    int file_keep(struct aiocp_file *f, int dir_fd, const char *name);
    void file_unkeep(struct aiocp_file *f);
    int file_link(struct aiocp_file *f, int dir_fd, const char *name);
    int file_replace(struct aiocp_file *f, int dir_fd, const char *temporary, const char *name);
    int file_flush(struct aiocp_file *f);
    int file_close(struct aiocp_file *f);
    void file_free(struct aiocp_file *f);

    int node_replace(int dir_fd, const char *temporary, const char *name, int fd,
                     const char *text, unsigned mode, unsigned long long device);

    int file_allocate(int fd, int mode, long long offset, long long length);
    int syncfs(int fd);
    int direct_alignment(int fd, unsigned *memory, unsigned *offset);
    long long birth_time(int fd);
    int io_priority(int priority);
    long long filesystem_type(int fd);
    long long cached_bytes(int fd, long long offset, long long length, int *dirty);

    struct aiocp_tally {
        long long entries, bytes;
        int stop;
        ...;
    };
    struct aiocp_tally *tally_new(int follow, int links);
    int tally_directory(struct aiocp_tally *t, int fd);
    int tally_entry(struct aiocp_tally *t, int fd, const char *name, int type);
    size_t tally_names(struct aiocp_tally *t, const char **names);
    size_t tally_linked(struct aiocp_tally *t, unsigned long long **files);
    void tally_free(struct aiocp_tally *t);
    """
)

ffibuilder.set_source(
    "aiocp._linux",
    r"""
    #include <errno.h>
    #include <fcntl.h>
    #include <sched.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <unistd.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/vfs.h>
    #include <sys/wait.h>

    /* An open file and, while `named`, the temporary name that goes when it goes, unless it is
       `kept`. The directory of that name is the file's own descriptor, so no other object has to
       live as long. */
    struct aiocp_file {
        int fd, named, kept, dir_fd;
        pid_t pid;
        char name[256];
    };

    static struct aiocp_file *file_new(void)
    {
        struct aiocp_file *f = calloc(1, sizeof *f);
        if (f) {
            f->fd = f->dir_fd = -1;
            f->pid = getpid();
        }
        return f;
    }

    static int file_open(struct aiocp_file *f, int dir_fd, const char *path, int flags,
                         unsigned mode)
    {
        f->fd = openat(dir_fd, path, flags | O_CLOEXEC, mode);
        return f->fd < 0 ? -errno : 0;
    }

    /* Get ready to have a temporary name. */
    static int may_name(struct aiocp_file *f, int dir_fd, const char *name)
    {
        if (strlen(name) >= sizeof f->name)
            return -ENAMETOOLONG;
        if (f->dir_fd < 0 && (f->dir_fd = fcntl(dir_fd, F_DUPFD_CLOEXEC, 0)) < 0)
            return -errno;
        return 0;
    }

    static int open_named(struct aiocp_file *f, int dir_fd, const char *name, int flags,
                          unsigned mode)
    {
        int r = may_name(f, dir_fd, name);
        if (r == 0)
            r = file_open(f, dir_fd, name, flags | O_NOFOLLOW, mode);
        if (r == 0) {
            strcpy(f->name, name);
            f->named = 1;
        }
        return r;
    }

    static int file_open_named(struct aiocp_file *f, int dir_fd, const char *name, int flags,
                               unsigned mode)
    {
        return open_named(f, dir_fd, name, flags | O_CREAT | O_EXCL, mode);
    }

    /* Open a file whose name was kept. */
    static int file_open_kept(struct aiocp_file *f, int dir_fd, const char *name, int flags)
    {
        int r = open_named(f, dir_fd, name, flags, 0);
        f->kept = r == 0;
        return r;
    }

    static int link_unnamed(int fd, int dir_fd, const char *name)
    {
        char path[32];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        return linkat(AT_FDCWD, path, dir_fd, name, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
    }

    static int move(struct aiocp_file *f, int dir_fd, const char *name, unsigned flags)
    {
        if (syscall(SYS_renameat2, f->dir_fd, f->name, dir_fd, name, flags) < 0)
            return -errno;
        f->named = f->kept = 0;
        return 0;
    }

    static int file_unname(struct aiocp_file *f)
    {
        int r = f->named ? unlinkat(f->dir_fd, f->name, 0) : 0;
        f->named = f->kept = 0;
        return r < 0 ? -errno : 0;
    }

    /* Give the file a name that is not taken yet. */
    static int file_link(struct aiocp_file *f, int dir_fd, const char *name)
    {
        int r;
        if (!f->named)
            return link_unnamed(f->fd, dir_fd, name);
        r = move(f, dir_fd, name, 1 /* RENAME_NOREPLACE */);
        if (r != -EINVAL && r != -ENOSYS)
            return r;
        /* NFS and old FUSE know no RENAME_NOREPLACE; a hard link refuses a taken name as well */
        if (linkat(f->dir_fd, f->name, dir_fd, name, 0) < 0)
            return -errno;
        return file_unname(f);
    }

    /* Give the file a name that is not taken yet, and that stays until the file gets its own. */
    static int file_keep(struct aiocp_file *f, int dir_fd, const char *name)
    {
        int r = may_name(f, dir_fd, name);
        if (r == 0)
            r = file_link(f, dir_fd, name);
        if (r == 0) {
            strcpy(f->name, name);
            f->named = f->kept = 1;
        }
        return r;
    }

    static void file_unkeep(struct aiocp_file *f)
    {
        f->kept = 0;
    }

    /* What takes a name: the open file `fd`; without one a link to `text`, without that a node. */
    struct replacement {
        int fd, dir_fd, result;
        const char *temporary, *name, *text;
        unsigned mode;
        unsigned long long device;
    };

    static int make_temporary(struct replacement *r)
    {
        int made;
        if (r->fd >= 0)
            return link_unnamed(r->fd, r->dir_fd, r->temporary);
        made = r->text ? symlinkat(r->text, r->dir_fd, r->temporary)
                       : mknodat(r->dir_fd, r->temporary, r->mode, r->device);
        return made < 0 ? -errno : 0;
    }

    static int make_and_rename(void *argument)
    {
        struct replacement *r = argument;
        r->result = make_temporary(r);
        if (r->result == 0 && renameat(r->dir_fd, r->temporary, r->dir_fd, r->name) < 0) {
            r->result = -errno;
            unlinkat(r->dir_fd, r->temporary, 0);
        }
        return 0;
    }

    enum { STACK = 64 << 10 };

    /* Linux has no linkat, symlinkat or mknodat that replaces, so what is made needs a temporary
       name for the moment until rename. Both run in a child that shares our memory and outlives a
       SIGKILL of ours, so not even that leaves the temporary name behind. The child sends no
       SIGCHLD and is invisible to a wait for any child; signals wait until it is done. */
    static int replace(struct replacement *r)
    {
        sigset_t all, before;
        char *stack = malloc(STACK);
        pid_t child;
        if (!stack)
            return -ENOMEM;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        child = clone(make_and_rename, stack + STACK, CLONE_VM | CLONE_VFORK, r);
        if (child < 0)
            make_and_rename(r);  /* no process to be had: ours must do */
        else
            while (waitpid(child, NULL, __WCLONE) < 0 && errno == EINTR)
                ;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        free(stack);
        return r->result;
    }

    /* Give the file the name of another, in its place. */
    static int file_replace(struct aiocp_file *f, int dir_fd, const char *temporary,
                            const char *name)
    {
        struct replacement r = {f->fd, dir_fd, -ECHILD, temporary, name};
        return f->named ? move(f, dir_fd, name, 0) : replace(&r);
    }

    /* The same for what is no file that we have just written. */
    static int node_replace(int dir_fd, const char *temporary, const char *name, int fd,
                            const char *text, unsigned mode, unsigned long long device)
    {
        struct replacement r = {fd, dir_fd, -ECHILD, temporary, name, text, mode, device};
        return replace(&r);
    }

    static int close_fd(int *fd)
    {
        int r = *fd < 0 ? 0 : close(*fd);
        *fd = -1;
        return r < 0 ? -errno : 0;
    }

    /* Have close(2)'s errors while the descriptor is still there: NFS and FUSE report writes that
       failed late when any descriptor of the file is closed. */
    static int file_flush(struct aiocp_file *f)
    {
        int copy = fcntl(f->fd, F_DUPFD_CLOEXEC, 0);
        return copy < 0 ? -errno : close_fd(&copy);
    }

    /* Close, keeping nothing: after any error of close(2) the descriptor is gone on Linux. */
    static int file_close(struct aiocp_file *f)
    {
        int unnamed = f->kept ? 0 : file_unname(f), r = close_fd(&f->fd);
        close_fd(&f->dir_fd);
        return r < 0 ? r : unnamed;
    }

    /* A forked child closes its copies and leaves the name to its parent. */
    static void file_free(struct aiocp_file *f)
    {
        if (f->pid != getpid())
            f->named = 0;
        file_close(f);
        free(f);
    }

    static int file_allocate(int fd, int mode, long long offset, long long length)
    {
        return fallocate(fd, mode, offset, length) < 0 ? -errno : 0;
    }

    /* statx(2): when a file was made, in ns since 1970; -1 where that is not known. */
    static long long birth_time(int fd)
    {
        enum { BTIME = 0x800, MASK_AT = 0, SECONDS_AT = 80, NANOSECONDS_AT = 88 };
        unsigned char statx[256];
        uint32_t mask, nanoseconds;
        int64_t seconds;
        if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, BTIME, statx) < 0)
            return -1;
        memcpy(&mask, statx + MASK_AT, sizeof mask);
        memcpy(&seconds, statx + SECONDS_AT, sizeof seconds);
        memcpy(&nanoseconds, statx + NANOSECONDS_AT, sizeof nanoseconds);
        return mask & BTIME ? seconds * 1000000000 + nanoseconds : -1;
    }

    /* STATX_DIOALIGN (Linux 6.1): by the numbers of the ABI, which the C library may not know yet.
       Both alignments 0: this file takes no direct I/O. -ENOTSUP: the file system does not say. */
    static int direct_alignment(int fd, unsigned *memory, unsigned *offset)
    {
        enum { DIOALIGN = 0x2000, MASK_AT = 0, MEMORY_AT = 152, OFFSET_AT = 156 };
        unsigned char statx[256];
        uint32_t mask;
        if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, DIOALIGN, statx) < 0)
            return -errno;
        memcpy(&mask, statx + MASK_AT, sizeof mask);
        if (!(mask & DIOALIGN))
            return -ENOTSUP;
        memcpy(memory, statx + MEMORY_AT, sizeof *memory);
        memcpy(offset, statx + OFFSET_AT, sizeof *offset);
        return 0;
    }

    /* Of this thread, by the numbers of the ABI, as the C library knows nothing of it; what it was
       before. */
    static int io_priority(int priority)
    {
        enum { WHO_PROCESS = 1, SELF = 0 };
        int before = syscall(SYS_ioprio_get, WHO_PROCESS, SELF);
        if (before < 0 || syscall(SYS_ioprio_set, WHO_PROCESS, SELF, priority) < 0)
            return -errno;
        return before;
    }

    static long long filesystem_type(int fd)
    {
        struct statfs status;
        return fstatfs(fd, &status) < 0 ? -1 : (long long)status.f_type;
    }

    static long long cached_bytes(int fd, long long offset, long long length, int *dirty)
    {
        enum { CACHESTAT = 451 };
        uint64_t range[2] = {offset, length};
        struct { uint64_t cached, dirty, writeback, evicted, recently_evicted; } pages;
        if (syscall(CACHESTAT, fd, range, &pages, 0) < 0)
            return -errno;
        *dirty = pages.dirty || pages.writeback;
        return pages.cached * sysconf(_SC_PAGESIZE);
    }

    /* Bytes put one behind the other. */
    struct heap {
        char *at;
        size_t used, room;
    };

    static int put(struct heap *h, const void *bytes, size_t length)
    {
        if (h->room - h->used < length) {
            size_t room = 2 * h->room + length + 4096;
            char *at = realloc(h->at, room);
            if (!at)
                return -ENOMEM;
            h->at = at;
            h->room = room;
        }
        memcpy(h->at + h->used, bytes, length);
        h->used += length;
        return 0;
    }

    /* What is counted, directory by directory, while others look at it: how many entries are no
       directories, and the bytes of the regular files of these. `follow` counts what links point
       to. With `links` files that have several names are set aside with theirs. */
    struct aiocp_tally {
        long long entries, bytes;
        int stop;
        int follow, links;
        struct heap names, linked;
    };

    static struct aiocp_tally *tally_new(int follow, int links)
    {
        struct aiocp_tally *t = calloc(1, sizeof *t);
        if (t) {
            t->follow = follow;
            t->links = links;
        }
        return t;
    }

    /* `type` is one of DT_*; 0, DT_UNKNOWN, if it is not known. */
    static int tally_entry(struct aiocp_tally *t, int fd, const char *name, int type)
    {
        enum { DIRECTORY = 4, REGULAR = 8, LINK = 10 };
        struct stat seen;
        int look = type == 0 || type == REGULAR || (type == LINK && t->follow);
        if (look && fstatat(fd, name, &seen, t->follow ? 0 : AT_SYMLINK_NOFOLLOW) < 0)
            look = 0;                   /* its copy will say so */
        if (type == DIRECTORY || (look && S_ISDIR(seen.st_mode)))
            return put(&t->names, name, strlen(name) + 1);
        t->entries++;
        if (!look || !S_ISREG(seen.st_mode))
            return 0;
        if (t->links && (seen.st_nlink > 1 || t->follow)) {
            unsigned long long file[3] = {seen.st_dev, seen.st_ino, seen.st_size};
            return put(&t->linked, file, sizeof file);
        }
        t->bytes += seen.st_size;
        return 0;
    }

    static int tally_directory(struct aiocp_tally *t, int fd)
    {
        enum { LENGTH_AT = 16, TYPE_AT = 18, NAME_AT = 19 };    /* of a struct linux_dirent64 */
        char entries[32 << 10];
        long length;
        int r = 0;
        t->names.used = 0;
        while (!t->stop && (length = syscall(SYS_getdents64, fd, entries, sizeof entries))) {
            unsigned short step;
            if (length < 0)
                return -errno;
            for (long at = 0; at < length && r == 0 && !t->stop; at += step) {
                const char *name = entries + at + NAME_AT;
                memcpy(&step, entries + at + LENGTH_AT, sizeof step);
                if (strcmp(name, ".") && strcmp(name, ".."))
                    r = tally_entry(t, fd, name, entries[at + TYPE_AT]);
            }
            if (r < 0)
                return r;
        }
        return 0;
    }

    /* The directories in the one counted last, each name with a NUL behind it. */
    static size_t tally_names(struct aiocp_tally *t, const char **names)
    {
        *names = t->names.at;
        return t->names.used;
    }

    /* The files set aside since this was called last, each as its device, inode number and size. */
    static size_t tally_linked(struct aiocp_tally *t, unsigned long long **files)
    {
        size_t used = t->linked.used;
        t->linked.used = 0;
        *files = (unsigned long long *)t->linked.at;
        return used / (3 * sizeof **files);
    }

    static void tally_free(struct aiocp_tally *t)
    {
        free(t->names.at);
        free(t->linked.at);
        free(t);
    }
    """,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
