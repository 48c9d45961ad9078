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

// Tokens [start, start + count) of a column, with `halo` more on both sides, zero outside [0, L).
template <class T>
static void load_column(const MixerCall& call, const Layout& layout, const T* x, int64_t start,
                        int count, int halo, int lanes, Vec<T>* column) {
  for (int i = 0; i < count + 2 * halo; ++i) {
    const int64_t t = start + i - halo;
    column[i] = t < 0 || t >= call.length ? Vec<T>{}
                                          : load(x + layout.place(t) * call.x_stride[1], lanes);
  }
}

// The larger of two; a NaN wins, as in torch.
template <class T>
INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
  return (b > a) | (b != b) ? b : a;
}

// What a column's values become while it is convolved.
enum class Steps { kUnused, kToken, kSum, kMaximum };

template <class T>
struct MixerConvolve {
  const MixerCall& call;
  MixerConstants<T> constants;
  Scratch scratch;
  static constexpr int W = kLanes<T>;
  static constexpr int kChunk = 64;

  struct Local {
    Vec<T>*column, *pooled[2];
    T* factor[2];
  };
  Local* locals = nullptr;

  explicit MixerConvolve(const MixerCall& c) : call(c), constants(c) {}
  bool pools() const { return call.pooled && call.step; }

  int execute() {
    const int64_t column = kChunk + 2 * (call.width - 1), steps = pools() ? call.steps : 0;
    constants.reserve(scratch, call);
    scratch.reserve<Local>(call.threads);
    for (int64_t i = 0; i < call.threads; ++i) {
      scratch.reserve<Vec<T>>(column);
      for (int d = 0; d < 2; ++d) scratch.reserve<Vec<T>>(steps);
      for (int d = 0; d < 2; ++d) scratch.reserve<T>(steps);
    }
    if (!scratch.allocate()) return kNoMemory;
    constants.fill(scratch, call);
    locals = scratch.take<Local>(call.threads);
    for (int64_t i = 0; i < call.threads; ++i) {
      Local& l = locals[i];
      l.column = scratch.take<Vec<T>>(column);
      for (int d = 0; d < 2; ++d) l.pooled[d] = scratch.take<Vec<T>>(steps);
      for (int d = 0; d < 2; ++d) l.factor[d] = scratch.take<T>(steps);
    }
    parallel(call.threads, *this);
    return kDone;
  }

  void run(int thread, int threads) {
    const Share share(call.batch * constants.tiles, thread, threads);
    int64_t prepared = -1;
    for (int64_t item = share.begin; item < share.end; ++item) {
      const int64_t batch = item / constants.tiles, tile = item % constants.tiles;
      const Layout layout(call, batch);
      if (pools() && batch != prepared) {
        for (int d = 0; d < 2; ++d)
          step_factors(call, layout.steps(d), locals[thread].factor[d]);
        prepared = batch;
      }
      if (!call.pooled)
        column_of_width<Steps::kUnused>(batch, tile, layout, locals[thread]);
      else if (!call.step)
        column_of_width<Steps::kToken>(batch, tile, layout, locals[thread]);
      else if (call.pooling == kMax)
        column_of_width<Steps::kMaximum>(batch, tile, layout, locals[thread]);
      else
        column_of_width<Steps::kSum>(batch, tile, layout, locals[thread]);
    }
  }

  template <Steps kind>
  void column_of_width(int64_t batch, int64_t tile, const Layout& layout, const Local& local) {
    if (call.width == 4)
      column<kind, 4>(batch, tile, layout, local);
    else
      column<kind, 0>(batch, tile, layout, local);
  }

  template <Steps kind, int K>
  void column(int64_t batch, int64_t tile, const Layout& layout, const Local& local) {
    const int64_t L = call.length, D = call.channels, c = constants.first_channel(tile);
    const int lanes = constants.lanes(call, tile), width = int(call.width), halo = width - 1;
    const T* x = static_cast<const T*>(call.x) + batch * call.x_stride[0] + c;
    T* out = static_cast<T*>(call.out) + batch * L * D + c;
    T* direct[2] = {nullptr, nullptr};  // where every token is its own step
    if (kind == Steps::kToken)
      for (int d = 0; d < 2; ++d)
        direct[d] = static_cast<T*>(call.pooled) + (d * call.batch + batch) * L * D + c;
    if (pools())
      for (int d = 0; d < 2; ++d)
        for (int64_t s = 0; s < call.steps; ++s)
          local.pooled[d][s] = kind == Steps::kMaximum ? splat<T>(-T(INFINITY)) : Vec<T>{};
    const Vec<T>*weight = constants.weight + tile * 2 * width, *bias = constants.bias + tile * 2;
    const Vec<T> skip_forward = constants.skip[tile * 2], skip_reverse = constants.skip[tile * 2 + 1];

    for (int64_t start = 0; start < L; start += kChunk) {
      const int count = int(least<int64_t>(kChunk, L - start));
      load_column<T>(call, layout, x, start, count, halo, lanes, local.column);
      for (int i = 0; i < count; ++i) {
        const int64_t t = start + i;
        Vec<T> u, v;
        convolve_token<T, K>(local.column + halo + i, weight, bias, width, u, v);
        u *= sigmoid<T>(u);
        v *= sigmoid<T>(v);
        store(out + layout.place(t) * D, u * skip_forward + v * skip_reverse, lanes);
        if constexpr (kind == Steps::kToken) {
          store(direct[0] + t * D, u * T(call.scale), lanes);
          store(direct[1] + t * D, v * T(call.scale), lanes);
        } else if constexpr (kind != Steps::kUnused) {
          Vec<T>*here = local.pooled[0] + layout.step[t];
          Vec<T>*there = local.pooled[1] + layout.reverse_step[t];
          *here = kind == Steps::kSum ? *here + u : maximum<T>(*here, u);
          *there = kind == Steps::kSum ? *there + v : maximum<T>(*there, v);
        }
      }
    }
    if (pools()) store_pooled(batch, c, lanes, local);
  }

  void store_pooled(int64_t batch, int64_t c, int lanes, const Local& local) {
    for (int d = 0; d < 2; ++d) {
      T* to = static_cast<T*>(call.pooled) + (d * call.batch + batch) * call.steps * call.channels;
      for (int64_t s = 0; s < call.steps; ++s) {
        const T factor = local.factor[d][s];
        // An empty step's maximum is -infinity, which a factor of 0 would turn into NaN.
        const bool empty = factor == T(0) && call.pooling == kMax;
        store(to + s * call.channels + c, empty ? Vec<T>{} : local.pooled[d][s] * factor, lanes);
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
  const T* y = static_cast<const T*>(call.scanned) + (batch * call.steps + forward) * D;
  const T* v =
      static_cast<const T*>(call.scanned) + ((call.batch + batch) * call.steps + reverse) * D;
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
  Vec<T> total{}, squares{};
  for (int64_t i = 0; i < whole + (rest > 0); ++i) total += values[i];
  mean = sum<T>(total) / T(D);
  for (int64_t i = 0; i < whole; ++i) squares += (values[i] - mean) * (values[i] - mean);
  T variance = sum<T>(squares);
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
        const Vec<T> gate = load(z + c, lanes);
        value *= gate * sigmoid<T>(gate);
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
