// The matrix products of a linear layer with a weight (N, K): out = a weight^T + addend, and the
// weight's gradient, a^T b over the rows.
//
// A weight is packed into tiles (K, kLanes) so that a vector of outputs is a row of a tile; two
// tiles and kRows rows keep all their sums in registers, and every load is used kRows times.
// Each output is one sum in one order, however rows are shared: threads do not change the bits.

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
  const T* weight;  // (N, K)
  int64_t outputs, inner, output_stride, inner_stride;
  Vec<T>* packed;  // (tiles, K)

  void run(int thread, int threads) {
    const Share share(tiles_of_weight<T>(outputs), thread, threads);
    for (int64_t tile = share.begin; tile < share.end; ++tile) {
      const int64_t first = tile * kLanes<T>;
      load_tile(packed + tile * inner, weight + first * output_stride, output_stride, inner_stride,
                int(inner), int(most<int64_t>(least<int64_t>(kLanes<T>, outputs - first), 0)));
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

// Sums, and what is `added` to them, to rows [first, last) of two tiles' columns.
template <class T, int R>
INLINE void write(const Vec<T> (&sums)[R][2], int first, int last, int64_t columns, const T* added,
                  T* to, int64_t stride) {
  constexpr int W = kLanes<T>;
  if (columns >= 2 * W) {
#pragma GCC unroll 14
    for (int i = 0; i < R; ++i)
      if (i >= first && i < last)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const int64_t at = i * stride + half * W;
          store(to + at, added ? load(added + at) + sums[i][half] : sums[i][half]);
        }
    return;
  }
  T values[2 * W];
#pragma GCC unroll 14
  for (int i = 0; i < R; ++i) {
    store(values, sums[i][0]);
    store(values + W, sums[i][1]);
    if (i >= first && i < last)
      for (int64_t j = 0; j < columns; ++j)
        to[i * stride + j] = added ? added[i * stride + j] + values[j] : values[j];
  }
}

template <class T>
struct Product {
  const T* a;  // (rows, K), `a_stride` apart
  int64_t rows, a_stride, inner;
  const Vec<T>* packed;
  int64_t outputs;
  const T* addend;  // as `out`, which it may be, or null
  T* out;           // (rows, N), `out_stride` apart
  int64_t out_stride;

  void run(int thread, int threads) {
    const Share share(rows, thread, threads);
    // Some tens of rows stay in cache while all weights pass them.
    for (int64_t first = share.begin; first < share.end; first += 8 * kRows) {
      const int64_t last = least(first + 8 * kRows, share.end);
      for (int64_t n = 0; n < outputs; n += 2 * kLanes<T>) {
        int64_t row = first;
        for (; row + kRows <= last; row += kRows) multiply<kRows>(row, 0, n);
        // What is left: again with rows before it, if there are any, else one by one.
        if (row < last && last - share.begin >= kRows)
          multiply<kRows>(last - kRows, int(kRows - (last - row)), n);
        else
          for (; row < last; ++row) multiply<1>(row, 0, n);
      }
    }
  }

  // Rows [row + known, row + R), columns from n.
  template <int R>
  void multiply(int64_t row, int known, int64_t n) {
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
    write<T>(sums, known, R, outputs - n, addend ? addend + row * out_stride + n : nullptr,
             out + row * out_stride + n, out_stride);
  }
};

// out = a^T b: as above with a's columns for rows, some hundred rows of a and b at a time. Both are
// copied to where they are read one after the other: in the matrices they are a row's length apart,
// which is often a multiple of a page, and then few of them fit into a cache at once.
template <class T>
struct RowsProduct {
  const RowsProductCall& call;
  static constexpr int W = kLanes<T>;
  static constexpr int64_t kAtOnce = 256, kFew = 8;
  int64_t groups;  // of kRows outputs
  Vec<T>* tiles = nullptr;  // (threads, kAtOnce, 2) of b
  T* panels = nullptr;      // (groups, kAtOnce, kRows) of a
  Scratch scratch;

  explicit RowsProduct(const RowsProductCall& c) : call(c), groups(divide_up(c.outputs, kRows)) {
    scratch.reserve<Vec<T>>(call.threads * kAtOnce * 2);
    scratch.reserve<T>(groups * kAtOnce * kRows);
  }
  int64_t space() const { return scratch.size(); }

  int execute() {
    scratch.use(call.space);
    tiles = scratch.take<Vec<T>>(call.threads * kAtOnce * 2);
    panels = scratch.take<T>(groups * kAtOnce * kRows);
    parallel(call.threads, *this);
    return kDone;
  }

  void run(int thread, int threads) {
    const Share share(groups, thread, threads);
    Vec<T>* tile = tiles + thread * kAtOnce * 2;
    for (int64_t start = 0; start < call.rows; start += kAtOnce) {
      const int64_t count = least(kAtOnce, call.rows - start);
      // A few rows at a time, so that their cache lines are read once, though groups do not fill them.
      for (int64_t k = 0; k < count; k += kFew)
        for (int64_t group = share.begin; group < share.end; ++group)
          copy_outputs(start, k, least(k + kFew, count), group);
      for (int64_t n = 0; n < call.columns; n += 2 * W) {
        copy_columns(start, count, n, tile);
        for (int64_t group = share.begin; group < share.end; ++group)
          multiply(tile, count, group, n, start > 0);
      }
    }
  }

  // Of rows [start + first, start + last); zero behind the last output.
  void copy_outputs(int64_t start, int64_t first, int64_t last, int64_t group) {
    const T* from = static_cast<const T*>(call.a) + (start + first) * call.a_stride + group * kRows;
    T* panel = panels + (group * kAtOnce + first) * kRows;
    const int64_t left = call.outputs - group * kRows;
    for (int64_t k = first; k < last; ++k, from += call.a_stride, panel += kRows) {
      __builtin_prefetch(from + kFew * call.a_stride, 0, 2);
      if (left >= kRows)
        __builtin_memcpy(panel, from, kRows * sizeof(T));
      else
        for (int i = 0; i < kRows; ++i) panel[i] = i < left ? from[i] : T(0);
    }
  }

  void copy_columns(int64_t start, int64_t count, int64_t n, Vec<T>* tile) {
    const T* from = static_cast<const T*>(call.b) + start * call.b_stride + n;
    const int64_t left = call.columns - n;
    const int first = int(least<int64_t>(left, W)), second = int(least<int64_t>(left, 2 * W)) - first;
    for (int64_t k = 0; k < count; ++k, from += call.b_stride) {
      tile[2 * k] = load(from, first);
      tile[2 * k + 1] = load(from + W, second);
      __builtin_prefetch(from + 2 * W, 0, 2);  // the next columns: rows are too far apart to be seen
    }
  }

  void multiply(const Vec<T>* tile, int64_t count, int64_t group, int64_t n, bool adds) {
    const T* panel = panels + group * kAtOnce * kRows;
    Vec<T> sums[kRows][2];
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i) sums[i][0] = sums[i][1] = Vec<T>{};
    for (int64_t k = 0; k < count; ++k) {
      const Vec<T> l = tile[2 * k], r = tile[2 * k + 1];
#pragma GCC unroll 14
      for (int i = 0; i < kRows; ++i) {
        const Vec<T> value = splat<T>(panel[k * kRows + i]);
        sums[i][0] += value * l;
        sums[i][1] += value * r;
      }
    }
    const int valid = int(least<int64_t>(kRows, call.outputs - group * kRows));
    T* to = static_cast<T*>(call.out) + group * kRows * call.columns + n;
    write<T>(sums, 0, valid, call.columns - n, adds ? to : nullptr, to, call.columns);
  }
};

