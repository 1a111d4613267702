/* What is queued: events, waits for them, and copies. */
#include "driver.h"

#include <stdlib.h>

enum {
    EVENT_BLOCKING_SYNC = 1,
    EVENT_DISABLE_TIMING = 2,
    SOURCE_ACCESS_STREAM = 1, /* CU_MEMCPY_SRC_ACCESS_ORDER_STREAM */
    BATCH_COPY_MAXIMUM = 4096,
};

/* ---------------------------------------------------------------- events */

/* A stream of the caller's that captures: what is queued on it would become part of a graph, and a
 * wait for an event from outside would spoil the capture. */
static int refuse_capture(const struct pccp_cuda *driver, CUstream stream)
{
    int status = 0;
    int error = driver->stream_is_capturing(stream, &status);
    /* The default stream, while a stream that it synchronizes with captures. */
    if (error == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT)
        return PCCP_CUDA_CAPTURING;
    return error == 0 && status != 0 ? PCCP_CUDA_CAPTURING : error;
}

static int make_event(struct pccp_cuda_device *device, CUstream stream,
                      struct pccp_cuda_event **out)
{
    const struct pccp_cuda *driver = device->driver;
    struct pccp_cuda_event *event = calloc(1, sizeof *event);
    if (!event)
        return PCCP_CUDA_NO_MEMORY;
    int error = driver->event_create(&event->handle, EVENT_BLOCKING_SYNC | EVENT_DISABLE_TIMING);
    if (error == 0 && (error = driver->event_record(event->handle, stream)) != 0)
        driver->event_destroy(event->handle);
    if (error != 0) {
        free(event);
        return error;
    }
    pccp_cuda_retain(device);
    event->device = device;
    *out = event;
    return 0;
}

int pccp_cuda_record(struct pccp_cuda_device *device, uint64_t stream,
                     struct pccp_cuda_event **event)
{
    *event = NULL;
    int mode, error = pccp_cuda_enter(device, &mode);
    if (error != 0)
        return error;
    CUstream handle = (CUstream)(uintptr_t)stream;
    error = refuse_capture(device->driver, handle);
    if (error == 0)
        error = make_event(device, handle, event);
    error = pccp_cuda_leave(device, mode, error);
    if (error != 0) {
        pccp_cuda_event_free(*event);
        *event = NULL;
    }
    return error;
}

int pccp_cuda_mark(struct pccp_cuda_device *device, struct pccp_cuda_event **event)
{
    return pccp_cuda_record(device, (uintptr_t)device->side_stream, event);
}

void pccp_cuda_event_free(struct pccp_cuda_event *event)
{
    int mode;
    if (!event || !pccp_cuda_is_own(event->device->driver))
        return;
    struct pccp_cuda_device *device = event->device;
    /* What still waits for it in a stream does not lose it: the driver frees it afterwards. */
    if (pccp_cuda_enter_anyway(device, &mode) == 0)
        pccp_cuda_leave(device, mode, device->driver->event_destroy(event->handle));
    free(event);
    pccp_cuda_release(device);
}

int pccp_cuda_hold(struct pccp_cuda_device *device, uint64_t stream,
                   const struct pccp_cuda_event *event)
{
    if (!pccp_cuda_is_own(device->driver))
        return PCCP_CUDA_FORKED;
    /* The work of another device may have failed, which must not end this one. */
    int mode, error = atomic_load(&event->device->fatal_error);
    if (error == 0)
        error = pccp_cuda_enter(device, &mode);
    if (error != 0)
        return error;
    CUstream handle = (CUstream)(uintptr_t)stream;
    error = refuse_capture(device->driver, handle);
    if (error == 0)
        error = device->driver->stream_wait_event(handle, event->handle, 0);
    return pccp_cuda_leave(device, mode, error);
}

int pccp_cuda_follow(struct pccp_cuda_device *device, const struct pccp_cuda_event *event)
{
    return pccp_cuda_hold(device, (uintptr_t)device->side_stream, event);
}

int pccp_cuda_wait(const struct pccp_cuda_event *event)
{
    int mode, error = pccp_cuda_enter(event->device, &mode);
    if (error != 0)
        return error;
    error = event->device->driver->event_synchronize(event->handle);
    return pccp_cuda_leave(event->device, mode, error);
}

