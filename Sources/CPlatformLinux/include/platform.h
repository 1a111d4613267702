/*
 * Linux calls that Swift cannot make itself (variadic, or behind headers whose types clash), each
 * with one convention: 0 or a count on success, a negated errno on failure. See also ring.h.
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

/* Opens with O_CLOEXEC and never returns descriptors 0 to 2: stray prints must not hit a file. A
 * block device is opened for writing only when nobody else uses it; -EBUSY otherwise. A child that
 * this process forks has /dev/null in its place: see descriptors.h. */
int pccp_open(const char *path, int flags);
int pccp_close(int fd);

/* pread(2), pwrite(2) of everything, resumed after EINTR and short transfers. Returns the bytes
 * transferred, which is less than `count` only at the end of the file (read). */
int64_t pccp_pread_all(int fd, void *buffer, size_t count, uint64_t offset);
int64_t pccp_pwrite_all(int fd, const void *buffer, size_t count, uint64_t offset);
/* fdatasync(2); never retried, not even after EINTR. */
int pccp_fdatasync(int fd);
int pccp_fsync(int fd);
/* Asks the kernel to drop clean pages of the file from the page cache. */
void pccp_discard_cache(int fd);
/* fsync of the directory that holds `path`. */
int pccp_fsync_parent(const char *path);

struct pccp_file_facts {
    uint64_t byte_count;        /* of the file, or of the block device */
    bool is_regular;
    bool is_block_device;
    bool is_dax;                /* in persistent memory that the processor addresses */
    bool tells_alignment;       /* the next two are known */
    uint32_t direct_alignment;  /* of offset and size for O_DIRECT; 0 without O_DIRECT */
    uint32_t direct_memory_alignment;
    uint64_t file_system_type;  /* f_type of statfs(2) */
};
int pccp_read_file_facts(int fd, struct pccp_file_facts *facts);

/* Reserves blocks for [0, byte_count) and sets the size. */
int pccp_reserve(int fd, uint64_t byte_count);
/* Renames; with `replace` false an existing target is -EEXIST. */
int pccp_rename(const char *from, const char *to, bool replace);
int pccp_unlink(const char *path);

/* Between a file's name and a number, the name that the file has while it is created. */
#define PCC_CREATION_MARK ".creating-"
/* Removes the leftovers of killed creations of `path`: regular files of such a name that no process
 * has locked. A file that cannot be opened, locked or removed stays. */
void pccp_remove_leftovers(const char *path);
/* Gives `to` the permissions of `from`, and its owner and group as far as this user may. */
int pccp_copy_access(int from, int to);
/* True when `path` names the file of `fd`. */
bool pccp_is_at(int fd, const char *path);
/* True when `fd` has a name: somebody may have removed it. */
bool pccp_has_name(int fd);

/* Open-file-description locks on [start, start + count). -EAGAIN when another holds one. */
int pccp_lock(int fd, uint64_t start, uint64_t count, bool exclusive);
int pccp_unlock(int fd, uint64_t start, uint64_t count);
/* 2 when another open file description has an exclusive lock on the range, 1 when one has a shared
 * lock, 0 when none has any; takes none. */
int pccp_lock_is_held(int fd, uint64_t start, uint64_t count);

/* Called with the text of /proc/PID/fdinfo/FD. */
typedef void pccp_opener(void *context, uint32_t pid, const char *text, size_t count);
/* Visits every descriptor that is open on the file of `fd`, in this process too, as far as this
 * user may see them. */
int pccp_visit_openers(int fd, pccp_opener *visit, void *context);
/* Fills `text` with the arguments of a process, each ended with a NUL, or else with its name.
 * Returns how many bytes, 0 when it has ended. */
size_t pccp_process_command(uint32_t pid, char *text, size_t size);

/* Anonymous memory on a 2 MiB boundary, touched, in huge pages where the kernel has them. NULL when
 * there is no such amount: see pccp_available_byte_count. */
void *pccp_pool_allocate(size_t byte_count);
void pccp_pool_free(void *pool, size_t byte_count);
/* Memory that may be touched before the kernel runs out, or before the limit of a cgroup or of the
 * address space is reached; UINT64_MAX when none can be read. */
uint64_t pccp_available_byte_count(void);

enum pccp_limit_kind {
    PCC_LIMIT_FILE_SIZE,     /* in bytes; the first byte beyond is EFBIG, and SIGXFSZ */
    PCC_LIMIT_DESCRIPTORS,   /* above the highest number */
    PCC_LIMIT_THREADS,       /* of this user; not for root */
    PCC_LIMIT_ADDRESS_SPACE, /* in bytes */
    PCC_LIMIT_GROUP_THREADS, /* of the cgroup */
};
/* A limit on this process; UINT64_MAX where there is none. */
uint64_t pccp_limit(enum pccp_limit_kind kind);

/* Wall-clock and monotonic time in nanoseconds. */
uint64_t pccp_wall_time(void);
uint64_t pccp_monotonic_time(void);
/* User and system CPU time of this process in nanoseconds. */
uint64_t pccp_cpu_time(void);
/* Whether there is a process of this number; one that has ended and was not waited for counts. */
bool pccp_process_exists(uint32_t pid);
/* Sleeps, at least so long unless a signal comes. */
void pccp_sleep(uint64_t nanoseconds);
/* Processors that this process may run on. */
uint32_t pccp_processor_count(void);
/* Resident memory of this process in bytes: now, and its peak. */
uint64_t pccp_resident_byte_count(void);
uint64_t pccp_peak_resident_byte_count(void);
/* 16 bytes that identify this boot of the machine; zero when the kernel does not report it. */
void pccp_boot_id(uint8_t id[16]);

/* A mutex with a condition variable, and a thread: see CheckpointStorage/Threading. */
struct pccp_monitor;
struct pccp_monitor *pccp_monitor_create(void);
void pccp_monitor_destroy(struct pccp_monitor *monitor);
void pccp_monitor_lock(struct pccp_monitor *monitor);
void pccp_monitor_unlock(struct pccp_monitor *monitor);
void pccp_monitor_wake_all(struct pccp_monitor *monitor);
/* Waits with the lock held. The deadline is on pccp_monotonic_time, 0 for none; false after it. */
bool pccp_monitor_wait(struct pccp_monitor *monitor, uint64_t deadline);

/* Per thread: what decides in the system's place which thread runs next. NULL except in a
 * simulation. */
void *pccp_scheduler(void);
void pccp_set_scheduler(void *scheduler);

/* Starts a named joinable thread. All signals are blocked in it: they belong to the application. */
int pccp_thread_start(const char *name, void (*body)(void *), void *context, uint64_t *thread);
void pccp_thread_join(uint64_t thread);
/* Adds to the nice value of the calling thread alone. Best effort. */
void pccp_thread_yield_to_others(int nice);

#endif
