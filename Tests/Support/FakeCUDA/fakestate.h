/* What the files of the stand-in share. */
#ifndef FAKECUDA_STATE_H
#define FAKECUDA_STATE_H

#define _GNU_SOURCE
#include "fakecuda.h"

#include <pthread.h>
#include <stdbool.h>
#include <sys/types.h>

/*
 * Around all code of the stand-in. No sanitizer sees its own accesses and locks: its lock would
 * order every two calls, and so hide the races that it is there to show. A sanitizer sees the
 * copies and the edges that fakelock.c shows it.
 */
#ifdef __clang__
#define BEGIN_HIDDEN                                                                               \
    _Pragma("clang attribute push(__attribute__((disable_sanitizer_instrumentation)),              \
apply_to = function)")
#define END_HIDDEN _Pragma("clang attribute pop")
#elif defined __SANITIZE_THREAD__
#error "gcc must compile this file without -fsanitize=thread; the test program may have it"
#else
#define BEGIN_HIDDEN
#define END_HIDDEN
#endif

enum result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    DEINITIALIZED = 4,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713,
    NOT_PERMITTED = 800,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_ISOLATION = 905,
    CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
    CAPTURE_WRONG_THREAD = 908,
};

/* Functions with a counter; `copy` stands for the copying. */
#define EACH_CALL(do)                                                                              \
    do(cuInit) do(cuDriverGetVersion) do(cuGetErrorName) do(cuGetErrorString)                      \
    do(cuDeviceGet) do(cuDeviceGetName) do(cuDevicePrimaryCtxRetain)          \
    do(cuDevicePrimaryCtxRelease_v2) do(cuCtxPushCurrent_v2) do(cuCtxPopCurrent_v2)                \
    do(cuCtxSetCurrent) do(cuCtxGetCurrent) do(cuMemAlloc_v2) do(cuMemAllocManaged)                \
    do(cuMemFree_v2) do(cuMemHostRegister_v2) do(cuMemHostUnregister)                              \
    do(cuStreamCreate) do(cuStreamCreateWithPriority) do(cuStreamDestroy_v2)                       \
    do(cuStreamSynchronize) do(cuStreamWaitEvent) do(cuStreamBeginCapture_v2)                      \
    do(cuStreamEndCapture) do(cuStreamIsCapturing) do(cuThreadExchangeStreamCaptureMode)           \
    do(cuLaunchHostFunc) do(cuEventCreate) do(cuEventRecord) do(cuEventQuery)                      \
    do(cuEventSynchronize) do(cuEventDestroy_v2) do(cuMemcpyDtoH_v2) do(cuMemcpyHtoD_v2)           \
    do(cuMemcpyDtoHAsync_v2) do(cuMemcpyHtoDAsync_v2) do(cuMemcpyBatchAsync)                       \
    do(cuMemcpyBatchAsync_v2) do(cuMemsetD8Async)

enum call {
#define NUMBER(name) CALL_##name,
    EACH_CALL(NUMBER)
#undef NUMBER
    CALL_copy,
    call_count
};

enum {
    device_maximum = 8,
    stream_maximum = 512,
    event_maximum = 1 << 16,
    allocation_maximum = 1 << 16,
    registration_maximum = 1 << 12,
    capture_maximum = 64,
    failure_maximum = 32,
};

/* ---------------------------------------------------------------- the lock (fakelock.c) */

void fc_lock_state(void);
void fc_unlock_state(void);
/* Wakes whoever waits for a change. */
void fc_announce(void);
/* Gives the lock up until a change, or until a time (0: none). */
void fc_wait_for_change(uint64_t until_nanoseconds);
uint64_t fc_now_nanoseconds(void);
/* What this thread did before comes before what follows `adopt` of the same edge. */
void fc_publish(int *edge);
void fc_adopt(int *edge);
/* A sanitizer shall see it; `from` is NULL when bytes are only written. */
void fc_show_copy(void *to, const void *from, size_t byte_count);

/* ---------------------------------------------------------------- streams (fakestream.c) */

/* A moment in a stream. */
struct record {
    struct record *next;
    int use_count;
    bool is_done;
    int error;
    int edge;
};

enum op_kind { OP_COPY, OP_FILL, OP_RECORD, OP_WAIT, OP_FUNCTION };

struct op {
    struct op *next;
    enum op_kind kind;
    int edge;
    struct record *record;
    void (*function)(void *);
    void *host; /* or the argument of the function */
    uint64_t address;
    size_t byte_count;
    unsigned char value;
    bool is_to_host, is_pinned;
    bool is_prompt; /* no delay: not the first of its batch */
};

struct stream {
    unsigned generation;
    bool is_used, is_closing, has_exited;
    bool is_blocking; /* with the legacy stream */
    bool is_internal; /* nobody created it by a call */
    int device;
    pthread_t thread;
    struct op *first, *last;
    uint64_t random;
    int error; /* of a copy, which the next record gets */
    uint64_t capture; /* serial number of the capture that it is part of, or 0 */
};

