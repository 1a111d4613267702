/* Not part of the C ABI: what the Swift side of it cannot have, which is memory of a thread. */
#ifndef PCC_KEPT_MESSAGE_H
#define PCC_KEPT_MESSAGE_H

/* Keeps a string that malloc made, or NULL, for this thread, and frees the one before. It is freed
 * when the thread ends. */
void pcck_keep_message(char *text);
/* What this thread keeps, or NULL; valid until the next call of pcck_keep_message. */
const char *pcck_kept_message(void);

#endif
