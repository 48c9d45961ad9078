// The mixer around its scan, backward, in the forward's order reversed: rows (gate, norm), sums over
// each step's tokens, then after the scan's own backward columns (skip, pooling, convolution).
// Convolutions are computed again; sums for weights are kept per thread and added in a fixed order.

namespace FASTVIM_LEVEL {

// Adds (threads, count) to (count).
template <class T>
static void add_threads(const Vec<T>* sums, int64_t threads, int64_t tiles, int64_t count,
                        void* to) {
  if (!to) return;
  for (int64_t c = 0; c < count; c += kLanes<T>) {
    Vec<T> total{};
    for (int64_t i = 0; i < threads; ++i) total += sums[i * tiles + c / kLanes<T>];
    store(static_cast<T*>(to) + c, total, int(least<int64_t>(kLanes<T>, count - c)));
  }
}

// From grad_out to the gradients of z, of the norm's weights and of the merged rows. `out` holds
// the skip and receives the gradient of the merged rows.
template <class T>
struct MixerFinishBackward {
  const MixerCall& call;
  int64_t tiles, blocks;
  Scratch scratch;
  Vec<T>*values = nullptr, *grads = nullptr;              // (threads, tiles)
  Vec<T>*sum_weight = nullptr, *sum_bias = nullptr;       // (threads, tiles)
  static constexpr int W = kLanes<T>;
  static constexpr int kTokens = 32;

  explicit MixerFinishBackward(const MixerCall& c)
      : call(c), tiles(divide_up(c.channels, W)), blocks(divide_up(c.length, kTokens)) {}

  int execute() {
    for (int i = 0; i < 4; ++i) scratch.reserve<Vec<T>>(call.threads * tiles);
    if (!scratch.allocate()) return kNoMemory;
    Vec<T>** rows[] = {&values, &grads, &sum_weight, &sum_bias};
    for (Vec<T>** row : rows) {
      *row = scratch.take<Vec<T>>(call.threads * tiles);
      for (int64_t i = 0; i < call.threads * tiles; ++i) (*row)[i] = Vec<T>{};
    }
    parallel(call.threads, *this);
    add_threads<T>(sum_weight, call.threads, tiles, call.channels, call.grad_norm_weight);
    add_threads<T>(sum_bias, call.threads, tiles, call.channels, call.grad_norm_bias);
    return kDone;
  }

  void run(int thread, int threads) {
    const Share share(call.batch * blocks, thread, threads);
    for (int64_t item = share.begin; item < share.end; ++item) {
      const int64_t batch = item / blocks, first = item % blocks * kTokens;
      const Layout layout(call, batch);
      for (int64_t t = first; t < least(first + kTokens, call.length); ++t)
        row(batch, t, layout, thread);
    }
  }

  void row(int64_t batch, int64_t t, const Layout& layout, int thread) {
    const int64_t D = call.channels, place = layout.place(t), token = batch * call.length + place;
    T* merged = static_cast<T*>(call.out) + token * D;
    const T* grad_out = static_cast<const T*>(call.grad_out) + token * D;
    const T* z = static_cast<const T*>(call.z) + batch * call.x_stride[0] + place * call.x_stride[1];
    T* grad_z = static_cast<T*>(call.grad_z) + token * 2 * D;
    const T *weight = static_cast<const T*>(call.norm_weight),
            *bias = static_cast<const T*>(call.norm_bias);
    Vec<T>*row = values + thread * tiles, *grad = grads + thread * tiles;
    T mean = 0, deviation = 1;
    merge_row<T>(call, layout, batch, t, merged, row);
    if (weight) row_moments<T>(call, row, mean, deviation);

    Vec<T> total{}, along{};
    for (int64_t c = 0; c < D; c += W) {
      const int lanes = int(least<int64_t>(W, D - c));
      const int64_t i = c / W;
      const Vec<T> scale = weight ? load(weight + c, lanes) : splat<T>(1);
      const Vec<T> normal = weight ? (row[i] - mean) * deviation : row[i];
      Vec<T> gradient = load(grad_out + c, lanes);
      if (call.gate) {
        Vec<T> value = normal * scale;
        if (bias) value += load(bias + c, lanes);
        const Vec<T> gate = load(z + c, lanes), open = sigmoid<T>(gate);
        store(grad_z + c, gradient * value * open * (T(1) + gate * (T(1) - open)), lanes);
        gradient *= gate * open;
      } else {
        store(grad_z + c, Vec<T>{}, lanes);
      }
      if (weight) {
        sum_weight[thread * tiles + i] += gradient * normal;
        sum_bias[thread * tiles + i] += gradient;
        gradient *= scale;
        row[i] = normal;
        total += gradient;
        along += gradient * normal;
      }
      grad[i] = gradient;
    }
    const T shift = sum<T>(total) / T(D), slope = sum<T>(along) / T(D);
    for (int64_t c = 0; c < D; c += W) {
      const int lanes = int(least<int64_t>(W, D - c));
      Vec<T> gradient = grad[c / W];
      if (weight) gradient = (gradient - shift - row[c / W] * slope) * deviation;
      store(merged + c, gradient, lanes);
    }
  }
};

// The gradient of the scanned steps: `merge` times the sum over each step's tokens.
template <class T>
struct StepSums {
  const MixerCall& call;
  MixerConstants<T> constants;
  int64_t directions;
  Scratch scratch;
  Vec<T>* sums = nullptr;  // (threads, S)

