/*
 * Linux calls that Swift cannot make itself (variadic, or behind headers whose types clash), each
 * with one convention: 0 or a count on success, a negated errno on failure.
 */
#ifndef PCC_PLATFORM_H
#define PCC_PLATFORM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PCC_OPEN_READ = 0,
    PCC_OPEN_WRITE = 1,   /* read and write */
    PCC_OPEN_DIRECT = 2,  /* O_DIRECT */
    PCC_OPEN_CREATE = 4,  /* O_CREAT | O_EXCL, mode 0666 & ~umask */
};

/* Opens with O_CLOEXEC and never returns descriptors 0 to 2: stray prints must not hit a file. */
int pcc_open(const char *path, int flags);
int pcc_close(int fd);

/* pread(2), pwrite(2) of everything, resumed after EINTR and short transfers. Returns the bytes
 * transferred, which is less than `count` only at the end of the file (read). */
int64_t pcc_pread_all(int fd, void *buffer, size_t count, uint64_t offset);
int64_t pcc_pwrite_all(int fd, const void *buffer, size_t count, uint64_t offset);
/* fdatasync(2); never retried, not even after EINTR. */
int pcc_fdatasync(int fd);
int pcc_fsync(int fd);
/* fsync of the directory that holds `path`. */
int pcc_fsync_parent(const char *path);

struct pcc_file_facts {
    uint64_t byte_count;        /* of the file, or of the block device */
    bool is_regular;
    bool is_block_device;
    uint32_t direct_alignment;  /* offset and size alignment for O_DIRECT; 0 when not supported or unknown */
    uint32_t direct_memory_alignment;
    uint64_t file_system_type;  /* f_type of statfs(2) */
};
int pcc_read_file_facts(int fd, struct pcc_file_facts *facts);

/* Reserves blocks for [0, byte_count) and sets the size. */
int pcc_fallocate(int fd, uint64_t byte_count);
/* Renames; with `replace` false an existing target is -EEXIST. */
int pcc_rename(const char *from, const char *to, bool replace);
int pcc_unlink(const char *path);

/* Open-file-description locks on [start, start + count). Returns 0, or -EAGAIN when held by another. */
int pcc_lock(int fd, uint64_t start, uint64_t count, bool exclusive);
int pcc_unlock(int fd, uint64_t start, uint64_t count);

/* Anonymous memory on a 2 MiB boundary, touched, in huge pages where the kernel has them. */
void *pcc_pool_allocate(size_t byte_count);
void pcc_pool_free(void *pool, size_t byte_count);

/* Wall-clock and monotonic time in nanoseconds. */
uint64_t pcc_wall_time(void);
uint64_t pcc_monotonic_time(void);
/* User and system CPU time of this process in nanoseconds. */
uint64_t pcc_cpu_time(void);
/* Resident memory of this process in bytes: now, and its peak. */
uint64_t pcc_resident_byte_count(void);
uint64_t pcc_peak_resident_byte_count(void);
/* 16 bytes that identify this boot of the machine; zero when the kernel does not say. */
void pcc_boot_id(uint8_t id[16]);

/* A mutex with a condition variable, and a thread: see CheckpointStorage/Threading. */
struct pcc_monitor;
struct pcc_monitor *pcc_monitor_create(void);
void pcc_monitor_destroy(struct pcc_monitor *monitor);
void pcc_monitor_lock(struct pcc_monitor *monitor);
void pcc_monitor_unlock(struct pcc_monitor *monitor);
void pcc_monitor_wake_all(struct pcc_monitor *monitor);
/* Waits with the lock held; deadline in pcc_monotonic_time, 0 for none. False after the deadline. */
bool pcc_monitor_wait(struct pcc_monitor *monitor, uint64_t deadline);

/* Starts a named joinable thread. All signals are blocked in it: they belong to the application. */
int pcc_thread_start(const char *name, void (*body)(void *), void *context, uint64_t *thread);
void pcc_thread_join(uint64_t thread);

#endif
