/*
 * Memory of NVIDIA devices through the driver API. libcuda.so.1 is loaded on demand: a program that
 * never names a device never looks for it. Another runtime is another file with these calls.
 *
 * Calls return 0, an error of the driver (positive, a CUresult), or one of the errors below. Every
 * call makes the device's primary context current for itself only, and may come from any thread.
 * None is allowed in a child that was forked after the driver was opened: they return
 * PCCP_CUDA_FORKED there, and touch nothing. After an error that ended the device's context, such
 * as 700, every call that queues, waits or asks returns that error.
 */
#ifndef PCC_CUDA_DRIVER_H
#define PCC_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

struct pccp_cuda;        /* the driver */
struct pccp_cuda_device; /* one device: its primary context, and a side stream of its own */
struct pccp_cuda_event;

#define PCCP_CUDA_NO_LIBRARY (-1)  /* libcuda.so.1 cannot be loaded */
#define PCCP_CUDA_NO_FUNCTION (-2) /* it is too old: a function is missing */
#define PCCP_CUDA_NO_MEMORY (-3)   /* no host memory for the object */
#define PCCP_CUDA_CAPTURING (-4)   /* the stream records a graph, so nothing runs now */
#define PCCP_CUDA_FORKED (-5)

/* Finds a function of the driver by name; NULL when it has none. */
typedef void *(*pccp_cuda_lookup)(const char *name);

/*
 * Opens the driver: once for the process when `lookup` is NULL, which means libcuda.so.1. Another
 * lookup is for tests. `missing` gets the loader's message, the name of the missing function, or
 * the text of the driver's own error. A failure may be retried.
 */
int pccp_cuda_open(pccp_cuda_lookup lookup, struct pccp_cuda **driver, char *missing,
                   size_t missing_size);

/* The driver's name and text for an error; always ended by a zero. */
void pccp_cuda_error_text(const struct pccp_cuda *driver, int error, char *text, size_t size);

int pccp_cuda_device_open(struct pccp_cuda *driver, int ordinal,
                          struct pccp_cuda_device **device);
/* Waits for what is queued on the side stream. NULL is allowed. Events may be freed later. */
void pccp_cuda_device_close(struct pccp_cuda_device *device);
/* Such as "NVIDIA H200". */
int pccp_cuda_device_name(struct pccp_cuda_device *device, char *text, size_t size);

/* Memory of the device, for measurements; 0 is no address. */
int pccp_cuda_allocate(struct pccp_cuda_device *device, size_t byte_count, uint64_t *address);
void pccp_cuda_free(struct pccp_cuda_device *device, uint64_t address);

/* Pins host memory for the copies of every device, and undoes that. */
int pccp_cuda_register(struct pccp_cuda_device *device, void *start, size_t byte_count);
int pccp_cuda_unregister(struct pccp_cuda_device *device, void *start);

/*
 * An event behind everything that is queued now on a stream of the caller's. `stream` is a
 * CUstream, 0 for the default one. PCCP_CUDA_CAPTURING when it records a graph.
 */
int pccp_cuda_record(struct pccp_cuda_device *device, uint64_t stream,
                     struct pccp_cuda_event **event);
/* An event behind everything that is queued now on the side stream. */
int pccp_cuda_mark(struct pccp_cuda_device *device, struct pccp_cuda_event **event);
void pccp_cuda_event_free(struct pccp_cuda_event *event); /* NULL is allowed */
/* Waits for everything that is queued now on the side stream, without an event. 0 also when a fatal
 * error of the device has ended it. */
int pccp_cuda_drain(struct pccp_cuda_device *device);

/* The side stream waits for an event, also of another device. No thread waits. */
int pccp_cuda_follow(struct pccp_cuda_device *device, const struct pccp_cuda_event *event);
/* The same for a stream of the caller's, which lies on this device. */
int pccp_cuda_hold(struct pccp_cuda_device *device, uint64_t stream,
                   const struct pccp_cuda_event *event);
/* Blocks the calling thread, which sleeps meanwhile. */
int pccp_cuda_wait(const struct pccp_cuda_event *event);
/* `is_over` gets 1 when the event has come. */
int pccp_cuda_query(const struct pccp_cuda_event *event, int *is_over);

/* One part of a batch of copies. */
struct pccp_cuda_copy {
    void *host;
    uint64_t device;
    size_t byte_count;
};

/*
 * Queues copies on the side stream, in one call of the driver where it has batches and there are
 * several. The memory of both sides must stay until an event that is marked afterwards has come.
 */
int pccp_cuda_to_host(struct pccp_cuda_device *device, const struct pccp_cuda_copy *copies,
                      size_t count);
int pccp_cuda_to_device(struct pccp_cuda_device *device, const struct pccp_cuda_copy *copies,
                        size_t count);

#endif