  explicit StepSums(const MixerCall& c)
      : call(c), constants(c), directions(c.reverse_step ? 2 : 1) {}

  int execute() {
    scratch.reserve<Vec<T>>(call.threads * call.steps);
    if (!scratch.allocate()) return kNoMemory;
    sums = scratch.take<Vec<T>>(call.threads * call.steps);
    parallel(call.threads, *this);
    return kDone;
  }

  void run(int thread, int threads) {
    const Share share(call.batch * constants.tiles, thread, threads);
    for (int64_t item = share.begin; item < share.end; ++item)
      for (int64_t d = 0; d < directions; ++d)
        column(item / constants.tiles, item % constants.tiles, int(d), sums + thread * call.steps);
  }

  void column(int64_t batch, int64_t tile, int direction, Vec<T>* sum) {
    const Layout layout(call, batch);
    const int32_t* steps = layout.steps(direction);
    const int64_t D = call.channels, c = constants.first_channel(tile);
    const int lanes = constants.lanes(call, tile);
    const T* merged = static_cast<const T*>(call.out) + batch * call.length * D + c;
    T* to =
        static_cast<T*>(call.grad_scanned) + (direction * call.batch + batch) * call.steps * D + c;
    for (int64_t s = 0; s < call.steps; ++s) sum[s] = Vec<T>{};
    for (int64_t t = 0; t < call.length; ++t)
      sum[steps ? steps[t] : t] += load(merged + layout.place(t) * D, lanes);
    for (int64_t s = 0; s < call.steps; ++s) store(to + s * D, sum[s] * T(call.merge), lanes);
  }
};

template <class T>
static int mixer_finish_backward(const MixerCall& call) {
  const int status = MixerFinishBackward<T>(call).execute();
  return status == kDone ? StepSums<T>(call).execute() : status;
}

// From the gradients of the merged rows (`out`) and of the pooled steps to those of x, of the
// convolution and of D, one column of kLanes channels of one image at a time.
template <class T>
struct MixerConvolveBackward {
  const MixerCall& call;
  MixerConstants<T> constants;
  Scratch scratch;
  static constexpr int W = kLanes<T>;

  struct Local {  // of one thread
    Vec<T>*x, *grad[2];                    // (L + 2 (K - 1)), zero at both ends
    Vec<T>*value[2], *largest[2], *ties[2];  // (L), (S), (S), for maxima
    T* factor[2];                          // (S)
  };
  Local* locals = nullptr;
  Vec<T>* sums = nullptr;  // (threads, tiles, 2, K + 2): taps, bias, skip

  explicit MixerConvolveBackward(const MixerCall& c) : call(c), constants(c) {}
  int64_t sums_of_tile() const { return 2 * (call.width + 2); }

