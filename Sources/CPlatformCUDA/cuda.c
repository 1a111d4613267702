#define _GNU_SOURCE
#include "driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum {
    CAPTURE_MODE_RELAXED = 2,
    STREAM_NON_BLOCKING = 1,
    REGISTER_PORTABLE = 1,
};

/* ---------------------------------------------------------------- opening */

bool pccp_cuda_is_own(const struct pccp_cuda *driver) { return driver->process == getpid(); }

static int look_up(struct pccp_cuda *driver, pccp_cuda_lookup lookup, void *library, char *missing,
                   size_t missing_size)
{
#define FIND(field, name, parameters)                                                              \
    *(void **)&driver->field = lookup ? lookup(name) : dlsym(library, name);
#define REQUIRE(field, name, parameters)                                                           \
    FIND(field, name, parameters)                                                                  \
    if (!driver->field) {                                                                          \
        snprintf(missing, missing_size, "%s", name);                                               \
        return PCCP_CUDA_NO_FUNCTION;                                                              \
    }
    EACH_FUNCTION(REQUIRE)
    EACH_OPTIONAL_FUNCTION(FIND)
#undef REQUIRE
#undef FIND
    return 0;
}

static int open_driver(pccp_cuda_lookup lookup, struct pccp_cuda **out, char *missing,
                       size_t missing_size)
{
    void *library = NULL;
    /* Never unloaded: the driver has threads of its own. */
    if (!lookup && !(library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL))) {
        snprintf(missing, missing_size, "%s", dlerror());
        return PCCP_CUDA_NO_LIBRARY;
    }
    struct pccp_cuda *driver = calloc(1, sizeof *driver);
    if (!driver)
        return PCCP_CUDA_NO_MEMORY;
    driver->process = getpid();
    int error = look_up(driver, lookup, library, missing, missing_size);
    if (error == 0 && (error = driver->init(0)) != 0)
        pccp_cuda_error_text(driver, error, missing, missing_size);
    if (error != 0) {
        free(driver);
        return error;
    }
    *out = driver;
    return 0;
}

static struct pccp_cuda *_Atomic process_driver;
/* 0, or the process of which a thread is opening the driver. A mutex would not do: a child that is
 * forked meanwhile would wait for a thread that it does not have. */
static atomic_int opening_process;
static struct pccp_cuda *_Atomic others;

/* Until this thread may open the driver, or another thread has done so. */
static int wait_for_turn(void)
{
    static const struct timespec pause = {.tv_nsec = 1000000};
    for (;;) {
        int process = 0;
        if (atomic_compare_exchange_strong(&opening_process, &process, getpid()))
            return 0;
        if (process != getpid())
            return PCCP_CUDA_FORKED;
        nanosleep(&pause, NULL);
    }
}

static int open_once(struct pccp_cuda **out, char *missing, size_t missing_size)
{
    struct pccp_cuda *driver = atomic_load(&process_driver);
    int error = 0;
    if (!driver) {
        if ((error = wait_for_turn()) != 0)
            return error;
        if (!(driver = atomic_load(&process_driver))) {
            error = open_driver(NULL, &driver, missing, missing_size);
            if (error == 0)
                atomic_store(&process_driver, driver);
        }
        atomic_store(&opening_process, 0);
        if (error != 0)
            return error;
    }
    if (!pccp_cuda_is_own(driver))
        return PCCP_CUDA_FORKED;
    *out = driver;
    return 0;
}

int pccp_cuda_open(pccp_cuda_lookup lookup, struct pccp_cuda **driver, char *missing,
                   size_t missing_size)
{
    *driver = NULL;
    if (missing_size > 0)
        missing[0] = 0;
    if (!lookup)
        return open_once(driver, missing, missing_size);
    int error = open_driver(lookup, driver, missing, missing_size);
    if (error == 0) {
        struct pccp_cuda *next = atomic_load(&others);
        do
            (*driver)->next = next;
        while (!atomic_compare_exchange_weak(&others, &next, *driver));
    }
    return error;
}

