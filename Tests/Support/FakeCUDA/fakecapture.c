/* Stream capture: which calls it takes in, refuses, and which of them spoil it. */
#include "fakestate.h"

#include <string.h>

BEGIN_HIDDEN

enum { MODE_GLOBAL = 0, MODE_RELAXED = 2 };
enum { STATUS_NONE, STATUS_ACTIVE, STATUS_INVALIDATED };

struct capture {
    uint64_t serial; /* 0: none */
    int mode;
    pthread_t thread;
    const struct stream *origin;
    bool is_invalid;
};

static struct capture captures[capture_maximum];
static uint64_t serial;

void fc_reset_captures(void) { memset(captures, 0, sizeof captures); }

static struct capture *find_capture(uint64_t wanted)
{
    for (int i = 0; i < capture_maximum; i++)
        if (captures[i].serial == wanted)
            return &captures[i];
    return NULL;
}

bool fc_is_capturing(struct stream *stream) { return stream->capture != 0; }

void fc_invalidate_capture(struct stream *stream)
{
    find_capture(stream->capture)->is_invalid = true;
}

/* Whether a blocking stream of the device captures, so that the legacy stream would have to. */
bool fc_is_implicitly_capturing(const struct stream *stream)
{
    if (stream != fc_state.devices[stream->device].legacy)
        return false;
    for (int i = 0; i < stream_maximum; i++) {
        const struct stream *other = &fc_state.streams[i];
        if (other->is_used && other->is_blocking && other->capture != 0 &&
            other->device == stream->device)
            return true;
    }
    return false;
}

int fc_check_capture(struct stream *stream)
{
    if (fc_is_implicitly_capturing(stream)) {
        for (int i = 0; i < stream_maximum; i++)
            if (fc_state.streams[i].is_used && fc_state.streams[i].capture != 0 &&
                fc_state.streams[i].device == stream->device)
                fc_invalidate_capture(&fc_state.streams[i]);
        return CAPTURE_IMPLICIT;
    }
    bool is_invalid = stream->capture != 0 && find_capture(stream->capture)->is_invalid;
    return is_invalid ? CAPTURE_INVALIDATED : SUCCESS;
}

int fc_refuse_unsafe_call(void)
{
    int mode = fc_this_thread()->capture_mode, result = SUCCESS;
    if (mode == MODE_RELAXED)
        return SUCCESS;
    for (int i = 0; i < capture_maximum; i++) {
        struct capture *capture = &captures[i];
        if (capture->serial == 0)
            continue;
        bool is_own = pthread_equal(capture->thread, pthread_self());
        bool is_in_the_way = is_own ? capture->mode != MODE_RELAXED
                                    : mode == MODE_GLOBAL && capture->mode == MODE_GLOBAL;
        if (!is_in_the_way)
            continue;
        capture->is_invalid = true;
        result = CAPTURE_UNSUPPORTED;
    }
    return result;
}

int fc_join_capture(struct stream *stream, uint64_t wanted)
{
    if (!find_capture(wanted))
        return CAPTURED_EVENT;
    if (stream == fc_state.devices[stream->device].legacy)
        return CAPTURE_IMPLICIT;
    if (stream->capture != 0 && stream->capture != wanted)
        return CAPTURE_ISOLATION;
    stream->capture = wanted;
    return SUCCESS;
}

CUresult cuStreamBeginCapture_v2(CUstream handle, int mode)
{
    int error = fc_begin(CALL_cuStreamBeginCapture_v2, NEED_CONTEXT);
    if (error)
        return error;
    struct stream *stream = fc_find_stream(handle, &error);
    if (!stream)
        return fc_end(error);
    if (stream == fc_state.devices[stream->device].legacy)
        return fc_end(CAPTURE_UNSUPPORTED);
    struct capture *capture = find_capture(0);
    if (stream->capture != 0 || !capture || mode < MODE_GLOBAL || mode > MODE_RELAXED)
        return fc_end(INVALID_VALUE);
    *capture = (struct capture){++serial, mode, pthread_self(), stream, false};
    stream->capture = serial;
    return fc_end(SUCCESS);
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph)
{
    int error = fc_begin(CALL_cuStreamEndCapture, NEED_CONTEXT);
    if (error)
        return error;
    struct stream *stream = fc_find_stream(handle, &error);
    if (!stream)
        return fc_end(error);
    struct capture *capture = stream->capture != 0 ? find_capture(stream->capture) : NULL;
    if (!capture || capture->origin != stream)
        return fc_end(CAPTURE_UNMATCHED);
    if (capture->mode != MODE_RELAXED && !pthread_equal(capture->thread, pthread_self()))
        return fc_end(CAPTURE_WRONG_THREAD);
    for (int i = 0; i < stream_maximum; i++)
        if (fc_state.streams[i].capture == capture->serial)
            fc_state.streams[i].capture = 0;
    error = capture->is_invalid ? CAPTURE_INVALIDATED : SUCCESS;
    *graph = capture->is_invalid ? 0 : capture->serial;
    *capture = (struct capture){0};
    return fc_end(error);
}

CUresult cuStreamIsCapturing(CUstream handle, int *status)
{
    int error = fc_begin(CALL_cuStreamIsCapturing, NEED_CONTEXT);
    if (error)
        return error;
    const struct stream *stream = fc_find_stream(handle, &error);
    if (!stream)
        return fc_end(error);
    /* This question alone spoils nothing. */
    if (fc_is_implicitly_capturing(stream))
        return fc_end(CAPTURE_IMPLICIT);
    *status = STATUS_NONE;
    if (stream->capture != 0)
        *status = find_capture(stream->capture)->is_invalid ? STATUS_INVALIDATED : STATUS_ACTIVE;
    return fc_end(SUCCESS);
}

CUresult cuThreadExchangeStreamCaptureMode(int *mode)
{
    int refused = fc_begin(CALL_cuThreadExchangeStreamCaptureMode, NEED_INIT);
    if (refused)
        return refused;
    if (*mode < MODE_GLOBAL || *mode > MODE_RELAXED)
        return fc_end(INVALID_VALUE);
    struct thread *thread = fc_this_thread();
    int before = thread->capture_mode;
    thread->capture_mode = *mode;
    *mode = before;
    return fc_end(SUCCESS);
}

END_HIDDEN
