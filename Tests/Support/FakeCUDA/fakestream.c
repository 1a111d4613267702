/* Streams: a thread each, with a queue. */
#include "fakestate.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

BEGIN_HIDDEN

/* ---------------------------------------------------------------- parts of queues */

static struct op *free_ops;
static struct record *free_records;

/* Memory that no sanitizer knows: it would take the first use, and each reuse, for a race. */
static void *hidden_memory(size_t byte_count)
{
    long start = syscall(SYS_mmap, NULL, byte_count, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == -1)
        abort();
    return (void *)start;
}

enum { at_once = 512 };

struct op *fc_new_op(enum op_kind kind)
{
    if (!free_ops) {
        struct op *more = hidden_memory(at_once * sizeof *more);
        for (int i = 0; i < at_once; i++) {
            more[i].next = free_ops;
            free_ops = &more[i];
        }
    }
    struct op *op = free_ops;
    free_ops = op->next;
    memset(op, 0, sizeof *op);
    op->kind = kind;
    return op;
}

static struct record *new_record(void)
{
    if (!free_records) {
        struct record *more = hidden_memory(at_once * sizeof *more);
        for (int i = 0; i < at_once; i++) {
            more[i].next = free_records;
            free_records = &more[i];
        }
    }
    struct record *record = free_records;
    free_records = record->next;
    memset(record, 0, sizeof *record);
    return record;
}

void fc_use_record(struct record *record) { record->use_count++; }

void fc_drop_record(struct record *record)
{
    if (!record || --record->use_count > 0)
        return;
    record->next = free_records;
    free_records = record;
}

static void free_op(struct op *op)
{
    fc_drop_record(op->record);
    op->next = free_ops;
    free_ops = op;
}

/* ---------------------------------------------------------------- what a stream does */

