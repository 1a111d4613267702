/*
 * libpmem2 with an eye on it: a library of the same name and functions, which hands every call to
 * the real one (REAL_LIBRARY) and counts the stores that no fence of their thread has followed.
 * Nothing on this kind of machine loses such stores, so counting is how a missing fence is found.
 *
 * At its end the process appends one line to the file that PMEM_RECORDER_LOG names.
 */
#include <dlfcn.h>
#include <inttypes.h>
#include <libpmem2.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

static pmem2_memcpy_fn real_memcpy;
static pmem2_drain_fn real_drain;
static atomic_ullong store_count, drain_count, undrained_count;
static _Thread_local unsigned long long undrained;

static void *real(const char *name)
{
    static void *handle;
    if (!handle)
        handle = dlopen(REAL_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    void *function = handle ? dlsym(handle, name) : NULL;
    if (!function) {
        fprintf(stderr, "pmem_recorder: %s\n", dlerror());
        abort();
    }
    return function;
}

#define FORWARD(type, name, parameters, arguments)                                                 \
    type name parameters                                                                           \
    {                                                                                              \
        return ((__typeof__(&name))real(#name))arguments;                                          \
    }

FORWARD(int, pmem2_source_from_fd, (struct pmem2_source **out, int fd), (out, fd))
FORWARD(int, pmem2_source_delete, (struct pmem2_source **source), (source))
FORWARD(int, pmem2_source_device_usc, (const struct pmem2_source *source, uint64_t *count),
        (source, count))
FORWARD(int, pmem2_config_new, (struct pmem2_config **out), (out))
FORWARD(int, pmem2_config_delete, (struct pmem2_config **config), (config))
FORWARD(int, pmem2_config_set_required_store_granularity,
        (struct pmem2_config *config, enum pmem2_granularity granularity), (config, granularity))
FORWARD(int, pmem2_map_new,
        (struct pmem2_map **out, const struct pmem2_config *config,
         const struct pmem2_source *source),
        (out, config, source))
FORWARD(int, pmem2_map_delete, (struct pmem2_map **map), (map))
FORWARD(void *, pmem2_map_get_address, (struct pmem2_map *map), (map))
FORWARD(size_t, pmem2_map_get_size, (struct pmem2_map *map), (map))
FORWARD(enum pmem2_granularity, pmem2_map_get_store_granularity, (struct pmem2_map *map), (map))
FORWARD(int, pmem2_deep_flush, (struct pmem2_map *map, void *start, size_t count),
        (map, start, count))
FORWARD(const char *, pmem2_errormsg, (void), ())

static void *record_store(void *to, const void *from, size_t count, unsigned flags)
{
    atomic_fetch_add(&store_count, 1);
    if (flags & PMEM2_F_MEM_NODRAIN) {
        undrained++;
        atomic_fetch_add(&undrained_count, 1);
    }
    return real_memcpy(to, from, count, flags);
}

static void record_drain(void)
{
    real_drain();
    atomic_fetch_add(&drain_count, 1);
    atomic_fetch_sub(&undrained_count, undrained);
    undrained = 0;
}

pmem2_memcpy_fn pmem2_get_memcpy_fn(struct pmem2_map *map)
{
    real_memcpy = ((__typeof__(&pmem2_get_memcpy_fn))real("pmem2_get_memcpy_fn"))(map);
    return record_store;
}

pmem2_drain_fn pmem2_get_drain_fn(struct pmem2_map *map)
{
    real_drain = ((__typeof__(&pmem2_get_drain_fn))real("pmem2_get_drain_fn"))(map);
    return record_drain;
}

/* Stores of all threads that no fence of the same thread has followed. */
unsigned long long pmem_recorder_undrained(void) { return atomic_load(&undrained_count); }
unsigned long long pmem_recorder_stores(void) { return atomic_load(&store_count); }

__attribute__((destructor)) static void report(void)
{
    const char *path = getenv("PMEM_RECORDER_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file)
        return;
    fprintf(file, "stores=%llu drains=%llu undrained=%llu\n", atomic_load(&store_count),
            atomic_load(&drain_count), atomic_load(&undrained_count));
    fclose(file);
}
