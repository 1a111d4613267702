#define _GNU_SOURCE
#include "platform.h"

#include <dirent.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Whether `name` is `base`, the mark of a creation, and a number. */
static bool is_creation_of(const char *name, const char *base)
{
    size_t count = strlen(base);
    if (strncmp(name, base, count) != 0)
        return false;
    name += count;
    count = strlen(PCC_CREATION_MARK);
    if (strncmp(name, PCC_CREATION_MARK, count) != 0)
        return false;
    name += count;
    return *name != 0 && strspn(name, "0123456789") == strlen(name);
}

/* Removes `name` when it is a regular file that no process has locked. */
static void remove_unless_locked(int directory, const char *name)
{
    int fd = openat(directory, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return;
    struct stat opened, named;
    /* Every byte: a program that creates the file, writes it or reads it has a lock. A creation
     * that has its name and not yet its lock finds ours, or no name, and uses another one. */
    if (fstat(fd, &opened) == 0 && S_ISREG(opened.st_mode) && pccp_lock(fd, 0, 0, true) == 0
        && fstatat(directory, name, &named, AT_SYMLINK_NOFOLLOW) == 0
        && named.st_ino == opened.st_ino && named.st_dev == opened.st_dev)
        (void)unlinkat(directory, name, 0);
    close(fd);
}

void pccp_remove_leftovers(const char *path)
{
    char *folder_copy = strdup(path), *base_copy = strdup(path);
    DIR *directory = NULL;
    if (folder_copy && base_copy)
        directory = opendir(dirname(folder_copy));
    if (directory) {
        const char *base = basename(base_copy);
        struct dirent *entry;
        while ((entry = readdir(directory)) != NULL)
            if (is_creation_of(entry->d_name, base))
                remove_unless_locked(dirfd(directory), entry->d_name);
        closedir(directory);
    }
    free(folder_copy);
    free(base_copy);
}
