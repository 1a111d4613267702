/* Calls of the driver: processes, contexts, streams, events and copies. */
#include "fakestate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

BEGIN_HIDDEN

struct state fc_state;

/* ---------------------------------------------------------------- threads and calls */

static _Thread_local struct thread thread_state;

struct thread *fc_this_thread(void)
{
    if (thread_state.epoch != fc_state.epoch)
        thread_state = (struct thread){.epoch = fc_state.epoch};
    return &thread_state;
}

static CUcontext handle_of_context(int device)
{
    return make_handle(KIND_CONTEXT, fc_state.devices[device].generation, (size_t)device);
}

static bool is_context(CUcontext context)
{
    return is_handle(context, KIND_CONTEXT, device_maximum) &&
           context == handle_of_context((int)index_of(context)) &&
           fc_state.devices[index_of(context)].retain_count > 0;
}

static CUcontext current_context(void)
{
    struct thread *thread = fc_this_thread();
    CUcontext context = thread->depth > 0 ? thread->contexts[thread->depth - 1] : 0;
    return is_context(context) ? context : 0;
}

int fc_current_device(void) { return (int)index_of(current_context()); }

static int refusal(enum call call, enum need need)
{
    if (fc_state.has_ended)
        return DEINITIALIZED;
    if (need != NEED_NOTHING && fc_state.process == 0)
        return NOT_INITIALIZED;
    bool is_sticky = false, has_context = current_context() != 0;
    struct device *device = has_context ? &fc_state.devices[fc_current_device()] : NULL;
    int error = fc_take_failure(call, &is_sticky);
    if (error != SUCCESS) {
        if (is_sticky && device && device->fatal_error == 0)
            device->fatal_error = error;
        return error;
    }
    if (need >= NEED_ANY_CONTEXT && !device)
        return INVALID_CONTEXT;
    if (need >= NEED_CONTEXT && device->fatal_error != 0)
        return device->fatal_error;
    return need == NEED_SAFETY ? fc_refuse_unsafe_call() : SUCCESS;
}

/* Without the lock, which a child may have inherited from a thread that it does not have. */
static bool is_forked(void) { return fc_state.process != 0 && fc_state.process != getpid(); }

static uint64_t forked_calls;

uint64_t fakecuda_forked_calls(void) { return forked_calls; }

int fc_begin(enum call call, enum need need)
{
    if (is_forked()) {
        forked_calls++;
        return NOT_INITIALIZED;
    }
    if (fc_this_thread()->is_callback)
        return NOT_PERMITTED;
    fc_lock_state();
    fc_state.calls[call]++;
    int error = refusal(call, need);
    if (error != SUCCESS)
        fc_unlock_state();
    return error;
}

int fc_end(int result)
{
    fc_unlock_state();
    return result;
}

int fc_end_cleanup(int result)
{
    int fatal_error = fc_state.devices[fc_current_device()].fatal_error;
    return fc_end(fatal_error != 0 ? fatal_error : result);
}

/* ---------------------------------------------------------------- the process */

static void end_process(void)
{
    if (is_forked())
        return;
    fc_lock_state();
    fc_state.has_ended = true;
    fc_stop_streams();
    fc_unlock_state();
}

void fakecuda_reset(uint64_t seed)
{
    if (is_forked())
        return;
    fc_lock_state();
    fc_stop_streams();
    fc_reset_memory();
    fc_reset_captures();
    fc_clear_events();
    for (int i = 0; i < device_maximum; i++)
        fc_state.devices[i] = (struct device){.generation = fc_state.devices[i].generation + 1};
    memset(fc_state.calls, 0, sizeof fc_state.calls);
    memset(fc_state.copied_bytes, 0, sizeof fc_state.copied_bytes);
    fc_state.unpinned_copies = fc_state.registered_bytes = 0;
    fc_state.epoch++;
    fc_state.process = 0;
    fc_read_settings(seed);
    fc_unlock_state();
}

CUresult cuInit(unsigned flags)
{
    enum { NO_DEVICE = 100 };
    int refused = fc_begin(CALL_cuInit, NEED_NOTHING);
    if (!refused)
        fc_unlock_state();
    usleep((unsigned)fc_state.settings.init_milliseconds * 1000);
    if (refused)
        return refused;
    fc_lock_state();
    if (flags != 0)
        return fc_end(INVALID_VALUE);
    if (fc_state.settings.device_count == 0)
        return fc_end(NO_DEVICE);
    static bool is_noted;
    if (!is_noted)
        atexit(end_process);
    is_noted = true;
    fc_state.process = getpid();
    return fc_end(SUCCESS);
}

