/*
 * Stands in for NVIDIA's cuda.h, so that a user's program compiles where there is no toolkit: the
 * names without a version, as that header maps them.
 */
#ifndef FAKECUDA_TOOLKIT_H
#define FAKECUDA_TOOLKIT_H

#include "../fakecuda.h"

#define cuMemAlloc cuMemAlloc_v2
#define cuMemFree cuMemFree_v2
#define cuStreamDestroy cuStreamDestroy_v2
#define cuDevicePrimaryCtxRelease cuDevicePrimaryCtxRelease_v2

#endif
