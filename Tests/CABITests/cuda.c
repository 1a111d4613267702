/*
 * Every call of cuda_driver.h, over the stand-in for the driver.
 *
 *     cuda SEED          the stand-in is linked in
 *     cuda SEED library  the stand-in is libcuda.so.1, and its first cuInit fails
 *     cuda SEED race     a buffer is used too early, which ThreadSanitizer must report
 */
#define _GNU_SOURCE
#include "cuda_test.h"

#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

uint64_t seed;
pccp_cuda_lookup lookup = fakecuda_lookup;
struct pccp_cuda *driver;
struct pccp_cuda_device *devices[device_count];
CUcontext contexts[device_count];
char text[256];

/* ---------------------------------------------------------------- a driver for each check */

static void open_devices(void)
{
    for (int i = 0; i < device_count; i++) {
        OK(pccp_cuda_device_open(driver, i, &devices[i]));
        OK(cuDevicePrimaryCtxRetain(&contexts[i], i));
    }
}

/* Over the same driver where there is only one for the process. */
void begin_check(void)
{
    fakecuda_reset(seed);
    if (lookup)
        OK(pccp_cuda_open(lookup, &driver, text, sizeof text));
    else
        OK(cuInit(0));
    open_devices();
}

void end_check(void)
{
    for (int i = 0; i < device_count; i++) {
        pccp_cuda_device_close(devices[i]);
        CHECK(fakecuda_retain_count(i) == 1);
    }
    CHECK(fakecuda_live_events() == 0 && fakecuda_live_streams() == 0);
    CHECK(fakecuda_registered_bytes() == 0);
    for (int i = 0; i < device_count; i++)
        OK(cuDevicePrimaryCtxRelease_v2(i));
}

/* The application's own work on a device. */
void enter(int device) { OK(cuCtxPushCurrent_v2(contexts[device])); }

void leave(void)
{
    CUcontext context;
    OK(cuCtxPopCurrent_v2(&context));
}

CUdeviceptr allocate(int device, size_t byte_count)
{
    CUdeviceptr address;
    enter(device);
    OK(cuMemAlloc_v2(&address, byte_count));
    leave();
    return address;
}

CUstream new_stream(int device, unsigned flags)
{
    CUstream stream;
    enter(device);
    OK(cuStreamCreate(&stream, flags));
    leave();
    return stream;
}

void destroy_stream(int device, CUstream stream)
{
    enter(device);
    OK(cuStreamSynchronize(stream));
    OK(cuStreamDestroy_v2(stream));
    leave();
}

static void queue_fill(int device, CUstream stream, CUdeviceptr address, unsigned char value)
{
    enter(device);
    OK(cuMemsetD8Async(address, value, piece, stream));
    leave();
}

unsigned char *new_buffer(size_t byte_count, unsigned char value)
{
    unsigned char *buffer = malloc(byte_count);
    CHECK(buffer);
    memset(buffer, value, byte_count);
    return buffer;
}

unsigned char *pinned_buffer(size_t byte_count)
{
    unsigned char *buffer = new_buffer(byte_count, 0);
    OK(pccp_cuda_register(devices[0], buffer, byte_count));
    return buffer;
}

void free_pinned(unsigned char *buffer)
{
    OK(pccp_cuda_unregister(devices[0], buffer));
    free(buffer);
}

bool is_filled(const unsigned char *buffer, size_t byte_count, unsigned char value)
{
    for (size_t i = 0; i < byte_count; i++)
        if (buffer[i] != value)
            return false;
    return true;
}

void queue_to_host(int device, void *host, CUdeviceptr address)
{
    struct pccp_cuda_copy copy = {host, address, piece};
    OK(pccp_cuda_to_host(devices[device], &copy, 1));
}

static void await(struct pccp_cuda_event *event)
{
    OK(pccp_cuda_wait(event));
    pccp_cuda_event_free(event);
}