uint64_t fc_next_random(uint64_t *state_of_random)
{
    uint64_t x = *state_of_random += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static bool is_lost(const struct stream *stream)
{
    return fc_state.devices[stream->device].fatal_error != 0;
}

static void sleep_until(uint64_t nanoseconds)
{
    while (!fc_state.is_stopping && fc_now_nanoseconds() < nanoseconds)
        fc_wait_for_change(nanoseconds);
}

static uint64_t random_delay(struct stream *stream)
{
    const struct settings *settings = &fc_state.settings;
    uint64_t span = settings->delay_maximum - settings->delay_minimum + 1;
    return (settings->delay_minimum + fc_next_random(&stream->random) % span) * 1000;
}

/* When the bytes will have passed the bus, behind those that are on it. */
static uint64_t time_of_arrival(const struct stream *stream, const struct op *op)
{
    uint64_t now = fc_now_nanoseconds();
    if (fc_state.settings.bandwidth == 0 || op->kind != OP_COPY)
        return now;
    uint64_t *is_free = &fc_state.devices[stream->device].bus_free_nanoseconds[!op->is_to_host];
    uint64_t start = *is_free > now ? *is_free : now;
    double seconds = (double)op->byte_count / (double)fc_state.settings.bandwidth;
    *is_free = start + (uint64_t)(seconds * 1e9);
    return *is_free;
}

static void move_bytes(const struct op *op, char *device, size_t from, size_t count)
{
    char *host = op->host;
    if (op->kind == OP_FILL) {
        fc_show_copy(device + from, NULL, count);
        memset(device + from, op->value, count);
    } else if (op->is_to_host) {
        fc_show_copy(host + from, device + from, count);
        memcpy(host + from, device + from, count);
    } else {
        fc_show_copy(device + from, host + from, count);
        memcpy(device + from, host + from, count);
    }
}

/* In two pieces, either of which may come first: who looks too early can see half of it. */
static void move_in_pieces(struct stream *stream, const struct op *op, char *device)
{
    uint64_t chance = fc_next_random(&stream->random);
    size_t middle = op->byte_count / 2;
    bool is_reversed = chance & 1, has_pause = !op->is_prompt && (chance & 2);
    uint64_t pause = has_pause ? random_delay(stream) / 4 : 0;
    fc_unlock_state();
    if (is_reversed)
        move_bytes(op, device, middle, op->byte_count - middle);
    else
        move_bytes(op, device, 0, middle);
    fc_lock_state();
    if (pause != 0)
        sleep_until(fc_now_nanoseconds() + pause);
    fc_unlock_state();
    if (is_reversed)
        move_bytes(op, device, 0, middle);
    else
        move_bytes(op, device, middle, op->byte_count - middle);
    fc_lock_state();
}

static int move_all(struct stream *stream, struct op *op)
{
    if (op->is_pinned && !fc_is_registered(stream->device, op->host, op->byte_count))
        return ILLEGAL_ADDRESS;
    struct allocation *allocation = fc_use_allocation(op->address, op->byte_count);
    if (!allocation)
        return ILLEGAL_ADDRESS;
    move_in_pieces(stream, op, allocation->view + (op->address - allocation->address));
    bool is_pinned = !op->is_pinned || fc_is_registered(stream->device, op->host, op->byte_count);
    if (!fc_drop_allocation(allocation) || !is_pinned)
        return ILLEGAL_ADDRESS;
    if (op->kind == OP_COPY)
        fc_state.copied_bytes[op->is_to_host ? FAKECUDA_TO_HOST : FAKECUDA_TO_DEVICE] +=
            op->byte_count;
    return SUCCESS;
}

static void run_copy(struct stream *stream, struct op *op)
{
    uint64_t arrival = time_of_arrival(stream, op);
    if (!op->is_prompt) {
        uint64_t late = fc_now_nanoseconds() + random_delay(stream);
        arrival = late > arrival ? late : arrival;
    }
    sleep_until(arrival);
    if (fc_state.is_stopping || is_lost(stream))
        return;
    bool is_sticky = false;
    int error = op->kind == OP_COPY ? fc_take_failure(CALL_copy, &is_sticky) : SUCCESS;
    if (error == SUCCESS) {
        error = move_all(stream, op);
        is_sticky = true;
    }
    if (error == SUCCESS)
        return;
    if (is_sticky && !is_lost(stream))
        fc_state.devices[stream->device].fatal_error = error;
    else if (stream->error == SUCCESS)
        stream->error = error;
}

static void run_record(struct stream *stream, struct record *record)
{
    int fatal_error = fc_state.devices[stream->device].fatal_error;
    record->error = fatal_error != 0 ? fatal_error : stream->error;
    stream->error = SUCCESS;
    record->is_done = true;
    fc_publish(&record->edge);
}

static void run_wait(struct record *record)
{
    while (!record->is_done && !fc_state.is_stopping)
        fc_wait_for_change(0);
    if (record->is_done)
        fc_adopt(&record->edge);
}

static void run_function(struct stream *stream, const struct op *op)
{
    if (is_lost(stream))
        return;
    fc_unlock_state();
    fc_this_thread()->is_callback = true;
    op->function(op->host);
    fc_this_thread()->is_callback = false;
    fc_lock_state();
}

static void run(struct stream *stream, struct op *op)
{
    fc_adopt(&op->edge);
    switch (op->kind) {
    case OP_COPY:
    case OP_FILL: run_copy(stream, op); return;
    case OP_RECORD: run_record(stream, op->record); return;
    case OP_WAIT: run_wait(op->record); return;
    case OP_FUNCTION: run_function(stream, op); return;
    }
}

static void *serve(void *argument)
{
    struct stream *stream = argument;
    fc_lock_state();
    for (;;) {
        while (!stream->first && !stream->is_closing && !fc_state.is_stopping)
            fc_wait_for_change(0);
        if (!stream->first || fc_state.is_stopping)
            break;
        struct op *op = stream->first;
        run(stream, op);
        stream->first = op->next;
        free_op(op);
        fc_announce();
    }
    for (struct op *op; (op = stream->first);) {
        stream->first = op->next;
        free_op(op);
    }
    stream->has_exited = true;
    fc_announce();
    fc_unlock_state();
    return NULL;
}

/* ---------------------------------------------------------------- queueing */

static void append(struct stream *stream, struct op *op)
{
    fc_publish(&op->edge);
    if (stream->first)
        stream->last->next = op;
    else
        stream->first = op;
    stream->last = op;
    fc_announce();
}

static struct record *append_record(struct stream *stream)
{
    struct op *op = fc_new_op(OP_RECORD);
    struct record *record = op->record = new_record();
    record->use_count = 2; /* the queue's and the caller's */
    append(stream, op);
    return record;
}

static void append_wait(struct stream *stream, struct stream *other)
{
    struct op *op = fc_new_op(OP_WAIT);
    op->record = append_record(other);
    append(stream, op);
}

/* The legacy stream and the blocking ones wait for each other, also for what seems to be over: the
 * order is guaranteed, so that the edge is needed. */
static void synchronize_with_legacy(struct stream *stream)
{
    struct stream *legacy = fc_state.devices[stream->device].legacy;
    if (!legacy || !stream->is_blocking)
        return;
    if (stream != legacy) {
        append_wait(stream, legacy);
        return;
    }
    for (int i = 0; i < stream_maximum; i++) {
        struct stream *other = &fc_state.streams[i];
        if (other != legacy && other->is_used && other->is_blocking && !other->is_closing &&
            other->device == legacy->device)
            append_wait(legacy, other);
    }
}

void fc_enqueue(struct stream *stream, struct op *op)
{
    synchronize_with_legacy(stream);
    append(stream, op);
}

struct record *fc_enqueue_record(struct stream *stream)
{
    synchronize_with_legacy(stream);
    return append_record(stream);
}

int fc_await_record(struct record *record)
{
    while (!record->is_done && !fc_state.is_stopping && !fc_state.has_ended)
        fc_wait_for_change(0);
    int error = record->is_done ? record->error : DEINITIALIZED;
    if (record->is_done)
        fc_adopt(&record->edge);
    fc_drop_record(record);
    return error;
}

void fc_wait_until_idle(int device)
{
    for (int i = 0; i < stream_maximum; i++) {
        struct stream *stream = &fc_state.streams[i];
        while (stream->is_used && stream->device == device && stream->first)
            fc_wait_for_change(0);
    }
}

/* ---------------------------------------------------------------- threads */

static struct stream *free_slot(void)
{
    for (int i = 0; i < stream_maximum; i++)
        if (!fc_state.streams[i].is_used)
            return &fc_state.streams[i];
    /* Only then one whose thread has ended: to join it is an edge that a device does not give. */
    for (int i = 0; i < stream_maximum; i++)
        if (fc_state.streams[i].has_exited) {
            pthread_join(fc_state.streams[i].thread, NULL);
            return &fc_state.streams[i];
        }
    return NULL;
}

struct stream *fc_new_stream(int device, bool is_blocking)
{
    struct stream *stream = free_slot();
    if (!stream)
        return NULL;
    unsigned generation = stream->generation + 1;
    *stream = (struct stream){
        .generation = generation,
        .device = device,
        .is_blocking = is_blocking,
        .random = fc_state.settings.seed * 1000003u + (uint64_t)(stream - fc_state.streams),
    };
    /* Signals belong to the application. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    stream->is_used = pthread_create(&stream->thread, NULL, serve, stream) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return stream->is_used ? stream : NULL;
}

/* What is queued is still done. */
void fc_close_stream(struct stream *stream)
{
    stream->is_closing = true;
    fc_announce();
}

void fc_close_streams(int device)
{
    for (int i = 0; i < stream_maximum; i++)
        if (fc_state.streams[i].is_used && fc_state.streams[i].device == device)
            fc_close_stream(&fc_state.streams[i]);
}

void fc_stop_streams(void)
{
    fc_state.is_stopping = true;
    fc_announce();
    for (int i = 0; i < stream_maximum; i++) {
        struct stream *stream = &fc_state.streams[i];
        if (!stream->is_used)
            continue;
        fc_unlock_state();
        pthread_join(stream->thread, NULL);
        fc_lock_state();
        stream->is_used = false;
    }
    fc_state.is_stopping = false;
}

END_HIDDEN
