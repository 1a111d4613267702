/* What is queued: events, waits for them, and copies. */
#include "fakestate.h"

#include <stdlib.h>

BEGIN_HIDDEN

/* ---------------------------------------------------------------- events */

static struct event {
    unsigned generation;
    bool is_used, is_spinning;
    int device;
    struct record *record; /* NULL until it is recorded */
    uint64_t capture;
} events[event_maximum];

static CUevent handle_of_event(const struct event *event)
{
    return make_handle(KIND_EVENT, event->generation, (size_t)(event - events));
}

static struct event *find_event(CUevent handle)
{
    struct event *event = is_handle(handle, KIND_EVENT, event_maximum) ? &events[index_of(handle)]
                                                                       : NULL;
    return event && event->is_used && handle == handle_of_event(event) ? event : NULL;
}

static void free_event(struct event *event)
{
    fc_drop_record(event->record);
    *event = (struct event){.generation = event->generation};
}

void fc_free_events(int device)
{
    for (int i = 0; i < event_maximum; i++)
        if (events[i].is_used && events[i].device == device)
            free_event(&events[i]);
}

void fc_clear_events(void)
{
    for (int i = 0; i < event_maximum; i++)
        if (events[i].is_used)
            free_event(&events[i]);
}

int fakecuda_live_events(void)
{
    fc_lock_state();
    int count = 0;
    for (int i = 0; i < event_maximum; i++)
        count += events[i].is_used;
    fc_unlock_state();
    return count;
}

CUresult cuEventCreate(CUevent *out, unsigned flags)
{
    enum { BLOCKING_SYNC = 1 };
    int refused = fc_begin(CALL_cuEventCreate, NEED_CONTEXT);
    if (refused)
        return refused;
    static size_t cursor;
    for (size_t tried = 0; tried < event_maximum; tried++) {
        struct event *event = &events[cursor++ % event_maximum];
        if (event->is_used)
            continue;
        *event = (struct event){
            .generation = event->generation + 1,
            .is_used = true,
            .is_spinning = !(flags & BLOCKING_SYNC),
            .device = fc_current_device(),
        };
        *out = handle_of_event(event);
        return fc_end(SUCCESS);
    }
    return fc_end(OUT_OF_MEMORY);
}

CUresult cuEventRecord(CUevent handle, CUstream stream_handle)
{
    int error = fc_begin(CALL_cuEventRecord, NEED_CONTEXT);
    if (error)
        return error;
    struct event *event = find_event(handle);
    struct stream *stream = fc_usable_stream(stream_handle, &error);
    if (!stream || !event || event->device != stream->device)
        return fc_end(stream ? INVALID_HANDLE : error);
    fc_drop_record(event->record);
    event->record = NULL;
    event->capture = stream->capture;
    if (!fc_is_capturing(stream))
        event->record = fc_enqueue_record(stream);
    return fc_end(SUCCESS);
}

/* An event that somebody outside of streams asks for. */
static int check_event(const struct event *event)
{
    if (!event)
        return INVALID_HANDLE;
    if (event->capture != 0)
        return CAPTURED_EVENT;
    return fc_state.devices[event->device].fatal_error;
}

CUresult cuEventQuery(CUevent handle)
{
    int error = fc_begin(CALL_cuEventQuery, NEED_SAFETY);
    if (error)
        return error;
    struct event *event = find_event(handle);
    if ((error = check_event(event)) != SUCCESS || !event->record)
        return fc_end(error);
    if (!event->record->is_done)
        return fc_end(NOT_READY);
    fc_adopt(&event->record->edge);
    return fc_end(event->record->error);
}

CUresult cuEventSynchronize(CUevent handle)
{
    int error = fc_begin(CALL_cuEventSynchronize, NEED_SAFETY);
    if (error)
        return error;
    struct event *event = find_event(handle);
    if ((error = check_event(event)) != SUCCESS || !event->record)
        return fc_end(error);
    struct record *record = event->record;
    fc_use_record(record);
    /* Without its flag, the thread burns a processor, as the driver's does. */
    while (event->is_spinning && !record->is_done && !fc_state.has_ended) {
        fc_unlock_state();
        fc_lock_state();
    }
    return fc_end(fc_await_record(record));
}

