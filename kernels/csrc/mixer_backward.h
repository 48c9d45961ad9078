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

  bool prepare() {
    for (int i = 0; i < 4; ++i) scratch.reserve<Vec<T>>(call.threads * tiles);
    if (!scratch.allocate()) return false;
    Vec<T>** rows[] = {&values, &grads, &sum_weight, &sum_bias};
    for (Vec<T>** row : rows) {
      *row = scratch.take<Vec<T>>(call.threads * tiles);
      for (int64_t i = 0; i < call.threads * tiles; ++i) (*row)[i] = Vec<T>{};
    }
    return true;
  }

  void add_sums() {
    add_threads<T>(sum_weight, call.threads, tiles, call.channels, call.grad_norm_weight);
    add_threads<T>(sum_bias, call.threads, tiles, call.channels, call.grad_norm_bias);
  }

  void items(const Share& share, int thread) {
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

  bool prepare() {
    scratch.reserve<Vec<T>>(call.threads * call.steps);
    if (!scratch.allocate()) return false;
    sums = scratch.take<Vec<T>>(call.threads * call.steps);
    return true;
  }

  void items(const Share& share, int thread) {
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
        static_cast<T*>(call.grad_scanned) + direction * call.direction_stride + batch * call.steps * D + c;
    for (int64_t s = 0; s < call.steps; ++s) sum[s] = Vec<T>{};
    for (int64_t t = 0; t < call.length; ++t)
      sum[steps ? steps[t] : t] += load(merged + layout.place(t) * D, lanes);
    for (int64_t s = 0; s < call.steps; ++s) store(to + s * D, sum[s] * T(call.merge), lanes);
  }
};

// What comes before the scan's backward: the skip again, then the rows, then the sums over steps. Each
// thread takes whole images through all three, while they are in its cache; images left over are
// shared by all threads, one stage after the other.
template <class T>
struct BeforeScanBackward {
  const MixerCall& call;
  MixerConvolve<T> skip;
  MixerFinishBackward<T> rows;
  StepSums<T> sums;
  int64_t whole;

  explicit BeforeScanBackward(const MixerCall& c)
      : call(c), skip(c), rows(c), sums(c), whole(c.batch / c.threads * c.threads) {}

  int execute() {
    if (!skip.prepare() || !rows.prepare() || !sums.prepare()) return kNoMemory;
    if (whole) parallel(call.threads, *this);
    share_rest(skip, skip.blocks);
    share_rest(rows, rows.blocks);
    share_rest(sums, sums.constants.tiles);
    rows.add_sums();
    return kDone;
  }

  void run(int thread, int threads) {
    const Share share(whole, thread, threads);
    for (int64_t image = share.begin; image < share.end; ++image) {
      skip.items(of_image(image, skip.blocks), thread);
      rows.items(of_image(image, rows.blocks), thread);
      sums.items(of_image(image, sums.constants.tiles), thread);
    }
  }

 private:
  static Share of_image(int64_t image, int64_t items) {
    return Share(image * items, (image + 1) * items);
  }

  template <class Stage>
  struct Rest {
    Stage& stage;
    int64_t first, count;
    void run(int thread, int threads) {
      const Share share(count, thread, threads);
      stage.items(Share(first + share.begin, first + share.end), thread);
    }
  };
  template <class Stage>
  void share_rest(Stage& stage, int64_t items) {
    Rest<Stage> rest{stage, whole * items, (call.batch - whole) * items};
    if (rest.count) parallel(call.threads, rest);
  }
};

template <class T>
static int mixer_finish_backward(const MixerCall& call) {
  return BeforeScanBackward<T>(call).execute();
}

// From the gradients of the merged rows (`out`) and of the pooled steps to those of x, of the
// convolution and of D. Items and runs are the forward's; where maxima are pooled a run is all tokens.
template <class T>
struct MixerConvolveBackward {
  const MixerCall& call;
  MixerConstants<T> constants;
  int64_t blocks, run_length;
  bool maxima;
  Scratch scratch;

  struct Local {  // of one thread; R is the run's length
    Vec<T>* x;                             // (R + 4 (K - 1)): a run with the tokens around it
    Vec<T>*a[2], *grad[2];                 // (R + 2 (K - 1)): before the SiLUs
    Vec<T>*value[2], *largest[2], *ties[2];  // (L), (S), (S), for maxima
    T* factor[2];                          // (S)
  };
  Local* locals = nullptr;
  Vec<T>* sums = nullptr;  // (threads, tiles, 2, K + 2): taps, bias, skip

