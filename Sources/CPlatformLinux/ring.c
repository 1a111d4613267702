#define _GNU_SOURCE
#include "ring.h"

#include "descriptors.h"

#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>

/* The kernel's bound for one registered buffer, and well below its bound for one write. */
static const size_t piece_byte_count = (size_t)1 << 30;
/* Entering the kernel costs little compared with this many bytes, and the device must not wait. */
static const size_t batch_byte_count = (size_t)1 << 20;
/* How often an answer may ask for the same again. */
static const unsigned interrupted_limit = 100;
/* For how many milliseconds in a row the kernel may be short of memory for requests. */
static const unsigned refused_limit = 10000;

struct write {
    const char *bytes;
    uint64_t offset;
    struct pccp_write_progress progress;
};

struct pccp_ring {
    struct io_uring uring;
    int fd;
    bool has_registered_file;
    const char *pool;
    size_t pool_byte_count;
    int pool_state;
    /* Prepared ones and those that the kernel has; each has one completion to come. */
    unsigned under_way;
    size_t unsubmitted_byte_count;
    struct write writes[];
};

int pccp_write_progress(struct pccp_write_progress *progress, int32_t answer)
{
    if (answer == -EINTR || answer == -EAGAIN)
        return ++progress->stall_count > interrupted_limit ? answer : PCC_WRITE_REST;
    if (answer < 0)
        return answer;
    size_t left = progress->count - progress->done;
    if (answer == 0 || (size_t)answer > left)
        return -EIO;
    if ((size_t)answer == left) {
        progress->done = progress->count;
        return PCC_WRITE_DONE;
    }
    /* A short O_DIRECT write may stop inside a block; continue at the block's start. */
    size_t whole = (size_t)answer - (size_t)answer % 4096;
    progress->done += whole;
    progress->stall_count = whole > 0 ? 0 : progress->stall_count + 1;
    /* A medium that accepts less than a block at a time would never end the write. */
    return progress->stall_count > 1 ? -EIO : PCC_WRITE_REST;
}

/* The newest flags that the kernel knows: completions are then delivered when we ask for them,
 * and do not interrupt digesting. */
static int queue_init(unsigned entry_count, struct io_uring *uring)
{
    static const unsigned choices[] = {
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER
            | IORING_SETUP_DEFER_TASKRUN,                                            /* 6.1 */
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER, /* 6.0 */
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN,                         /* 5.19 */
        0,
    };
    int result = -EINVAL;
    for (size_t i = 0; i < sizeof choices / sizeof *choices && result == -EINVAL; i++)
        result = io_uring_queue_init(entry_count, uring, choices[i]);
    return result;
}

/* A child must not find half of a ring, nor hold the file that is registered with it. */
static int set_up(unsigned entry_count, struct io_uring *uring)
{
    pccp_descriptors_hold();
    int result = queue_init(entry_count, uring);
    if (result >= 0) {
        (void)io_uring_ring_dontfork(uring);
        if (!pccp_descriptor_note(uring->ring_fd)) {
            io_uring_queue_exit(uring);
            result = -EMFILE;
        }
    }
    pccp_descriptors_release();
    return result;
}

static void tear_down(struct io_uring *uring)
{
    pccp_descriptors_hold();
    pccp_descriptor_forget(uring->ring_fd);
    io_uring_queue_exit(uring);
    pccp_descriptors_release();
}

static int check_operations(struct io_uring *uring)
{
    enum { operation_count = 256 };
    struct io_uring_probe *answer =
        calloc(1, sizeof *answer + operation_count * sizeof answer->ops[0]);
    if (!answer)
        return -ENOMEM;
    int result = io_uring_register_probe(uring, answer, operation_count);
    if (result >= 0)
        result = io_uring_opcode_supported(answer, IORING_OP_WRITE)
                && io_uring_opcode_supported(answer, IORING_OP_WRITE_FIXED)
            ? 0 : -EOPNOTSUPP;
    free(answer);
    /* Before 5.6 the kernel answers no such question, and has no such write either. */
    return result == -EINVAL ? -EOPNOTSUPP : result;
}

/* One round trip: a filter may allow a process to set a ring up, but not to enter it. */
static int check_entering(struct io_uring *uring)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(uring);
    if (!sqe)
        return -EIO;
    io_uring_prep_nop(sqe);
    int result = io_uring_submit_and_wait(uring, 1);
    return result < 0 ? result : 0;
}

int pccp_ring_probe(void)
{
    struct io_uring uring;
    int result = set_up(2, &uring);
    if (result < 0)
        return result;
    result = check_operations(&uring);
    if (result == 0)
        result = check_entering(&uring);
    tear_down(&uring);
    return result;
}

int pccp_ring_disabled_setting(void)
{
    FILE *file = fopen("/proc/sys/kernel/io_uring_disabled", "re");
    if (!file)
        return -1;
    int setting;
    if (fscanf(file, "%d", &setting) != 1)
        setting = -1;
    fclose(file);
    return setting;
}

static int register_pool(struct pccp_ring *ring)
{
    if (!ring->pool || ring->pool_byte_count == 0)
        return 1;
    size_t count = (ring->pool_byte_count + piece_byte_count - 1) / piece_byte_count;
    struct iovec *pieces = calloc(count, sizeof *pieces);
    if (!pieces)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        size_t start = i * piece_byte_count;
        size_t left = ring->pool_byte_count - start;
        pieces[i].iov_base = (char *)ring->pool + start;
        pieces[i].iov_len = left < piece_byte_count ? left : piece_byte_count;
    }
    int result = io_uring_register_buffers(&ring->uring, pieces, (unsigned)count);
    free(pieces);
    return result < 0 ? result : 0;
}

