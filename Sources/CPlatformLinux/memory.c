#define _GNU_SOURCE
#include "platform.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/*
 * How much memory may be touched before the kernel ends a process for it: the smaller of what the
 * machine has available and what is left in every control group above this process.
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

/* What is left in one group, clean page cache counted as left; or -1 where there is no limit. */
static int64_t left_in_group(const char *folder, bool is_unified)
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

/* The least that is left in a group and those above it, up to the root of the hierarchy. */
static int64_t left_in_hierarchy(const char *root, const char *group, bool is_unified)
{
    char folder[1100];
    int64_t least = -1;
    snprintf(folder, sizeof folder, "%s%s", root, group);
    for (size_t root_length = strlen(root);;) {
        int64_t left = left_in_group(folder, is_unified);
        if (left >= 0 && (least < 0 || left < least))
            least = left;
        char *slash = strrchr(folder, '/');
        if (strlen(folder) <= root_length || !slash)
            return least;
        *slash = 0;
    }
}

static int64_t left_in_groups(void)
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
        if (!is_unified && strcmp(controllers, "memory") != 0)
            continue;
        const char *root = is_unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
        int64_t left = left_in_hierarchy(root, group, is_unified);
        if (left >= 0 && (least < 0 || left < least))
            least = left;
    }
    fclose(file);
    return least;
}

uint64_t pccp_available_byte_count(void)
{
    int64_t machine = field("/proc/meminfo", "MemAvailable:");
    int64_t groups = left_in_groups();
    uint64_t available = machine < 0 ? UINT64_MAX : (uint64_t)machine * 1024;
    return groups >= 0 && (uint64_t)groups < available ? (uint64_t)groups : available;
}