void await_side_stream(int device)
{
    struct pccp_cuda_event *event;
    OK(pccp_cuda_mark(devices[device], &event));
    await(event);
}

/* ---------------------------------------------------------------- opening */

static const char *const required[] = {
    "cuInit", "cuGetErrorName", "cuGetErrorString", "cuDeviceGet", "cuDeviceGetName",
    "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease_v2",
    "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuThreadExchangeStreamCaptureMode",
    "cuMemHostRegister_v2", "cuMemHostUnregister", "cuStreamCreate",
    "cuStreamDestroy_v2", "cuStreamSynchronize", "cuStreamWaitEvent", "cuStreamIsCapturing",
    "cuEventCreate", "cuEventRecord", "cuEventQuery", "cuEventSynchronize", "cuEventDestroy_v2",
    "cuMemcpyDtoHAsync_v2", "cuMemcpyHtoDAsync_v2",
};
static const char *hidden;

static void *lookup_without_hidden(const char *name)
{
    return strcmp(name, hidden) == 0 ? NULL : fakecuda_lookup(name);
}

static void check_missing_functions(void)
{
    struct pccp_cuda *found;
    fakecuda_reset(seed);
    for (size_t i = 0; i < sizeof required / sizeof *required; i++) {
        hidden = required[i];
        int result = pccp_cuda_open(lookup_without_hidden, &found, text, sizeof text);
        CHECK_RESULT(result, PCCP_CUDA_NO_FUNCTION);
        CHECK(!found && strcmp(text, hidden) == 0);
    }
    CHECK(fakecuda_calls("cuInit") == 0);
    hidden = "cuMemcpyBatchAsync_v2";
    OK(pccp_cuda_open(lookup_without_hidden, &found, text, sizeof text));
    CHECK(found && text[0] == 0);
    OK(pccp_cuda_open(lookup_without_hidden, &driver, text, sizeof text));
    CHECK(driver != found);
}

static void check_failed_init(void)
{
    struct pccp_cuda *found;
    fakecuda_reset(seed);
    fakecuda_set_device_count(0);
    CHECK_RESULT(pccp_cuda_open(fakecuda_lookup, &found, text, sizeof text), 100);
    CHECK(!found && strstr(text, "CUDA_ERROR_NO_DEVICE (100)"));
    fakecuda_set_device_count(1);
    OK(pccp_cuda_open(fakecuda_lookup, &found, text, sizeof text));
}

/* On a machine without the library, which most are. */
static void check_no_library(void)
{
    struct pccp_cuda *found;
    if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL))
        return;
    for (int i = 0; i < 2; i++) {
        CHECK_RESULT(pccp_cuda_open(NULL, &found, text, sizeof text), PCCP_CUDA_NO_LIBRARY);
        CHECK(!found && strstr(text, "libcuda.so.1"));
    }
}

static void *open_in_thread(void *argument)
{
    struct pccp_cuda **found = argument;
    char own_text[64];
    OK(pccp_cuda_open(NULL, found, own_text, sizeof own_text));
    return NULL;
}

static void *open_in_vain(void *argument)
{
    CHECK_RESULT(pccp_cuda_open(NULL, argument, text, sizeof text), 100);
    CHECK(!driver && strstr(text, "CUDA_ERROR_NO_DEVICE (100)"));
    return NULL;
}

/* A child that is forked while a thread opens the driver does not wait for that thread. */
static void open_during_fork(void)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, open_in_vain, &driver) == 0);
    while (fakecuda_calls("cuInit") == 0)
        usleep(1000);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct pccp_cuda *found;
        alarm(20);
        CHECK_RESULT(pccp_cuda_open(NULL, &found, text, sizeof text), PCCP_CUDA_FORKED);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    pthread_join(thread, NULL);
}

/* FAKECUDA_FAIL=cuInit:100:0 lets the first attempt fail, and FAKECUDA_INIT_MS=100 makes all of
 * them slow. */
