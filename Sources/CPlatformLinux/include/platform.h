#ifndef PCC_PLATFORM_H
#define PCC_PLATFORM_H
#endif
