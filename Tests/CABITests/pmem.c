/*
 * The store sequence of persistent memory alone, as a commit uses it: data, fence, commit record,
 * fence; apart from Swift, so that checkers of stores can run it.
 *
 *     pmem FOLDER        checks the sequence and the refusals in FOLDER
 *     pmem FOLDER LIB    and that every store has its fence; LIB is pmem_recorder.c, built
 *     pmem FOLDER MIB    measures it against a plain non-temporal copy of MIB mebibytes
 *
 * PMEM2_FORCE_GRANULARITY=CACHE_LINE makes any file system do.
 */
#define _GNU_SOURCE
#include "pmem.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

enum { chunk = 4 << 20, record = 4096, pass_count = 7, thread_maximum = 2 };

static const char *folder;
static char text[256];

static int new_file(uint64_t byte_count)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/pccheck-pmem-XXXXXX", folder);
    int fd = mkostemp(path, O_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)byte_count) == 0);
    unlink(path);
    return fd;
}

static struct pccp_pmem *open_file(int fd)
{
    struct pccp_pmem *pmem = NULL;
    int result = pccp_pmem_open(PCC_PMEM_LIBRARY, fd, &pmem, text, sizeof text);
    if (result != 0)
        fprintf(stderr, "opening: %s; %s\n", strerror(-result), text);
    CHECK(result == 0);
    return pmem;
}

static void fill(unsigned char *bytes, size_t count, unsigned seed)
{
    for (size_t i = 0; i < count; i++)
        bytes[i] = (unsigned char)((i * 2654435761u + seed * 40503u) >> 11);
}

static void expect(int fd, const unsigned char *bytes, size_t count, uint64_t offset)
{
    unsigned char *found = malloc(count);
    CHECK(pread(fd, found, count, (off_t)offset) == (ssize_t)count);
    CHECK(memcmp(found, bytes, count) == 0);
    free(found);
}

/* Two slots and two records in turn: a record is written only after its data is persistent. */
static void check_sequence(void)
{
    enum { data_offset = 4 * record };
    int fd = new_file(data_offset + 2 * chunk);
    struct pccp_pmem *pmem = open_file(fd);
    CHECK(pccp_pmem_byte_count(pmem) == data_offset + 2 * chunk);
    unsigned char *data = malloc(chunk);
    for (unsigned generation = 1; generation <= 6; generation++) {
        uint64_t slot = data_offset + (generation & 1) * (uint64_t)chunk;
        unsigned char commit[record];
        fill(data, chunk, generation);
        CHECK(pccp_pmem_write(pmem, data, chunk, slot) == 0);
        fill(commit, sizeof commit, generation + 100);
        uint64_t at = (1 + (generation & 1)) * (uint64_t)record;
        CHECK(pccp_pmem_write(pmem, commit, sizeof commit, at) == 0);
        CHECK(pccp_pmem_deep_flush(pmem, at, sizeof commit) == 0);
        expect(fd, data, chunk, slot);
        expect(fd, commit, sizeof commit, at);
    }
    CHECK(pccp_pmem_write(pmem, data, 1, data_offset + 2 * chunk) == -ENXIO);
    CHECK(pccp_pmem_write(pmem, data, 2, UINT64_MAX) == -ENXIO);
    CHECK(pccp_pmem_deep_flush(pmem, data_offset + 2 * chunk, 1) == -ENXIO);
    CHECK(pccp_pmem_write(pmem, NULL, 0, 0) == 0);
    free(data);
    pccp_pmem_close(pmem);
    close(fd);
}

/* pmem_recorder.c in the place of libpmem2: when a write returns, no store of it is without its
 * fence. */
static void check_fences(const char *recorder)
{
    void *handle = dlopen(recorder, RTLD_NOW | RTLD_LOCAL);
    CHECK(handle);
    unsigned long long (*undrained)(void), (*stores)(void);
    *(void **)&undrained = dlsym(handle, "pmem_recorder_undrained");
    *(void **)&stores = dlsym(handle, "pmem_recorder_stores");
    CHECK(undrained && stores);
    int fd = new_file(4 * chunk);
    struct pccp_pmem *pmem = NULL;
    CHECK(pccp_pmem_open(recorder, fd, &pmem, text, sizeof text) == 0);
    unsigned char *data = malloc(chunk);
    fill(data, chunk, 1);
    static const size_t counts[] = {1, 8, 63, 64, 255, record, 65537, chunk};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        unsigned long long before = stores();
        CHECK(pccp_pmem_write(pmem, data, counts[i], i * 17) == 0);
        CHECK(stores() > before && undrained() == 0);
        void *target;
        CHECK(pccp_pmem_begin(pmem, i * 17, counts[i], &target) == 0);
        pccp_pmem_store(pmem, target, data, counts[i]);
        CHECK(undrained() > 0);
        pccp_pmem_drain(pmem);
        CHECK(undrained() == 0);
    }
    free(data);
    pccp_pmem_close(pmem);
    close(fd);
}

