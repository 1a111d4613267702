#include "pccheck.h"
