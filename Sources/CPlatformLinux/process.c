#define _GNU_SOURCE
#include "platform.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static const size_t huge_page = 2u << 20;

static size_t round_up(size_t byte_count)
{
    return (byte_count + huge_page - 1) & ~(huge_page - 1);
}

void *pccp_pool_allocate(size_t byte_count)
{
    /* Map one huge page more than needed, then give the unaligned ends back. */
    size_t size = round_up(byte_count);
    /* Beyond this, touching would not fail: the kernel would end this process or another. */
    if (size < byte_count || size > pccp_available_byte_count())
        return NULL;
    char *map = mmap(NULL, size + huge_page, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    char *start = (char *)round_up((size_t)map);
    if (start > map)
        munmap(map, (size_t)(start - map));
    if (start + size < map + size + huge_page)
        munmap(start + size, (size_t)(map + size + huge_page - (start + size)));
    madvise(start, size, MADV_HUGEPAGE);
    /* A child that forks must not copy gigabytes; it may not use the pool anyway. */
    madvise(start, size, MADV_DONTFORK);
    /* Touch every page now: a fresh page costs more than the copy into it. */
    for (size_t at = 0; at < size; at += 4096)
        ((volatile char *)start)[at] = 0;
    return start;
}

void pccp_pool_free(void *pool, size_t byte_count)
{
    if (pool)
        munmap(pool, round_up(byte_count));
}

static uint64_t nanoseconds(struct timespec time)
{
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t clock_nanoseconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return nanoseconds(now);
}

uint64_t pccp_wall_time(void) { return clock_nanoseconds(CLOCK_REALTIME); }
uint64_t pccp_monotonic_time(void) { return clock_nanoseconds(CLOCK_MONOTONIC); }
uint64_t pccp_cpu_time(void) { return clock_nanoseconds(CLOCK_PROCESS_CPUTIME_ID); }

bool pccp_process_exists(uint32_t pid)
{
    return kill((pid_t)pid, 0) == 0 || errno != ESRCH;
}

void pccp_sleep(uint64_t nanoseconds)
{
    const uint64_t second = 1000000000;
    struct timespec time = {
        .tv_sec = (time_t)(nanoseconds / second), .tv_nsec = (long)(nanoseconds % second)};
    nanosleep(&time, NULL);
}

uint32_t pccp_processor_count(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return (uint32_t)CPU_COUNT(&set);
    /* More processors than a cpu_set_t holds. */
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (uint32_t)count : 1;
}

uint64_t pccp_resident_byte_count(void)
{
    unsigned long total = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (!file)
        return 0;
    if (fscanf(file, "%lu %lu", &total, &resident) != 2)
        resident = 0;
    fclose(file);
    return (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

uint64_t pccp_peak_resident_byte_count(void)
{
    /* Not ru_maxrss: that one remembers the process from which this one was forked. */
    FILE *file = fopen("/proc/self/status", "re");
    if (!file)
        return 0;
    char line[256];
    uint64_t kilobytes = 0;
    while (fgets(line, sizeof line, file) && sscanf(line, "VmHWM: %" SCNu64, &kilobytes) != 1)
        ;
    fclose(file);
    return kilobytes * 1024;
}

void pccp_boot_id(uint8_t id[16])
{
    memset(id, 0, 16);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (!file)
        return;
    char text[64] = {0};
    size_t count = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    int nibble = 0;
    for (size_t i = 0; i < count && nibble < 32; i++) {
        char c = text[i];
        int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (value < 0)
            continue;
        id[nibble / 2] = (uint8_t)(id[nibble / 2] << 4 | value);
        nibble++;
    }
}

struct pccp_monitor {
    pthread_mutex_t mutex;
    pthread_cond_t condition;
};

struct pccp_monitor *pccp_monitor_create(void)
{
    struct pccp_monitor *monitor = malloc(sizeof *monitor);
    if (!monitor)
        abort();
    pthread_mutex_init(&monitor->mutex, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&monitor->condition, &attributes);
    pthread_condattr_destroy(&attributes);
    return monitor;
}

void pccp_monitor_destroy(struct pccp_monitor *monitor)
{
    pthread_cond_destroy(&monitor->condition);
    pthread_mutex_destroy(&monitor->mutex);
    free(monitor);
}

void pccp_monitor_lock(struct pccp_monitor *monitor) { pthread_mutex_lock(&monitor->mutex); }
void pccp_monitor_unlock(struct pccp_monitor *monitor) { pthread_mutex_unlock(&monitor->mutex); }
void pccp_monitor_wake_all(struct pccp_monitor *monitor)
{
    pthread_cond_broadcast(&monitor->condition);
}

bool pccp_monitor_wait(struct pccp_monitor *monitor, uint64_t deadline)
{
    if (deadline == 0)
        return pthread_cond_wait(&monitor->condition, &monitor->mutex) == 0;
    struct timespec until = {
        .tv_sec = (time_t)(deadline / 1000000000u), .tv_nsec = (long)(deadline % 1000000000u)};
    return pthread_cond_timedwait(&monitor->condition, &monitor->mutex, &until) == 0;
}

static _Thread_local void *current_scheduler;

void *pccp_scheduler(void) { return current_scheduler; }
void pccp_set_scheduler(void *scheduler) { current_scheduler = scheduler; }

struct start {
    void (*body)(void *);
    void *context;
};

static void *run(void *argument)
{
    struct start start = *(struct start *)argument;
    free(argument);
    start.body(start.context);
    return NULL;
}

int pccp_thread_start(const char *name, void (*body)(void *), void *context, uint64_t *thread)
{
    struct start *start = malloc(sizeof *start);
    if (!start)
        return -ENOMEM;
    start->body = body;
    start->context = context;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t handle;
    int result = pthread_create(&handle, NULL, run, start);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result != 0) {
        free(start);
        return -result;
    }
    pthread_setname_np(handle, name);
    *thread = (uint64_t)handle;
    return 0;
}

void pccp_thread_yield_to_others(int nice)
{
    /* On Linux a nice value belongs to a thread, although POSIX says process. */
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), nice);
}

void pccp_thread_join(uint64_t thread) { pthread_join((pthread_t)thread, NULL); }