static void check_library(void)
{
    enum { thread_count = 8 };
    struct pccp_cuda *found[thread_count];
    pthread_t threads[thread_count];
    open_during_fork();
    for (int i = 0; i < thread_count; i++)
        CHECK(pthread_create(&threads[i], NULL, open_in_thread, &found[i]) == 0);
    for (int i = 0; i < thread_count; i++)
        pthread_join(threads[i], NULL);
    unsetenv("FAKECUDA_FAIL"); /* a reset would read them again */
    unsetenv("FAKECUDA_INIT_MS");
    driver = found[0];
    for (int i = 0; i < thread_count; i++)
        CHECK(found[i] == driver);
    CHECK(fakecuda_calls("cuInit") == 2);
}

static void check_error_texts(void)
{
    static const int own[] = {PCCP_CUDA_NO_LIBRARY, PCCP_CUDA_NO_FUNCTION, PCCP_CUDA_NO_MEMORY,
                              PCCP_CUDA_CAPTURING, PCCP_CUDA_FORKED};
    begin_check();
    pccp_cuda_error_text(driver, 700, text, sizeof text);
    CHECK(strcmp(text, "CUDA_ERROR_ILLEGAL_ADDRESS (700): "
                       "an illegal memory access was encountered") == 0);
    pccp_cuda_error_text(driver, 4242, text, sizeof text);
    CHECK(strcmp(text, "CUDA error (4242)") == 0);
    pccp_cuda_error_text(NULL, 700, text, sizeof text);
    CHECK(strcmp(text, "CUDA error (700)") == 0);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) {
        pccp_cuda_error_text(driver, own[i], text, sizeof text);
        CHECK(text[0] && !strstr(text, "CUDA error"));
    }
    memset(text, 'x', sizeof text);
    pccp_cuda_error_text(driver, 700, text, 8);
    CHECK(strcmp(text, "CUDA_ER") == 0 && text[8] == 'x');
    end_check();
}

/* ---------------------------------------------------------------- devices */

static void check_devices(void)
{
    begin_check();
    struct pccp_cuda_device *none;
    CHECK_RESULT(pccp_cuda_device_open(driver, device_count, &none), 101);
    CHECK_RESULT(pccp_cuda_device_open(driver, -1, &none), 101);
    CHECK(!none);
    OK(pccp_cuda_device_name(devices[1], text, sizeof text));
    CHECK(strcmp(text, "Fake CUDA device 1") == 0);
    memset(text, 'x', sizeof text);
    OK(pccp_cuda_device_name(devices[1], text, 5));
    CHECK(strcmp(text, "Fake") == 0 && text[5] == 'x');
    pccp_cuda_device_close(NULL);
    pccp_cuda_event_free(NULL);
    /* A second one of the same device is apart from the first. */
    OK(pccp_cuda_device_open(driver, 1, &none));
    CHECK(fakecuda_retain_count(1) == 3 && fakecuda_live_streams() == 3);
    pccp_cuda_device_close(none);
    CHECK(fakecuda_retain_count(1) == 2 && fakecuda_live_streams() == 2);
    end_check();
}

/* Of the stand-in: code that touches device memory does not get away with it. */
static void check_fault(void)
{
    begin_check();
    CUdeviceptr address = allocate(0, piece);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        _exit(*(volatile char *)(uintptr_t)address);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    end_check();
}

static void check_registering(void)
{
    begin_check();
    unsigned char *host = new_buffer(2 * piece, 0);
    fakecuda_set_register_limit(piece);
    CHECK_RESULT(pccp_cuda_register(devices[0], host, 2 * piece), 2);
    OK(pccp_cuda_register(devices[0], host, piece));
    CHECK(fakecuda_registered_bytes() == piece);
    CHECK_RESULT(pccp_cuda_register(devices[1], host, piece), 712);
    CUdeviceptr address = allocate(1, piece);
    queue_to_host(1, host, address);
    CHECK(fakecuda_unpinned_copies() == 0);
    queue_to_host(1, host + piece, address);
    CHECK(fakecuda_unpinned_copies() == 1);
    await_side_stream(1);
    OK(pccp_cuda_unregister(devices[1], host));
    CHECK_RESULT(pccp_cuda_unregister(devices[1], host), 713);
    free(host);
    end_check();
}

