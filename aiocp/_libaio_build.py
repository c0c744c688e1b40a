"""Declare libaio to cffi and describe the extension `aiocp._libaio`: build time only.

Two parts. libaio itself: the header's own declarations, its static inlines included, compiled
against the real `libaio.h` and linked with `-laio`. And `struct aiocp_slots`, the engine's lean
path: every count that says what the kernel may still touch lives in this struct and is changed in
the same C call as the system call it stands for, so an exception raised between any two bytecodes
cannot separate the two.
"""

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef(
    """
    typedef struct io_context *io_context_t;
    typedef int... pid_t;
    typedef int... time_t;

    struct timespec { time_t tv_sec; long tv_nsec; ...; };
    struct iovec { void *iov_base; size_t iov_len; ...; };
    typedef struct { ...; } sigset_t;
    int sigemptyset(sigset_t *set);
    int sigaddset(sigset_t *set, int signum);

    typedef enum io_iocb_cmd {
        IO_CMD_PREAD, IO_CMD_PWRITE, IO_CMD_FSYNC, IO_CMD_FDSYNC,
        IO_CMD_POLL, IO_CMD_NOOP, IO_CMD_PREADV, IO_CMD_PWRITEV, ...
    } io_iocb_cmd_t;

    struct io_iocb_poll { int events; ...; };
    struct io_iocb_common {
        void *buf; unsigned long nbytes; long long offset; unsigned flags; unsigned resfd; ...;
    };
    struct io_iocb_vector { const struct iovec *vec; unsigned long nr; long long offset; ...; };
    union io_iocb_union {
        struct io_iocb_common c; struct io_iocb_vector v; struct io_iocb_poll poll; ...;
    };
    struct iocb {
        void *data; unsigned key; unsigned aio_rw_flags;
        short aio_lio_opcode; short aio_reqprio; int aio_fildes; ...;
    };
    struct io_event { void *data; struct iocb *obj; long res; long res2; ...; };

    void io_prep_pread(struct iocb *iocb, int fd, void *buf, size_t count, long long offset);
    void io_prep_pwrite(struct iocb *iocb, int fd, void *buf, size_t count, long long offset);
    void io_prep_preadv(struct iocb *iocb, int fd, const struct iovec *iov, int iovcnt,
                        long long offset);
    void io_prep_pwritev(struct iocb *iocb, int fd, const struct iovec *iov, int iovcnt,
                         long long offset);
    void io_prep_preadv2(struct iocb *iocb, int fd, const struct iovec *iov, int iovcnt,
                         long long offset, int flags);
    void io_prep_pwritev2(struct iocb *iocb, int fd, const struct iovec *iov, int iovcnt,
                          long long offset, int flags);
    void io_prep_poll(struct iocb *iocb, int fd, int events);
    void io_prep_fsync(struct iocb *iocb, int fd);
    void io_prep_fdsync(struct iocb *iocb, int fd);
    void io_set_eventfd(struct iocb *iocb, int eventfd);

    struct io_iocb_common *iocb_common(struct iocb *iocb);
    unsigned ring_entries(io_context_t ctx);

    struct aiocp_context { io_context_t ctx; pid_t pid; int calls; ...; };
    struct aiocp_batch { long n, done; struct io_event events[]; };
    struct aiocp_context *context_new(void);
    int context_setup(struct aiocp_context *c, int maxevents);
    int context_submit(struct aiocp_context *c, long nr, struct iocb *ios[], int *taken);
    int context_cancel(struct aiocp_context *c, struct iocb *iocb);
    int context_getevents(struct aiocp_context *c, long min_nr, long nr, struct aiocp_batch *batch,
                          struct timespec *timeout, sigset_t *sigmask);
    int context_destroy(struct aiocp_context *c);
    void context_free(struct aiocp_context *c);

    struct aiocp_slots {
        unsigned nr, maxevents, in_flight, queued, peak;
        int eventfd, idle;
        size_t block_size, mapped;
        char *buffers;
        struct iocb *iocbs;
        long *slot, *res;
        ...;
    };
    struct aiocp_slots *slots_new(void);
    int slots_setup(struct aiocp_slots *s, unsigned maxevents);
    int slots_resize(struct aiocp_slots *s, unsigned nr, size_t block_size);
    void slots_prep_preadv(struct aiocp_slots *s, unsigned slot, int fd, size_t skip, size_t length,
                           long long offset);
    void slots_prep_cached(struct aiocp_slots *s, unsigned slot, int fd, size_t skip, size_t length,
                           long long offset);
    void slots_prep_pwritev(struct aiocp_slots *s, unsigned slot, int fd, size_t skip,
                            size_t length, long long offset);
    void slots_prep_fsync(struct aiocp_slots *s, unsigned slot, int fd);
    void slots_prep_fdsync(struct aiocp_slots *s, unsigned slot, int fd);
    int slots_submit(struct aiocp_slots *s);
    int slots_perform(struct aiocp_slots *s);
    int slots_getevents(struct aiocp_slots *s, long min_nr, struct timespec *timeout);
    size_t slots_skip(struct aiocp_slots *s, unsigned slot, size_t start, size_t stop, size_t unit,
                      int zero);
    void slots_drain(struct aiocp_slots *s);
    void slots_unmap(struct aiocp_slots *s);
    void slots_close(struct aiocp_slots *s);
    void slots_free(struct aiocp_slots *s);
    """
)

