#define _GNU_SOURCE
#include "platform.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Reads at most `size` - 1 bytes of a file of /proc, and ends them with a NUL. */
static ssize_t read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    size_t done = 0;
    while (done < size - 1) {
        ssize_t got = read(fd, text + done, size - 1 - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        done += (size_t)got;
    }
    close(fd);
    text[done] = 0;
    return (ssize_t)done;
}

/* The file is known by what stat(2) says of the descriptor, not by the numbers in fdinfo: those are
 * the super block's, which differ on btrfs and overlayfs. */
static void visit_process(const char *process, const struct stat *wanted, pccp_opener *visit,
                          void *context)
{
    char path[512], text[8192];
    snprintf(path, sizeof path, "/proc/%s/fd", process);
    DIR *folder = opendir(path);
    if (!folder)
        return;
    struct dirent *entry;
    while ((entry = readdir(folder))) {
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        struct stat found;
        snprintf(path, sizeof path, "/proc/%s/fd/%s", process, entry->d_name);
        if (stat(path, &found) != 0 || found.st_dev != wanted->st_dev
            || found.st_ino != wanted->st_ino)
            continue;
        snprintf(path, sizeof path, "/proc/%s/fdinfo/%s", process, entry->d_name);
        ssize_t count = read_text(path, text, sizeof text);
        if (count > 0)
            visit(context, (uint32_t)strtoul(process, NULL, 10), text, (size_t)count);
    }
    closedir(folder);
}

int pccp_visit_openers(int fd, pccp_opener *visit, void *context)
{
    struct stat wanted;
    if (fstat(fd, &wanted) != 0)
        return -errno;
    DIR *processes = opendir("/proc");
    if (!processes)
        return -errno;
    struct dirent *entry;
    while ((entry = readdir(processes)))
        if (isdigit((unsigned char)entry->d_name[0]))
            visit_process(entry->d_name, &wanted, visit, context);
    closedir(processes);
    return 0;
}

size_t pccp_process_command(uint32_t pid, char *text, size_t size)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    ssize_t count = read_text(path, text, size);
    if (count <= 0) {
        /* A process that has ended, or one that wiped its arguments. */
        snprintf(path, sizeof path, "/proc/%u/comm", pid);
        count = read_text(path, text, size);
    }
    return count > 0 ? (size_t)count : 0;
}
