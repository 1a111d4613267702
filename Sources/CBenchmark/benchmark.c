#include "benchmark.h"

#include <sys/vfs.h>

void pccb_multiply(float *c, const float *a, const float *b, size_t extent)
{
    for (size_t row = 0; row < extent; row++)
        for (size_t inner = 0; inner < extent; inner++) {
            float factor = a[row * extent + inner];
            const float *source = b + inner * extent;
            float *target = c + row * extent;
            for (size_t column = 0; column < extent; column++)
                target[column] += factor * source[column];
        }
}

uint32_t pccb_file_system_type(const char *path)
{
    struct statfs facts;
    return statfs(path, &facts) == 0 ? (uint32_t)facts.f_type : 0;
}