CUresult cuEventDestroy_v2(CUevent handle)
{
    int error = fc_begin(CALL_cuEventDestroy_v2, NEED_ANY_CONTEXT);
    if (error)
        return error;
    struct event *event = find_event(handle);
    if (!event)
        return fc_end_cleanup(INVALID_HANDLE);
    free_event(event);
    return fc_end_cleanup(SUCCESS);
}

static int wait_in_stream(struct stream *stream, struct event *event)
{
    if (event->capture != 0)
        return fc_join_capture(stream, event->capture);
    if (!event->record)
        return SUCCESS;
    if (fc_is_capturing(stream)) {
        fc_invalidate_capture(stream);
        return CAPTURE_ISOLATION;
    }
    struct op *op = fc_new_op(OP_WAIT);
    op->record = event->record;
    fc_use_record(op->record);
    fc_enqueue(stream, op);
    return SUCCESS;
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned flags)
{
    int error = fc_begin(CALL_cuStreamWaitEvent, NEED_CONTEXT);
    if (error)
        return error;
    struct event *event = find_event(event_handle);
    struct stream *stream = fc_usable_stream(handle, &error);
    if (!stream || !event || flags != 0)
        return fc_end(!stream ? error : !event ? INVALID_HANDLE : INVALID_VALUE);
    return fc_end(wait_in_stream(stream, event));
}

/* ---------------------------------------------------------------- copies */

static void queue_copy(struct stream *stream, struct op copy)
{
    copy.is_pinned = fc_is_registered(stream->device, copy.host, copy.byte_count);
    fc_state.unpinned_copies += !copy.is_pinned;
    struct op *op = fc_new_op(OP_COPY);
    *op = copy;
    fc_enqueue(stream, op);
}

/* What the driver sees at once; the rest shows when the copy is due. */
static bool is_plausible(const struct op *copy)
{
    return copy->host && fc_find_allocation(copy->address);
}

static int copy_one(CUstream handle, struct op copy, bool is_awaited)
{
    int error;
    struct stream *stream = fc_usable_stream(handle, &error);
    if (!stream)
        return error;
    if (copy.byte_count == 0)
        return SUCCESS;
    if (!is_plausible(&copy))
        return INVALID_VALUE;
    if (fc_is_capturing(stream))
        return SUCCESS;
    queue_copy(stream, copy);
    return is_awaited ? fc_wait_for_stream(stream) : SUCCESS;
}

static struct op to_host(void *to, CUdeviceptr from, size_t byte_count)
{
    return (struct op){
        .kind = OP_COPY, .host = to, .address = from, .byte_count = byte_count, .is_to_host = true};
}

static struct op to_device(CUdeviceptr to, const void *from, size_t byte_count)
{
    return (struct op){
        .kind = OP_COPY, .host = (void *)from, .address = to, .byte_count = byte_count};
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t byte_count)
{
    int refused = fc_begin(CALL_cuMemcpyDtoH_v2, NEED_SAFETY);
    return refused ? refused : fc_end(copy_one(0, to_host(to, from, byte_count), true));
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t byte_count)
{
    int refused = fc_begin(CALL_cuMemcpyHtoD_v2, NEED_SAFETY);
    return refused ? refused : fc_end(copy_one(0, to_device(to, from, byte_count), true));
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t byte_count, CUstream stream)
{
    int refused = fc_begin(CALL_cuMemcpyDtoHAsync_v2, NEED_CONTEXT);
    return refused ? refused : fc_end(copy_one(stream, to_host(to, from, byte_count), false));
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t byte_count, CUstream stream)
{
    int refused = fc_begin(CALL_cuMemcpyHtoDAsync_v2, NEED_CONTEXT);
    return refused ? refused : fc_end(copy_one(stream, to_device(to, from, byte_count), false));
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t byte_count, CUstream handle)
{
    int error = fc_begin(CALL_cuMemsetD8Async, NEED_CONTEXT);
    if (error)
        return error;
    struct stream *stream = fc_usable_stream(handle, &error);
    if (!stream || fc_is_capturing(stream) || byte_count == 0)
        return fc_end(stream ? SUCCESS : error);
    if (!fc_find_allocation(to))
        return fc_end(INVALID_VALUE);
    struct op *op = fc_new_op(OP_FILL);
    op->address = to;
    op->byte_count = byte_count;
    op->value = value;
    fc_enqueue(stream, op);
    return fc_end(SUCCESS);
}

