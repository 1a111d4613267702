/* The shared library's XXH3-128, for every processor. */
#ifndef PCC_PORTABLE_H
#define PCC_PORTABLE_H

#include "digest.h"

struct pccp_digest pccp_xxh3_128_portable(const void *bytes, size_t count);

enum { PCCP_STATE_SIZE = 1024 }; /* room for an XXH3_state_t, which wants 64-byte alignment */
void pccp_state_reset_portable(void *state);
void pccp_state_update_portable(void *state, const void *bytes, size_t count);
/* The digest; the state is then as after a reset. */
struct pccp_digest pccp_state_digest_portable(void *state);

#endif
