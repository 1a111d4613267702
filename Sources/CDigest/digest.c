#include "digest.h"

/*
 * A distribution builds libxxhash for the oldest processor it supports: SSE2 on x86-64, half the
 * speed of AVX2. The header has the whole algorithm, so it is compiled here once more for AVX2,
 * and the processor decides at run time. Both give the same digests; tests hold known answers.
 */
#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#define XXH_INLINE_ALL
#define XXH_VECTOR 2 /* XXH_AVX2 */
#include <xxhash.h>

static struct pccp_digest wide(const void *bytes, size_t count)
{
    XXH128_hash_t hash = XXH3_128bits(bytes, count);
    return (struct pccp_digest){hash.low64, hash.high64};
}
#pragma clang attribute pop
#endif

/* The shared library's version, for every other processor. */
struct pccp_digest pccp_xxh3_128_portable(const void *bytes, size_t count);

struct pccp_digest pccp_xxh3_128(const void *bytes, size_t count)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return wide(bytes, count);
#endif
    return pccp_xxh3_128_portable(bytes, count);
}