int pccp_cuda_query(const struct pccp_cuda_event *event, int *is_over)
{
    *is_over = 0;
    int mode, error = pccp_cuda_enter(event->device, &mode);
    if (error != 0)
        return error;
    int state = event->device->driver->event_query(event->handle);
    error = pccp_cuda_leave(event->device, mode, state == CUDA_ERROR_NOT_READY ? 0 : state);
    *is_over = error == 0 && state == 0;
    return error;
}

/* ---------------------------------------------------------------- copies */

static int copy_each(const struct pccp_cuda_device *device, const struct pccp_cuda_copy *copies,
                     size_t count, bool is_to_host)
{
    const struct pccp_cuda *driver = device->driver;
    for (size_t i = 0; i < count; i++) {
        struct pccp_cuda_copy copy = copies[i];
        int error = 0;
        if (copy.byte_count == 0)
            continue;
        if (is_to_host)
            error = driver->copy_to_host(copy.host, copy.device, copy.byte_count,
                                         device->side_stream);
        else
            error = driver->copy_to_device(copy.device, copy.host, copy.byte_count,
                                           device->side_stream);
        if (error != 0)
            return error;
    }
    return 0;
}

struct batch {
    CUdeviceptr to[BATCH_COPY_MAXIMUM], from[BATCH_COPY_MAXIMUM];
    size_t byte_counts[BATCH_COPY_MAXIMUM];
};

static int queue_batch(const struct pccp_cuda_device *device, struct batch *batch, size_t count)
{
    const struct pccp_cuda *driver = device->driver;
    struct CUmemcpyAttributes attributes = {.srcAccessOrder = SOURCE_ACCESS_STREAM};
    size_t first = 0, failed;
    if (driver->copy_batch)
        return driver->copy_batch(batch->to, batch->from, batch->byte_counts, count, &attributes,
                                  &first, 1, device->side_stream);
    return driver->copy_batch_12(batch->to, batch->from, batch->byte_counts, count, &attributes,
                                 &first, 1, &failed, device->side_stream);
}

/* At most BATCH_COPY_MAXIMUM copies. */
static int copy_together(const struct pccp_cuda_device *device, struct batch *batch,
                         const struct pccp_cuda_copy *copies, size_t count, bool is_to_host)
{
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        CUdeviceptr host = (CUdeviceptr)(uintptr_t)copies[i].host;
        if (copies[i].byte_count == 0) /* the driver refuses these */
            continue;
        batch->to[used] = is_to_host ? host : copies[i].device;
        batch->from[used] = is_to_host ? copies[i].device : host;
        batch->byte_counts[used++] = copies[i].byte_count;
    }
    int error = used > 1 ? queue_batch(device, batch, used) : CUDA_ERROR_NOT_SUPPORTED;
    /* Not every kind of memory can be part of a batch, such as host memory that is not registered.
     * A copy that was queued before the refusal only stores the same bytes twice. */
    if (error == CUDA_ERROR_INVALID_VALUE || error == CUDA_ERROR_NOT_SUPPORTED)
        return copy_each(device, copies, count, is_to_host);
    return error;
}

static int copy_all(const struct pccp_cuda_device *device, const struct pccp_cuda_copy *copies,
                    size_t count, bool is_to_host)
{
    bool has_batches = device->driver->copy_batch || device->driver->copy_batch_12;
    struct batch *batch = count > 1 && has_batches ? malloc(sizeof *batch) : NULL;
    if (!batch)
        return copy_each(device, copies, count, is_to_host);
    int error = 0;
    for (size_t done = 0; error == 0 && done < count; done += BATCH_COPY_MAXIMUM) {
        size_t left = count - done;
        error = copy_together(device, batch, copies + done,
                              left < BATCH_COPY_MAXIMUM ? left : BATCH_COPY_MAXIMUM, is_to_host);
    }
    free(batch);
    return error;
}

static int copy(struct pccp_cuda_device *device, const struct pccp_cuda_copy *copies, size_t count,
                bool is_to_host)
{
    int mode, error = pccp_cuda_enter(device, &mode);
    if (error != 0)
        return error;
    return pccp_cuda_leave(device, mode, copy_all(device, copies, count, is_to_host));
}

int pccp_cuda_to_host(struct pccp_cuda_device *device, const struct pccp_cuda_copy *copies,
                      size_t count)
{
    return copy(device, copies, count, true);
}

int pccp_cuda_to_device(struct pccp_cuda_device *device, const struct pccp_cuda_copy *copies,
                        size_t count)
{
    return copy(device, copies, count, false);
}
