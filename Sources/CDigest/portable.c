#include "portable.h"

#define XXH_STATIC_LINKING_ONLY /* the size of XXH3_state_t */
#include <xxhash.h>

_Static_assert(sizeof(XXH3_state_t) <= PCCP_STATE_SIZE, "a state fits");

static struct pccp_digest of(XXH128_hash_t hash)
{
    return (struct pccp_digest){hash.low64, hash.high64};
}

struct pccp_digest pccp_xxh3_128_portable(const void *bytes, size_t count)
{
    return of(XXH3_128bits(bytes, count));
}

void pccp_state_reset_portable(void *state) { XXH3_128bits_reset(state); }

void pccp_state_update_portable(void *state, const void *bytes, size_t count)
{
    XXH3_128bits_update(state, bytes, count);
}

struct pccp_digest pccp_state_digest_portable(void *state)
{
    struct pccp_digest digest = of(XXH3_128bits_digest(state));
    XXH3_128bits_reset(state);
    return digest;
}
