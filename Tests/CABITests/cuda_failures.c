/* Contexts, captures, errors, forks and threads: what must not go wrong beside a copy. */
#define _GNU_SOURCE
#include "cuda_test.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---------------------------------------------------------------- contexts */

/* Device 1 is used while device 0 is current, or none, and neither changes. */
static void check_context(CUcontext expected)
{
    unsigned char *host = new_buffer(piece, 0);
    struct pccp_cuda_event *event;
    struct pccp_cuda_device *device;
    CUcontext context;
    int mode = 1, is_over;
    CUdeviceptr address = allocate(1, piece);
    struct pccp_cuda_copy copy = {host, address, piece};
    OK(cuThreadExchangeStreamCaptureMode(&mode));
#define UNCHANGED(call)                                                                            \
    do {                                                                                           \
        OK(call);                                                                                  \
        OK(cuCtxGetCurrent(&context));                                                             \
        int own_ = 1;                                                                              \
        OK(cuThreadExchangeStreamCaptureMode(&own_));                                              \
        CHECK(context == expected && own_ == 1);                                                   \
    } while (0)
    UNCHANGED(pccp_cuda_device_open(driver, 1, &device));
    UNCHANGED(pccp_cuda_device_name(device, text, sizeof text));
    UNCHANGED(pccp_cuda_register(device, host, piece));
    UNCHANGED(pccp_cuda_record(device, 0, &event));
    UNCHANGED(pccp_cuda_follow(device, event));
    UNCHANGED(pccp_cuda_hold(device, 0, event));
    UNCHANGED(pccp_cuda_query(event, &is_over));
    UNCHANGED((pccp_cuda_event_free(event), 0));
    UNCHANGED(pccp_cuda_to_host(device, &copy, 1));
    UNCHANGED(pccp_cuda_to_device(device, &copy, 1));
    UNCHANGED(pccp_cuda_mark(device, &event));
    UNCHANGED(pccp_cuda_wait(event));
    UNCHANGED((pccp_cuda_event_free(event), 0));
    UNCHANGED(pccp_cuda_unregister(device, host));
    UNCHANGED((pccp_cuda_device_close(device), 0));
    /* Nor after an error. */
    CHECK_RESULT(pccp_cuda_unregister(devices[1], host), 713);
    UNCHANGED(0);
#undef UNCHANGED
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    free(host);
}

void check_contexts(void)
{
    begin_check();
    check_context(0);
    enter(0);
    check_context(contexts[0]);
    leave();
    end_check();
}

/* ---------------------------------------------------------------- captures */

struct in_thread {
    pthread_t thread;
    CUdeviceptr address;
    unsigned char *host;
};

/* What a save does meanwhile. */
static void *save_in_thread(void *argument)
{
    struct in_thread *work = argument;
    struct pccp_cuda_event *event;
    struct pccp_cuda_device *device;
    int is_over;
    OK(pccp_cuda_device_open(driver, 0, &device));
    OK(pccp_cuda_register(device, work->host, piece));
    struct pccp_cuda_copy copy = {work->host, work->address, piece};
    OK(pccp_cuda_to_host(device, &copy, 1));
    OK(pccp_cuda_mark(device, &event));
    OK(pccp_cuda_query(event, &is_over));
    OK(pccp_cuda_wait(event));
    pccp_cuda_event_free(event);
    OK(pccp_cuda_unregister(device, work->host));
    pccp_cuda_device_close(device);
    return NULL;
}

static void run_in_thread(struct in_thread *work)
{
    CHECK(pthread_create(&work->thread, NULL, save_in_thread, work) == 0);
    pthread_join(work->thread, NULL);
}

