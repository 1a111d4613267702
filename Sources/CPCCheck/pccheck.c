/* The functions of pccheck.h are implemented in Swift, in the module PCCheckC. */
#include "pccheck.h"