  explicit MixerConvolveBackward(const MixerCall& c)
      : call(c),
        constants(c),
        blocks(blocks_of_item(c.batch, constants.tiles, c.threads)),
        maxima(c.pooling == kMax && c.step) {
    run_length = maxima ? call.length : least<int64_t>(call.length, 64);
  }
  int64_t sums_of_tile() const { return 2 * (call.width + 2); }

  int execute() {
    const int64_t halo = call.width - 1, around = run_length + 2 * halo;
    const int64_t values = maxima ? call.length : 0, largest = maxima ? call.steps : 0;
    const int64_t total = call.threads * constants.tiles * sums_of_tile();
    constants.reserve(scratch, call);
    scratch.reserve<Local>(call.threads);
    for (int64_t i = 0; i < call.threads; ++i) {
      scratch.reserve<Vec<T>>(around + 2 * halo);
      for (int d = 0; d < 2; ++d) {
        for (int j = 0; j < 2; ++j) scratch.reserve<Vec<T>>(around);
        scratch.reserve<Vec<T>>(values);
        for (int j = 0; j < 2; ++j) scratch.reserve<Vec<T>>(largest);
        scratch.reserve<T>(call.steps);
      }
    }
    scratch.reserve<Vec<T>>(total);
    if (!scratch.allocate()) return kNoMemory;
    constants.fill(scratch, call);
    locals = scratch.take<Local>(call.threads);
    for (int64_t i = 0; i < call.threads; ++i) {
      Local& l = locals[i];
      l.x = scratch.take<Vec<T>>(around + 2 * halo);
      for (int d = 0; d < 2; ++d) {
        l.a[d] = scratch.take<Vec<T>>(around);
        l.grad[d] = scratch.take<Vec<T>>(around);
        l.value[d] = scratch.take<Vec<T>>(values);
        l.largest[d] = scratch.take<Vec<T>>(largest);
        l.ties[d] = scratch.take<Vec<T>>(largest);
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
    const Share share(call.batch * blocks, thread, threads);
    int64_t prepared = -1;
    for (int64_t item = share.begin; item < share.end; ++item) {
      const int64_t batch = item / blocks, part = item % blocks;
      const Layout layout(call, batch);
      const Local& local = locals[thread];
      if (call.step && batch != prepared) {
        for (int d = 0; d < 2; ++d) step_factors(call, layout.steps(d), local.factor[d]);
        prepared = batch;
      }
      for (int64_t start = 0; start < call.length; start += run_length)
        for (int64_t tile = constants.tiles * part / blocks;
             tile < constants.tiles * (part + 1) / blocks; ++tile) {
          Vec<T>* sum = sums + (thread * constants.tiles + tile) * sums_of_tile();
          if (call.width == 4)
            column<4>(batch, tile, start, layout, local, sum);
          else
            column<0>(batch, tile, start, layout, local, sum);
        }
    }
  }

  template <int K>
  void column(int64_t batch, int64_t tile, int64_t start, const Layout& layout, const Local& local,
              Vec<T>* sum) {
    const int width = K ? K : int(call.width), halo = width - 1;
    const int lanes = constants.lanes(call, tile);
    const int64_t c = constants.first_channel(tile);
    const int count = int(least(run_length, call.length - start));
    // The run and, for the transposed convolutions, `halo` tokens on both sides of it.
    load_column<T>(call, layout, static_cast<const T*>(call.x) + batch * call.x_stride[0] + c,
                   start - halo, count + 2 * halo, halo, lanes, local.x);
    convolve_run<T, K>(local.x + halo, constants.weight + tile * 2 * width,
                       constants.bias + tile * 2, width, count + 2 * halo, local.a[0], local.a[1]);
    if (maxima) find_maxima(layout, local, halo);
    activations(batch, tile, start, count, layout, local, sum);
    taps<K>(batch, tile, start, count, layout, local, sum);
  }

  // Which of its step's tokens a token's value is equal to the maximum of, and how many tie.
  void find_maxima(const Layout& layout, const Local& local, int halo) {
    for (int d = 0; d < 2; ++d) {
      const int32_t* steps = layout.steps(d);
      for (int64_t s = 0; s < call.steps; ++s) {
        local.largest[d][s] = splat<T>(-T(INFINITY));
        local.ties[d][s] = Vec<T>{};
      }
      for (int64_t t = 0; t < call.length; ++t) {
        local.value[d][t] = silu<T>(local.a[d][halo + t]);
        local.largest[d][steps[t]] = maximum<T>(local.largest[d][steps[t]], local.value[d][t]);
      }
      for (int64_t t = 0; t < call.length; ++t)
        local.ties[d][steps[t]] +=
            local.value[d][t] == local.largest[d][steps[t]] ? splat<T>(1) : Vec<T>{};
    }
  }

  // The gradients before the SiLUs, into local.grad; sums the bias's and the skip's over the run.
  void activations(int64_t batch, int64_t tile, int64_t start, int count, const Layout& layout,
                   const Local& local, Vec<T>* sum) {
    const int halo = int(call.width) - 1, lanes = constants.lanes(call, tile);
    const int64_t D = call.channels, c = constants.first_channel(tile);
    const T* merged = static_cast<const T*>(call.out) + batch * call.length * D + c;
    for (int d = 0; d < 2; ++d) {
      const T* pooled =
          static_cast<const T*>(call.grad_pooled) + d * call.direction_stride + batch * call.steps * D + c;
      const Vec<T> skip = constants.skip[tile * 2 + d];
      Vec<T> sum_bias{}, sum_skip{};
      for (int i = 0; i < count + 2 * halo; ++i) {
        const int64_t t = start + i - halo;
        if (t < 0 || t >= call.length) {
          local.grad[d][i] = Vec<T>{};
          continue;
        }
        const Vec<T> a = local.a[d][i], open = sigmoid<T>(a);
        const Vec<T> grad = load(merged + layout.place(t) * D, lanes);
        const int64_t step = call.step ? layout.steps(d)[t] : t;
        const T factor = call.step ? local.factor[d][step] : T(call.scale);
        Vec<T> through = load(pooled + step * D, lanes) * factor;
        if (maxima) {
          const Vec<T> largest = local.largest[d][step];
          through = local.value[d][t] == largest ? through / local.ties[d][step] : Vec<T>{};
        }
        through += grad * skip;
        const Vec<T> before = through * open * (T(1) + a * (T(1) - open));
        local.grad[d][i] = before;
        if (i < halo || i >= halo + count) continue;  // another run's token
        sum_bias += before;
        sum_skip += grad * a * open;
      }
      sum[d * (halo + 3) + halo + 1] += sum_bias;
      sum[d * (halo + 3) + halo + 2] += sum_skip;
    }
  }

  // The transposed convolutions, and the sums of the weights' gradients.
  template <int K>
  void taps(int64_t batch, int64_t tile, int64_t start, int count, const Layout& layout,
            const Local& local, Vec<T>* sum) {
    const int width = K ? K : int(call.width), halo = width - 1;
    const int lanes = constants.lanes(call, tile);
    const int64_t D = call.channels;
    const Vec<T>*x = local.x + 2 * halo, *forward = local.grad[0] + halo;
    const Vec<T>* reverse = local.grad[1] + halo;
    T* to = static_cast<T*>(call.grad_x) + batch * call.length * 2 * D +
            constants.first_channel(tile);
    // In registers where their number is known.
    Vec<T> weights[K ? 2 * K : 1], taps[K ? 2 * K : 1];
    Vec<T>*sum_forward = K ? taps : sum, *sum_reverse = K ? taps + K : sum + width + 2;
    const Vec<T>* weight = K ? weights : constants.weight + tile * 2 * width;
    for (int k = 0; k < 2 * K; ++k) {
      weights[k] = constants.weight[tile * 2 * width + k];
      taps[k] = Vec<T>{};
    }
    for (int t = 0; t < count; ++t) {
      Vec<T> total{};
#pragma GCC unroll 4
      for (int k = 0; k < width; ++k) {
        const int behind = halo - k;
        total += weight[k] * forward[t + behind] + weight[width + k] * reverse[t - behind];
        sum_forward[k] += forward[t] * x[t - behind];
        sum_reverse[k] += reverse[t] * x[t + behind];
      }
      store(to + layout.place(start + t) * 2 * D, total, lanes);
    }
    for (int k = 0; k < K; ++k) {
      sum[k] += taps[k];
      sum[width + 2 + k] += taps[K + k];
    }
  }
};

template <class T>
static int mixer_convolve_backward(const MixerCall& call) {
  return MixerConvolveBackward<T>(call).execute();
}

}  // namespace FASTVIM_LEVEL