static const char *own_text(int error)
{
    switch (error) {
    case 0: return "no error";
    case PCCP_CUDA_NO_LIBRARY: return "libcuda.so.1 cannot be loaded";
    case PCCP_CUDA_NO_FUNCTION: return "the driver is too old: it lacks a function";
    case PCCP_CUDA_NO_MEMORY: return "not enough host memory";
    case PCCP_CUDA_CAPTURING: return "the stream is capturing a CUDA graph";
    case PCCP_CUDA_FORKED: return "a child of fork(2) cannot use the driver of its parent";
    default: return NULL;
    }
}

void pccp_cuda_error_text(const struct pccp_cuda *driver, int error, char *text, size_t size)
{
    const char *own = own_text(error), *name = NULL, *words = NULL;
    if (own) {
        snprintf(text, size, "%s", own);
        return;
    }
    bool may_ask = driver && pccp_cuda_is_own(driver);
    if (!may_ask || driver->error_name(error, &name) != 0 || !name)
        name = "CUDA error";
    if (!may_ask || driver->error_string(error, &words) != 0 || !words)
        words = "";
    snprintf(text, size, "%s (%d)%s%s", name, error, *words ? ": " : "", words);
}

/* ---------------------------------------------------------------- contexts */

/* After these the context serves nothing any more: a new process is needed. */
static bool is_fatal(int error)
{
    switch (error) {
    case 4:   /* DEINITIALIZED: the process ends */
    case 46:  /* DEVICE_UNAVAILABLE */
    case 214: /* ECC_UNCORRECTABLE */
    case 220: /* NVLINK_UNCORRECTABLE */
    case 226: /* CONTAINED */
    case 700: /* ILLEGAL_ADDRESS */
    case 702: /* LAUNCH_TIMEOUT */
    case 709: /* CONTEXT_IS_DESTROYED */
    case 710: /* ASSERT */
    case 714: /* HARDWARE_STACK_ERROR */
    case 715: /* ILLEGAL_INSTRUCTION */
    case 716: /* MISALIGNED_ADDRESS */
    case 717: /* INVALID_ADDRESS_SPACE */
    case 718: /* INVALID_PC */
    case 719: /* LAUNCH_FAILED */
    case 721: /* TENSOR_MEMORY_LEAK */
    case 810: /* MPS_CLIENT_TERMINATED */
    case 999: /* UNKNOWN */
        return true;
    default: return false;
    }
}

/* Whichever call of whichever thread sees a fatal error first, the others must return it, too. The
 * first one is kept: it tells the cause. */
static int note(struct pccp_cuda_device *device, int error)
{
    int none = 0;
    if (is_fatal(error))
        atomic_compare_exchange_strong(&device->fatal_error, &none, error);
    return error;
}

static int enter_context(struct pccp_cuda_device *device, int *mode)
{
    const struct pccp_cuda *driver = device->driver;
    int error = driver->context_push(device->context);
    if (error != 0)
        return note(device, error);
    *mode = CAPTURE_MODE_RELAXED;
    error = driver->exchange_capture_mode(mode);
    CUcontext popped;
    if (error != 0)
        driver->context_pop(&popped);
    return note(device, error);
}

int pccp_cuda_enter(struct pccp_cuda_device *device, int *mode)
{
    if (!pccp_cuda_is_own(device->driver))
        return PCCP_CUDA_FORKED;
    int error = atomic_load(&device->fatal_error);
    return error != 0 ? error : enter_context(device, mode);
}

int pccp_cuda_enter_anyway(struct pccp_cuda_device *device, int *mode)
{
    return pccp_cuda_is_own(device->driver) ? enter_context(device, mode) : PCCP_CUDA_FORKED;
}

int pccp_cuda_leave(struct pccp_cuda_device *device, int mode, int result)
{
    CUcontext popped;
    int mode_error = device->driver->exchange_capture_mode(&mode);
    int pop_error = device->driver->context_pop(&popped);
    if (result == 0)
        result = mode_error != 0 ? mode_error : pop_error;
    note(device, result);
    int fatal_error = atomic_load(&device->fatal_error);
    return fatal_error != 0 ? fatal_error : result;
}

/* ---------------------------------------------------------------- devices */

void pccp_cuda_retain(struct pccp_cuda_device *device)
{
    atomic_fetch_add(&device->reference_count, 1);
}

