/* Copies past the caches, in parts. */
#ifndef PCC_STREAM_H
#define PCC_STREAM_H

#include <stddef.h>

/* memcpy(3) past the caches; other threads see the bytes after pccp_stream_fence. */
void pccp_stream_unfenced(void *to, const void *from, size_t count);
void pccp_stream_fence(void);

#endif
