// The kernels for processors with AVX512; empty elsewhere.
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
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
#define FASTVIM_LEVEL avx512
#define FASTVIM_BYTES 64
#define FASTVIM_AVX512  // intrinsics where the general form is slower
#define FASTVIM_MM(operation) _mm512_##operation
#include "kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
