/* A lock and waiting that no sanitizer sees, over futex(2); and the edges that one shall see. */
#include "fakestate.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

BEGIN_HIDDEN

/* 0 free, 1 held, 2 held and waited for. */
static int held;
static int change_count;

/* Orders the accesses of compiler and processor, without being an atomic for a sanitizer. */
static inline void barrier(void)
{
#if defined __x86_64__
    __asm__ volatile("mfence" ::: "memory");
#elif defined __aarch64__
    __asm__ volatile("dmb ish" ::: "memory");
#else
#error "a barrier of this processor is needed"
#endif
}

static void futex_wait(int *word, int expected, const struct timespec *timeout)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, timeout, NULL, 0);
}

static void futex_wake(int *word, int count)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

void fc_lock_state(void)
{
    int expected = 0;
    if (!__atomic_compare_exchange_n(&held, &expected, 1, false, __ATOMIC_RELAXED,
                                     __ATOMIC_RELAXED))
        while (__atomic_exchange_n(&held, 2, __ATOMIC_RELAXED) != 0)
            futex_wait(&held, 2, NULL);
    barrier();
}

void fc_unlock_state(void)
{
    barrier();
    if (__atomic_exchange_n(&held, 0, __ATOMIC_RELAXED) == 2)
        futex_wake(&held, 1);
}

void fc_announce(void)
{
    __atomic_fetch_add(&change_count, 1, __ATOMIC_RELAXED);
    futex_wake(&change_count, 1 << 30);
}

uint64_t fc_now_nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void fc_wait_for_change(uint64_t until_nanoseconds)
{
    int seen = __atomic_load_n(&change_count, __ATOMIC_RELAXED);
    struct timespec left;
    if (until_nanoseconds != 0) {
        uint64_t now = fc_now_nanoseconds();
        uint64_t nanoseconds = until_nanoseconds > now ? until_nanoseconds - now : 0;
        left.tv_sec = (time_t)(nanoseconds / 1000000000u);
        left.tv_nsec = (long)(nanoseconds % 1000000000u);
    }
    fc_unlock_state();
    futex_wait(&change_count, seen, until_nanoseconds != 0 ? &left : NULL);
    fc_lock_state();
}

/* Stores that replace what the sanitizer knew of the edge, so that an edge can be used again. */
void __tsan_atomic32_store(volatile void *, unsigned, int) __attribute__((weak));
unsigned __tsan_atomic32_load(const volatile void *, int) __attribute__((weak));
void __tsan_read_range(void *, long) __attribute__((weak));
void __tsan_write_range(void *, long) __attribute__((weak));
enum { TSAN_ACQUIRE = 2, TSAN_RELEASE = 3 };

void fc_publish(int *edge)
{
    if (__tsan_atomic32_store)
        __tsan_atomic32_store(edge, 1, TSAN_RELEASE);
}

void fc_adopt(int *edge)
{
    if (__tsan_atomic32_load)
        (void)__tsan_atomic32_load(edge, TSAN_ACQUIRE);
}

/* memcpy alone does not do: Swift's ThreadSanitizer ignores what functions of libc access. */
void fc_show_copy(void *to, const void *from, size_t byte_count)
{
    if (from && __tsan_read_range)
        __tsan_read_range((void *)from, (long)byte_count);
    if (__tsan_write_range)
        __tsan_write_range(to, (long)byte_count);
}

END_HIDDEN
