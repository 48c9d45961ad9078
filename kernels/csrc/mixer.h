// The mixer around its scan, forward: `convolve` goes down columns of kLanes channels in scan order,
// `finish` along rows of channels in memory order.
//
// The skip D u needs the convolutions of both directions again after the scan. Summed over the
// directions it is one number per token and channel: pass one leaves it in the output tensor, where
// pass two picks it up. On a processor that is cheaper than computing four exponentials again.

namespace FASTVIM_LEVEL {

// The tables of one image; null tables mean the identity.
struct Layout {
  const int32_t *order, *step, *reverse_step;

  Layout(const MixerCall& call, int64_t batch)
      : order(call.order ? call.order + batch * call.order_stride : nullptr),
        step(call.step ? call.step + batch * call.step_stride : nullptr),
        reverse_step(call.reverse_step ? call.reverse_step + batch * call.reverse_step_stride
                                       : step) {}
  int64_t place(int64_t t) const { return order ? order[t] : t; }
  const int32_t* steps(int direction) const { return direction ? reverse_step : step; }
};

// What a step's tokens are multiplied with: scale / count for means, 0 for empty steps.
template <class T>
static void step_factors(const MixerCall& call, const int32_t* steps, T* factor) {
  for (int64_t s = 0; s < call.steps; ++s) factor[s] = T(0);
  for (int64_t t = 0; t < call.length; ++t) factor[steps[t]] += T(1);
  for (int64_t s = 0; s < call.steps; ++s)
    if (factor[s] != T(0)) factor[s] = T(call.scale) / (call.pooling == kMean ? factor[s] : T(1));
}

// Weights as tiles, directions (forward, reverse) inside.
template <class T>
struct MixerConstants {
  int64_t tiles;
  Vec<T>*weight, *bias, *skip;  // (tiles, 2, K), (tiles, 2), (tiles, 2); skip times `merge`

  explicit MixerConstants(const MixerCall& call) : tiles(divide_up(call.channels, kLanes<T>)) {}
  int64_t first_channel(int64_t tile) const { return tile * kLanes<T>; }
  int lanes(const MixerCall& call, int64_t tile) const {
    return int(least<int64_t>(kLanes<T>, call.channels - tile * kLanes<T>));
  }
  void reserve(Scratch& scratch, const MixerCall& call) {
    scratch.reserve<Vec<T>>(tiles * 2 * call.width);
    for (int i = 0; i < 2; ++i) scratch.reserve<Vec<T>>(tiles * 2);
  }
  void fill(Scratch& scratch, const MixerCall& call) {
    weight = scratch.take<Vec<T>>(tiles * 2 * call.width);
    Vec<T>** vectors[] = {&bias, &skip};
    for (Vec<T>** vector : vectors) *vector = scratch.take<Vec<T>>(tiles * 2);
    const T *from = static_cast<const T*>(call.conv_weight), *D = static_cast<const T*>(call.skip);
    const T* added = static_cast<const T*>(call.conv_bias);
    for (int64_t tile = 0; tile < tiles; ++tile)
      for (int64_t d = 0; d < 2; ++d) {
        const int64_t c = d * call.channels + tile * kLanes<T>;
        load_tile(weight + (tile * 2 + d) * call.width, from + c * call.width, call.width,
                  int64_t(1), int(call.width), lanes(call, tile));
        bias[tile * 2 + d] = added ? load(added + c, lanes(call, tile)) : Vec<T>{};
        skip[tile * 2 + d] = load(D + c, lanes(call, tile)) * T(call.merge);
      }
  }
};

// Both directions' convolutions at the token that x points to; K is the width, 0 if only known now.
template <class T, int K>
INLINE void convolve_token(const Vec<T>* x, const Vec<T>* weight, const Vec<T>* bias, int width,
                           Vec<T>& forward, Vec<T>& reverse) {
  const int taps = K ? K : width;
  forward = bias[0];
  reverse = bias[1];
#pragma GCC unroll 4
  for (int k = 0; k < taps; ++k) {
    forward += weight[k] * x[k - (taps - 1)];
    reverse += weight[taps + k] * x[taps - 1 - k];
  }
}

// The same of `count` tokens. Of known width the weights stay in registers, which have no room left
// for what comes after: hence a loop of its own.
template <class T, int K>
static void convolve_run(const Vec<T>* x, const Vec<T>* weight, const Vec<T>* bias, int width,
                         int count, Vec<T>* __restrict forward, Vec<T>* __restrict reverse) {
  Vec<T> weights[K ? 2 * K : 1];
  for (int k = 0; k < 2 * K; ++k) weights[k] = weight[k];
  const Vec<T> biases[2] = {bias[0], bias[1]};
  for (int i = 0; i < count; ++i)
    convolve_token<T, K>(x + i, K ? weights : weight, biases, width, forward[i], reverse[i]);
}

// Tokens [start, start + count) of a column, with `halo` more on both sides, zero outside [0, L).
// The same column of the next tokens is fetched meanwhile: rows are too far apart for the processor
// to see the pattern.
template <class T>
static void load_column(const MixerCall& call, const Layout& layout, const T* x, int64_t start,
                        int count, int halo, int lanes, Vec<T>* column) {
  const int64_t stride = call.x_stride[1];
  for (int i = 0; i < count + 2 * halo; ++i) {
    const int64_t t = start + i - halo;
    column[i] = t < 0 || t >= call.length ? Vec<T>{} : load(x + layout.place(t) * stride, lanes);
    if (t + count < call.length) __builtin_prefetch(x + layout.place(t + count) * stride, 0, 2);
  }
}

// The larger of two; a NaN wins, as in torch.
template <class T>
INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
  return ((b > a) | (b != b)) ? b : a;
}