/* ---------------------------------------------------------------- order */

/* The side stream waits for the application's stream, and that for the side stream. */
static void check_order(int device, CUdeviceptr address, CUstream stream, int other)
{
    unsigned char *host = pinned_buffer(piece);
    struct pccp_cuda_event *ready, *copied;
    fakecuda_set_delay_us(0, 1000);
    for (unsigned char round = 1; round <= 20; round++) {
        queue_fill(device, stream, address, round);
        OK(pccp_cuda_record(devices[device], stream, &ready));
        OK(pccp_cuda_follow(devices[other], ready));
        pccp_cuda_event_free(ready); /* the queued wait keeps it */
        queue_to_host(other, host, address);
        OK(pccp_cuda_mark(devices[other], &copied));
        OK(pccp_cuda_hold(devices[device], stream, copied));
        queue_fill(device, stream, address, 0xff);
        await(copied);
        CHECK(is_filled(host, piece, round));
    }
    enter(device);
    OK(cuStreamSynchronize(stream));
    leave();
    free_pinned(host);
}

static void check_orders(void)
{
    begin_check();
    CUstream streams[] = {new_stream(0, non_blocking), new_stream(0, ordinary)};
    check_order(0, allocate(0, piece), streams[0], 0);
    check_order(0, allocate(0, piece), streams[1], 0);
    check_order(0, allocate(0, piece), streams[0], 1); /* the copy is another device's */
    check_order(1, allocate(1, piece), 0, 1);          /* the default stream */
    check_order(1, allocate(1, piece), 2, 1);          /* that of this thread */
    CUdeviceptr unified;
    enter(1);
    OK(cuMemAllocManaged(&unified, piece, 1));
    leave();
    check_order(1, unified, 2, 1);
    destroy_stream(0, streams[0]);
    destroy_stream(0, streams[1]);
    end_check();
}

struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t opened;
    bool is_open;
};

static void pass_gate(void *argument)
{
    struct gate *gate = argument;
    pthread_mutex_lock(&gate->mutex);
    while (!gate->is_open)
        pthread_cond_wait(&gate->opened, &gate->mutex);
    pthread_mutex_unlock(&gate->mutex);
}

/* A copy that follows nothing does not wait for the default stream, which is busy. */
static void check_independence(void)
{
    begin_check();
    struct gate gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
    unsigned char *host = pinned_buffer(piece);
    CUdeviceptr address = allocate(0, piece);
    enter(0);
    OK(cuLaunchHostFunc(0, pass_gate, &gate));
    queue_to_host(0, host, address);
    alarm(60); /* it would wait for ever */
    await_side_stream(0);
    alarm(0);
    pthread_mutex_lock(&gate.mutex);
    gate.is_open = true;
    pthread_cond_signal(&gate.opened);
    pthread_mutex_unlock(&gate.mutex);
    OK(cuStreamSynchronize(0));
    leave();
    free_pinned(host);
    end_check();
}

