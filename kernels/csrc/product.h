// Products of many rows with a weight (N, K), as a linear layer has it: out = a weight^T, + addend.
//
// The weight is packed into tiles (K, kLanes) so that a vector of outputs is a row of a tile; two
// tiles and kRows rows keep all their sums in registers, and every load is used kRows times.

namespace FASTVIM_LEVEL {

// As many as registers allow: 2 kRows sums, two vectors of weights, one of a.
constexpr int kRows = FASTVIM_BYTES == 64 ? 14 : 6;

// Two tiles at a time: the number is even, the last one is of zeros where none is left.
template <class T>
INLINE int64_t tiles_of_weight(int64_t outputs) {
  return divide_up(outputs, 2 * kLanes<T>) * 2;
}

template <class T>
struct Pack {
  const T* weight;  // (N, K) contiguous
  int64_t outputs, inner;
  Vec<T>* packed;  // (tiles, K)

  void run(int thread, int threads) {
    const Share share(tiles_of_weight<T>(outputs), thread, threads);
    for (int64_t tile = share.begin; tile < share.end; ++tile) {
      const int64_t first = tile * kLanes<T>;
      load_tile(packed + tile * inner, weight + first * inner, inner, int64_t(1), int(inner),
                int(most<int64_t>(least<int64_t>(kLanes<T>, outputs - first), 0)));
    }
  }
};

template <class T, int Count>
struct Packing {
  Pack<T> jobs[Count];

  void run(int thread, int threads) {
    for (Pack<T>& job : jobs) job.run(thread, threads);
  }
};

template <class T>
struct Product {
  const T* a;  // (rows, K), `a_stride` apart
  int64_t rows, a_stride, inner;
  const Vec<T>* packed;
  int64_t outputs;
  const T* addend;  // as `out`, or null
  T* out;           // (rows, N)

  void run(int thread, int threads) {
    const Share share(rows, thread, threads);
    // Some tens of rows stay in cache while all weights pass them.
    for (int64_t first = share.begin; first < share.end; first += 8 * kRows) {
      const int64_t last = least(first + 8 * kRows, share.end);
      for (int64_t n = 0; n < outputs; n += 2 * kLanes<T>) {
        int64_t row = first;
        for (; row + kRows <= last; row += kRows) multiply<kRows>(row, n);
        // What is left: again with rows before it, if there are any, else one by one.
        if (row < last && last - share.begin >= kRows)
          multiply<kRows>(last - kRows, n);
        else
          for (; row < last; ++row) multiply<1>(row, n);
      }
    }
  }

  template <int R>
  void multiply(int64_t row, int64_t n) {
    constexpr int W = kLanes<T>;
    const Vec<T>*left = packed + n / W * inner, *right = left + inner;
    const T* from = a + row * a_stride;
    Vec<T> sums[R][2];
#pragma GCC unroll 14
    for (int i = 0; i < R; ++i) sums[i][0] = sums[i][1] = Vec<T>{};
    for (int64_t k = 0; k < inner; ++k) {
      const Vec<T> l = left[k], r = right[k];
#pragma GCC unroll 14
      for (int i = 0; i < R; ++i) {
        const Vec<T> value = splat<T>(from[i * a_stride + k]);
        sums[i][0] += value * l;
        sums[i][1] += value * r;
      }
    }
    T* to = out + row * outputs + n;
    const T* added = addend ? addend + row * outputs + n : nullptr;
    if (outputs - n >= 2 * W) {
#pragma GCC unroll 14
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const int64_t at = i * outputs + half * W;
          store(to + at, added ? load(added + at) + sums[i][half] : sums[i][half]);
        }
      return;
    }
    T values[2 * W];
#pragma GCC unroll 14
    for (int i = 0; i < R; ++i) {
      store(values, sums[i][0]);
      store(values + W, sums[i][1]);
      for (int64_t j = 0; j < outputs - n; ++j)
        to[i * outputs + j] = added ? added[i * outputs + j] + values[j] : values[j];
    }
  }
};

}  // namespace FASTVIM_LEVEL
