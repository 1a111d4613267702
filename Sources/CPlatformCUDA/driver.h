/*
 * What the files of this folder share. NVIDIA's header is not needed to build: the types and
 * functions below are the part of the driver API that is used, as libcuda.so.1 exports it.
 */
#ifndef PCC_CUDA_INTERNAL_H
#define PCC_CUDA_INTERNAL_H

#include "cuda_driver.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;

struct CUmemLocation {
    unsigned type;
    int id;
};

struct CUmemcpyAttributes {
    unsigned srcAccessOrder;
    struct CUmemLocation srcLocHint, dstLocHint;
    unsigned flags;
};

enum { /* the values of CUresult that are treated in a way of their own */
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906,
};

/* Each without its suffix of a version: field, name in the library, parameters. */
#define EACH_FUNCTION(do)                                                                          \
    do(init, "cuInit", (unsigned flags))                                                           \
    do(error_name, "cuGetErrorName", (int error, const char **text))                               \
    do(error_string, "cuGetErrorString", (int error, const char **text))                           \
    do(device_get, "cuDeviceGet", (int *device, int ordinal))                                      \
    do(device_get_name, "cuDeviceGetName", (char *text, int size, int device))                     \
    do(context_retain, "cuDevicePrimaryCtxRetain", (CUcontext *context, int device))               \
    do(context_release, "cuDevicePrimaryCtxRelease_v2", (int device))                              \
    do(context_push, "cuCtxPushCurrent_v2", (CUcontext context))                                   \
    do(context_pop, "cuCtxPopCurrent_v2", (CUcontext *context))                                    \
    do(exchange_capture_mode, "cuThreadExchangeStreamCaptureMode", (int *mode))                    \
    do(memory_allocate, "cuMemAlloc_v2", (CUdeviceptr * address, size_t count))                    \
    do(memory_free, "cuMemFree_v2", (CUdeviceptr address))                                         \
    do(host_register, "cuMemHostRegister_v2", (void *start, size_t count, unsigned flags))         \
    do(host_unregister, "cuMemHostUnregister", (void *start))                                      \
    do(stream_create, "cuStreamCreate", (CUstream *stream, unsigned flags))                        \
    do(stream_destroy, "cuStreamDestroy_v2", (CUstream stream))                                    \
    do(stream_synchronize, "cuStreamSynchronize", (CUstream stream))                               \
    do(stream_wait_event, "cuStreamWaitEvent", (CUstream stream, CUevent event, unsigned flags))   \
    do(stream_is_capturing, "cuStreamIsCapturing", (CUstream stream, int *status))                 \
    do(event_create, "cuEventCreate", (CUevent *event, unsigned flags))                            \
    do(event_record, "cuEventRecord", (CUevent event, CUstream stream))                            \
    do(event_query, "cuEventQuery", (CUevent event))                                               \
    do(event_synchronize, "cuEventSynchronize", (CUevent event))                                   \
    do(event_destroy, "cuEventDestroy_v2", (CUevent event))                                        \
    do(copy_to_host, "cuMemcpyDtoHAsync_v2", (void *to, CUdeviceptr from, size_t, CUstream))       \
    do(copy_to_device, "cuMemcpyHtoDAsync_v2", (CUdeviceptr to, const void *from, size_t, CUstream))

/* Those that only a newer driver has: CUDA 13 dropped the index of the failed copy. */
#define EACH_OPTIONAL_FUNCTION(do)                                                                 \
    do(copy_batch, "cuMemcpyBatchAsync_v2",                                                        \
       (CUdeviceptr * to, CUdeviceptr * from, size_t * counts, size_t count,                       \
        struct CUmemcpyAttributes * attributes, size_t * attribute_indices,                        \
        size_t attribute_count, CUstream stream))                                                  \
    do(copy_batch_12, "cuMemcpyBatchAsync",                                                        \
       (CUdeviceptr * to, CUdeviceptr * from, size_t * counts, size_t count,                       \
        struct CUmemcpyAttributes * attributes, size_t * attribute_indices,                        \
        size_t attribute_count, size_t * failed_index, CUstream stream))

struct pccp_cuda {
#define DECLARE(field, name, parameters) int(*field) parameters;
    EACH_FUNCTION(DECLARE)
    EACH_OPTIONAL_FUNCTION(DECLARE)
#undef DECLARE
    pid_t process;
    struct pccp_cuda *next; /* of those with a lookup of their own, which nothing frees */
};

struct pccp_cuda_device {
    struct pccp_cuda *driver;
    CUcontext context;
    int handle;
    /* Copies of a save neither wait for the application's streams nor hold them up. */
    CUstream side_stream;
    /* Itself until it is closed, and each event: they end the context together. */
    atomic_long reference_count;
    /* The error that ended the context. Every later call returns it. */
    atomic_int fatal_error;
};

struct pccp_cuda_event {
    struct pccp_cuda_device *device;
    CUevent handle;
};

/* Whether this process opened the driver. */
bool pccp_cuda_is_own(const struct pccp_cuda *driver);

/*
 * Between these two, the device's context is current, and a stream capture that runs elsewhere in
 * the process forbids nothing. `mode` belongs to them. After an error of `enter`, no `leave`.
 */
int pccp_cuda_enter(struct pccp_cuda_device *device, int *mode);
/* For calls that clean up: also after a fatal error. */
int pccp_cuda_enter_anyway(struct pccp_cuda_device *device, int *mode);
/* Returns `result`, or its own error where that is 0. */
int pccp_cuda_leave(struct pccp_cuda_device *device, int mode, int result);

void pccp_cuda_retain(struct pccp_cuda_device *device);
void pccp_cuda_release(struct pccp_cuda_device *device);

#endif