void pccp_cuda_release(struct pccp_cuda_device *device)
{
    if (atomic_fetch_sub(&device->reference_count, 1) != 1)
        return;
    const struct pccp_cuda *driver = device->driver;
    int mode;
    if (device->side_stream && pccp_cuda_enter_anyway(device, &mode) == 0)
        pccp_cuda_leave(device, mode, driver->stream_destroy(device->side_stream));
    driver->context_release(device->handle);
    free(device);
}

int pccp_cuda_device_open(struct pccp_cuda *driver, int ordinal, struct pccp_cuda_device **out)
{
    *out = NULL;
    if (!pccp_cuda_is_own(driver))
        return PCCP_CUDA_FORKED;
    struct pccp_cuda_device *device = calloc(1, sizeof *device);
    if (!device)
        return PCCP_CUDA_NO_MEMORY;
    device->driver = driver;
    atomic_init(&device->reference_count, 1);
    int error = driver->device_get(&device->handle, ordinal);
    if (error == 0)
        error = driver->context_retain(&device->context, device->handle);
    if (error != 0) {
        free(device);
        return error;
    }
    int mode;
    error = pccp_cuda_enter(device, &mode);
    /* Of the lowest priority, which is the driver's default. */
    if (error == 0)
        error = pccp_cuda_leave(device, mode,
                                driver->stream_create(&device->side_stream, STREAM_NON_BLOCKING));
    if (error != 0)
        pccp_cuda_release(device);
    else
        *out = device;
    return error;
}

void pccp_cuda_device_close(struct pccp_cuda_device *device)
{
    int mode;
    if (!device || !pccp_cuda_is_own(device->driver))
        return;
    if (pccp_cuda_enter_anyway(device, &mode) == 0)
        pccp_cuda_leave(device, mode, device->driver->stream_synchronize(device->side_stream));
    pccp_cuda_release(device);
}

int pccp_cuda_drain(struct pccp_cuda_device *device)
{
    int mode, error = pccp_cuda_enter(device, &mode);
    if (error == 0)
        error = pccp_cuda_leave(
            device, mode, device->driver->stream_synchronize(device->side_stream));
    /* A device that has failed for good runs nothing any more. */
    return atomic_load(&device->fatal_error) != 0 ? 0 : error;
}

int pccp_cuda_device_name(struct pccp_cuda_device *device, char *text, size_t size)
{
    if (size > 0)
        text[0] = 0;
    int mode, error = pccp_cuda_enter(device, &mode);
    if (error != 0 || size == 0)
        return error != 0 ? error : pccp_cuda_leave(device, mode, 0);
    int limit = size < 4096 ? (int)size : 4096;
    error = device->driver->device_get_name(text, limit, device->handle);
    text[limit - 1] = 0;
    return pccp_cuda_leave(device, mode, error);
}

int pccp_cuda_allocate(struct pccp_cuda_device *device, size_t byte_count, uint64_t *address)
{
    CUdeviceptr found = 0;
    int mode, error = pccp_cuda_enter(device, &mode);
    if (error != 0)
        return error;
    error = device->driver->memory_allocate(&found, byte_count);
    *address = found;
    return pccp_cuda_leave(device, mode, error);
}

void pccp_cuda_free(struct pccp_cuda_device *device, uint64_t address)
{
    int mode;
    if (address != 0 && pccp_cuda_enter_anyway(device, &mode) == 0)
        pccp_cuda_leave(device, mode, device->driver->memory_free(address));
}

int pccp_cuda_register(struct pccp_cuda_device *device, void *start, size_t byte_count)
{
    int mode, error = pccp_cuda_enter(device, &mode);
    if (error != 0)
        return error;
    error = device->driver->host_register(start, byte_count, REGISTER_PORTABLE);
    return pccp_cuda_leave(device, mode, error);
}

/* Also after a fatal error: memory that stays registered could not be given back. */
int pccp_cuda_unregister(struct pccp_cuda_device *device, void *start)
{
    int mode, error = pccp_cuda_enter_anyway(device, &mode);
    if (error != 0)
        return error;
    return pccp_cuda_leave(device, mode, device->driver->host_unregister(start));
}
