/*
 * The functions that touch every byte of a payload, in the widest vectors of this processor:
 * XXH3-128 (libxxhash), copies past the caches, and both at once.
 */
#ifndef PCC_DIGEST_H
#define PCC_DIGEST_H

#include <stddef.h>
#include <stdint.h>

struct pccp_digest {
    uint64_t low;
    uint64_t high;
};

/* XXH3-128 of `count` bytes, seed 0, default secret. */
struct pccp_digest pccp_xxh3_128(const void *bytes, size_t count);

/* memcpy(3) for bytes that are not read again soon: past the caches. */
void pccp_copy_streaming(void *to, const void *from, size_t count);

/*
 * Copies and digests in one pass. The bytes go through a small buffer that stays in the first-level
 * cache: they are read from memory once, and the digest covers the written bytes, even if somebody
 * changes the source meanwhile. One thread at a time.
 */
struct pccp_copier;
struct pccp_copier *pccp_copier_create(void); /* NULL: out of memory */
void pccp_copier_destroy(struct pccp_copier *copier);
/* Copies past the caches, and digests. */
void pccp_copier_copy(struct pccp_copier *copier, void *to, const void *from, size_t count);
/*
 * The same for a target that needs its own stores: `store` puts each part there, in order. The
 * caller knows the fence that they need.
 */
typedef void (*pccp_store)(void *context, void *to, const void *from, size_t count);
void pccp_copier_copy_with(struct pccp_copier *copier, pccp_store store, void *context, void *to,
                           const void *from, size_t count);
/* The digest of all that was copied since the last call, or since the creation. */
struct pccp_digest pccp_copier_digest(struct pccp_copier *copier);

#endif
