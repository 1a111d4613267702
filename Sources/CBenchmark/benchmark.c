#define _GNU_SOURCE
#include "benchmark.h"

#include <malloc.h>
#include <string.h>
#include <sys/vfs.h>

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2"))) static void stream_wide(char *to, const char *from, size_t count)
{
    for (size_t at = 0; at < count; at += 64) {
        __m256i low = _mm256_loadu_si256((const __m256i *)(from + at));
        __m256i high = _mm256_loadu_si256((const __m256i *)(from + at + 32));
        _mm256_stream_si256((__m256i *)(to + at), low);
        _mm256_stream_si256((__m256i *)(to + at + 32), high);
    }
}

static void stream_narrow(char *to, const char *from, size_t count)
{
    for (size_t at = 0; at < count; at += 16)
        _mm_stream_si128((__m128i *)(to + at), _mm_loadu_si128((const __m128i *)(from + at)));
}

void pccb_stream_copy(void *to, const void *from, size_t byte_count)
{
    /* Streaming stores need whole, aligned lines; the rest is a few bytes at either end. */
    char *target = to;
    const char *source = from;
    size_t head = -(uintptr_t)target & 63;
    if (head > byte_count)
        head = byte_count;
    memcpy(target, source, head);
    size_t middle = (byte_count - head) & ~(size_t)63;
    if (__builtin_cpu_supports("avx2"))
        stream_wide(target + head, source + head, middle);
    else
        stream_narrow(target + head, source + head, middle);
    memcpy(target + head + middle, source + head + middle, byte_count - head - middle);
    _mm_sfence();
}
#else
void pccb_stream_copy(void *to, const void *from, size_t byte_count)
{
    memcpy(to, from, byte_count);
}
#endif

void pccb_multiply(float *c, const float *a, const float *b, size_t extent)
{
    for (size_t row = 0; row < extent; row++)
        for (size_t inner = 0; inner < extent; inner++) {
            float factor = a[row * extent + inner];
            const float *source = b + inner * extent;
            float *target = c + row * extent;
            for (size_t column = 0; column < extent; column++)
                target[column] += factor * source[column];
        }
}

uint32_t pccb_file_system_type(const char *path)
{
    struct statfs facts;
    return statfs(path, &facts) == 0 ? (uint32_t)facts.f_type : 0;
}

uint64_t pccb_heap_byte_count(void)
{
    struct mallinfo2 facts = mallinfo2();
    return (uint64_t)facts.uordblks + (uint64_t)facts.hblkhd;
}
