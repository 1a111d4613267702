#define _GNU_SOURCE
#include "descriptors.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

/* The kernel's default bound, which fs.nr_open may raise. */
enum { number_limit = 1 << 20, word_bits = 64 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
/* The thread that has the mutex owns the rest. */
static sigset_t mask_before;
static uint64_t noted[number_limit / word_bits];
static int noted_end;

static void hold(void)
{
    /* A handler that forked, or opened a file, would wait for the thread that it interrupts. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_mutex_lock(&mutex);
    mask_before = before;
}

static void release(void)
{
    sigset_t before = mask_before;
    pthread_mutex_unlock(&mutex);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Replaces `fd` with /dev/null; `null` is a descriptor of it, or -1. The first one is closed before
 * it is replaced, because a process at its limit has no free descriptor. */
static int replace(int fd, int null)
{
    if (null < 0) {
        close(fd);
        null = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (null < 0 || null == fd)
            return null;
        dup3(null, fd, O_CLOEXEC);
        close(null);
        return fd;
    }
    dup3(null, fd, O_CLOEXEC);
    return null;
}

/* Between fork and this, only the thread that forked runs: nothing here may allocate or wait. */
static void replace_in_child(void)
{
    int null = -1;
    for (int fd = 0; fd < noted_end; fd++) {
        uint64_t bit = UINT64_C(1) << (fd % word_bits);
        if (!(noted[fd / word_bits] & bit))
            continue;
        noted[fd / word_bits] &= ~bit;
        /* The application may have closed it without our knowledge. */
        if (fcntl(fd, F_GETFD) >= 0)
            null = replace(fd, null);
    }
    noted_end = 0;
    release();
}

static void install(void)
{
    if (pthread_atfork(hold, release, replace_in_child) != 0)
        abort();
}

void pccp_descriptors_hold(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
    hold();
}

void pccp_descriptors_release(void) { release(); }

bool pccp_descriptor_note(int fd)
{
    if (fd >= number_limit)
        return false;
    noted[fd / word_bits] |= UINT64_C(1) << (fd % word_bits);
    if (fd >= noted_end)
        noted_end = fd + 1;
    return true;
}

void pccp_descriptor_forget(int fd)
{
    if (fd >= 0 && fd < number_limit)
        noted[fd / word_bits] &= ~(UINT64_C(1) << (fd % word_bits));
}