/* ---------------------------------------------------------------- batches */

struct batch {
    CUdeviceptr *to, *from;
    size_t *byte_counts;
    size_t count;
};

static struct op copy_of_batch(const struct batch *batch, size_t index)
{
    CUdeviceptr to = batch->to[index], from = batch->from[index];
    size_t byte_count = batch->byte_counts[index];
    return fc_find_allocation(from) ? to_host((void *)(uintptr_t)to, from, byte_count)
                                 : to_device(to, (const void *)(uintptr_t)from, byte_count);
}

/* Host memory must be registered here, on devices that cannot read all of it. */
static bool is_good_batch(const struct batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        struct op copy = copy_of_batch(batch, i);
        if (copy.byte_count == 0 || !is_plausible(&copy) ||
            !fc_is_registered(fc_current_device(), copy.host, copy.byte_count))
            return false;
    }
    return batch->count > 0;
}

static int queue_batch(struct stream *stream, const struct batch *batch)
{
    size_t *order = malloc(batch->count * sizeof *order);
    if (!order)
        return OUT_OF_MEMORY;
    for (size_t i = 0; i < batch->count; i++) {
        size_t other = fc_next_random(&stream->random) % (i + 1);
        order[i] = order[other];
        order[other] = i;
    }
    for (size_t i = 0; i < batch->count; i++) {
        struct op copy = copy_of_batch(batch, order[i]);
        copy.is_prompt = i > 0;
        queue_copy(stream, copy);
    }
    free(order);
    return SUCCESS;
}

static int copy_batch(CUstream handle, struct batch batch,
                      const struct fakecuda_attributes *attributes, const size_t *indices,
                      size_t attribute_count)
{
    int error;
    /* Neither default stream takes batches. */
    if (handle <= PER_THREAD)
        return INVALID_HANDLE;
    struct stream *stream = fc_usable_stream(handle, &error);
    if (!stream)
        return error;
    if (fc_is_capturing(stream)) {
        fc_invalidate_capture(stream);
        return CAPTURE_UNSUPPORTED;
    }
    bool has_attributes = attribute_count > 0 && attribute_count <= batch.count && indices[0] == 0;
    for (size_t i = 0; has_attributes && i < attribute_count; i++) {
        unsigned order = attributes[i].source_access_order;
        has_attributes = order >= 1 && order <= 3;
    }
    if (!has_attributes || !is_good_batch(&batch))
        return INVALID_VALUE;
    return queue_batch(stream, &batch);
}

CUresult cuMemcpyBatchAsync(CUdeviceptr *to, CUdeviceptr *from, size_t *byte_counts, size_t count,
                            struct fakecuda_attributes *attributes, size_t *attribute_indices,
                            size_t attribute_count, size_t *failed_index, CUstream stream)
{
    int refused = fc_begin(CALL_cuMemcpyBatchAsync, NEED_CONTEXT);
    if (refused)
        return refused;
    if (fc_state.settings.version < 12080)
        return fc_end(NOT_SUPPORTED);
    struct batch batch = {to, from, byte_counts, count};
    int error = copy_batch(stream, batch, attributes, attribute_indices, attribute_count);
    if (error != SUCCESS)
        *failed_index = SIZE_MAX;
    return fc_end(error);
}

CUresult cuMemcpyBatchAsync_v2(CUdeviceptr *to, CUdeviceptr *from, size_t *byte_counts,
                               size_t count, struct fakecuda_attributes *attributes,
                               size_t *attribute_indices, size_t attribute_count, CUstream stream)
{
    int refused = fc_begin(CALL_cuMemcpyBatchAsync_v2, NEED_CONTEXT);
    if (refused)
        return refused;
    if (fc_state.settings.version < 13000)
        return fc_end(NOT_SUPPORTED);
    struct batch batch = {to, from, byte_counts, count};
    return fc_end(copy_batch(stream, batch, attributes, attribute_indices, attribute_count));
}

END_HIDDEN
