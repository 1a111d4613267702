/* Controls of tests: settings, failures, counters, and functions by name. */
#include "fakestate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

BEGIN_HIDDEN

static const struct {
    const char *name;
    void *function;
} functions[] = {
#define NAME(name) {#name, (void *)name},
    EACH_CALL(NAME)
#undef NAME
};

static int find_call(const char *name)
{
    for (int i = 0; i < CALL_copy; i++)
        if (strcmp(functions[i].name, name) == 0)
            return i;
    if (strcmp(name, "copy") == 0)
        return CALL_copy;
    fprintf(stderr, "fakecuda: there is no call \"%s\"\n", name);
    abort();
}

void *fakecuda_lookup(const char *name)
{
    int version = fc_state.settings.version;
    if (version < 13000 && strcmp(name, "cuMemcpyBatchAsync_v2") == 0)
        return NULL;
    if (version < 12080 && strcmp(name, "cuMemcpyBatchAsync") == 0)
        return NULL;
    for (int i = 0; i < CALL_copy; i++)
        if (strcmp(functions[i].name, name) == 0)
            return functions[i].function;
    return NULL;
}

/* ---------------------------------------------------------------- failures */

static struct failure {
    int call, error;
    unsigned calls_before;
    bool is_set, is_sticky;
} failures[failure_maximum];

static void add_failure(int call, int error, unsigned calls_before, bool is_sticky)
{
    for (int i = 0; i < failure_maximum; i++)
        if (!failures[i].is_set) {
            failures[i] = (struct failure){call, error, calls_before, true, is_sticky};
            return;
        }
    abort();
}

int fc_take_failure(enum call call, bool *is_sticky)
{
    for (int i = 0; i < failure_maximum; i++) {
        struct failure *failure = &failures[i];
        if (!failure->is_set || failure->call != (int)call)
            continue;
        if (failure->calls_before > 0) {
            failure->calls_before--;
            continue;
        }
        failure->is_set = failure->is_sticky;
        *is_sticky = failure->is_sticky;
        return failure->error;
    }
    return SUCCESS;
}

void fakecuda_fail(const char *name, int error, unsigned after, int is_sticky)
{
    fc_lock_state();
    add_failure(find_call(name), error, after, is_sticky != 0);
    fc_unlock_state();
}

/* "name:error:after[:sticky]", several with commas between. */
static void read_failures(const char *text)
{
    while (*text) {
        char name[64], how[16] = "";
        int error;
        unsigned after;
        if (sscanf(text, "%63[^:]:%d:%u:%15[^,]", name, &error, &after, how) < 3) {
            fprintf(stderr, "fakecuda: FAKECUDA_FAIL is \"%s\"\n", text);
            abort();
        }
        add_failure(find_call(name), error, after, strcmp(how, "sticky") == 0);
        text += strcspn(text, ",");
        text += *text == ',';
    }
}

/* ---------------------------------------------------------------- settings */

static uint64_t number(const char *variable, uint64_t otherwise)
{
    const char *text = getenv(variable);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static void read_delay(struct settings *settings)
{
    unsigned minimum = 0, maximum = 200;
    const char *text = getenv("FAKECUDA_DELAY_US");
    if (text && (sscanf(text, "%u:%u", &minimum, &maximum) != 2 || minimum > maximum)) {
        fprintf(stderr, "fakecuda: FAKECUDA_DELAY_US is \"%s\"\n", text);
        abort();
    }
    settings->delay_minimum = minimum;
    settings->delay_maximum = maximum;
}

void fc_read_settings(uint64_t seed)
{
    struct settings *settings = &fc_state.settings;
    settings->seed = number("FAKECUDA_SEED", seed);
    read_delay(settings);
    settings->device_count = (int)number("FAKECUDA_DEVICES", 2);
    settings->bandwidth = number("FAKECUDA_BANDWIDTH", 0);
    settings->register_limit = number("FAKECUDA_REGISTER_LIMIT", UINT64_MAX);
    settings->version = (int)number("FAKECUDA_VERSION", 13000);
    settings->init_milliseconds = (int)number("FAKECUDA_INIT_MS", 0);
    memset(failures, 0, sizeof failures);
    const char *fail = getenv("FAKECUDA_FAIL");
    if (fail)
        read_failures(fail);
}

__attribute__((constructor)) static void configure(void) { fc_read_settings(1); }

#define SET(field, value)                                                                          \
    do {                                                                                           \
        fc_lock_state();                                                                           \
        fc_state.settings.field = value;                                                           \
        fc_unlock_state();                                                                         \
    } while (0)

void fakecuda_set_delay_us(unsigned minimum, unsigned maximum)
{
    SET(delay_minimum, minimum < maximum ? minimum : maximum);
    SET(delay_maximum, maximum);
}

void fakecuda_set_device_count(int count)
{
    SET(device_count, count < device_maximum ? count : device_maximum);
}

void fakecuda_set_bandwidth(uint64_t bytes_per_second) { SET(bandwidth, bytes_per_second); }
void fakecuda_set_register_limit(uint64_t byte_count) { SET(register_limit, byte_count); }
void fakecuda_set_version(int version) { SET(version, version); }

/* ---------------------------------------------------------------- counters */

static uint64_t read_counter(const uint64_t *counter)
{
    fc_lock_state();
    uint64_t value = *counter;
    fc_unlock_state();
    return value;
}

uint64_t fakecuda_calls(const char *name) { return read_counter(&fc_state.calls[find_call(name)]); }

uint64_t fakecuda_copied_bytes(int direction)
{
    return read_counter(&fc_state.copied_bytes[direction == FAKECUDA_TO_DEVICE]);
}

uint64_t fakecuda_unpinned_copies(void) { return read_counter(&fc_state.unpinned_copies); }
uint64_t fakecuda_registered_bytes(void) { return read_counter(&fc_state.registered_bytes); }

int fakecuda_live_streams(void)
{
    fc_lock_state();
    int count = 0;
    for (int i = 0; i < stream_maximum; i++) {
        const struct stream *stream = &fc_state.streams[i];
        count += stream->is_used && !stream->is_closing && !stream->is_internal;
    }
    fc_unlock_state();
    return count;
}

int fakecuda_retain_count(int device)
{
    fc_lock_state();
    int count = (int)fc_state.devices[device].retain_count;
    fc_unlock_state();
    return count;
}

END_HIDDEN