// What a column's values become while it is convolved.
enum class Steps { kUnused, kToken, kSum, kMaximum };

// Items are blocks of tiles of an image. A run of tokens is walked column after column, so that its
// rows stay in cache, and so do the sums of the pooled steps.
template <class T>
struct MixerConvolve {
  const MixerCall& call;
  MixerConstants<T> constants;
  int64_t blocks;  // of an image
  Scratch scratch;
  static constexpr int kRun = 32;

  struct Local {
    Vec<T>*column, *u, *v;  // (kRun + 2 (K - 1)), (kRun), (kRun)
    Vec<T>* pooled[2];      // (tiles of a block, S)
    T* factor[2];               // (S)
  };
  Local* locals = nullptr;

  explicit MixerConvolve(const MixerCall& c)
      : call(c), constants(c), blocks(blocks_of_item(c.batch, constants.tiles, c.threads)) {}
  bool pools() const { return call.pooled && call.step; }

  int execute() {
    if (!prepare()) return kNoMemory;
    parallel(call.threads, *this);
    return kDone;
  }

  bool prepare() {
    const int64_t column = kRun + 2 * (call.width - 1), steps = pools() ? call.steps : 0;
    const int64_t pooled = divide_up(constants.tiles, blocks) * steps;
    constants.reserve(scratch, call);
    scratch.reserve<Local>(call.threads);
    for (int64_t i = 0; i < call.threads; ++i) {
      scratch.reserve<Vec<T>>(column);
      for (int j = 0; j < 2; ++j) scratch.reserve<Vec<T>>(kRun);
      for (int d = 0; d < 2; ++d) scratch.reserve<Vec<T>>(pooled);
      for (int d = 0; d < 2; ++d) scratch.reserve<T>(steps);
    }
    if (!scratch.allocate()) return false;
    constants.fill(scratch, call);
    locals = scratch.take<Local>(call.threads);
    for (int64_t i = 0; i < call.threads; ++i) {
      Local& l = locals[i];
      l.column = scratch.take<Vec<T>>(column);
      l.u = scratch.take<Vec<T>>(kRun);
      l.v = scratch.take<Vec<T>>(kRun);
      for (int d = 0; d < 2; ++d) l.pooled[d] = scratch.take<Vec<T>>(pooled);
      for (int d = 0; d < 2; ++d) l.factor[d] = scratch.take<T>(steps);
    }
    return true;
  }

  void run(int thread, int threads) {
    items(Share(call.batch * blocks, thread, threads), thread);
  }

  void items(const Share& share, int thread) {
    int64_t prepared = -1;
    for (int64_t item = share.begin; item < share.end; ++item) {
      const int64_t batch = item / blocks;
      const Layout layout(call, batch);
      if (pools() && batch != prepared) {
        for (int d = 0; d < 2; ++d)
          step_factors(call, layout.steps(d), locals[thread].factor[d]);
        prepared = batch;
      }
      if (!call.pooled)
        block_of_width<Steps::kUnused>(item, layout, locals[thread]);
      else if (!call.step)
        block_of_width<Steps::kToken>(item, layout, locals[thread]);
      else if (call.pooling == kMax)
        block_of_width<Steps::kMaximum>(item, layout, locals[thread]);
      else
        block_of_width<Steps::kSum>(item, layout, locals[thread]);
    }
  }

