/*
 * What the benchmark measures against: loops that a compiler must not slow down by its checks.
 */
#ifndef PCC_BENCHMARK_H
#define PCC_BENCHMARK_H

#include <stddef.h>
#include <stdint.h>

/* c += a * b, all of them square matrices of `extent` rows, row by row. */
void pccb_multiply(float *c, const float *a, const float *b, size_t extent);

/* f_type of statfs(2) for the file system of `path`; 0 when it cannot be told. */
uint32_t pccb_file_system_type(const char *path);

#endif
