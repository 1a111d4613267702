#include "digest.h"

#include <xxhash.h>

struct pccp_digest pccp_xxh3_128_portable(const void *bytes, size_t count)
{
    XXH128_hash_t hash = XXH3_128bits(bytes, count);
    return (struct pccp_digest){hash.low64, hash.high64};
}
