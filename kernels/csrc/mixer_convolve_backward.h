// The mixer after its scan's backward: columns (skip, pooling, convolution). Convolutions are computed
// again; sums for weights are kept per thread and added in a fixed order.

namespace FASTVIM_LEVEL {

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