  template <Steps kind>
  void block_of_width(int64_t item, const Layout& layout, const Local& local) {
    if (call.width == 4)
      block<kind, 4>(item, layout, local);
    else
      block<kind, 0>(item, layout, local);
  }

  template <Steps kind, int K>
  void block(int64_t item, const Layout& layout, const Local& local) {
    const int64_t batch = item / blocks, part = item % blocks;
    const int64_t first = constants.tiles * part / blocks;
    const int64_t last = constants.tiles * (part + 1) / blocks;
    if (pools())
      for (int d = 0; d < 2; ++d)
        for (int64_t i = 0; i < (last - first) * call.steps; ++i)
          local.pooled[d][i] = kind == Steps::kMaximum ? splat<T>(-T(INFINITY)) : Vec<T>{};
    for (int64_t start = 0; start < call.length; start += kRun)
      for (int64_t tile = first; tile < last; ++tile)
        column<kind, K>(batch, tile, start, layout, local, (tile - first) * call.steps);
    if (pools())
      for (int64_t tile = first; tile < last; ++tile)
        store_pooled(batch, tile, local, (tile - first) * call.steps);
  }

  // One run's tokens of one tile, whose sums start at `sums`.
  template <Steps kind, int K>
  void column(int64_t batch, int64_t tile, int64_t start, const Layout& layout, const Local& local,
              int64_t sums) {
    const int64_t L = call.length, D = call.channels, c = constants.first_channel(tile);
    const int lanes = constants.lanes(call, tile), width = int(call.width), halo = width - 1;
    const int count = int(least<int64_t>(kRun, L - start));
    const T* x = static_cast<const T*>(call.x) + batch * call.x_stride[0] + c;
    T* out = static_cast<T*>(call.out) + batch * L * D + c;
    T* direct[2] = {nullptr, nullptr};  // where every token is its own step
    if (kind == Steps::kToken)
      for (int d = 0; d < 2; ++d)
        direct[d] = static_cast<T*>(call.pooled) + d * call.direction_stride + batch * L * D + c;
    Vec<T>*here = local.pooled[0] + sums, *there = local.pooled[1] + sums;
    const Vec<T>*weight = constants.weight + tile * 2 * width, *bias = constants.bias + tile * 2;
    const Vec<T> skip_forward = constants.skip[tile * 2], skip_reverse = constants.skip[tile * 2 + 1];

    load_column<T>(call, layout, x, start, count, halo, lanes, local.column);
    convolve_run<T, K>(local.column + halo, weight, bias, width, count, local.u, local.v);
    for (int i = 0; i < count; ++i) {
      const int64_t t = start + i;
      const Vec<T> u = silu<T>(local.u[i]), v = silu<T>(local.v[i]);
      store(out + layout.place(t) * D, u * skip_forward + v * skip_reverse, lanes);
      if constexpr (kind == Steps::kToken) {
        store(direct[0] + t * D, u * T(call.scale), lanes);
        store(direct[1] + t * D, v * T(call.scale), lanes);
      } else if constexpr (kind != Steps::kUnused) {
        const int32_t step = layout.step[t], reverse_step = layout.reverse_step[t];
        here[step] = kind == Steps::kSum ? here[step] + u : maximum<T>(here[step], u);
        there[reverse_step] =
            kind == Steps::kSum ? there[reverse_step] + v : maximum<T>(there[reverse_step], v);
      }
    }
  }

  void store_pooled(int64_t batch, int64_t tile, const Local& local, int64_t sums) {
    const int64_t c = constants.first_channel(tile);
    const int lanes = constants.lanes(call, tile);
    for (int d = 0; d < 2; ++d) {
      T* to = static_cast<T*>(call.pooled) + d * call.direction_stride + batch * call.steps * call.channels;
      for (int64_t s = 0; s < call.steps; ++s) {
        const T factor = local.factor[d][s];
        // An empty step's maximum is -infinity, which a factor of 0 would turn into NaN.
        const bool empty = factor == T(0) && call.pooling == kMax;
        store(to + s * call.channels + c,
              empty ? Vec<T>{} : local.pooled[d][sums + s] * factor, lanes);
      }
    }
  }
};