int pccp_ring_create(int fd, unsigned depth, const void *pool, size_t pool_byte_count,
                     struct pccp_ring **ring)
{
    struct pccp_ring *made = calloc(1, sizeof *made + depth * sizeof made->writes[0]);
    if (!made)
        return -ENOMEM;
    /* One entry per write at most, so neither queue can run full. */
    int result = set_up(depth, &made->uring);
    if (result < 0) {
        free(made);
        return result;
    }
    made->fd = fd;
    made->pool = pool;
    made->pool_byte_count = pool_byte_count;
    /* All of these only make it faster. */
    made->has_registered_file = io_uring_register_files(&made->uring, &fd, 1) == 0;
    made->pool_state = register_pool(made);
    *ring = made;
    return 0;
}

int pccp_ring_pool_state(const struct pccp_ring *ring) { return ring->pool_state; }

/* The registered buffer that holds all of the range, or -1. */
static int registered_piece(const struct pccp_ring *ring, const char *bytes, size_t count)
{
    if (ring->pool_state != 0 || bytes < ring->pool
        || bytes + count > ring->pool + ring->pool_byte_count)
        return -1;
    size_t first = (size_t)(bytes - ring->pool) / piece_byte_count;
    size_t last = (size_t)(bytes + count - 1 - ring->pool) / piece_byte_count;
    return first == last ? (int)first : -1;
}

/* Prepares what is left of a write. */
static void prepare(struct pccp_ring *ring, unsigned tag)
{
    const struct write *write = &ring->writes[tag];
    const char *bytes = write->bytes + write->progress.done;
    uint64_t offset = write->offset + write->progress.done;
    size_t count = write->progress.count - write->progress.done;
    if (count > piece_byte_count)
        count = piece_byte_count;
    /* Never NULL: there are as many entries as tags, and a tag has one write. */
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
    int fd = ring->has_registered_file ? 0 : ring->fd;
    int piece = registered_piece(ring, bytes, count);
    if (piece >= 0)
        io_uring_prep_write_fixed(sqe, fd, bytes, (unsigned)count, offset, piece);
    else
        io_uring_prep_write(sqe, fd, bytes, (unsigned)count, offset);
    unsigned flags = ring->has_registered_file ? IOSQE_FIXED_FILE : 0;
    /* A write that would block runs on a kernel thread, which may block. */
    if (write->progress.stall_count > 0)
        flags |= IOSQE_ASYNC;
    io_uring_sqe_set_flags(sqe, flags);
    io_uring_sqe_set_data64(sqe, tag);
    ring->under_way++;
    ring->unsubmitted_byte_count += count;
}

void pccp_ring_submit(struct pccp_ring *ring, unsigned tag, const void *bytes, size_t count,
                      uint64_t offset)
{
    ring->writes[tag] = (struct write){
        .bytes = bytes, .offset = offset, .progress = {.count = count}};
    prepare(ring, tag);
    if (ring->unsubmitted_byte_count < batch_byte_count)
        return;
    /* What is refused stays prepared, and pccp_ring_wait tries again. */
    (void)io_uring_submit(&ring->uring);
    if (io_uring_sq_ready(&ring->uring) == 0)
        ring->unsubmitted_byte_count = 0;
}

/* Takes a ready completion; false when there is none. */
static bool take(struct pccp_ring *ring, unsigned *tag, int32_t *answer)
{
    struct io_uring_cqe *cqe = NULL;
    unsigned count = io_uring_peek_batch_cqe(&ring->uring, &cqe, 1);
    if (count == 0)
        return false;
    *tag = (unsigned)io_uring_cqe_get_data64(cqe);
    *answer = cqe->res;
    io_uring_cqe_seen(&ring->uring, cqe);
    ring->under_way--;
    return true;
}

static unsigned in_kernel(const struct pccp_ring *ring)
{
    return ring->under_way - io_uring_sq_ready(&ring->uring);
}

/* Waits for a completion without submitting anything: 0, or a negated errno. */
static int wait_only(struct pccp_ring *ring)
{
    struct io_uring_cqe *cqe;
    int result = io_uring_wait_cqe(&ring->uring, &cqe);
    return result == -EINTR || result == -EAGAIN || result == -EBUSY ? 0 : result;
}

/* Submits what is prepared, and waits for a completion: 0 to look for one, or a negated errno. */
static int enter(struct pccp_ring *ring, unsigned *refused_count)
{
    int result = io_uring_submit_and_wait(&ring->uring, 1);
    if (io_uring_sq_ready(&ring->uring) == 0)
        ring->unsubmitted_byte_count = 0;
    if (result >= 0 || result == -EINTR)
        return 0;
    if (result != -EAGAIN && result != -EBUSY)
        return result;
    /* The kernel has no memory for another request: let one of ours end first. */
    if (in_kernel(ring) > 0)
        return wait_only(ring);
    if (++*refused_count > refused_limit)
        return result;
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    return 0;
}

int pccp_ring_wait(struct pccp_ring *ring, unsigned *tag, int *result)
{
    unsigned refused_count = 0;
    for (;;) {
        int32_t answer;
        while (take(ring, tag, &answer)) {
            *result = pccp_write_progress(&ring->writes[*tag].progress, answer);
            if (*result != PCC_WRITE_REST)
                return 0;
            prepare(ring, *tag);
        }
        int failure = enter(ring, &refused_count);
        if (failure < 0)
            return failure;
    }
}

bool pccp_ring_destroy(struct pccp_ring *ring)
{
    unsigned left = in_kernel(ring);
    while (left > 0) {
        unsigned tag;
        int32_t answer;
        if (take(ring, &tag, &answer))
            left--;
        else if (wait_only(ring) < 0)
            return false;
    }
    tear_down(&ring->uring);
    free(ring);
    return true;
}