static double processor_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void check_waits(void)
{
    begin_check();
    CUdeviceptr address = allocate(0, piece);
    unsigned char *host = pinned_buffer(piece);
    struct pccp_cuda_event *event;
    int is_over = -1;
    fakecuda_set_delay_us(50000, 50000);
    queue_fill(0, 0, address, 9);
    OK(pccp_cuda_record(devices[0], 0, &event));
    OK(pccp_cuda_query(event, &is_over));
    CHECK(is_over == 0);
    double began = processor_seconds();
    OK(pccp_cuda_wait(event));
    CHECK(processor_seconds() - began < 0.02);
    OK(pccp_cuda_query(event, &is_over));
    CHECK(is_over == 1);
    pccp_cuda_event_free(event);
    /* Closing waits, and an event may outlive its device. */
    queue_to_host(0, host, address);
    OK(pccp_cuda_mark(devices[0], &event));
    pccp_cuda_device_close(devices[0]);
    CHECK(is_filled(host, piece, 9));
    CHECK(fakecuda_retain_count(0) == 2 && fakecuda_live_streams() == 2);
    OK(pccp_cuda_query(event, &is_over));
    CHECK(is_over == 1);
    pccp_cuda_event_free(event);
    CHECK(fakecuda_retain_count(0) == 1 && fakecuda_live_streams() == 1);
    OK(pccp_cuda_device_open(driver, 0, &devices[0]));
    free_pinned(host);
    end_check();
}

/* ---------------------------------------------------------------- copies */

static const char *const batch_names[] = {"cuMemcpyBatchAsync", "cuMemcpyBatchAsync_v2"};

/* To the device and back in pieces of which every eleventh is empty. */
static void round_trip(unsigned char *host, CUdeviceptr address, size_t count, size_t byte_count)
{
    struct pccp_cuda_copy *copies = calloc(count, sizeof *copies);
    CHECK(copies);
    size_t total = count * byte_count;
    for (size_t i = 0; i < count; i++)
        copies[i] = (struct pccp_cuda_copy){host + i * byte_count, address + i * byte_count,
                                            i % 11 == 5 ? 0 : byte_count};
    for (size_t i = 0; i < total; i++)
        host[i] = (unsigned char)(i * 2654435761u >> 13 | 1);
    OK(pccp_cuda_to_device(devices[0], copies, count));
    await_side_stream(0);
    memset(host, 0, total);
    OK(pccp_cuda_to_host(devices[0], copies, count));
    await_side_stream(0);
    for (size_t i = 0; i < total; i++) {
        bool is_empty = i / byte_count % 11 == 5;
        CHECK(host[i] == (is_empty ? 0 : (unsigned char)(i * 2654435761u >> 13 | 1)));
    }
    free(copies);
}

static void check_batches(int version, int used, uint64_t calls)
{
    enum { count = 9001, byte_count = 24 };
    if (lookup) {
        fakecuda_reset(seed);
        fakecuda_set_version(version);
        OK(pccp_cuda_open(lookup, &driver, text, sizeof text));
        open_devices();
    } else {
        begin_check();
        fakecuda_set_version(version);
    }
    unsigned char *host = pinned_buffer(count * byte_count);
    CUdeviceptr address = allocate(0, count * byte_count);
    fakecuda_set_delay_us(0, 100);
    round_trip(host, address, count, byte_count);
    for (int i = 0; lookup && i < 2; i++)
        CHECK(fakecuda_calls(batch_names[i]) == (i == used ? calls : 0));
    uint64_t single = fakecuda_calls("cuMemcpyHtoDAsync_v2");
    CHECK(used < 0 ? single == count - count / 11 - (count % 11 > 5) : single == 0);
    uint64_t bytes = (count - count / 11 - (count % 11 > 5)) * (uint64_t)byte_count;
    CHECK(fakecuda_copied_bytes(FAKECUDA_TO_HOST) == bytes);
    CHECK(fakecuda_copied_bytes(FAKECUDA_TO_DEVICE) == bytes);
    free_pinned(host);
    end_check();
}