ffibuilder.set_source(
    "aiocp._libaio",
    r"""
    #include <errno.h>
    #include <signal.h>
    #include <stdlib.h>
    #include <string.h>
    #include <time.h>
    #include <unistd.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <libaio.h>

    union io_iocb_union {
        struct io_iocb_common c; struct io_iocb_vector v; struct io_iocb_poll poll;
    };

    static struct io_iocb_common *iocb_common(struct iocb *iocb) { return &iocb->u.c; }

    /* libaio >= 0.3.112 prefers the system call io_pgetevents, which seccomp profiles older than
       Linux 4.18 refuse with EPERM: then the older one. */
    static int getevents(io_context_t ctx, long min_nr, long nr,
                         struct io_event *events, struct timespec *timeout)
    {
        long n = io_getevents(ctx, min_nr, nr, events, timeout);
    #ifdef SYS_io_getevents
        if (n == -EPERM || n == -ENOSYS) {
            n = syscall(SYS_io_getevents, ctx, min_nr, nr, events, timeout);
            if (n < 0)
                n = -errno;
        }
    #endif
        return n;
    }

    /* The head of the ring that the kernel maps at the context's address (fs/aio.c). */
    struct ring_head { unsigned id, nr, head, tail, magic; };

    /* How many entries the ring holds, 0 where the mapping is not one we know (gVisor). */
    static unsigned ring_entries(io_context_t ctx)
    {
        const struct ring_head *ring = (const struct ring_head *)ctx;
        return ring->magic == 0xa10a10a1 ? ring->nr : 0;
    }

    /* A context of the public binding. `calls` counts the threads inside a call on it: destroying
       it then would unmap the ring that libaio reads. `ctx` is NULL when the kernel is done. */
    struct aiocp_context {
        io_context_t ctx;
        pid_t pid;
        int calls;
    };

    enum { DESTROYED = -1 };

    /* What one call has reaped, and how many of it Python has taken over. The count is set before
       the call returns, so that an exception raised on return loses no event. */
    struct aiocp_batch { long n, done; struct io_event events[]; };

    static struct aiocp_context *context_new(void)
    {
        struct aiocp_context *c = calloc(1, sizeof *c);
        if (c) {
            c->pid = getpid();
            c->calls = DESTROYED;
        }
        return c;
    }

    static int context_setup(struct aiocp_context *c, int maxevents)
    {
        int r = io_setup(maxevents, &c->ctx);
        if (r == 0)
            c->calls = 0;
        return r;
    }

    static int enter(struct aiocp_context *c)
    {
        int calls = __atomic_load_n(&c->calls, __ATOMIC_SEQ_CST);
        while (calls != DESTROYED)
            if (__atomic_compare_exchange_n(&c->calls, &calls, calls + 1, 0,
                                            __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
                return 1;
        return 0;
    }

    static int leave(struct aiocp_context *c, int r)
    {
        __atomic_sub_fetch(&c->calls, 1, __ATOMIC_SEQ_CST);
        return r;
    }

    static int context_submit(struct aiocp_context *c, long nr, struct iocb *ios[], int *taken)
    {
        int r;
        if (!enter(c))
            return -EINVAL;
        r = io_submit(c->ctx, nr, ios);
        *taken = r > 0 ? r : 0;
        return leave(c, r);
    }

    static int context_cancel(struct aiocp_context *c, struct iocb *iocb)
    {
        struct io_event unused;  /* since Linux 3.13 the event always comes through the ring */
        if (!enter(c))
            return -EINVAL;
        return leave(c, io_cancel(c->ctx, iocb, &unused));
    }

    static int context_getevents(struct aiocp_context *c, long min_nr, long nr,
                                 struct aiocp_batch *batch, struct timespec *timeout,
                                 sigset_t *sigmask)
    {
        int r;
        if (!enter(c))
            return -EINVAL;
        if (sigmask)
            r = io_pgetevents(c->ctx, min_nr, nr, batch->events, timeout, sigmask);
        else
            r = getevents(c->ctx, min_nr, nr, batch->events, timeout);
        batch->n = r > 0 ? r : 0;
        return leave(c, r);
    }

    /* Destroy, which waits for all I/O in flight; EBUSY while a thread is inside a call. */
    static int context_destroy(struct aiocp_context *c)
    {
        int r, calls = 0;
        if (!__atomic_compare_exchange_n(&c->calls, &calls, DESTROYED, 0,
                                         __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return calls == DESTROYED ? -EINVAL : -EBUSY;
        r = io_destroy(c->ctx);
        c->ctx = NULL;
        return r;
    }

    /* In a forked child the context is the parent's: leave it. */
    static void context_free(struct aiocp_context *c)
    {
        if (c->pid == getpid())
            context_destroy(c);
        free(c);
    }

    /* One context with `nr` slots: an iocb, an iovec and a block of `buffers` each. The queue holds
       what is prepared and not yet submitted, oldest first. */
    struct aiocp_slots {
        io_context_t ctx;
        pid_t pid;
        unsigned nr, maxevents, in_flight, queued, peak;
        int eventfd;            /* is told of each completion, unless it is -1 */
        int idle;               /* whether others go before, at the disk */
        size_t block_size, mapped, touched;
        char *mapping, *buffers;
        struct iocb *iocbs, **queue;
        struct iovec *iovecs;
        struct io_event *events;
        long *slot, *res;
    };

    enum { HUGE_PAGE = 2 << 20 };

    static struct aiocp_slots *slots_new(void)
    {
        struct aiocp_slots *s = calloc(1, sizeof *s);
        if (s) {
            s->pid = getpid();
            s->eventfd = -1;
        }
        return s;
    }

    static int slots_setup(struct aiocp_slots *s, unsigned maxevents)
    {
        int r = io_setup((int)maxevents, &s->ctx);
        if (r == 0)
            s->maxevents = maxevents;
        return r;
    }

    static void slots_unmap(struct aiocp_slots *s)
    {
        if (s->mapping)
            munmap(s->mapping, s->mapped + HUGE_PAGE);
        s->mapping = s->buffers = NULL;
        s->mapped = s->touched = 0;
    }

    /* Have the memory there up to the end of a read. Btrfs answers a direct read into memory that
       would fault with a buffered one, which leaves the source in the page cache. */
    static void touch(struct aiocp_slots *s, size_t end)
    {
        for (; s->touched < end; s->touched += 4096)
            s->buffers[s->touched] = 0;
    }

    /* A range that starts on a huge page, so that a block is few segments to the device; never
       shared with a forked child, where copy-on-write could part it from the pages in flight. */
    static int map_buffers(struct aiocp_slots *s, size_t length)
    {
        char *mapping;
        if (length <= s->mapped)
            return 0;
        mapping = mmap(NULL, length + HUGE_PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapping == MAP_FAILED)
            return -errno;
        slots_unmap(s);
        s->mapping = mapping;
        s->mapped = length;
        s->buffers = (char *)(((size_t)mapping + HUGE_PAGE - 1) & ~(size_t)(HUGE_PAGE - 1));
        madvise(s->buffers, length, MADV_HUGEPAGE);
        madvise(mapping, length + HUGE_PAGE, MADV_DONTFORK);
        return 0;
    }

    static int slots_resize(struct aiocp_slots *s, unsigned nr, size_t block_size)
    {
        size_t each = sizeof *s->iocbs + sizeof *s->queue + sizeof *s->iovecs
                      + sizeof *s->events + sizeof *s->slot + sizeof *s->res;
        int r;
        if (s->in_flight)
            return -EBUSY;
        if (nr > s->nr) {
            char *memory = calloc(nr, each);
            if (!memory)
                return -ENOMEM;
            free(s->iocbs);
            s->iocbs = (struct iocb *)memory;
            s->events = (struct io_event *)(s->iocbs + nr);
            s->iovecs = (struct iovec *)(s->events + nr);
            s->queue = (struct iocb **)(s->iovecs + nr);
            s->slot = (long *)(s->queue + nr);
            s->res = s->slot + nr;
            s->nr = nr;
        }
        r = map_buffers(s, (size_t)nr * block_size);
        if (r < 0)
            return r;
        s->block_size = block_size;
        s->queued = s->peak = 0;
        return 0;
    }

    static struct iocb *slots_enqueue(struct aiocp_slots *s, unsigned slot)
    {
        return s->queue[s->queued++] = &s->iocbs[slot];
    }

    static struct iovec *slots_iovec(struct aiocp_slots *s, unsigned slot, size_t skip,
                                     size_t length)
    {
        struct iovec *iovec = &s->iovecs[slot];
        iovec->iov_base = s->buffers + slot * s->block_size + skip;
        iovec->iov_len = length;
        return iovec;
    }

    static void slots_prep_preadv(struct aiocp_slots *s, unsigned slot, int fd, size_t skip,
                                  size_t length, long long offset)
    {
        touch(s, slot * s->block_size + skip + length);
        io_prep_preadv(slots_enqueue(s, slot), fd, slots_iovec(s, slot, skip, length), 1, offset);
    }

    /* What is not in memory is EAGAIN, or ends the read: preadv2(2), since Linux 4.14. */
    static void slots_prep_cached(struct aiocp_slots *s, unsigned slot, int fd, size_t skip,
                                  size_t length, long long offset)
    {
        slots_prep_preadv(s, slot, fd, skip, length, offset);
        s->iocbs[slot].aio_rw_flags = RWF_NOWAIT;
    }

    static void slots_prep_pwritev(struct aiocp_slots *s, unsigned slot, int fd, size_t skip,
                                   size_t length, long long offset)
    {
        io_prep_pwritev(slots_enqueue(s, slot), fd, slots_iovec(s, slot, skip, length), 1, offset);
    }

    static void slots_prep_fsync(struct aiocp_slots *s, unsigned slot, int fd)
    {
        io_prep_fsync(slots_enqueue(s, slot), fd);
    }

    static void slots_prep_fdsync(struct aiocp_slots *s, unsigned slot, int fd)
    {
        io_prep_fdsync(slots_enqueue(s, slot), fd);
    }

    /* In words of which the compiler makes vectors: some 20 GB/s in the cache. */
    static int is_zero(const char *p, size_t length)
    {
        unsigned long long words[8];
        for (; length >= sizeof words; p += sizeof words, length -= sizeof words) {
            memcpy(words, p, sizeof words);
            if (words[0] | words[1] | words[2] | words[3]
                | words[4] | words[5] | words[6] | words[7])
                return 0;
        }
        while (length && !*p)
            p++, length--;
        return !length;
    }

    /* Where in a slot's block, from `start` up to `stop`, the first unit is that is not all zeroes,
       or with `zero` 0 the first that is. The last one may be shorter. */
    static size_t slots_skip(struct aiocp_slots *s, unsigned slot, size_t start, size_t stop,
                             size_t unit, int zero)
    {
        const char *block = s->buffers + slot * s->block_size;
        while (start < stop) {
            size_t length = stop - start < unit ? stop - start : unit;
            if (is_zero(block + start, length) != zero)
                break;
            start += length;
        }
        return start;
    }

    static void dequeue(struct aiocp_slots *s, unsigned n)
    {
        s->queued -= n;
        memmove(s->queue, s->queue + n, s->queued * sizeof *s->queue);
    }

    /* IOCB_FLAG_IOPRIO since Linux 4.18; before that it is not looked at. */
    enum { FLAG_IOPRIO = 1 << 1, CLASS_IDLE = 3 << 13 };

    /* Submit the queue, with what an iocb has besides its operation, of which a prep has made
       nothing. */
    static int submit_queue(struct aiocp_slots *s)
    {
        unsigned i;
        for (i = 0; i < s->queued; i++) {
            struct iocb *iocb = s->queue[i];
            iocb->u.c.flags = s->idle ? FLAG_IOPRIO : 0;
            iocb->aio_reqprio = s->idle ? CLASS_IDLE : 0;
            if (s->eventfd >= 0)
                io_set_eventfd(iocb, s->eventfd);
        }
        return io_submit(s->ctx, s->queued, s->queue);
    }

    /* Submit the queue; the prefix that was taken leaves it. What is taken only without a priority
       goes without from then on. */
    static int slots_submit(struct aiocp_slots *s)
    {
        int n = submit_queue(s);
        if (s->idle && (n == -EINVAL || n == -ENOTBLK)) {
            s->idle = 0;
            n = submit_queue(s);
            s->idle = n <= 0;
        }
        if (n > 0) {
            s->in_flight += n;
            if (s->in_flight > s->peak)
                s->peak = s->in_flight;
            dequeue(s, n);
        }
        return n;
    }

    static long perform(const struct iocb *iocb)
    {
        const struct iovec *iovec = iocb->u.c.buf;
        int fd = iocb->aio_fildes;
        long r;
        switch (iocb->aio_lio_opcode) {
        case IO_CMD_PREADV:
            r = iocb->aio_rw_flags
                ? preadv2(fd, iovec, 1, iocb->u.c.offset, iocb->aio_rw_flags)
                : preadv(fd, iovec, 1, iocb->u.c.offset);
            break;
        case IO_CMD_PWRITEV: r = pwritev(fd, iovec, 1, iocb->u.c.offset); break;
        case IO_CMD_FDSYNC: r = fdatasync(fd); break;
        default: r = fsync(fd);
        }
        return r < 0 ? -errno : r;
    }

    /* Do the first of the queue with the plain system call, into slot[0] and res[0]. Returns 1, or
       -EINTR with the queue as it was. */
    static int slots_perform(struct aiocp_slots *s)
    {
        long res = perform(s->queue[0]);
        if (res == -EINTR)
            return -EINTR;
        s->slot[0] = s->queue[0] - s->iocbs;
        s->res[0] = res;
        dequeue(s, 1);
        if (!s->peak)
            s->peak = 1;
        return 1;
    }

    /* Reap into slot[] and res[]. */
    static int slots_getevents(struct aiocp_slots *s, long min_nr, struct timespec *timeout)
    {
        int i, n = getevents(s->ctx, min_nr, s->nr, s->events, timeout);
        for (i = 0; i < n; i++) {
            s->slot[i] = s->events[i].obj - s->iocbs;
            s->res[i] = (long)s->events[i].res;
        }
        if (n > 0)
            s->in_flight -= n;
        return n;
    }

    static void slots_destroy(struct aiocp_slots *s)
    {
        if (s->ctx)
            io_destroy(s->ctx);  /* waits for all I/O in flight */
        s->ctx = NULL;
        s->maxevents = s->in_flight = 0;
    }

    /* Forget what is queued and wait for all that is in flight; where reaping fails, by destroying
       the context. On return the kernel touches nothing of these slots. */
    static void slots_drain(struct aiocp_slots *s)
    {
        s->queued = 0;
        while (s->in_flight) {
            int n = slots_getevents(s, s->in_flight, NULL);
            if (n < 0 && n != -EINTR)
                slots_destroy(s);
        }
    }

    /* In a forked child the context and the buffers are the parent's and not mapped: leave them. */
    static void slots_close(struct aiocp_slots *s)
    {
        if (s->pid != getpid())
            return;
        slots_destroy(s);
        slots_unmap(s);
        free(s->iocbs);
        s->iocbs = NULL;
        s->nr = s->queued = 0;
    }

    static void slots_free(struct aiocp_slots *s)
    {
        slots_close(s);
        free(s);
    }
    """,
    libraries=["aio"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