void check_captures(void)
{
    begin_check();
    CUstream captured = new_stream(0, ordinary), free_stream = new_stream(0, non_blocking);
    CUgraph graph;
    struct in_thread work = {.address = allocate(0, piece), .host = new_buffer(piece, 0)};
    struct pccp_cuda_event *event, *none;
    OK(pccp_cuda_record(devices[0], free_stream, &event));
    for (int mode = 0; mode <= 2; mode++) {
        enter(0);
        OK(cuStreamBeginCapture_v2(captured, mode));
        leave();
        CHECK_RESULT(pccp_cuda_record(devices[0], captured, &none), PCCP_CUDA_CAPTURING);
        CHECK(!none);
        CHECK_RESULT(pccp_cuda_hold(devices[0], captured, event), PCCP_CUDA_CAPTURING);
        CHECK_RESULT(pccp_cuda_record(devices[0], 0, &none), PCCP_CUDA_CAPTURING);
        CHECK_RESULT(pccp_cuda_hold(devices[0], 0, event), PCCP_CUDA_CAPTURING);
        OK(pccp_cuda_hold(devices[0], free_stream, event));
        run_in_thread(&work);
        save_in_thread(&work);
        enter(0);
        OK(cuStreamEndCapture(captured, &graph)); /* nothing spoiled it */
        leave();
        CHECK(graph != 0);
    }
    /* A capture that is spoiled still is one. */
    enter(0);
    OK(cuStreamBeginCapture_v2(captured, 0));
    CHECK_RESULT(cuStreamSynchronize(captured), 900);
    leave();
    CHECK_RESULT(pccp_cuda_record(devices[0], captured, &none), PCCP_CUDA_CAPTURING);
    enter(0);
    CHECK_RESULT(cuStreamEndCapture(captured, &graph), 901);
    leave();
    OK(pccp_cuda_record(devices[0], captured, &none));
    pccp_cuda_event_free(none);
    pccp_cuda_event_free(event);
    destroy_stream(0, captured);
    destroy_stream(0, free_stream);
    free(work.host);
    end_check();
}

/* ---------------------------------------------------------------- errors */

enum call {
    CALL_OPEN,
    CALL_NAME,
    CALL_REGISTER,
    CALL_UNREGISTER,
    CALL_RECORD,
    CALL_MARK,
    CALL_FOLLOW,
    CALL_HOLD,
    CALL_WAIT,
    CALL_QUERY,
    CALL_TO_HOST,
    CALL_TO_DEVICE,
    call_count
};

struct objects {
    CUdeviceptr address;
    unsigned char *host, *other_host;
    struct pccp_cuda_event *event;
};

static struct objects new_objects(void)
{
    struct objects objects = {.address = allocate(0, 2 * piece),
                              .host = pinned_buffer(2 * piece),
                              .other_host = new_buffer(piece, 0)};
    OK(pccp_cuda_record(devices[0], 0, &objects.event));
    return objects;
}

static int open_and_close(void)
{
    struct pccp_cuda_device *device;
    int result = pccp_cuda_device_open(driver, 0, &device);
    CHECK((result == 0) == (device != NULL));
    pccp_cuda_device_close(device);
    return result;
}

static int make_and_free(bool is_mark)
{
    struct pccp_cuda_event *event;
    int result = is_mark ? pccp_cuda_mark(devices[0], &event)
                         : pccp_cuda_record(devices[0], 0, &event);
    CHECK((result == 0) == (event != NULL));
    pccp_cuda_event_free(event);
    return result;
}

static int register_other(struct objects *objects)
{
    int result = pccp_cuda_register(devices[0], objects->other_host, piece);
    if (fakecuda_registered_bytes() > 2 * piece)
        pccp_cuda_unregister(devices[0], objects->other_host);
    return result;
}

static int perform(enum call call, struct objects *objects)
{
    int is_over = 0, result;
    struct pccp_cuda_copy copies[] = {
        {objects->host, objects->address, piece},
        {objects->host + piece, objects->address + piece, piece},
    };
    switch (call) {
    case CALL_OPEN: return open_and_close();
    case CALL_NAME: return pccp_cuda_device_name(devices[0], text, sizeof text);
    case CALL_REGISTER: return register_other(objects);
    case CALL_UNREGISTER:
        OK(cuMemHostRegister_v2(objects->other_host, piece, 0));
        return pccp_cuda_unregister(devices[0], objects->other_host);
    case CALL_RECORD: return make_and_free(false);
    case CALL_MARK: return make_and_free(true);
    case CALL_FOLLOW: return pccp_cuda_follow(devices[0], objects->event);
    case CALL_HOLD: return pccp_cuda_hold(devices[0], 0, objects->event);
    case CALL_WAIT: return pccp_cuda_wait(objects->event);
    case CALL_QUERY:
        result = pccp_cuda_query(objects->event, &is_over);
        CHECK(result == 0 || !is_over);
        return result;
    case CALL_TO_HOST: return pccp_cuda_to_host(devices[0], copies, 2);
    case CALL_TO_DEVICE: return pccp_cuda_to_device(devices[0], copies, 2);
    case call_count: break;
    }
    abort();
}