  int execute() {
    const int64_t column = call.length + 2 * (call.width - 1);
    const int64_t values = call.pooling == kMax ? call.length : 0;
    const int64_t maxima = call.pooling == kMax ? call.steps : 0;
    const int64_t total = call.threads * constants.tiles * sums_of_tile();
    constants.reserve(scratch, call);
    scratch.reserve<Local>(call.threads);
    for (int64_t i = 0; i < call.threads; ++i) {
      for (int j = 0; j < 3; ++j) scratch.reserve<Vec<T>>(column);
      for (int d = 0; d < 2; ++d) {
        scratch.reserve<Vec<T>>(values);
        for (int j = 0; j < 2; ++j) scratch.reserve<Vec<T>>(maxima);
        scratch.reserve<T>(call.steps);
      }
    }
    scratch.reserve<Vec<T>>(total);
    if (!scratch.allocate()) return kNoMemory;
    constants.fill(scratch, call);
    locals = scratch.take<Local>(call.threads);
    for (int64_t i = 0; i < call.threads; ++i) {
      Local& l = locals[i];
      Vec<T>** arrays[] = {&l.x, &l.grad[0], &l.grad[1]};
      for (Vec<T>** array : arrays) *array = scratch.take<Vec<T>>(column);
      for (int d = 0; d < 2; ++d) {
        l.value[d] = scratch.take<Vec<T>>(values);
        l.largest[d] = scratch.take<Vec<T>>(maxima);
        l.ties[d] = scratch.take<Vec<T>>(maxima);
        l.factor[d] = scratch.take<T>(call.steps);
      }
    }
    sums = scratch.take<Vec<T>>(total);
    for (int64_t i = 0; i < total; ++i) sums[i] = Vec<T>{};
    parallel(call.threads, *this);
    add_sums();
    return kDone;
  }

  void add_sums() {
    const int64_t K = call.width, D = call.channels;
    for (int64_t tile = 0; tile < constants.tiles; ++tile)
      for (int64_t d = 0; d < 2; ++d)
        for (int64_t k = 0; k < K + 2; ++k) {
          Vec<T> total{};
          for (int64_t i = 0; i < call.threads; ++i)
            total += sums[((i * constants.tiles + tile) * 2 + d) * (K + 2) + k];
          const int64_t c = d * D + constants.first_channel(tile);
          const int lanes = constants.lanes(call, tile);
          if (k < K)
            for (int i = 0; i < lanes; ++i)
              static_cast<T*>(call.grad_conv_weight)[(c + i) * K + k] = total[i];
          else if (k == K && call.grad_conv_bias)
            store(static_cast<T*>(call.grad_conv_bias) + c, total, lanes);
          else if (k == K + 1)
            store(static_cast<T*>(call.grad_skip) + c, total * T(call.merge), lanes);
        }
  }

  void run(int thread, int threads) {
    const Share share(call.batch * constants.tiles, thread, threads);
    int64_t prepared = -1;
    for (int64_t item = share.begin; item < share.end; ++item) {
      const int64_t batch = item / constants.tiles, tile = item % constants.tiles;
      const Layout layout(call, batch);
      const Local& local = locals[thread];
      if (call.step && batch != prepared) {
        for (int d = 0; d < 2; ++d) step_factors(call, layout.steps(d), local.factor[d]);
        prepared = batch;
      }
      Vec<T>* sum = sums + (thread * constants.tiles + tile) * sums_of_tile();
      if (call.width == 4)
        column<4>(batch, tile, layout, local, sum);
      else
        column<0>(batch, tile, layout, local, sum);
    }
  }

  template <int K>
  void column(int64_t batch, int64_t tile, const Layout& layout, const Local& local, Vec<T>* sum) {
    const int width = K ? K : int(call.width), halo = width - 1;
    const int lanes = constants.lanes(call, tile);
    const int64_t c = constants.first_channel(tile);
    load_column<T>(call, layout, static_cast<const T*>(call.x) + batch * call.x_stride[0] + c, 0,
                   int(call.length), halo, lanes, local.x);
    for (int d = 0; d < 2; ++d)
      for (int i = 0; i < halo; ++i)
        local.grad[d][i] = local.grad[d][call.length + halo + i] = Vec<T>{};
    if (call.pooling == kMax && call.step) find_maxima<K>(tile, layout, local);
    activations<K>(batch, tile, layout, local, sum);
    taps<K>(batch, tile, layout, local, sum);
  }