// A row before its norm: the skip plus `merge` times both directions' scanned steps.
template <class T>
static void merge_row(const MixerCall& call, const Layout& layout, int64_t batch, int64_t t,
                      const T* skip, Vec<T>* values) {
  const int64_t D = call.channels, forward = layout.step ? layout.step[t] : t,
                reverse = layout.step ? layout.reverse_step[t] : t;
  const T* scanned = static_cast<const T*>(call.scanned) + batch * call.steps * D;
  const T *y = scanned + forward * D, *v = scanned + call.direction_stride + reverse * D;
  const T merge = T(call.merge);
  for (int64_t c = 0; c < D; c += kLanes<T>) {
    const int lanes = int(least<int64_t>(kLanes<T>, D - c));
    values[c / kLanes<T>] = load(skip + c, lanes) + (load(y + c, lanes) + load(v + c, lanes)) * merge;
  }
}

// Mean and 1 / standard deviation of a row, in two passes.
template <class T>
static void row_moments(const MixerCall& call, const Vec<T>* values, T& mean, T& deviation) {
  const int64_t D = call.channels, whole = D / kLanes<T>;
  const int rest = int(D % kLanes<T>);
  const auto value = [&](int64_t i) { return values[i]; };
  mean = sum<T>(sum_of<T>(whole + (rest > 0), value)) / T(D);
  const auto square = [&](int64_t i) { return (values[i] - mean) * (values[i] - mean); };
  T variance = sum<T>(sum_of<T>(whole, square));
  for (int lane = 0; lane < rest; ++lane)
    variance += (values[whole][lane] - mean) * (values[whole][lane] - mean);
  deviation = T(1) / sqrt(variance / T(D) + T(call.eps));
}

// Rows: adds the scanned steps to the skip, normalises, gates. Items are runs of tokens.
template <class T>
struct MixerFinish {
  const MixerCall& call;
  int64_t tiles, blocks;
  Scratch scratch;
  Vec<T>* rows = nullptr;
  static constexpr int W = kLanes<T>;
  static constexpr int kTokens = 32;

  explicit MixerFinish(const MixerCall& c)
      : call(c), tiles(divide_up(c.channels, W)), blocks(divide_up(c.length, kTokens)) {}

  int execute() {
    scratch.reserve<Vec<T>>(call.threads * tiles);
    if (!scratch.allocate()) return kNoMemory;
    rows = scratch.take<Vec<T>>(call.threads * tiles);
    parallel(call.threads, *this);
    return kDone;
  }

  void run(int thread, int threads) {
    const Share share(call.batch * blocks, thread, threads);
    for (int64_t item = share.begin; item < share.end; ++item) {
      const int64_t batch = item / blocks, first = item % blocks * kTokens;
      const Layout layout(call, batch);
      for (int64_t t = first; t < least(first + kTokens, call.length); ++t)
        row(batch, t, layout, rows + thread * tiles);
    }
  }

  void row(int64_t batch, int64_t t, const Layout& layout, Vec<T>* values) {
    const int64_t D = call.channels;
    T* out = static_cast<T*>(call.out) + (batch * call.length + layout.place(t)) * D;
    const T* z = static_cast<const T*>(call.z) + batch * call.x_stride[0] +
                 layout.place(t) * call.x_stride[1];
    T mean = 0, deviation = 1;
    merge_row<T>(call, layout, batch, t, out, values);
    if (call.norm_weight) row_moments<T>(call, values, mean, deviation);
    const T *weight = static_cast<const T*>(call.norm_weight),
            *bias = static_cast<const T*>(call.norm_bias);
    for (int64_t c = 0; c < D; c += W) {
      const int lanes = int(least<int64_t>(W, D - c));
      Vec<T> value = values[c / W];
      if (weight) value = (value - mean) * deviation * load(weight + c, lanes);
      if (bias) value += load(bias + c, lanes);
      if (call.gate) {
        value *= silu<T>(load(z + c, lanes));
      }
      store(out + c, value, lanes);
    }
  }
};

template <class T>
static int mixer_convolve(const MixerCall& call) {
  return MixerConvolve<T>(call).execute();
}

template <class T>
static int mixer_finish(const MixerCall& call) {
  return MixerFinish<T>(call).execute();
}

}  // namespace FASTVIM_LEVEL
