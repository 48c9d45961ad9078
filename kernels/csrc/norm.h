// RMSNorm of rows, forward and backward, each one pass over memory: a row stays in the first cache.

namespace FASTVIM_LEVEL {

template <class T>
struct NormForward {
  const NormCall& call;

  void run(int thread, int threads) {
    const Share share(call.rows, thread, threads);
    for (int64_t row = share.begin; row < share.end; ++row) normalise(row);
  }

  void normalise(int64_t row) {
    const int64_t D = call.channels;
    const T *x = static_cast<const T*>(call.x) + row * D, *weight = static_cast<const T*>(call.weight);
    T* y = static_cast<T*>(call.y) + row * D;
    const auto square = [&](int64_t i) {
      const int64_t c = i * kLanes<T>;
      const Vec<T> value = load(x + c, int(least<int64_t>(kLanes<T>, D - c)));
      return value * value;
    };
    const T squares = sum<T>(sum_of<T>(divide_up(D, kLanes<T>), square));
    const T scale = T(1) / sqrt(squares / T(D) + T(call.eps));
    static_cast<T*>(call.scale)[row] = scale;
    for (int64_t c = 0; c < D; c += kLanes<T>) {
      const int lanes = int(least<int64_t>(kLanes<T>, D - c));
      store(y + c, load(x + c, lanes) * scale * load(weight + c, lanes), lanes);
    }
  }
};

// With n = x * scale and g = grad_y * weight: grad_x = (g - n * mean(g n)) * scale, and
// grad_weight the sum of grad_y * n over the rows, per thread and then in a fixed order.
template <class T>
struct NormBackward {
  const NormCall& call;
  int64_t tiles;
  Scratch scratch;
  Vec<T>* sums = nullptr;  // (threads, tiles)

  explicit NormBackward(const NormCall& c) : call(c), tiles(divide_up(c.channels, kLanes<T>)) {}

  int execute() {
    scratch.reserve<Vec<T>>(call.threads * tiles);
    if (!scratch.allocate()) return kNoMemory;
    sums = scratch.take<Vec<T>>(call.threads * tiles);
    for (int64_t i = 0; i < call.threads * tiles; ++i) sums[i] = Vec<T>{};
    parallel(call.threads, *this);
    add_threads<T>(sums, call.threads, tiles, call.channels, call.grad_weight);
    return kDone;
  }

  void run(int thread, int threads) {
    const Share share(call.rows, thread, threads);
    for (int64_t row = share.begin; row < share.end; ++row)
      differentiate(row, sums + thread * tiles);
  }

  void differentiate(int64_t row, Vec<T>* sum_weight) {
    const int64_t D = call.channels;
    const T *x = static_cast<const T*>(call.x) + row * D, *weight = static_cast<const T*>(call.weight);
    const T* grad_y = static_cast<const T*>(call.grad_y) + row * D;
    const T* addend = call.addend ? static_cast<const T*>(call.addend) + row * D : nullptr;
    T* grad_x = static_cast<T*>(call.grad_x) + row * D;
    const T scale = static_cast<const T*>(call.scale)[row];
    Vec<T> along{};
    for (int64_t c = 0; c < D; c += kLanes<T>) {
      const int lanes = int(least<int64_t>(kLanes<T>, D - c));
      const Vec<T> product = load(x + c, lanes) * scale * load(grad_y + c, lanes);
      sum_weight[c / kLanes<T>] += product;
      along += product * load(weight + c, lanes);
    }
    const T slope = sum<T>(along) / T(D) * scale;
    for (int64_t c = 0; c < D; c += kLanes<T>) {
      const int lanes = int(least<int64_t>(kLanes<T>, D - c));
      const Vec<T> gradient = load(grad_y + c, lanes) * load(weight + c, lanes);
      Vec<T> value = (gradient - load(x + c, lanes) * slope) * scale;
      if (addend) value += load(addend + c, lanes);
      store(grad_x + c, value, lanes);
    }
  }
};

template <class T>
static int norm_forward(const NormCall& call) {
  NormForward<T> job{call};
  parallel(call.threads, job);
  return kDone;
}

template <class T>
static int norm_backward(const NormCall& call) {
  return NormBackward<T>(call).execute();
}

}  // namespace FASTVIM_LEVEL
