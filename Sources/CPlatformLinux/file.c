#define _GNU_SOURCE
#include "platform.h"

#include "descriptors.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Above the standard streams, and noted; or a negated errno. */
static int raised(int fd)
{
    if (fd <= 2) {
        int safe = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        int saved = errno;
        close(fd);
        if (safe < 0)
            return -saved;
        fd = safe;
    }
    if (pccp_descriptor_note(fd))
        return fd;
    close(fd);
    return -EMFILE;
}

/* No signal can interrupt it. */
static int open_noted(const char *path, int flags)
{
    /* O_NONBLOCK keeps a FIFO from blocking the open; regular files ignore it. */
    int fd = open(path, flags | O_NONBLOCK, 0666);
    if (fd < 0)
        return -errno;
    /* io_uring does not ignore it where a file system cannot write without blocking. */
    int status = fcntl(fd, F_GETFL);
    if (status >= 0)
        (void)fcntl(fd, F_SETFL, status & ~O_NONBLOCK);
    return raised(fd);
}

int pccp_open(const char *path, int flags)
{
    int native = O_CLOEXEC | ((flags & PCC_OPEN_WRITE) ? O_RDWR : O_RDONLY);
    if (flags & PCC_OPEN_DIRECT)
        native |= O_DIRECT;
    if (flags & PCC_OPEN_CREATE)
        native |= O_CREAT | O_EXCL;
    /* A device that is mounted, swapped to or written by another opener is EBUSY. Byte locks do
     * not exclude openers that come through another node of the same device; this does. */
    struct stat st;
    if ((flags & PCC_OPEN_WRITE) && stat(path, &st) == 0 && S_ISBLK(st.st_mode))
        native |= O_EXCL;
    pccp_descriptors_hold();
    int fd = open_noted(path, native);
    pccp_descriptors_release();
    return fd;
}

int pccp_close(int fd)
{
    pccp_descriptors_hold();
    pccp_descriptor_forget(fd);
    int result = close(fd) == 0 ? 0 : -errno;
    pccp_descriptors_release();
    return result;
}

int64_t pccp_pread_all(int fd, void *buffer, size_t count, uint64_t offset)
{
    size_t done = 0;
    while (done < count) {
        ssize_t got = pread(fd, (char *)buffer + done, count - done, (off_t)(offset + done));
        if (got == 0)
            break;
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        done += (size_t)got;
        /* Under O_DIRECT an odd count can only be the end of the file. */
        if (done % 512 != 0)
            break;
    }
    return (int64_t)done;
}

int64_t pccp_pwrite_all(int fd, const void *buffer, size_t count, uint64_t offset)
{
    size_t done = 0;
    while (done < count) {
        ssize_t put = pwrite(fd, (const char *)buffer + done, count - done, (off_t)(offset + done));
        if (put < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (put == 0)
            return -EIO;
        size_t before = done;
        done += (size_t)put;
        /* A short O_DIRECT write may stop inside a block; continue at the block's start. */
        if (done < count)
            done -= done % 4096;
        /* A medium that accepts less than a block at a time would never end this loop. */
        if (done == before)
            return -EIO;
    }
    return (int64_t)done;
}

int pccp_fdatasync(int fd) { return fdatasync(fd) == 0 ? 0 : -errno; }
int pccp_fsync(int fd) { return fsync(fd) == 0 ? 0 : -errno; }

void pccp_discard_cache(int fd) { (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); }

int pccp_fsync_parent(const char *path)
{
    char *copy = strdup(path);
    if (!copy)
        return -ENOMEM;
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int result = fd < 0 ? -errno : 0;
    free(copy);
    if (fd < 0)
        return result;
    result = pccp_fsync(fd);
    close(fd);
    return result;
}

int pccp_read_file_facts(int fd, struct pccp_file_facts *facts)
{
    memset(facts, 0, sizeof *facts);
    struct stat st;
    if (fstat(fd, &st) != 0)
        return -errno;
    facts->is_regular = S_ISREG(st.st_mode);
    facts->is_block_device = S_ISBLK(st.st_mode);
    facts->byte_count = (uint64_t)st.st_size;
    if (facts->is_block_device && ioctl(fd, BLKGETSIZE64, &facts->byte_count) != 0)
        return -errno;
#ifdef STATX_DIOALIGN
    struct statx stx;
    int answered = statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx);
    if (answered == 0 && (stx.stx_mask & STATX_DIOALIGN)) {
        facts->tells_alignment = true;
        facts->direct_alignment = stx.stx_dio_offset_align;
        facts->direct_memory_alignment = stx.stx_dio_mem_align;
    }
#endif
#ifdef STATX_ATTR_DAX
    struct statx attributes;
    if (statx(fd, "", AT_EMPTY_PATH, 0, &attributes) == 0)
        facts->is_dax = (attributes.stx_attributes & STATX_ATTR_DAX) != 0;
#endif
    struct statfs sfs;
    if (fstatfs(fd, &sfs) == 0)
        facts->file_system_type = (uint64_t)sfs.f_type;
    return 0;
}

