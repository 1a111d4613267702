#define _GNU_SOURCE
#include "pmem.h"

#include "descriptors.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <libpmem2.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* The functions of libpmem2 that are used; the header gives their types, the loader the rest. */
#define EACH_FUNCTION(do)                                                                          \
    do(source_from_fd) do(source_delete) do(source_device_usc) do(config_new) do(config_delete)    \
    do(config_set_required_store_granularity) do(map_new) do(map_delete) do(map_get_address)       \
    do(map_get_size) do(map_get_store_granularity) do(get_memcpy_fn) do(get_drain_fn)              \
    do(deep_flush) do(errormsg)

struct library {
#define DECLARE(name) __typeof__(&pmem2_##name) name;
    EACH_FUNCTION(DECLARE)
#undef DECLARE
};

struct pccp_pmem {
    struct library lib;
    struct pmem2_map *map;
    char *base;
    uint64_t byte_count;
    int fd;
    enum pmem2_granularity granularity;
    uint64_t unsafe_shutdown_count;
    pmem2_memcpy_fn copy;
    pmem2_drain_fn drain;
    /* One byte for every `part` of the file: whether its pages are known to be there. */
    atomic_uchar *populated;
};

static const uint64_t part = 2u << 20;

static int load(struct library *lib, const char *name, char *text, size_t text_size)
{
    /* Never unloaded: libpmem2 wants its destructor to run in the main thread. */
    void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        snprintf(text, text_size, "%s", dlerror());
        return -ENOPKG;
    }
#define LOOK_UP(name)                                                                              \
    if (!(lib->name = (__typeof__(lib->name))dlsym(handle, "pmem2_" #name))) {                     \
        snprintf(text, text_size, "it has no pmem2_" #name);                                       \
        return -ENOPKG;                                                                            \
    }
    EACH_FUNCTION(LOOK_UP)
#undef LOOK_UP
    return 0;
}

/* The negated errno of what a function of libpmem2 returned, which may be a number of its own. */
static int error_number(int result)
{
    switch (result) {
    case PMEM2_E_GRANULARITY_NOT_SUPPORTED: return -EMEDIUMTYPE;
    case PMEM2_E_SOURCE_EMPTY: return -ENODATA;
    case PMEM2_E_INVALID_FILE_TYPE:
    case PMEM2_E_INVALID_FILE_HANDLE: return -EINVAL;
    case PMEM2_E_NO_ACCESS: return -EACCES;
    case PMEM2_E_IO_FAIL: return -EIO;
    default: return result > -100000 ? result : -EOPNOTSUPP;
    }
}

/*
 * A store into a hole allocates a block, and where none is left the process gets SIGBUS. So there
 * are no holes: blocks that exist cost nothing here, those that do not may still be refused.
 */
static int fill_holes(int fd)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    if (st.st_size == 0)
        return -ENODATA;
    int result;
    do
        result = fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, st.st_size);
    while (result != 0 && errno == EINTR);
    if (result == 0)
        return 0;
    if (errno != EOPNOTSUPP)
        return -errno;
    /* A file system that cannot reserve: then only a file without holes will do. */
    return (uint64_t)st.st_blocks * 512 >= (uint64_t)st.st_size ? 0 : -ENOSPC;
}

/* A mapping of a child would hold the file, and its lock, as a descriptor does. */
static int map_for_this_process(struct pccp_pmem *pmem, struct pmem2_config *config,
                                struct pmem2_source *source)
{
    pccp_descriptors_hold();
    int result = pmem->lib.map_new(&pmem->map, config, source);
    if (result == 0)
        (void)madvise(pmem->lib.map_get_address(pmem->map), pmem->lib.map_get_size(pmem->map),
                      MADV_DONTFORK);
    pccp_descriptors_release();
    return result;
}

static int map_file(struct pccp_pmem *pmem)
{
    struct library *lib = &pmem->lib;
    struct pmem2_source *source = NULL;
    struct pmem2_config *config = NULL;
    int result = lib->source_from_fd(&source, pmem->fd);
    if (result == 0)
        result = lib->config_new(&config);
    /* With MAP_SYNC and cache-line granularity a block is allocated durably before the first
     * store into it, so that no store needs an fsync of the file's metadata. */
    if (result == 0)
        result = lib->config_set_required_store_granularity(config, PMEM2_GRANULARITY_CACHE_LINE);
    if (result == 0)
        result = map_for_this_process(pmem, config, source);
    if (result == 0 && lib->source_device_usc(source, &pmem->unsafe_shutdown_count) != 0)
        pmem->unsafe_shutdown_count = 0;
    if (config)
        lib->config_delete(&config);
    if (source)
        lib->source_delete(&source);
    return result;
}

