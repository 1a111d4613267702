/*
 * Descriptors that a forked child must not keep. A lock of an open file description is held until
 * the last descriptor and the last mapping of it is gone, a child's included. A child that outlives
 * its parent would keep the lock of the parent's file. So a handler replaces the child's copies as
 * fork(2) returns in it. exec(2) closes them without help.
 *
 * Not noticed: vfork(2) and clone(2), whose child is to call exec(2), and _Fork(3).
 */
#ifndef PCC_DESCRIPTORS_H
#define PCC_DESCRIPTORS_H

#include <stdbool.h>

/* Between these two no other thread forks or has them, and no signal comes. A descriptor that is
 * opened and noted between them, or a mapping that is kept from children, never reaches a child.
 * Calls do not nest. */
void pccp_descriptors_hold(void);
void pccp_descriptors_release(void);

/* With the hold: a child gets /dev/null, opened for reading only, in the place of `fd`, so that its
 * number is nobody else's. False for a number beyond what is kept track of. */
bool pccp_descriptor_note(int fd);
/* With the hold, before `fd` is closed. */
void pccp_descriptor_forget(int fd);

#endif