/* The file system reports less free space than that. Where it reports nothing, the call decides. */
static bool lacks_space(int fd, uint64_t byte_count)
{
    struct statvfs vfs;
    if (fstatvfs(fd, &vfs) != 0 || vfs.f_blocks == 0 || vfs.f_frsize == 0)
        return false;
    /* Root may use the blocks that are held back from others. */
    uint64_t free_blocks = geteuid() == 0 ? vfs.f_bfree : vfs.f_bavail;
    return byte_count / vfs.f_frsize > free_blocks;
}

int pccp_reserve(int fd, uint64_t byte_count)
{
    /* fallocate takes every free block before it fails, and until those are given back, other
     * programs find the disk full. */
    if (lacks_space(fd, byte_count))
        return -ENOSPC;
    int result;
    do
        result = fallocate(fd, 0, 0, (off_t)byte_count);
    while (result != 0 && errno == EINTR);
    return result == 0 ? 0 : -errno;
}

int pccp_rename(const char *from, const char *to, bool replace)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, replace ? 0 : RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL || replace)
        return -errno;
    /* A file system without RENAME_NOREPLACE: a hard link refuses an existing target as well. */
    if (link(from, to) == 0)
        return unlink(from) == 0 ? 0 : -errno;
    /* A folder has no hard links, but replaces no folder that holds anything. */
    struct stat st;
    int failure = errno;
    if (failure != EPERM || stat(from, &st) != 0 || !S_ISDIR(st.st_mode))
        return -failure;
    return rename(from, to) == 0 ? 0 : -errno;
}

int pccp_unlink(const char *path) { return unlink(path) == 0 ? 0 : -errno; }

int pccp_copy_access(int from, int to)
{
    struct stat st;
    if (fstat(from, &st) != 0)
        return -errno;
    /* Only root may give a file away. The mode comes last: chown clears some of its bits. */
    (void)!fchown(to, st.st_uid, st.st_gid);
    return fchmod(to, st.st_mode & 07777) == 0 ? 0 : -errno;
}

bool pccp_is_at(int fd, const char *path)
{
    struct stat opened, named;
    return fstat(fd, &opened) == 0 && stat(path, &named) == 0 && opened.st_ino == named.st_ino
        && opened.st_dev == named.st_dev;
}

bool pccp_has_name(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && st.st_nlink > 0;
}

static int set_lock(int fd, short type, uint64_t start, uint64_t count)
{
    struct flock lock = {
        .l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)start, .l_len = (off_t)count};
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    return errno == EACCES ? -EAGAIN : -errno;
}

int pccp_lock(int fd, uint64_t start, uint64_t count, bool exclusive)
{
    return set_lock(fd, exclusive ? F_WRLCK : F_RDLCK, start, count);
}

int pccp_unlock(int fd, uint64_t start, uint64_t count)
{
    return set_lock(fd, F_UNLCK, start, count);
}

int pccp_lock_is_held(int fd, uint64_t start, uint64_t count)
{
    struct flock lock = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)start, .l_len = (off_t)count};
    if (fcntl(fd, F_OFD_GETLK, &lock) != 0)
        return -errno;
    return lock.l_type == F_WRLCK ? 2 : lock.l_type != F_UNLCK;
}
