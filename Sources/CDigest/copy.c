#include "digest.h"
#include "stream.h"

#include <string.h>

/*
 * memcpy(3) reads each cache line of the target before it overwrites it, unless the copy is larger
 * than most of the last-level cache. State on its way to the device is read once more at most, much
 * later: stores that pass the caches by save that traffic, and leave the caches to the application.
 */
#if defined(__x86_64__)
#include <immintrin.h>

enum { line = 64, unroll = 2 * line };

/* `to` lies on a cache line, `count` is a multiple of two lines. */
__attribute__((target("avx2"))) static void stream(char *to, const char *from, size_t count)
{
    for (size_t at = 0; at < count; at += unroll) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(from + at));
        __m256i b = _mm256_loadu_si256((const __m256i *)(from + at + 32));
        __m256i c = _mm256_loadu_si256((const __m256i *)(from + at + 64));
        __m256i d = _mm256_loadu_si256((const __m256i *)(from + at + 96));
        _mm256_stream_si256((__m256i *)(to + at), a);
        _mm256_stream_si256((__m256i *)(to + at + 32), b);
        _mm256_stream_si256((__m256i *)(to + at + 64), c);
        _mm256_stream_si256((__m256i *)(to + at + 96), d);
    }
}

/* Below this, partly filled lines cost more than the caches save. */
enum { smallest = 1024 };

void pccp_stream_unfenced(void *to, const void *from, size_t count)
{
    if (count < smallest || !__builtin_cpu_supports("avx2")) {
        memcpy(to, from, count);
        return;
    }
    size_t head = -(size_t)to % line;
    size_t body = (count - head) / unroll * unroll;
    memcpy(to, from, head);
    stream((char *)to + head, (const char *)from + head, body);
    memcpy((char *)to + head + body, (const char *)from + head + body, count - head - body);
}

/* Such stores are not ordered by the unlock that hands the bytes to another thread. */
void pccp_stream_fence(void) { _mm_sfence(); }
#else
void pccp_stream_unfenced(void *to, const void *from, size_t count) { memcpy(to, from, count); }
void pccp_stream_fence(void) {}
#endif

void pccp_copy_streaming(void *to, const void *from, size_t count)
{
    pccp_stream_unfenced(to, from, count);
    pccp_stream_fence();
}
