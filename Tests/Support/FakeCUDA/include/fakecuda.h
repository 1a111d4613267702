/*
 * A stand-in for NVIDIA's libcuda.so.1, for tests where there is no device: the same functions, and
 * controls for tests. It is linked into a test program, which passes `fakecuda_lookup` to
 * pccp_cuda_open; or `make` builds it as build/tests/fakecuda/libcuda.so.1, for LD_LIBRARY_PATH.
 *
 * What it is stricter about than a device:
 *  - The host cannot touch device memory: a load from its address is a SIGSEGV. `fakecuda_view`
 *    returns the address at which the stand-in has the bytes.
 *  - Each stream is a thread. Copies happen late, in two pieces, and out of order between streams;
 *    those of one batch happen in any order.
 *  - A copy is never over before its event, whatever the memory.
 *  - A stream serves only while its own context is current.
 *  - A copy from or to memory that is freed or unregistered before the copy is over, or beyond the
 *    end of an allocation, is the fatal error 700.
 *
 * ThreadSanitizer sees the order that a device guarantees, and no other: what comes before a copy
 * is queued comes before the copy; what a stream did before an event comes before whatever waited
 * for that event. So it reports the use of a buffer whose copy nobody waited for, and two streams
 * that use the same device memory without an event between them.
 */
#ifndef FAKECUDA_H
#define FAKECUDA_H

#include <stddef.h>
#include <stdint.h>

/* ---------------------------------------------------------------- controls */

/*
 * A fresh driver with default settings, over which the environment goes. Nothing else may be using
 * the driver. Handles and device addresses from before mean nothing afterwards.
 */
void fakecuda_reset(uint64_t seed);

/* How long cuInit takes: FAKECUDA_INIT_MS */

/* How late each copy begins; 0 to 200 microseconds unless set. FAKECUDA_DELAY_US=min:max */
void fakecuda_set_delay_us(unsigned minimum, unsigned maximum);
/* 2 unless set, at most 8; before cuInit. FAKECUDA_DEVICES */
void fakecuda_set_device_count(int count);
/* Of each device in each direction; 0 means no limit. FAKECUDA_BANDWIDTH */
void fakecuda_set_bandwidth(uint64_t bytes_per_second);
/* How much host memory can be registered; more is the error 2. FAKECUDA_REGISTER_LIMIT */
void fakecuda_set_register_limit(uint64_t byte_count);
/* As of cuDriverGetVersion. Without batches below 12080; with cuMemcpyBatchAsync_v2 from 13000 on,
 * which is the default. A library cannot hide a function: there it is the error 801.
 * FAKECUDA_VERSION */
void fakecuda_set_version(int version);
/*
 * After `after` more calls of `name` that succeed, one call fails with `error`. When `is_sticky`,
 * so do all later calls of the same name, and the current context is lost: each of its later calls
 * and events returns `error`. "copy" is not a call, but the copying itself, on its stream.
 * FAKECUDA_FAIL=name:error:after[:sticky][,…]
 */
void fakecuda_fail(const char *name, int error, unsigned after, int is_sticky);

/* NULL where there is no such function. */
void *fakecuda_lookup(const char *name);
/* The bytes of device memory, for the host; NULL for an address that is not allocated. */
void *fakecuda_view(uint64_t address);
/* Calls of one function since the reset, also those that failed. */
uint64_t fakecuda_calls(const char *name);
enum { FAKECUDA_TO_HOST = 0, FAKECUDA_TO_DEVICE = 1 };
uint64_t fakecuda_copied_bytes(int direction);
/* Copies that were queued with host memory that is not registered. */
uint64_t fakecuda_unpinned_copies(void);
uint64_t fakecuda_registered_bytes(void);
/* Calls in a child that was forked after cuInit; each returned the error 3. */
uint64_t fakecuda_forked_calls(void);
/* What nobody has freed: to find leaks. */
int fakecuda_live_streams(void);
int fakecuda_live_events(void);
/* How often the primary context of a device is retained. */
int fakecuda_retain_count(int device);

/* ---------------------------------------------------------------- functions of the driver */

/* Handles are plain numbers here. As streams, 0 and 1 are the legacy one, 2 that of the thread. */
typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr, CUcontext, CUstream, CUevent, CUgraph;

struct fakecuda_location {
    unsigned type;
    int id;
};

struct fakecuda_attributes {
    unsigned source_access_order;
    struct fakecuda_location source_hint, target_hint;
    unsigned flags;
};

CUresult cuInit(unsigned flags);
CUresult cuDriverGetVersion(int *version);
CUresult cuGetErrorName(CUresult error, const char **text);
CUresult cuGetErrorString(CUresult error, const char **text);
CUresult cuDeviceGet(CUdevice *device, int ordinal);
CUresult cuDeviceGetName(char *text, int size, CUdevice device);

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device);
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device);
CUresult cuCtxPushCurrent_v2(CUcontext context);
CUresult cuCtxPopCurrent_v2(CUcontext *context);
CUresult cuCtxSetCurrent(CUcontext context);
CUresult cuCtxGetCurrent(CUcontext *context);

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t byte_count);
CUresult cuMemAllocManaged(CUdeviceptr *address, size_t byte_count, unsigned flags);
CUresult cuMemFree_v2(CUdeviceptr address);
CUresult cuMemHostRegister_v2(void *start, size_t byte_count, unsigned flags);
CUresult cuMemHostUnregister(void *start);

CUresult cuStreamCreate(CUstream *stream, unsigned flags);
CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority);
CUresult cuStreamDestroy_v2(CUstream stream);
CUresult cuStreamSynchronize(CUstream stream);
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags);
CUresult cuStreamBeginCapture_v2(CUstream stream, int mode);
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph);
CUresult cuStreamIsCapturing(CUstream stream, int *status);
CUresult cuThreadExchangeStreamCaptureMode(int *mode);
CUresult cuLaunchHostFunc(CUstream stream, void (*function)(void *), void *argument);

CUresult cuEventCreate(CUevent *event, unsigned flags);
CUresult cuEventRecord(CUevent event, CUstream stream);
CUresult cuEventQuery(CUevent event);
CUresult cuEventSynchronize(CUevent event);
CUresult cuEventDestroy_v2(CUevent event);

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t byte_count);
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t byte_count);
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t byte_count, CUstream stream);
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t byte_count,
                              CUstream stream);
CUresult cuMemcpyBatchAsync(CUdeviceptr *to, CUdeviceptr *from, size_t *byte_counts, size_t count,
                            struct fakecuda_attributes *attributes, size_t *attribute_indices,
                            size_t attribute_count, size_t *failed_index, CUstream stream);
CUresult cuMemcpyBatchAsync_v2(CUdeviceptr *to, CUdeviceptr *from, size_t *byte_counts,
                               size_t count, struct fakecuda_attributes *attributes,
                               size_t *attribute_indices, size_t attribute_count, CUstream stream);
/* Late as a copy is: a kernel that changes memory. */
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t byte_count, CUstream stream);

#endif
