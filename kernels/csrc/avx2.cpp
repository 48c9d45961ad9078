// The kernels for processors with AVX2; empty elsewhere.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "interface.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define FASTVIM_LEVEL avx2
#define FASTVIM_BYTES 32
#define FASTVIM_AVX2  // intrinsics where the general form is slower
#define FASTVIM_MM(operation) _mm256_##operation
#include "kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
