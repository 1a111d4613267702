/* XXH3-128 (libxxhash), in the widest vectors that this processor has. */
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

#endif
