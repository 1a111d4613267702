#define _GNU_SOURCE
#include "platform.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/*
 * How much memory may be touched before the kernel ends a process for it, or refuses it: the
 * smallest of what the machine has available, what is left in every cgroup above this process,
 * and what is left of its address space. And the other limits that it may reach.
 */

/* The number behind `key` in a file of "key number" lines, in the file's unit; or -1. */
static int64_t field(const char *path, const char *key)
{
    FILE *file = fopen(path, "re");
    if (!file)
        return -1;
    char line[256];
    int64_t value = -1;
    size_t length = strlen(key);
    while (value < 0 && fgets(line, sizeof line, file)) {
        if (strncmp(line, key, length) == 0 && sscanf(line + length, " %" SCNd64, &value) != 1)
            value = -1;
    }
    fclose(file);
    return value;
}

/* The number that is all of a file; or -1, as for "max". */
static int64_t number(const char *folder, const char *name)
{
    char path[1200];
    int64_t value = -1;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "re");
    if (!file)
        return -1;
    if (fscanf(file, "%" SCNd64, &value) != 1)
        value = -1;
    fclose(file);
    return value;
}

/* The limit of one cgroup; or -1 without one. */
typedef int64_t of_group(const char *folder, bool is_unified);

/* The memory left in one cgroup, with its clean page cache. */
static int64_t memory_left(const char *folder, bool is_unified)
{
    int64_t limit = number(folder, is_unified ? "memory.max" : "memory.limit_in_bytes");
    int64_t used = number(folder, is_unified ? "memory.current" : "memory.usage_in_bytes");
    if (limit < 0 || used < 0)
        return -1;
    char path[1200];
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    int64_t cache = field(path, is_unified ? "inactive_file " : "total_inactive_file ");
    used -= cache > 0 && cache < used ? cache : 0;
    return limit > used ? limit - used : 0;
}

/* The number of threads that one cgroup allows. */
static int64_t thread_limit(const char *folder, bool is_unified)
{
    (void)is_unified;
    return number(folder, "pids.max");
}

/* The least that a cgroup and those above it allow, up to the root of the hierarchy. */
static int64_t least_in_hierarchy(const char *root, const char *group, bool is_unified,
                                  of_group *allowed)
{
    char folder[1100];
    int64_t least = -1;
    snprintf(folder, sizeof folder, "%s%s", root, group);
    for (size_t root_length = strlen(root);;) {
        int64_t found = allowed(folder, is_unified);
        if (found >= 0 && (least < 0 || found < least))
            least = found;
        char *slash = strrchr(folder, '/');
        if (strlen(folder) <= root_length || !slash)
            return least;
        *slash = 0;
    }
}

/* The least that any cgroup of this process allows. */
static int64_t least_in_groups(const char *controller, of_group *allowed)
{
    int64_t least = -1;
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (!file)
        return -1;
    char line[1024];
    /* Lines are "number:controllers:path"; version 2 names no controllers. */
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = 0;
        controllers++;
        bool is_unified = *controllers == 0;
        if (!is_unified && strcmp(controllers, controller) != 0)
            continue;
        char root[64];
        snprintf(root, sizeof root, "/sys/fs/cgroup%s%s", is_unified ? "" : "/",
                 is_unified ? "" : controller);
        int64_t found = least_in_hierarchy(root, group, is_unified, allowed);
        if (found >= 0 && (least < 0 || found < least))
            least = found;
    }
    fclose(file);
    return least;
}

uint64_t pccp_limit(enum pccp_limit_kind kind)
{
    static const __rlimit_resource_t resources[] = {
        [PCC_LIMIT_FILE_SIZE] = RLIMIT_FSIZE, [PCC_LIMIT_DESCRIPTORS] = RLIMIT_NOFILE,
        [PCC_LIMIT_THREADS] = RLIMIT_NPROC, [PCC_LIMIT_ADDRESS_SPACE] = RLIMIT_AS,
    };
    if (kind == PCC_LIMIT_GROUP_THREADS) {
        int64_t found = least_in_groups("pids", thread_limit);
        return found < 0 ? UINT64_MAX : (uint64_t)found;
    }
    struct rlimit limit;
    if (getrlimit(resources[kind], &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return UINT64_MAX;
    return limit.rlim_cur;
}

/* Of the address space, beyond which mmap(2) fails. */
static uint64_t address_space_left(void)
{
    uint64_t limit = pccp_limit(PCC_LIMIT_ADDRESS_SPACE);
    int64_t pages = limit == UINT64_MAX ? -1 : number("/proc/self", "statm");
    if (pages < 0)
        return limit;
    uint64_t used = (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
    return limit > used ? limit - used : 0;
}

static uint64_t least(uint64_t one, uint64_t other) { return one < other ? one : other; }

uint64_t pccp_available_byte_count(void)
{
    int64_t machine = field("/proc/meminfo", "MemAvailable:");
    int64_t groups = least_in_groups("memory", memory_left);
    /* -1, for no limit, becomes the largest number there is. */
    return least(address_space_left(),
                 least(machine < 0 ? UINT64_MAX : (uint64_t)machine * 1024, (uint64_t)groups));
}