static void check_refusals(void)
{
    struct pccp_pmem *pmem = NULL;
    int fd = new_file(record);
    CHECK(pccp_pmem_open("libpmem2-none.so", fd, &pmem, text, sizeof text) == -ENOPKG);
    CHECK(strstr(text, "libpmem2-none.so") && !pmem);
    CHECK(pccp_pmem_open("libc.so.6", fd, &pmem, text, sizeof text) == -ENOPKG);
    CHECK(strstr(text, "pmem2_") && !pmem);
    pid_t child = fork();
    if (child == 0) {
        setenv("PMEM2_FORCE_GRANULARITY", "PAGE", 1);
        int result = pccp_pmem_open(PCC_PMEM_LIBRARY, fd, &pmem, text, sizeof text);
        _exit(result == -EMEDIUMTYPE && text[0] && !pmem ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    close(fd);
    fd = new_file(0);
    CHECK(pccp_pmem_open(PCC_PMEM_LIBRARY, fd, &pmem, text, sizeof text) == -ENODATA);
    close(fd);
}

/* ---------------------------------------------------------------- measuring */

struct copy {
    struct pccp_pmem *pmem; /* NULL: a plain copy to `to` */
    char *from, *to;
    uint64_t offset, byte_count;
};

#ifdef __x86_64__
__attribute__((target("avx2"))) static void plain_copy(char *to, const char *from, size_t count)
{
    for (size_t i = 0; i < count; i += 128) {
        __m256i a = _mm256_load_si256((const __m256i *)(from + i));
        __m256i b = _mm256_load_si256((const __m256i *)(from + i + 32));
        __m256i c = _mm256_load_si256((const __m256i *)(from + i + 64));
        __m256i d = _mm256_load_si256((const __m256i *)(from + i + 96));
        _mm256_stream_si256((__m256i *)(to + i), a);
        _mm256_stream_si256((__m256i *)(to + i + 32), b);
        _mm256_stream_si256((__m256i *)(to + i + 64), c);
        _mm256_stream_si256((__m256i *)(to + i + 96), d);
    }
    _mm_sfence();
}
#else
static void plain_copy(char *to, const char *from, size_t count) { memcpy(to, from, count); }
#endif

static void *run_copy(void *argument)
{
    struct copy *copy = argument;
    for (uint64_t at = copy->offset; at < copy->offset + copy->byte_count; at += chunk) {
        if (copy->pmem)
            CHECK(pccp_pmem_write(copy->pmem, copy->from + at, chunk, at) == 0);
        else
            plain_copy(copy->to + at, copy->from + at, chunk);
    }
    return NULL;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* GB/s of one pass with `thread_count` threads. */
static double pass(struct copy whole, int thread_count)
{
    pthread_t threads[thread_maximum];
    struct copy parts[thread_maximum];
    double began = seconds();
    for (int i = 0; i < thread_count; i++) {
        parts[i] = whole;
        parts[i].byte_count = whole.byte_count / (uint64_t)thread_count;
        parts[i].offset = (uint64_t)i * parts[i].byte_count;
        pthread_create(&threads[i], NULL, run_copy, &parts[i]);
    }
    for (int i = 0; i < thread_count; i++)
        pthread_join(threads[i], NULL);
    return (double)whole.byte_count / (seconds() - began) / 1e9;
}

static int ascending(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static char *memory(uint64_t byte_count, int fd)
{
    char *map = mmap(NULL, byte_count, PROT_READ | PROT_WRITE,
                     fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED);
    if (fd < 0)
        madvise(map, byte_count, MADV_HUGEPAGE);
    memset(map, 1, byte_count);
    return map;
}

static void measure(uint64_t byte_count)
{
    int fd = new_file(byte_count), other = new_file(byte_count);
    struct copy copies[] = {
        {.to = memory(byte_count, -1)},
        {.to = memory(byte_count, other)},
        {.pmem = open_file(fd)},
    };
    const char *names[] = {"anonymous", "tmpfs", "pmem"};
    char *from = memory(byte_count, -1);
    for (int i = 0; i < 3; i++) {
        copies[i].from = from;
        copies[i].byte_count = byte_count;
    }
    printf("first pass of pmem: %.2f GB/s\n", pass(copies[2], 1));
    for (int thread_count = 1; thread_count <= thread_maximum; thread_count++) {
        /* In turn, so that a disturbance meets all of them. */
        double rates[3][pass_count];
        for (int number = 0; number < pass_count; number++)
            for (int i = 0; i < 3; i++)
                rates[i][number] = pass(copies[i], thread_count);
        printf("%d threads, GB/s, median (least to most):", thread_count);
        for (int i = 0; i < 3; i++) {
            qsort(rates[i], pass_count, sizeof rates[i][0], ascending);
            printf("  %s %.2f (%.2f to %.2f)", names[i], rates[i][pass_count / 2], rates[i][0],
                   rates[i][pass_count - 1]);
        }
        printf("\n");
    }
    pccp_pmem_close(copies[2].pmem);
    close(fd);
    close(other);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: pmem FOLDER [MIB | RECORDER]\n");
        return 16;
    }
    folder = argv[1];
    uint64_t mebibytes = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
    if (mebibytes > 0) {
        measure(mebibytes / 8 * 8 << 20);
        return 0;
    }
    check_sequence();
    check_refusals();
    if (argc > 2)
        check_fences(argv[2]);
    printf("persistent memory: ok\n");
    return 0;
}