int pccp_pmem_open(const char *library, int fd, struct pccp_pmem **out, char *text,
                   size_t text_size)
{
    text[0] = 0;
    struct pccp_pmem *pmem = calloc(1, sizeof *pmem);
    if (!pmem)
        return -ENOMEM;
    pmem->fd = fd;
    int result = load(&pmem->lib, library, text, text_size);
    if (result == 0)
        result = fill_holes(fd);
    if (result != 0) {
        free(pmem);
        return result;
    }
    result = map_file(pmem);
    if (result != 0) {
        snprintf(text, text_size, "%s", pmem->lib.errormsg());
        free(pmem);
        return error_number(result);
    }
    pmem->base = pmem->lib.map_get_address(pmem->map);
    pmem->byte_count = pmem->lib.map_get_size(pmem->map);
    pmem->granularity = pmem->lib.map_get_store_granularity(pmem->map);
    pmem->copy = pmem->lib.get_memcpy_fn(pmem->map);
    pmem->drain = pmem->lib.get_drain_fn(pmem->map);
    pmem->populated = calloc(pmem->byte_count / part + 1, sizeof *pmem->populated);
    if (!pmem->populated) {
        pccp_pmem_close(pmem);
        return -ENOMEM;
    }
    *out = pmem;
    return 0;
}

void pccp_pmem_close(struct pccp_pmem *pmem)
{
    pmem->lib.map_delete(&pmem->map);
    free(pmem->populated);
    free(pmem);
}

enum pccp_pmem_granularity pccp_pmem_granularity(const struct pccp_pmem *pmem)
{
    return pmem->granularity == PMEM2_GRANULARITY_BYTE ? PCC_PMEM_BYTE : PCC_PMEM_CACHE_LINE;
}

uint64_t pccp_pmem_byte_count(const struct pccp_pmem *pmem) { return pmem->byte_count; }

uint64_t pccp_pmem_unsafe_shutdown_count(const struct pccp_pmem *pmem)
{
    return pmem->unsafe_shutdown_count;
}

/*
 * Faults the pages of a range in before the first store: in one call where single faults would
 * cost more than the copy, and with an errno where a fault that fails would be SIGBUS. The file
 * ends at `end`.
 */
static int populate(struct pccp_pmem *pmem, uint64_t offset, uint64_t count, uint64_t end)
{
    for (uint64_t index = offset / part; index * part < offset + count; index++) {
        /* Relaxed: a thread that misses another's mark does the same again. */
        if (atomic_load_explicit(&pmem->populated[index], memory_order_relaxed))
            continue;
        uint64_t start = index * part;
        uint64_t left = end - start;
        int result;
        do
            result = madvise(pmem->base + start, left < part ? left : part, MADV_POPULATE_WRITE);
        while (result != 0 && (errno == EINTR || errno == EAGAIN));
        /* EINVAL: a kernel before 5.14 cannot; then the stores fault, one page after another. */
        if (result != 0 && errno != EINVAL)
            return -errno;
        atomic_store_explicit(&pmem->populated[index], 1, memory_order_relaxed);
    }
    return 0;
}

int pccp_pmem_begin(struct pccp_pmem *pmem, uint64_t offset, size_t count, void **address)
{
    /* Pages behind the end of a file that was truncated under us would be SIGBUS. Nobody else
     * truncates a file that a writer has locked, but a mistake should cost one checkpoint only. */
    struct stat st;
    if (fstat(pmem->fd, &st) != 0)
        return -errno;
    uint64_t size = (uint64_t)st.st_size < pmem->byte_count ? (uint64_t)st.st_size
                                                            : pmem->byte_count;
    if (offset > size || count > size - offset)
        return -ENXIO;
    *address = pmem->base + offset;
    return count == 0 ? 0 : populate(pmem, offset, count, size);
}

void pccp_pmem_store(void *pmem, void *to, const void *source, size_t count)
{
    ((struct pccp_pmem *)pmem)->copy(to, source, count,
                                     PMEM2_F_MEM_NONTEMPORAL | PMEM2_F_MEM_NODRAIN);
}

/* In the thread that stored, before anybody hears that the write is over: the fence orders the
 * stores of this processor alone, so that another thread could not do it for us later. */
void pccp_pmem_drain(struct pccp_pmem *pmem) { pmem->drain(); }

int pccp_pmem_write(struct pccp_pmem *pmem, const void *source, size_t count, uint64_t offset)
{
    void *address;
    int result = pccp_pmem_begin(pmem, offset, count, &address);
    if (result != 0 || count == 0)
        return result;
    pccp_pmem_store(pmem, address, source, count);
    pccp_pmem_drain(pmem);
    return 0;
}

int pccp_pmem_deep_flush(struct pccp_pmem *pmem, uint64_t offset, uint64_t count)
{
    if (offset > pmem->byte_count || count > pmem->byte_count - offset)
        return -ENXIO;
    return error_number(pmem->lib.deep_flush(pmem->map, pmem->base + offset, count));
}
