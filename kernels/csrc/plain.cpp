// The kernels for whatever every processor of the architecture has: SSE2, or NEON.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "interface.h"

#define FASTVIM_LEVEL plain
#define FASTVIM_BYTES 16
#include "kernels.h"