/* What each call asks of the driver beside its context, which all do. */
static const struct {
    enum call call;
    const char *names[4];
} asked[] = {
    {CALL_OPEN, {"cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuStreamCreate"}},
    {CALL_NAME, {"cuDeviceGetName"}},
    {CALL_REGISTER, {"cuMemHostRegister_v2"}},
    {CALL_RECORD, {"cuStreamIsCapturing", "cuEventCreate", "cuEventRecord"}},
    {CALL_MARK, {"cuEventCreate", "cuEventRecord"}},
    {CALL_FOLLOW, {"cuStreamWaitEvent"}},
    {CALL_HOLD, {"cuStreamIsCapturing", "cuStreamWaitEvent"}},
    {CALL_WAIT, {"cuEventSynchronize"}},
    {CALL_QUERY, {"cuEventQuery"}},
    {CALL_TO_HOST, {"cuMemcpyBatchAsync_v2"}},
    {CALL_TO_DEVICE, {"cuMemcpyBatchAsync_v2"}},
};

static void free_objects(struct objects *objects)
{
    pccp_cuda_event_free(objects->event);
    pccp_cuda_unregister(devices[0], objects->host);
    free(objects->host);
    free(objects->other_host);
}

/* One failure of each call of the driver: it is returned, costs nothing, and is over. */
static void fail_once(enum call call, const char *name)
{
    CUcontext context;
    struct objects objects = new_objects();
    int event_count = fakecuda_live_events(), stream_count = fakecuda_live_streams();
    int retain_count = fakecuda_retain_count(0);
    fakecuda_fail(name, 2, 0, 0);
    CHECK_RESULT(perform(call, &objects), 2);
    CHECK(fakecuda_live_events() == event_count && fakecuda_live_streams() == stream_count);
    CHECK(fakecuda_retain_count(0) == retain_count);
    OK(cuCtxGetCurrent(&context));
    CHECK(context == 0);
    OK(perform(call, &objects));
    await_side_stream(0);
    free_objects(&objects);
}

/* What was made is freed when the end of the call fails. */
static void fail_at_end(enum call call)
{
    struct objects objects = new_objects();
    int event_count = fakecuda_live_events(), mode = 0;
    fakecuda_fail("cuThreadExchangeStreamCaptureMode", 2, 1, 0);
    CHECK_RESULT(perform(call, &objects), 2);
    CHECK(fakecuda_live_events() == event_count);
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    fakecuda_fail("cuCtxPopCurrent_v2", 2, 0, 0);
    CHECK_RESULT(perform(call, &objects), 2);
    CHECK(fakecuda_live_events() == event_count);
    leave();
    await_side_stream(0);
    free_objects(&objects);
}

void check_failures(void)
{
    begin_check();
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        for (int j = 0; j < 4 && asked[i].names[j]; j++)
            fail_once(asked[i].call, asked[i].names[j]);
        fail_once(asked[i].call, "cuCtxPushCurrent_v2");
        fail_once(asked[i].call, "cuThreadExchangeStreamCaptureMode");
        if (asked[i].call != CALL_OPEN)
            fail_at_end(asked[i].call);
    }
    end_check();
}

static uint64_t queued_calls(void)
{
    return fakecuda_calls("cuMemcpyBatchAsync_v2") + fakecuda_calls("cuEventRecord") +
           fakecuda_calls("cuStreamWaitEvent") + fakecuda_calls("cuEventSynchronize");
}

static void expect_all_fail(struct objects *objects, int error, bool is_driver_lost)
{
    uint64_t queued = queued_calls();
    for (int call = 0; call < call_count; call++) {
        if (call == CALL_UNREGISTER || (call == CALL_OPEN && !is_driver_lost))
            continue;
        CHECK_RESULT(perform(call, objects), error);
    }
    CHECK(queued_calls() == queued);
    /* What cleans up does so, and returns the error all the same. */
    uint64_t before = fakecuda_registered_bytes();
    CHECK_RESULT(pccp_cuda_unregister(devices[0], objects->host), error);
    CHECK(fakecuda_registered_bytes() == before - 2 * piece);
    /* Another device is not concerned, but what it was to wait for will not come. */
    CHECK_RESULT(pccp_cuda_follow(devices[1], objects->event), error);
    CHECK_RESULT(pccp_cuda_hold(devices[1], 0, objects->event), error);
    await_side_stream(1);
}

/* A copy fails in its stream, after the call that queued it had returned. */
void check_lost_context(int error)
{
    begin_check();
    struct objects objects = new_objects();
    struct pccp_cuda_event *event;
    fakecuda_set_delay_us(20000, 20000);
    if (error == 700) {
        queue_to_host(0, objects.host, objects.address);
        enter(0);
        OK(cuMemFree_v2(objects.address)); /* the application did not wait */
        leave();
    } else {
        fakecuda_fail("copy", error, 0, 1);
        queue_to_host(0, objects.host, objects.address);
    }
    OK(pccp_cuda_mark(devices[0], &event));
    CHECK_RESULT(pccp_cuda_wait(event), error);
    pccp_cuda_event_free(event);
    expect_all_fail(&objects, error, true);
    free_objects(&objects);
    end_check();
}

