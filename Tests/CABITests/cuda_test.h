/* What the files of the test of cuda_driver.h share. */
#ifndef CUDA_TEST_H
#define CUDA_TEST_H

#include "cuda_driver.h"
#include "fakecuda.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)
#define CHECK_RESULT(call, expected)                                                               \
    do {                                                                                           \
        int result_ = (call), expected_ = (expected);                                              \
        if (result_ != expected_) {                                                                \
            fprintf(stderr, "%s:%d: %s is %d, expected %d\n", __FILE__, __LINE__, #call, result_,  \
                    expected_);                                                                    \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)
#define OK(call) CHECK_RESULT(call, 0)

enum { piece = 1 << 16, device_count = 2, non_blocking = 1, ordinary = 0 };

extern uint64_t seed;
extern pccp_cuda_lookup lookup;
extern struct pccp_cuda *driver;
extern struct pccp_cuda_device *devices[device_count];
extern CUcontext contexts[device_count];
extern char text[256];

/* A fresh driver, with both devices open; and the proof that nothing of it is left. */
void begin_check(void);
void end_check(void);

/* The application's own work on a device. */
void enter(int device);
void leave(void);
CUdeviceptr allocate(int device, size_t byte_count);
CUstream new_stream(int device, unsigned flags);
void destroy_stream(int device, CUstream stream);

unsigned char *new_buffer(size_t byte_count, unsigned char value);
unsigned char *pinned_buffer(size_t byte_count);
void free_pinned(unsigned char *buffer);
bool is_filled(const unsigned char *buffer, size_t byte_count, unsigned char value);
void queue_to_host(int device, void *host, CUdeviceptr address);
void await_side_stream(int device);

/* cuda_failures.c */
void check_contexts(void);
void check_captures(void);
void check_failures(void);
void check_lost_context(int error);
void check_error_told_once(void);
void check_fork(void);
void check_threads(void);

#endif
