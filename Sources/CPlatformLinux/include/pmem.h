/*
 * A file in persistent memory, mapped through libpmem2: the whole store sequence, and nothing of
 * what the stores mean. libpmem2 is loaded when the first file is opened; nothing else needs it.
 *
 * 0 on success, a negated errno on failure.
 */
#ifndef PCC_PMEM_H
#define PCC_PMEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The name under which libpmem2 is looked for. */
#define PCC_PMEM_LIBRARY "libpmem2.so.1"

struct pccp_pmem;

/* How much a store must be flushed by: what the platform keeps when the power goes. */
enum pccp_pmem_granularity {
    PCC_PMEM_BYTE,       /* processor caches survive too: a store is persistent once visible */
    PCC_PMEM_CACHE_LINE, /* a store is persistent once its cache line was written back */
};

/*
 * Maps all of the file, which stays open for as long as the mapping; every block is allocated
 * first. On failure `text` says what libpmem2, or the loader, had to say.
 *
 * -ENOPKG: libpmem2 could not be loaded. -EMEDIUMTYPE: stores reach the medium by pages only, so
 * this is no persistent memory. -ENOSPC: a sparse file whose blocks cannot be allocated. -ENODATA:
 * the file is empty. -EINVAL: not a regular file.
 */
int pccp_pmem_open(const char *library, int fd, struct pccp_pmem **pmem, char *text,
                   size_t text_size);
void pccp_pmem_close(struct pccp_pmem *pmem);

enum pccp_pmem_granularity pccp_pmem_granularity(const struct pccp_pmem *pmem);
uint64_t pccp_pmem_byte_count(const struct pccp_pmem *pmem);

/* How often the device lost power without saving its buffers; 0 where it does not count. */
uint64_t pccp_pmem_unsafe_shutdown_count(const struct pccp_pmem *pmem);

/*
 * Copies past the caches, and waits until the copy is persistent. Any number of threads at once.
 *
 * -ENXIO: the range lies beyond the end of the file. -EFAULT, -EHWPOISON: a page of it cannot be
 * written to.
 */
int pccp_pmem_write(struct pccp_pmem *pmem, const void *source, size_t count, uint64_t offset);

/*
 * The same in parts: pccp_pmem_begin gives the address of the range, or fails like
 * pccp_pmem_write; pccp_pmem_store copies to it, `pmem` being the mapping; and pccp_pmem_drain, in
 * the same thread, waits until all of it is persistent.
 */
int pccp_pmem_begin(struct pccp_pmem *pmem, uint64_t offset, size_t count, void **address);
void pccp_pmem_store(void *pmem, void *to, const void *source, size_t count);
void pccp_pmem_drain(struct pccp_pmem *pmem);

/*
 * Makes the range safe against a platform that fails to save its own buffers at a power cut,
 * which it otherwise promises to do.
 */
int pccp_pmem_deep_flush(struct pccp_pmem *pmem, uint64_t offset, uint64_t count);

#endif
