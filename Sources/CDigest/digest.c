#include "portable.h"
#include "stream.h"

#include <stdlib.h>
#include <string.h>

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

static void wide_update(void *state, const void *bytes, size_t count)
{
    XXH3_128bits_update(state, bytes, count);
}

static struct pccp_digest wide_digest(void *state)
{
    XXH128_hash_t hash = XXH3_128bits_digest(state);
    XXH3_128bits_reset(state);
    return (struct pccp_digest){hash.low64, hash.high64};
}

static void wide_reset(void *state) { XXH3_128bits_reset(state); }
_Static_assert(sizeof(XXH3_state_t) <= PCCP_STATE_SIZE, "a state fits");
#pragma clang attribute pop
#endif

struct pccp_digest pccp_xxh3_128(const void *bytes, size_t count)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return wide(bytes, count);
#endif
    return pccp_xxh3_128_portable(bytes, count);
}

/* A page: small enough for the first-level cache, large enough that the calls do not count. */
enum { piece_size = 4096 };

struct pccp_copier {
    _Alignas(64) unsigned char state[PCCP_STATE_SIZE];
    _Alignas(64) unsigned char piece[piece_size];
    void (*update)(void *state, const void *bytes, size_t count);
    struct pccp_digest (*digest)(void *state);
};

struct pccp_copier *pccp_copier_create(void)
{
    struct pccp_copier *copier = aligned_alloc(64, sizeof *copier);
    if (!copier)
        return NULL;
    memset(copier, 0, sizeof *copier);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        copier->update = wide_update;
        copier->digest = wide_digest;
        wide_reset(copier->state);
        return copier;
    }
#endif
    copier->update = pccp_state_update_portable;
    copier->digest = pccp_state_digest_portable;
    pccp_state_reset_portable(copier->state);
    return copier;
}

void pccp_copier_destroy(struct pccp_copier *copier) { free(copier); }

void pccp_copier_copy_with(struct pccp_copier *copier, pccp_store store, void *context, void *to,
                           const void *from, size_t count)
{
    for (size_t at = 0; at < count; at += piece_size) {
        size_t part = count - at < piece_size ? count - at : piece_size;
        memcpy(copier->piece, (const char *)from + at, part);
        store(context, (char *)to + at, copier->piece, part);
        /* Digesting leaves the memory idle: let the first lines of the next piece come meanwhile.
         * Behind the source's end this asks for lines that nobody reads, which is harmless. */
        for (size_t ahead = 0; ahead < 1024; ahead += 64)
            __builtin_prefetch((const char *)from + at + part + ahead);
        copier->update(copier->state, copier->piece, part);
    }
}

static void store_past_caches(void *context, void *to, const void *from, size_t count)
{
    (void)context;
    pccp_stream_unfenced(to, from, count);
}

void pccp_copier_copy(struct pccp_copier *copier, void *to, const void *from, size_t count)
{
    pccp_copier_copy_with(copier, store_past_caches, NULL, to, from, count);
    pccp_stream_fence();
}

struct pccp_digest pccp_copier_digest(struct pccp_copier *copier)
{
    return copier->digest(copier->state);
}