/* The driver tells it once, to whoever asks first. */
void check_error_told_once(void)
{
    begin_check();
    struct objects objects = new_objects();
    fakecuda_fail("cuEventQuery", 719, 0, 0);
    CHECK_RESULT(perform(CALL_QUERY, &objects), 719);
    expect_all_fail(&objects, 719, false);
    free_objects(&objects);
    end_check();
}

/* ---------------------------------------------------------------- processes and threads */

static void use_in_child(struct objects *objects, struct pccp_cuda_event *last)
{
    struct pccp_cuda_event *event = (void *)1;
    struct pccp_cuda_device *device = (void *)1;
    struct pccp_cuda *found;
    for (int call = CALL_NAME; call < call_count; call++)
        if (call != CALL_UNREGISTER && call != CALL_REGISTER)
            CHECK_RESULT(perform(call, objects), PCCP_CUDA_FORKED);
    CHECK_RESULT(pccp_cuda_device_open(driver, 0, &device), PCCP_CUDA_FORKED);
    CHECK_RESULT(pccp_cuda_register(devices[0], objects->other_host, 1), PCCP_CUDA_FORKED);
    CHECK_RESULT(pccp_cuda_unregister(devices[0], objects->host), PCCP_CUDA_FORKED);
    CHECK_RESULT(pccp_cuda_mark(devices[0], &event), PCCP_CUDA_FORKED);
    CHECK(!event && !device);
    pccp_cuda_error_text(driver, 700, text, sizeof text);
    CHECK(strcmp(text, "CUDA error (700)") == 0);
    pccp_cuda_event_free(objects->event);
    pccp_cuda_event_free(last);
    pccp_cuda_device_close(devices[0]);
    pccp_cuda_device_close(devices[1]);
    if (!lookup)
        CHECK_RESULT(pccp_cuda_open(NULL, &found, text, sizeof text), PCCP_CUDA_FORKED);
    CHECK(fakecuda_forked_calls() == 0);
    /* A driver that the parent opened without us says so itself. */
    CHECK_RESULT(pccp_cuda_open(fakecuda_lookup, &found, text, sizeof text), 3);
    CHECK(fakecuda_forked_calls() == 1);
}

void check_fork(void)
{
    begin_check();
    struct objects objects = new_objects();
    /* The last that keeps a device. */
    struct pccp_cuda_device *device;
    struct pccp_cuda_event *last;
    OK(pccp_cuda_device_open(driver, 1, &device));
    OK(pccp_cuda_mark(device, &last));
    pccp_cuda_device_close(device);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        use_in_child(&objects, last);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    OK(perform(CALL_TO_HOST, &objects));
    await_side_stream(0);
    pccp_cuda_event_free(last);
    free_objects(&objects);
    end_check();
}

/* Each thread has a part of one buffer, and all share both devices. */
static void *copy_in_thread(void *argument)
{
    struct in_thread *work = argument;
    struct pccp_cuda_event *event;
    for (unsigned char round = 1; round <= 30; round++) {
        int device = round % device_count;
        struct pccp_cuda_copy copy = {work->host, work->address, piece};
        memset(work->host, round, piece);
        OK(pccp_cuda_to_device(devices[device], &copy, 1));
        OK(pccp_cuda_mark(devices[device], &event));
        OK(pccp_cuda_follow(devices[!device], event));
        OK(pccp_cuda_wait(event));
        pccp_cuda_event_free(event);
        memset(work->host, 0, piece);
        OK(pccp_cuda_to_host(devices[!device], &copy, 1));
        OK(pccp_cuda_mark(devices[!device], &event));
        for (int is_over = 0; !is_over;)
            OK(pccp_cuda_query(event, &is_over));
        pccp_cuda_event_free(event);
        CHECK(is_filled(work->host, piece, round));
    }
    return NULL;
}

void check_threads(void)
{
    enum { thread_count = 4 };
    begin_check();
    struct in_thread work[thread_count];
    unsigned char *host = pinned_buffer(thread_count * piece);
    for (int i = 0; i < thread_count; i++) {
        work[i].address = allocate(0, piece);
        work[i].host = host + i * piece;
        CHECK(pthread_create(&work[i].thread, NULL, copy_in_thread, &work[i]) == 0);
    }
    for (int i = 0; i < thread_count; i++)
        pthread_join(work[i].thread, NULL);
    free_pinned(host);
    end_check();
}
