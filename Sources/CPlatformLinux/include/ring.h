/*
 * Writes through io_uring(7), for one thread per ring. liburing.h stays behind this header: its
 * types clash with those of Swift's system module.
 *
 * Every function belongs to the thread that created the ring, as the kernel may insist on that
 * (IORING_SETUP_SINGLE_ISSUER).
 */
#ifndef PCC_RING_H
#define PCC_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pccp_ring;

/* 0 when this process can have rings that write; else a negated errno: ENOSYS without io_uring,
 * EPERM when it is refused, EOPNOTSUPP when the kernel is too old to write through it. */
int pccp_ring_probe(void);
/* kernel.io_uring_disabled: 0: all may use it, 1: a group may, 2: none may; -1: not known. */
int pccp_ring_disabled_setting(void);

/* A ring for at most `depth` writes to `fd` at once. `pool` may be NULL; otherwise it is
 * registered, so that the kernel need not look up its pages for each write, and must stay mapped
 * until the ring is destroyed. */
int pccp_ring_create(int fd, unsigned depth, const void *pool, size_t pool_byte_count,
                     struct pccp_ring **ring);
/* 0 when the pool is registered, a negated errno when that was refused, 1 without a pool. */
int pccp_ring_pool_state(const struct pccp_ring *ring);

/* Prepares a write; `tag` is below the depth and has no write in flight. It reaches the kernel
 * when enough bytes have gathered, at the latest in pccp_ring_wait. Never fails: pccp_ring_wait
 * reports every error. */
void pccp_ring_submit(struct pccp_ring *ring, unsigned tag, const void *bytes, size_t count,
                      uint64_t offset);
/* Waits until one write has ended, short and interrupted ones continued; one must be in flight.
 * Stores its tag, and 0 or a negated errno. Returns a negated errno itself when the kernel
 * does not serve this ring any more: whether its writes are carried out is then unknown. */
int pccp_ring_wait(struct pccp_ring *ring, unsigned *tag, int *result);

/* Waits for the writes that the kernel has, drops the others, and frees the ring. False when the
 * kernel does not report their end: the ring is then not freed, and the memory of its writes, with
 * the pool, must never be freed. */
bool pccp_ring_destroy(struct pccp_ring *ring);

/* How far a write has come. */
struct pccp_write_progress {
    size_t count;         /* bytes in all */
    size_t done;          /* written, a multiple of 4096 until everything is */
    unsigned stall_count; /* answers in a row that brought it no further */
};
enum { PCC_WRITE_DONE = 0, PCC_WRITE_REST = 1 };
/* The answer to one write of [done, count): what is left is to be written (PCC_WRITE_REST), all
 * is done, or a negated errno. No I/O. */
int pccp_write_progress(struct pccp_write_progress *progress, int32_t answer);

#endif