struct device {
    unsigned generation, retain_count;
    int fatal_error;
    struct stream *legacy;
    uint64_t bus_free_nanoseconds[2];
};

/* NULL: there are too many. */
struct stream *fc_new_stream(int device, bool is_blocking);
void fc_close_stream(struct stream *stream);
/* Ends every thread; what is queued is lost. */
void fc_stop_streams(void);
void fc_close_streams(int device);
struct op *fc_new_op(enum op_kind kind);
/* Behind all that is queued, and the legacy stream's part of it. */
void fc_enqueue(struct stream *stream, struct op *op);
struct record *fc_enqueue_record(struct stream *stream);
void fc_use_record(struct record *record);
void fc_drop_record(struct record *record);
/* The calling thread waits, and the record is used once less. */
int fc_await_record(struct record *record);
void fc_wait_until_idle(int device);
uint64_t fc_next_random(uint64_t *state);

/* ---------------------------------------------------------------- memory (fakememory.c) */

struct allocation {
    uint64_t address;
    size_t byte_count;
    char *view;
    int device;
    bool is_managed, is_freed;
    unsigned use_count; /* copies that are running: the view stays so long */
};

/* The one that contains the address; NULL for none. Freed ones are found, too. */
struct allocation *fc_find_allocation(uint64_t address);
/* For a copy: NULL when it is freed, or ends too soon. */
struct allocation *fc_use_allocation(uint64_t address, size_t byte_count);
/* false when it was freed meanwhile. */
bool fc_drop_allocation(struct allocation *allocation);
void fc_free_allocations(int device);
bool fc_is_registered(int device, const void *start, size_t byte_count);
void fc_reset_memory(void);

/* ---------------------------------------------------------------- calls (fakecuda.c) */

struct settings {
    uint64_t seed;
    unsigned delay_minimum, delay_maximum;
    int device_count, version, init_milliseconds;
    uint64_t bandwidth, register_limit;
};

/* Behind the lock. */
struct state {
    struct settings settings;
    pid_t process; /* of cuInit; 0 before */
    bool is_stopping, has_ended;
    unsigned epoch; /* counts resets: what threads remember of an older one is void */
    struct device devices[device_maximum];
    struct stream streams[stream_maximum];
    uint64_t calls[call_count];
    uint64_t copied_bytes[2], unpinned_copies, registered_bytes;
};
extern struct state fc_state;

/* What a thread has. */
struct thread {
    unsigned epoch;
    bool is_callback;
    int depth, capture_mode;
    CUcontext contexts[16];
    CUstream streams[device_maximum];
};
struct thread *fc_this_thread(void);

enum need {
    NEED_NOTHING,
    NEED_INIT,
    NEED_ANY_CONTEXT, /* which may be lost */
    NEED_CONTEXT,
    NEED_SAFETY, /* and no capture that forbids the call */
};
/* 0 with the lock, or an error without it. */
int fc_begin(enum call call, enum need need);
/* Gives the lock back. */
int fc_end(int result);
/* Of a call that cleans up: returns the error of a lost context, too. */
int fc_end_cleanup(int result);
/* Of the current context, which is there. */
int fc_current_device(void);
/* NULL, and an error. */
struct stream *fc_find_stream(CUstream handle, int *error);
/* Something is to be queued on it. */
struct stream *fc_usable_stream(CUstream handle, int *error);
int fc_wait_for_stream(struct stream *stream);

/* None is an address, and none is used twice: what was destroyed is known as such. */
enum handle_kind { KIND_CONTEXT = 1, KIND_STREAM, KIND_EVENT };
enum { LEGACY = 1, PER_THREAD = 2, NON_BLOCKING = 1 };

static inline uint64_t make_handle(enum handle_kind kind, unsigned generation, size_t index)
{
    return (uint64_t)kind << 56 | (uint64_t)generation << 24 | index;
}

static inline size_t index_of(uint64_t handle) { return handle & 0xffffff; }

static inline bool is_handle(uint64_t handle, enum handle_kind kind, size_t limit)
{
    return handle >> 56 == kind && index_of(handle) < limit;
}

/* Events (fakequeue.c). */
void fc_free_events(int device);
void fc_clear_events(void);

/* Captures (fakecapture.c): each returns an error that ends the call. */
int fc_check_capture(struct stream *stream);  /* before work on a stream that may capture */
bool fc_is_capturing(struct stream *stream);  /* then the work is not done */
bool fc_is_implicitly_capturing(const struct stream *stream);
int fc_refuse_unsafe_call(void);
/* A wait of a stream for an event of a capture. */
int fc_join_capture(struct stream *stream, uint64_t capture);
void fc_invalidate_capture(struct stream *stream);
void fc_reset_captures(void);

/* Failures and settings (fakecontrol.c). */
int fc_take_failure(enum call call, bool *is_sticky);
void fc_read_settings(uint64_t seed);

#endif
