"""Declare to cffi how small files are copied by the batch, as `aiocp._batch`: build time only.

A new small file is some ten system calls and hardly any bytes. Made one by one from Python they
cost more than the copying; here a call makes those of a whole batch, without the GIL. The struct
owns every descriptor, so that whatever is raised between two calls, the last reference closes all.
"""

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef(
    """
    enum { CAPACITY = 64 };
    enum { ADDED, OTHER, OPEN, WRITTEN, UNFINISHED, FAILED, PLACED };
    enum { NEVER, AUTO, ALWAYS };
    enum { OPEN_SOURCE, READ, OPEN_DESTINATION, WRITE, SET_ATTRIBUTES, LOOK, CHANGED, SHRANK,
           CLOSE, LINK, RENAME, REPLACED };

    struct small_file {
        int state, step, error, source, copy, cloned, in_memory;
        unsigned directory, alignment, bits;
        long long size;
        unsigned long long device;
        char name[256];
        ...;
    };
    struct aiocp_batch {
        unsigned nr, directories, placed, cloned;
        long long bytes, small;
        int links, ownership, mode, timestamps, context, xattr, default_mode;
        int allow_changed, replace, holes, alone, at_once;
        struct small_file files[64];
        ...;
    };
    struct aiocp_batch *batch_new(void);
    int batch_directory(struct aiocp_batch *b, int source, int target, unsigned alignment,
                        unsigned mask, int fresh, int acl, int flush, int clone);
    int batch_refused(struct aiocp_batch *b, unsigned directory);
    int batch_add(struct aiocp_batch *b, const char *name, int source);
    void batch_open(struct aiocp_batch *b);
    int batch_finish(struct aiocp_batch *b, unsigned index);
    int batch_set_times(struct aiocp_batch *b, unsigned index);
    void batch_seal(struct aiocp_batch *b);
    void batch_place(struct aiocp_batch *b);
    int batch_source(struct aiocp_batch *b, unsigned index);
    void batch_close(struct aiocp_batch *b);
    void batch_free(struct aiocp_batch *b);
    """
)