CUresult cuDriverGetVersion(int *version)
{
    int refused = fc_begin(CALL_cuDriverGetVersion, NEED_NOTHING);
    if (refused)
        return refused;
    *version = fc_state.settings.version;
    return fc_end(SUCCESS);
}

static const struct {
    int error;
    const char *name, *text;
} error_texts[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {DEINITIALIZED, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
     "part or all of the requested memory range is already mapped"},
    {NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
     "pointer does not correspond to a registered memory region"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
};

static int find_error(int error)
{
    for (size_t i = 0; i < sizeof error_texts / sizeof *error_texts; i++)
        if (error_texts[i].error == error)
            return (int)i;
    return -1;
}

CUresult cuGetErrorName(CUresult error, const char **text)
{
    int index = find_error(error);
    *text = index < 0 ? NULL : error_texts[index].name;
    return index < 0 ? INVALID_VALUE : SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
    int index = find_error(error);
    *text = index < 0 ? NULL : error_texts[index].text;
    return index < 0 ? INVALID_VALUE : SUCCESS;
}

/* ---------------------------------------------------------------- devices and contexts */

static bool is_device(CUdevice device)
{
    return device >= 0 && device < fc_state.settings.device_count;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    int refused = fc_begin(CALL_cuDeviceGet, NEED_INIT);
    if (refused)
        return refused;
    *device = ordinal;
    return fc_end(is_device(ordinal) ? SUCCESS : INVALID_DEVICE);
}

CUresult cuDeviceGetName(char *text, int size, CUdevice device)
{
    int refused = fc_begin(CALL_cuDeviceGetName, NEED_INIT);
    if (refused)
        return refused;
    if (!is_device(device))
        return fc_end(INVALID_DEVICE);
    char whole[64];
    snprintf(whole, sizeof whole, "Fake CUDA device %d", device);
    /* As the driver does: no zero where the space ends. */
    strncpy(text, whole, (size_t)size);
    return fc_end(SUCCESS);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    int refused = fc_begin(CALL_cuDevicePrimaryCtxRetain, NEED_INIT);
    if (refused)
        return refused;
    if (!is_device(device))
        return fc_end(INVALID_DEVICE);
    fc_state.devices[device].retain_count++;
    *context = handle_of_context(device);
    return fc_end(SUCCESS);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice number)
{
    int refused = fc_begin(CALL_cuDevicePrimaryCtxRelease_v2, NEED_INIT);
    if (refused)
        return refused;
    struct device *device = is_device(number) ? &fc_state.devices[number] : NULL;
    if (!device || device->retain_count == 0)
        return fc_end(device ? INVALID_CONTEXT : INVALID_DEVICE);
    if (--device->retain_count > 0)
        return fc_end(SUCCESS);
    fc_wait_until_idle(number);
    fc_close_streams(number);
    fc_free_events(number);
    fc_free_allocations(number);
    *device = (struct device){.generation = device->generation + 1};
    return fc_end(SUCCESS);
}

CUresult cuCtxPushCurrent_v2(CUcontext context)
{
    int refused = fc_begin(CALL_cuCtxPushCurrent_v2, NEED_INIT);
    if (refused)
        return refused;
    struct thread *thread = fc_this_thread();
    if (!is_context(context))
        return fc_end(INVALID_CONTEXT);
    if (thread->depth == sizeof thread->contexts / sizeof *thread->contexts)
        return fc_end(OUT_OF_MEMORY);
    thread->contexts[thread->depth++] = context;
    return fc_end(SUCCESS);
}

CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
    int refused = fc_begin(CALL_cuCtxPopCurrent_v2, NEED_INIT);
    if (refused)
        return refused;
    struct thread *thread = fc_this_thread();
    if (thread->depth == 0)
        return fc_end(INVALID_CONTEXT);
    *context = thread->contexts[--thread->depth];
    return fc_end(SUCCESS);
}

CUresult cuCtxSetCurrent(CUcontext context)
{
    int refused = fc_begin(CALL_cuCtxSetCurrent, NEED_INIT);
    if (refused)
        return refused;
    struct thread *thread = fc_this_thread();
    if (context != 0 && !is_context(context))
        return fc_end(INVALID_CONTEXT);
    if (thread->depth == 0)
        thread->depth = 1;
    thread->contexts[thread->depth - 1] = context;
    return fc_end(SUCCESS);
}

