// Squares of vectors transposed, and tiles copied between them and strided tensors.

namespace FASTVIM_LEVEL {

#if __has_builtin(__builtin_shufflevector) || defined(__clang__)
#define SHUFFLE(T, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(T, a, b, ...) __builtin_shuffle(a, b, typename Simd<T>::I{__VA_ARGS__})
#endif

template <class T>
INLINE void interleave(Vec<T> a, Vec<T> b, Vec<T>& low, Vec<T>& high) {
  if constexpr (kLanes<T> == 16) {
    low = SHUFFLE(T, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    high = SHUFFLE(T, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  } else if constexpr (kLanes<T> == 8) {
    low = SHUFFLE(T, a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    high = SHUFFLE(T, a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  } else if constexpr (kLanes<T> == 4) {
    low = SHUFFLE(T, a, b, 0, 4, 1, 5);
    high = SHUFFLE(T, a, b, 2, 6, 3, 7);
  } else {
    static_assert(kLanes<T> == 2);
    low = SHUFFLE(T, a, b, 0, 2);
    high = SHUFFLE(T, a, b, 1, 3);
  }
}

// Transpose a square of kLanes vectors: log2(lanes) perfect shuffles of the rows.
template <class T>
INLINE void transpose(Vec<T> rows[kLanes<T>]) {
  constexpr int lanes = kLanes<T>;
  Vec<T> shuffled[lanes];
#pragma GCC unroll 4
  for (int done = 1; done < lanes; done *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i)
      interleave<T>(rows[i], rows[i + lanes / 2], shuffled[2 * i], shuffled[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = shuffled[i];
  }
}
#ifdef FASTVIM_AVX2
// The compiler builds a shuffle across the halves of a register from four; within them it is one.
template <>
INLINE_MEMBER void transpose<float>(Vec<float> rows[8]) {
  __m256 pairs[8], quads[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps((__m256)rows[2 * i], (__m256)rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps((__m256)rows[2 * i], (__m256)rows[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      quads[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
      quads[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[i] = (Vec<float>)_mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    rows[i + 4] = (Vec<float>)_mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}
#endif

// Copy `count` times and `lanes` channels of a strided tensor to tile[time].
template <class T>
static void load_tile(Vec<T>* tile, const T* from, int64_t channel_stride, int64_t time_stride,
                      int count, int lanes) {
  constexpr int W = kLanes<T>;
  if (channel_stride == 1) {
    for (int t = 0; t < count; ++t) tile[t] = load(from + t * time_stride, lanes);
  } else if (time_stride == 1 && count >= W) {
    // Squares; the last one ends at `count`, though it does some of the one before it again.
    for (int start = 0; start < count; start += W) {
      const int t = start + W <= count ? start : count - W;
      Vec<T> rows[W];
#pragma GCC unroll 16
      for (int c = 0; c < W; ++c)
        rows[c] = c < lanes ? load(from + c * channel_stride + t) : Vec<T>{};
      transpose<T>(rows);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) tile[t + i] = rows[i];
    }
  } else {
    for (int t = 0; t < count; ++t) {
      tile[t] = Vec<T>{};
      for (int c = 0; c < lanes; ++c) tile[t][c] = from[c * channel_stride + t * time_stride];
    }
  }
}

// The inverse of load_tile.
template <class T>
static void store_tile(T* to, const Vec<T>* tile, int64_t channel_stride, int64_t time_stride,
                       int count, int lanes) {
  constexpr int W = kLanes<T>;
  if (channel_stride == 1) {
    for (int t = 0; t < count; ++t) store(to + t * time_stride, tile[t], lanes);
  } else if (time_stride == 1 && count >= W) {
    for (int start = 0; start < count; start += W) {
      const int t = start + W <= count ? start : count - W;
      Vec<T> rows[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) rows[i] = tile[t + i];
      transpose<T>(rows);
#pragma GCC unroll 16
      for (int c = 0; c < W; ++c)
        if (c < lanes) store(to + c * channel_stride + t, rows[c]);
    }
  } else {
    for (int t = 0; t < count; ++t)
      for (int c = 0; c < lanes; ++c) to[c * channel_stride + t * time_stride] = tile[t][c];
  }
}

}  // namespace FASTVIM_LEVEL