ffibuilder.set_source(
    "aiocp._batch",
    r"""
    #include <errno.h>
    #include <fcntl.h>
    #include <sched.h>
    #include <signal.h>
    #include <stddef.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <unistd.h>
    #include <sys/ioctl.h>
    #include <sys/random.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/wait.h>
    #include <sys/xattr.h>

    enum { CAPACITY = 64 };

    /* ADDED until it is opened. Then OTHER: not for a batch (not small, its name is taken, other
       names are to be kept, ...); OPEN: its bytes are to be read into it; WRITTEN: they were in
       memory, and are in it. UNFINISHED: written, with attributes that take more than is done
       here. */
    enum { ADDED, OTHER, OPEN, WRITTEN, UNFINISHED, FAILED, PLACED };
    enum { NEVER, AUTO, ALWAYS };
    enum { OPEN_SOURCE, READ, OPEN_DESTINATION, WRITE, SET_ATTRIBUTES, LOOK, CHANGED, SHRANK,
           CLOSE, LINK, RENAME, REPLACED };

    struct small_file {
        int state, step, error;         /* `step` and `error` of one that FAILED */
        int source, copy;               /* descriptors, -1 when closed */
        int replaces;                   /* a file that has the name */
        int cloned;                     /* it shares the blocks of its source */
        int in_memory;                  /* all of the source was, when it was opened */
        unsigned directory, alignment;  /* alignment 0: buffered reads */
        unsigned bits;                  /* the mode it is to have unless that is preserved */
        long long size;
        unsigned long long device;      /* of the source */
        struct stat seen, old;          /* of the source, and of the file that it replaces */
        char name[256];
    };

    /* Where files come from and go to. `alignment`: what direct reads ask for, 0 for buffered
       ones; `fresh`: we have made it, so no name is taken in it. */
    struct batch_directory {
        int source, target;
        unsigned alignment;
        mode_t mask, made;            /* `made`: a mode that the kernel gives new files as asked */
        int fresh, acl, flush;
        int clone, refused;             /* NEVER, AUTO or ALWAYS; whether FICLONE was refused */
    };

    struct aiocp_batch {
        unsigned nr, directories, placed, cloned;
        long long bytes;
        long long small;                /* of how many bytes the largest is */
        int links, ownership, mode, timestamps, context, xattr, default_mode;
        int allow_changed, replace, holes;
        int alone;                      /* a file by itself: the mask is left to the kernel */
        int at_once;                    /* what is in memory is copied when it is opened */
        struct batch_directory directory[CAPACITY];
        struct small_file files[CAPACITY];
    };

    static struct aiocp_batch *batch_new(void)
    {
        struct aiocp_batch *b = malloc(sizeof *b);
        if (b)
            memset(b, 0, offsetof(struct aiocp_batch, directory));
        return b;
    }

    static void close_fd(int *fd)
    {
        if (*fd >= 0)
            close(*fd);
        *fd = -1;
    }

    /* The batch has descriptors of its own: a walk does not wait for it. No `source` where all
       files are given open. */
    static int batch_directory(struct aiocp_batch *b, int source, int target, unsigned alignment,
                               unsigned mask, int fresh, int acl, int flush, int clone)
    {
        struct batch_directory *d = &b->directory[b->directories];
        d->source = -1;
        if (source >= 0 && (d->source = fcntl(source, F_DUPFD_CLOEXEC, 0)) < 0)
            return -errno;
        if ((d->target = fcntl(target, F_DUPFD_CLOEXEC, 0)) < 0) {
            int r = -errno;
            close_fd(&d->source);
            return r;
        }
        d->alignment = alignment;
        d->mask = mask;
        d->made = (mode_t)-1;
        d->fresh = fresh;
        d->acl = acl;
        d->flush = flush;
        d->clone = clone;
        d->refused = 0;
        return b->directories++;
    }

    /* Add a name in the directory that was given last, with its source if that is open: how many
       there are, or a negative errno. */
    static int batch_add(struct aiocp_batch *b, const char *name, int source)
    {
        struct small_file *f = &b->files[b->nr];
        memset(f, 0, offsetof(struct small_file, seen));
        f->source = f->copy = -1;
        if (source >= 0 && (f->source = fcntl(source, F_DUPFD_CLOEXEC, 0)) < 0)
            return -errno;
        f->directory = b->directories - 1;
        strncpy(f->name, name, sizeof f->name - 1);
        f->name[sizeof f->name - 1] = 0;
        return ++b->nr;
    }

    static void let_go(struct small_file *f, int state)
    {
        close_fd(&f->copy);
        close_fd(&f->source);
        f->state = state;
    }

    static void fail(struct small_file *f, int step, int error)
    {
        let_go(f, FAILED);
        f->step = step;
        f->error = error;
    }

    /* How much of a file is in the page cache, in bytes of whole pages, or -1: cachestat(2), Linux
       6.5, by its number. It changes nothing, while a read with RWF_NOWAIT of what is not cached
       begins to read ahead. */
    static long long cached_bytes(int fd)
    {
        enum { CACHESTAT = 451 };
        unsigned long long whole[2] = {0, 0}, counts[5];
        if (syscall(CACHESTAT, fd, whole, counts, 0) < 0)
            return -1;
        return counts[0] * sysconf(_SC_PAGESIZE);
    }

    /* Read up to `length` bytes; what was read, or -1. */
    static ssize_t read_all(int fd, char *buffer, size_t length)
    {
        size_t done = 0;
        while (done < length) {
            ssize_t n = pread(fd, buffer + done, length - done, done);
            if (n == 0)
                break;
            if (n < 0 && errno != EINTR)
                return -1;
            if (n > 0)
                done += n;
        }
        return done;
    }

    static int write_all(int fd, const char *buffer, size_t length)
    {
        size_t done = 0;
        while (done < length) {
            ssize_t n = pwrite(fd, buffer + done, length - done, done);
            if (n == 0)
                errno = ENOSPC;
            if (n == 0 || (n < 0 && errno != EINTR))
                return -1;
            if (n > 0)
                done += n;
        }
        return 0;
    }

    static int keeps_attributes(const struct aiocp_batch *b)
    {
        return b->ownership || b->mode || b->timestamps || b->context || b->xattr;
    }

    static int same_file(const struct stat *one, const struct stat *two)
    {
        return one->st_dev == two->st_dev && one->st_ino == two->st_ino;
    }

    /* Whether what has a file's name, if anything has, is for others to deal with. A file that has
       no other name, and no extended attributes, may be replaced by one with its owner and mode. */
    static int is_taken(const struct aiocp_batch *b, const struct batch_directory *d,
                        struct small_file *f)
    {
        struct stat seen, old;
        int fd, taken;
        if (d->fresh)
            return 0;
        if (fstatat(d->target, f->name, &seen, AT_SYMLINK_NOFOLLOW) < 0)
            return errno != ENOENT;
        if (!b->replace || d->acl || !S_ISREG(seen.st_mode) || seen.st_nlink != 1
            || same_file(&seen, &f->seen))
            return 1;
        fd = openat(d->target, f->name, O_WRONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            return 1;
        taken = fstat(fd, &old) < 0 || !same_file(&seen, &old) || flistxattr(fd, NULL, 0) > 0;
        close(fd);
        f->replaces = 1;
        f->old = old;
        return taken;
    }

    /* Make an unnamed file as the one that it replaces; 0 where it would have another owner. */
    static int create_alike(struct small_file *f)
    {
        struct stat s;
        f->bits = f->old.st_mode & (geteuid() ? 01777 : 07777);  /* as the kernel on a write */
        if (fstat(f->copy, &s) < 0 || fchmod(f->copy, f->bits) < 0)
            fail(f, OPEN_DESTINATION, errno);
        else
            return s.st_uid == f->old.st_uid && s.st_gid == f->old.st_gid;
        return 1;
    }

    /* Make the unnamed file; 0 where that is for others, as where the file system has none. */
    static int create(const struct aiocp_batch *b, struct batch_directory *d,
                      struct small_file *f)
    {
        struct stat s;
        int kept = keeps_attributes(b);
        f->bits = (b->default_mode ? 0666 : f->seen.st_mode & 0777) & ~d->mask;
        do
            f->copy = openat(d->target, ".", O_TMPFILE | O_RDWR | O_CLOEXEC,
                             !b->alone && (kept || f->replaces) ? 0600 : f->bits);
        while (f->copy < 0 && errno == EINTR);
        if (f->copy < 0) {
            if (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT || errno == EINVAL)
                return 0;
            fail(f, OPEN_DESTINATION, errno);
            return 1;
        }
        if (f->replaces)
            return create_alike(f);
        if (!b->alone && (kept || f->bits == d->made))
            return 1;
        /* the kernel has taken a umask or an ACL off the mode, as foreseen or not */
        if (fstat(f->copy, &s) < 0)
            fail(f, OPEN_DESTINATION, errno);
        else if (b->alone)
            f->bits = s.st_mode & 0777;
        else if ((s.st_mode & 07777) != f->bits && fchmod(f->copy, f->bits) < 0)
            fail(f, OPEN_DESTINATION, errno);
        else
            d->made = f->bits;
        return 1;
    }

    /* Whether a file has extended attributes to keep; -1 for an error. */
    static int has_xattrs(const struct aiocp_batch *b, int fd)
    {
        char names[256], *name;
        ssize_t n = flistxattr(fd, names, sizeof names);
        if (n < 0)
            return errno == ENOTSUP || errno == ENODATA ? 0 : errno == ERANGE ? 1 : -1;
        for (name = names; name < names + n; name += strlen(name) + 1)
            if (b->context || strcmp(name, "security.selinux"))
                return 1;
        return 0;
    }

    static int set_times(const struct aiocp_batch *b, const struct small_file *f)
    {
        struct timespec times[2] = {f->seen.st_atim, f->seen.st_mtim};
        return b->timestamps ? futimens(f->copy, times) : 0;
    }

    /* Give a written file its attributes, in the only order that works (see metadata.carry): 1, or
       0 where that takes more than calls that simply succeed, -1 for an error. */
    static int set_attributes(const struct aiocp_batch *b, const struct batch_directory *d,
                              const struct small_file *f)
    {
        struct stat s;
        int more;
        if (b->ownership) {
            if (fstat(f->copy, &s) < 0)
                return -1;
            if ((s.st_uid != f->seen.st_uid || s.st_gid != f->seen.st_gid)
                && fchown(f->copy, f->seen.st_uid, f->seen.st_gid) < 0)
                return errno == EPERM ? 0 : -1;
        }
        if (b->xattr || b->context || b->mode) {
            if (d->acl)
                return 0;
            if ((more = has_xattrs(b, f->source)))
                return more < 0 ? -1 : 0;
        }
        if (fchmod(f->copy, b->mode ? f->seen.st_mode & 07777 : f->bits) < 0)
            return -1;
        return set_times(b, f) < 0 ? -1 : 1;
    }

    /* Give a file that was written its attributes, if it is to have any; whether it has them. */
    static int finish(struct aiocp_batch *b, struct small_file *f)
    {
        int done = 1;
        if (keeps_attributes(b))
            done = set_attributes(b, &b->directory[f->directory], f);
        if (done < 0)
            fail(f, SET_ATTRIBUTES, errno);
        else
            f->state = done ? WRITTEN : UNFINISHED;
        return done;
    }

    static int batch_finish(struct aiocp_batch *b, unsigned index)
    {
        return finish(b, &b->files[index]);
    }

    static int batch_set_times(struct aiocp_batch *b, unsigned index)
    {
        return set_times(b, &b->files[index]) < 0 ? -errno : 0;
    }

    /* Have a file share the blocks of its source: 1, or 0 where it is to be copied. See reflink.py
       for what is a refusal, and what an error that others tell of. */
    static int clones(struct batch_directory *d, struct small_file *f)
    {
        enum { FICLONE_ = 0x40049409 };
        int refused;
        if (d->clone == NEVER || (d->clone == AUTO && (d->refused || !f->size)))
            return 0;
        if (ioctl(f->copy, FICLONE_, f->source) == 0)
            return f->cloned = 1;
        refused = errno == EXDEV || errno == EOPNOTSUPP || errno == ENOTTY || errno == ENOSYS;
        if (d->clone == AUTO && errno != EIO && errno != ENOMEM && errno != ENOSPC
            && errno != EDQUOT) {
            d->refused = refused;
            return 0;
        }
        let_go(f, OTHER);
        return 1;
    }

    /* Copy a file that is in memory, or to be waited for. One byte more than none is read: files of
       /proc say 0 and are not empty. */
    static void copy_now(struct aiocp_batch *b, struct small_file *f)
    {
        size_t room = f->size ? f->size : 1;
        char *buffer = malloc(room);
        ssize_t n = buffer ? read_all(f->source, buffer, room) : -1;
        if (n < 0)
            fail(f, READ, errno);
        else if (n < f->size)
            fail(f, SHRANK, ESTALE);
        else if (n > f->size)
            let_go(f, OTHER);
        else if (write_all(f->copy, buffer, f->size) < 0)
            fail(f, WRITE, errno);
        else
            finish(b, f);
        free(buffer);
    }

    static int is_for_others(const struct aiocp_batch *b, const struct batch_directory *d,
                             struct small_file *f)
    {
        return f->size > b->small || (b->links && f->seen.st_nlink > 1)
            || (b->holes && f->seen.st_blocks * 512LL < f->size) || is_taken(b, d, f);
    }

    static void open_file(struct aiocp_batch *b, struct small_file *f)
    {
        struct batch_directory *d = &b->directory[f->directory];
        long long cached;
        /* what takes the name meanwhile is not followed into, and not waited for */
        while (f->source < 0) {
            f->source = openat(d->source, f->name, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
            if (f->source < 0 && errno != EINTR)
                break;
        }
        if (f->source < 0 || fstat(f->source, &f->seen) < 0) {
            fail(f, OPEN_SOURCE, errno);
            return;
        }
        f->size = f->seen.st_size;
        f->device = f->seen.st_dev;
        if (!S_ISREG(f->seen.st_mode)) {
            fail(f, REPLACED, ESTALE);
            return;
        }
        if (is_for_others(b, d, f) || !create(b, d, f)) {
            let_go(f, OTHER);
            return;
        }
        if (f->state == FAILED)
            return;
        if (clones(d, f)) {
            if (f->cloned)
                finish(b, f);
            return;
        }
        cached = f->size ? cached_bytes(f->source) : 0;
        f->in_memory = cached >= f->size;
        if (b->alone || !f->size || (f->in_memory && b->at_once)) {
            copy_now(b, f);
            if (b->alone && !cached)  /* leave the memory to others */
                posix_fadvise(f->source, 0, 0, POSIX_FADV_DONTNEED);
        } else {
            if (!f->in_memory && d->alignment && fcntl(f->source, F_SETFL, O_DIRECT) == 0)
                f->alignment = d->alignment;
            f->state = OPEN;
        }
    }

    /* Open all files that were added, and copy those that are in memory. */
    static void batch_open(struct aiocp_batch *b)
    {
        unsigned i;
        for (i = 0; i < b->nr; i++)
            open_file(b, &b->files[i]);
    }

    static int same_time(struct timespec one, struct timespec two)
    {
        return one.tv_sec == two.tv_sec && one.tv_nsec == two.tv_nsec;
    }

    /* Linux has flagged the name as empty since 2.6.39 for CAP_DAC_READ_SEARCH, since 6.10 for
       whoever has opened the file; the way through /proc is for all. */
    static int link_unnamed(int fd, int dir_fd, const char *name)
    {
        char path[32];
        if (linkat(fd, "", dir_fd, name, AT_EMPTY_PATH) == 0)
            return 0;
        if (errno != ENOENT)
            return -1;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        return linkat(AT_FDCWD, path, dir_fd, name, AT_SYMLINK_FOLLOW);
    }

    /* NFS and FUSE tell of writes that failed late when any descriptor of a file is closed. */
    static int flush(int fd)
    {
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        return copy < 0 ? -1 : close(copy);
    }

    static void seal(const struct aiocp_batch *b, struct small_file *f)
    {
        struct stat now;
        if (fstat(f->source, &now) < 0)
            fail(f, LOOK, errno);
        else if (now.st_size < f->size)
            fail(f, SHRANK, ESTALE);
        else if (!b->allow_changed
                 && (now.st_size != f->size || !same_time(now.st_mtim, f->seen.st_mtim)
                     || !same_time(now.st_ctim, f->seen.st_ctim)))
            fail(f, CHANGED, ESTALE);
        else
            close_fd(&f->source);
    }

    /* See that the sources of what was written are still what they were, and close them. */
    static void batch_seal(struct aiocp_batch *b)
    {
        unsigned i;
        for (i = 0; i < b->nr; i++)
            if (b->files[i].state == WRITTEN)
                seal(b, &b->files[i]);
    }

    static void place(struct aiocp_batch *b, struct small_file *f)
    {
        if (link_unnamed(f->copy, b->directory[f->directory].target, f->name) < 0)
            fail(f, LINK, errno);
        else
            f->state = PLACED;
    }

    /* Give a file the name of another, by way of a hidden one: NAME_MAX is 255 bytes. Its
       descriptor stays for the parent to close. */
    static void replace(const struct aiocp_batch *b, struct small_file *f)
    {
        int target = b->directory[f->directory].target;
        unsigned long long number;
        char hidden[256];
        f->state = FAILED;
        f->step = LINK;
        if (getrandom(&number, sizeof number, 0) == sizeof number) {
            snprintf(hidden, sizeof hidden, ".%.231s.aiocp-%016llx", f->name, number);
            if (link_unnamed(f->copy, target, hidden) == 0) {
                f->step = RENAME;
                if (renameat(target, hidden, target, f->name) == 0) {
                    f->state = PLACED;
                    return;
                }
                f->error = errno;
                unlinkat(target, hidden, 0);
                return;
            }
        }
        f->error = errno;
    }

    static int replace_all(void *batch)
    {
        struct aiocp_batch *b = batch;
        unsigned i;
        for (i = 0; i < b->nr; i++)
            if (b->files[i].state == WRITTEN && b->files[i].replaces)
                replace(b, &b->files[i]);
        return 0;
    }

    /* In a child that shares our memory and outlives a SIGKILL of ours, so that not even that
       leaves a hidden name behind: see file_replace in _linux_build.py. */
    static void replace_in_child(struct aiocp_batch *b)
    {
        enum { STACK = 64 << 10 };
        sigset_t all, before;
        char *stack = malloc(STACK);
        pid_t child = -1;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        if (stack)
            child = clone(replace_all, stack + STACK, CLONE_VM | CLONE_VFORK, b);
        if (child < 0)
            replace_all(b);  /* no process to be had: ours must do */
        else
            while (waitpid(child, NULL, __WCLONE) < 0 && errno == EINTR)
                ;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        free(stack);
    }

    /* Give all that was written its names; what is not sealed yet is sealed before. */
    static void batch_place(struct aiocp_batch *b)
    {
        unsigned i, replacing = 0;
        struct small_file *f;
        for (i = 0; i < b->nr; i++) {
            f = &b->files[i];
            if (f->state == WRITTEN && f->source >= 0)
                seal(b, f);
            if (f->state == WRITTEN && b->directory[f->directory].flush && flush(f->copy) < 0)
                fail(f, CLOSE, errno);
            if (f->state == WRITTEN && f->replaces)
                replacing = 1;
            else if (f->state == WRITTEN)
                place(b, f);
        }
        if (replacing)
            replace_in_child(b);
        for (i = 0; i < b->nr; i++) {
            f = &b->files[i];
            if (f->state == WRITTEN)
                fail(f, RENAME, ECHILD);  /* somebody has killed the child */
            if (f->state == PLACED) {
                b->placed++;
                b->cloned += f->cloned;
                b->bytes += f->size;
            }
            if (f->state == PLACED || f->state == FAILED)
                let_go(f, f->state);
        }
    }

    /* The descriptor of the directory that a file comes from. */
    static int batch_source(struct aiocp_batch *b, unsigned index)
    {
        return b->directory[b->files[index].directory].source;
    }

    static int batch_refused(struct aiocp_batch *b, unsigned directory)
    {
        return b->directory[directory].refused;
    }

    static void batch_close(struct aiocp_batch *b)
    {
        unsigned i;
        for (i = 0; i < b->nr; i++)
            let_go(&b->files[i], b->files[i].state);
        for (i = 0; i < b->directories; i++) {
            close_fd(&b->directory[i].source);
            close_fd(&b->directory[i].target);
        }
        b->nr = b->directories = 0;
    }

    /* A forked child closes its copies too: nothing of a batch has a name. */
    static void batch_free(struct aiocp_batch *b)
    {
        batch_close(b);
        free(b);
    }
    """,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
