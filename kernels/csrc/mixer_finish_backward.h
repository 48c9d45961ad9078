// The mixer before its scan's backward: rows (gate, norm), then sums over each step's tokens.
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

}  // namespace FASTVIM_LEVEL