template <class T>
static int64_t product_space(const ProductCall& call) {
  return tiles_of_weight<T>(call.outputs) * call.inner * int64_t(sizeof(Vec<T>)) + 64;
}

template <class T>
static int product(const ProductCall& call) {
  Scratch scratch;
  scratch.use(call.space);
  Vec<T>* packed = scratch.take<Vec<T>>(tiles_of_weight<T>(call.outputs) * call.inner);
  Pack<T> pack{static_cast<const T*>(call.weight), call.outputs, call.inner,
               call.weight_stride[0], call.weight_stride[1], packed};
  parallel(call.threads, pack);
  T* out = static_cast<T*>(call.out);
  Product<T> job{static_cast<const T*>(call.a), call.rows, call.a_stride, call.inner, packed,
                 call.outputs, call.adds ? out : nullptr, out, call.out_stride};
  parallel(call.threads, job);
  return kDone;
}

template <class T>
static int64_t rows_product_space(const RowsProductCall& call) {
  return RowsProduct<T>(call).space();
}

template <class T>
static int rows_product(const RowsProductCall& call) {
  return RowsProduct<T>(call).execute();
}

// Products one after the other, on the same threads and in the same workspace.
template <class T>
struct Products {
  int64_t threads = 0;
  void* space = nullptr;

  void product(ProductCall one) const {
    one.threads = threads;
    one.space = space;
    FASTVIM_LEVEL::product<T>(one);
  }
  void rows(RowsProductCall one) const {
    one.threads = threads;
    one.space = space;
    rows_product<T>(one);
  }
};

}  // namespace FASTVIM_LEVEL