CUresult cuCtxGetCurrent(CUcontext *context)
{
    int refused = fc_begin(CALL_cuCtxGetCurrent, NEED_INIT);
    if (refused)
        return refused;
    *context = current_context();
    return fc_end(SUCCESS);
}

/* ---------------------------------------------------------------- streams */

static uint64_t handle_of_stream(const struct stream *stream)
{
    return make_handle(KIND_STREAM, stream->generation, (size_t)(stream - fc_state.streams));
}

static struct stream *created_stream(CUstream handle)
{
    struct stream *stream = is_handle(handle, KIND_STREAM, stream_maximum)
                                ? &fc_state.streams[index_of(handle)]
                                : NULL;
    bool is_good = stream && stream->is_used && !stream->is_closing &&
                   handle == handle_of_stream(stream) && stream->device == fc_current_device();
    return is_good ? stream : NULL;
}

static struct stream *internal_stream(void)
{
    struct stream *stream = fc_new_stream(fc_current_device(), true);
    if (stream)
        stream->is_internal = true;
    return stream;
}

struct stream *fc_find_stream(CUstream handle, int *error)
{
    struct stream *stream;
    int device = fc_current_device();
    *error = INVALID_HANDLE;
    if (handle > PER_THREAD)
        return created_stream(handle);
    *error = OUT_OF_MEMORY;
    if (handle <= LEGACY) {
        if (!fc_state.devices[device].legacy)
            fc_state.devices[device].legacy = internal_stream();
        return fc_state.devices[device].legacy;
    }
    CUstream *own = &fc_this_thread()->streams[device];
    if ((stream = created_stream(*own)))
        return stream;
    if ((stream = internal_stream()))
        *own = handle_of_stream(stream);
    return stream;
}

struct stream *fc_usable_stream(CUstream handle, int *error)
{
    struct stream *stream = fc_find_stream(handle, error);
    if (stream && (*error = fc_check_capture(stream)) != SUCCESS)
        return NULL;
    return stream;
}

static int create_stream(CUstream *out, unsigned flags)
{
    struct stream *stream = fc_new_stream(fc_current_device(), !(flags & NON_BLOCKING));
    if (!stream)
        return OUT_OF_MEMORY;
    *out = handle_of_stream(stream);
    return SUCCESS;
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags)
{
    int refused = fc_begin(CALL_cuStreamCreate, NEED_CONTEXT);
    return refused ? refused : fc_end(create_stream(stream, flags));
}

CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority)
{
    (void)priority;
    int refused = fc_begin(CALL_cuStreamCreateWithPriority, NEED_CONTEXT);
    return refused ? refused : fc_end(create_stream(stream, flags));
}

CUresult cuStreamDestroy_v2(CUstream handle)
{
    int error = fc_begin(CALL_cuStreamDestroy_v2, NEED_ANY_CONTEXT);
    if (error)
        return error;
    struct stream *stream = created_stream(handle);
    if (!stream)
        return fc_end_cleanup(INVALID_HANDLE);
    fc_close_stream(stream);
    return fc_end_cleanup(SUCCESS);
}

int fc_wait_for_stream(struct stream *stream) { return fc_await_record(fc_enqueue_record(stream)); }

CUresult cuStreamSynchronize(CUstream handle)
{
    int error = fc_begin(CALL_cuStreamSynchronize, NEED_SAFETY);
    if (error)
        return error;
    struct stream *stream = fc_usable_stream(handle, &error);
    if (!stream)
        return fc_end(error);
    if (fc_is_capturing(stream)) {
        fc_invalidate_capture(stream);
        return fc_end(CAPTURE_UNSUPPORTED);
    }
    return fc_end(fc_wait_for_stream(stream));
}

CUresult cuLaunchHostFunc(CUstream handle, void (*function)(void *), void *argument)
{
    int error = fc_begin(CALL_cuLaunchHostFunc, NEED_CONTEXT);
    if (error)
        return error;
    struct stream *stream = fc_usable_stream(handle, &error);
    if (!stream || fc_is_capturing(stream))
        return fc_end(stream ? SUCCESS : error);
    struct op *op = fc_new_op(OP_FUNCTION);
    op->function = function;
    op->host = argument;
    fc_enqueue(stream, op);
    return fc_end(SUCCESS);
}

END_HIDDEN