/* Of three batches the first one fails. */
static void check_failed_batch(void)
{
    enum { count = 9001 };
    begin_check();
    struct pccp_cuda_copy *copies = calloc(count, sizeof *copies);
    CHECK(copies);
    unsigned char *host = pinned_buffer(count);
    CUdeviceptr address = allocate(0, count);
    for (size_t i = 0; i < count; i++)
        copies[i] = (struct pccp_cuda_copy){host + i, address + i, 1};
    fakecuda_fail("cuMemcpyBatchAsync_v2", 2, 0, 0);
    CHECK_RESULT(pccp_cuda_to_host(devices[0], copies, count), 2);
    CHECK(fakecuda_calls("cuMemcpyBatchAsync_v2") == 1);
    /* What a batch needs is given back. */
    size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
    for (int i = 0; i < 100; i++)
        OK(pccp_cuda_to_host(devices[0], copies, 2));
    await_side_stream(0);
    CHECK(mallinfo2().uordblks + mallinfo2().hblkhd < before + (1 << 20));
    free_pinned(host);
    free(copies);
    end_check();
}

static void check_copies(void)
{
    /* Twice three batches of at most 4096 copies. */
    check_batches(13000, 1, 6);
    if (lookup) /* a library cannot hide its functions */
        check_batches(12080, 0, 6);
    check_batches(12000, -1, 0);
    begin_check();
    unsigned char *host = new_buffer(4 * piece, 0);
    CUdeviceptr address = allocate(0, 4 * piece);
    /* Neither a single copy nor host memory that is not registered goes through a batch. */
    round_trip(host, address, 1, piece);
    CHECK(fakecuda_calls("cuMemcpyBatchAsync_v2") == 0);
    round_trip(host, address, 4, piece);
    CHECK(fakecuda_calls("cuMemcpyBatchAsync_v2") == 2 && fakecuda_unpinned_copies() == 10);
    OK(pccp_cuda_to_host(devices[0], NULL, 0));
    /* Any other failure of a batch is no reason to begin again. */
    struct pccp_cuda_copy copies[] = {{host, address, piece}, {host + piece, address, piece}};
    uint64_t single = fakecuda_calls("cuMemcpyDtoHAsync_v2");
    fakecuda_fail("cuMemcpyBatchAsync_v2", 2, 0, 0);
    CHECK_RESULT(pccp_cuda_to_host(devices[0], copies, 2), 2);
    CHECK(fakecuda_calls("cuMemcpyDtoHAsync_v2") == single);
    fakecuda_fail("cuMemcpyHtoDAsync_v2", 2, 1, 0);
    CHECK_RESULT(pccp_cuda_to_device(devices[0], copies, 2), 2);
    await_side_stream(0);
    free(host);
    end_check();
}

/* Every call of the stand-in orders its own data with a lock. None of that may hide this race. */
static void race(void)
{
    begin_check();
    unsigned char *host = pinned_buffer(piece);
    struct pccp_cuda_event *event;
    int is_over;
    queue_to_host(0, host, allocate(0, piece));
    OK(pccp_cuda_mark(devices[0], &event));
    usleep(100000); /* time enough; but nobody waited */
    OK(pccp_cuda_device_name(devices[0], text, sizeof text));
    host[0]++;
    OK(pccp_cuda_query(event, &is_over));
    CHECK(is_over);
    pccp_cuda_event_free(event);
    free_pinned(host);
    end_check();
}

int main(int argc, char **argv)
{
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    if (argc > 2 && strcmp(argv[2], "race") == 0) {
        race();
        return 0;
    }
    if (argc > 2) {
        lookup = NULL;
        check_library();
    } else {
        check_no_library();
        check_missing_functions();
        check_failed_init();
    }
    check_error_texts();
    check_devices();
    check_fault();
    check_registering();
    check_orders();
    check_independence();
    check_waits();
    check_copies();
    check_failed_batch();
    check_contexts();
    check_captures();
    check_failures();
    check_lost_context(700);
    check_lost_context(719);
    check_error_told_once();
    check_fork();
    check_threads();
    fakecuda_reset(seed);
    printf("devices: ok, seed %llu\n", (unsigned long long)seed);
    return 0;
}
