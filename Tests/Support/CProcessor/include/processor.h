#ifndef PCC_PROCESSOR_H
#define PCC_PROCESSOR_H

/* Keeps the calling thread, and the threads that it starts from now on, on one of the processors
 * that it may use: the one of this number, counted around. Where that fails, nothing changes. */
void pcct_stay_on_processor(unsigned number);

#endif