  // Which of its step's tokens a token's value is equal to the maximum of, and how many tie.
  template <int K>
  void find_maxima(int64_t tile, const Layout& layout, const Local& local) {
    const int width = K ? K : int(call.width);
    for (int d = 0; d < 2; ++d)
      for (int64_t s = 0; s < call.steps; ++s) local.largest[d][s] = splat<T>(-T(INFINITY));
    for (int64_t t = 0; t < call.length; ++t) {
      Vec<T> u[2];
      convolve_token<T, K>(local.x + width - 1 + t, constants.weight + tile * 2 * width,
                           constants.bias + tile * 2, width, u[0], u[1]);
      for (int d = 0; d < 2; ++d) {
        local.value[d][t] = u[d] * sigmoid<T>(u[d]);
        Vec<T>& largest = local.largest[d][layout.steps(d)[t]];
        largest = maximum<T>(largest, local.value[d][t]);
      }
    }
    for (int d = 0; d < 2; ++d) {
      for (int64_t s = 0; s < call.steps; ++s) local.ties[d][s] = Vec<T>{};
      for (int64_t t = 0; t < call.length; ++t) {
        const int32_t s = layout.steps(d)[t];
        local.ties[d][s] += local.value[d][t] == local.largest[d][s] ? splat<T>(1) : Vec<T>{};
      }
    }
  }

  // The gradients before the SiLUs, into local.grad; sums the bias's and the skip's.
  template <int K>
  void activations(int64_t batch, int64_t tile, const Layout& layout, const Local& local,
                   Vec<T>* sum) {
    const int width = K ? K : int(call.width), halo = width - 1;
    const int lanes = constants.lanes(call, tile);
    const int64_t D = call.channels, c = constants.first_channel(tile);
    const T* merged = static_cast<const T*>(call.out) + batch * call.length * D + c;
    const T* pooled[2];
    Vec<T> bias[2] = {}, skip[2] = {};
    for (int d = 0; d < 2; ++d)
      pooled[d] =
          static_cast<const T*>(call.grad_pooled) + (d * call.batch + batch) * call.steps * D + c;
    for (int64_t t = 0; t < call.length; ++t) {
      const Vec<T> grad = load(merged + layout.place(t) * D, lanes);
      Vec<T> a[2];
      convolve_token<T, K>(local.x + halo + t, constants.weight + tile * 2 * width,
                           constants.bias + tile * 2, width, a[0], a[1]);
      for (int d = 0; d < 2; ++d) {
        const int64_t step = call.step ? layout.steps(d)[t] : t;
        const T factor = call.step ? local.factor[d][step] : T(call.scale);
        const Vec<T> open = sigmoid<T>(a[d]);
        Vec<T> through = load(pooled[d] + step * D, lanes) * factor;
        if (call.pooling == kMax && call.step) {
          const Vec<T> largest = local.largest[d][step];
          through = local.value[d][t] == largest ? through / local.ties[d][step] : Vec<T>{};
        }
        through += grad * constants.skip[tile * 2 + d];
        skip[d] += grad * a[d] * open;
        const Vec<T> before = through * open * (T(1) + a[d] * (T(1) - open));
        bias[d] += before;
        local.grad[d][halo + t] = before;
      }
    }
    for (int d = 0; d < 2; ++d) {
      sum[d * (width + 2) + width] += bias[d];
      sum[d * (width + 2) + width + 1] += skip[d];
    }
  }

  // The transposed convolutions, and the sums of the weights' gradients.
  template <int K>
  void taps(int64_t batch, int64_t tile, const Layout& layout, const Local& local, Vec<T>* sum) {
    const int width = K ? K : int(call.width), halo = width - 1;
    const int lanes = constants.lanes(call, tile);
    const int64_t D = call.channels;
    const Vec<T>*weight = constants.weight + tile * 2 * width, *x = local.x + halo;
    const Vec<T>*forward = local.grad[0] + halo, *reverse = local.grad[1] + halo;
    T* to = static_cast<T*>(call.grad_x) + batch * call.length * 2 * D +
            constants.first_channel(tile);
    Vec<T>*sum_forward = sum, *sum_reverse = sum + width + 2;
    for (int64_t t = 0; t < call.length; ++t) {
      Vec<T> total{};
#pragma GCC unroll 4
      for (int k = 0; k < width; ++k) {
        const int behind = halo - k;
        total += weight[k] * forward[t + behind] + weight[width + k] * reverse[t - behind];
        sum_forward[k] += forward[t] * x[t - behind];
        sum_reverse[k] += reverse[t] * x[t + behind];
      }
      store(to + layout.place(t) * 2 * D, total, lanes);
    }
  }
};

template <class T>
static int mixer_convolve_backward(const MixerCall& call) {
  return MixerConvolveBackward<T>(call).execute();
}

}  // namespace FASTVIM_LEVEL
