// A whole residual block: x + out_proj(mixer(in_proj(RMSNorm(x)))).
//
// Each thread takes whole images, so that everything between the projections stays in its cache
// and in memory that is used again for the next image; images left over are shared by all threads.

namespace FASTVIM_LEVEL {

// Where one image's values lie between its stages.
template <class T>
struct BlockSpace {
  T *normal, *scale;               // (L, d_model), (L)
  T *xz, *merged;                  // (L, 2 D), (L, D)
  T *pooled, *scanned;             // (2, S, D)
  int64_t direction_stride;        // of these two
  T* delta;                        // (2, S, D)
  T* projected;                    // (2, S, R + 2 N and padding)
};

// Adds the time since the last call to a stage's.
class Stopwatch {
 public:
  explicit Stopwatch(double* seconds) : seconds_(seconds), last_(seconds ? now() : 0) {}
  void stop(Stage stage) {
    if (!seconds_) return;
    const double time = now();
    seconds_[stage] += time - last_;
    last_ = time;
  }

 private:
  static double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return double(time.tv_sec) + 1e-9 * double(time.tv_nsec);
  }
  double *seconds_, last_;
};

template <class T>
struct BlockForward {
  const BlockCall& call;
  const MixerCall& mixer;
  int64_t projected;  // columns of x_proj's outputs, padded
  int64_t teams;      // images at a time
  Scratch scratch;
  Vec<T>*in_proj, *out_proj, *x_proj[2], *dt_proj[2];
  T* A;  // (2, D, N)
  BlockSpace<T>* spaces;
  int status = kDone;

  explicit BlockForward(const BlockCall& c) : call(c), mixer(c.mixer) {
    projected = tiles_of_weight<T>(call.rank + 2 * call.states) * kLanes<T>;
    teams = mixer.batch < mixer.threads ? 1 : mixer.threads;
    reserve();
  }
  int64_t space() const { return scratch.size(); }

  // The same sequence as in `take`.
  void reserve() {
    const int64_t L = mixer.length, D = mixer.channels, S = mixer.steps, d = call.width;
    scratch.reserve<Vec<T>>(tiles_of_weight<T>(2 * D) * d);
    scratch.reserve<Vec<T>>(tiles_of_weight<T>(d) * D);
    for (int i = 0; i < 2; ++i) scratch.reserve<Vec<T>>(projected / kLanes<T> * D);
    for (int i = 0; i < 2; ++i) scratch.reserve<Vec<T>>(tiles_of_weight<T>(D) * call.rank);
    scratch.reserve<T>(2 * D * call.states);
    scratch.reserve<BlockSpace<T>>(teams);
    for (int64_t i = 0; i < teams; ++i) {
      scratch.reserve<T>(2 * S * projected);
      scratch.reserve<T>(2 * S * D);
      if (call.xz) continue;
      const int64_t sizes[] = {L * d, L, L * 2 * D, L * D, 2 * S * D, 2 * S * D};
      for (const int64_t size : sizes) scratch.reserve<T>(size);
    }
  }

  void take() {
    const int64_t L = mixer.length, D = mixer.channels, S = mixer.steps, d = call.width;
    in_proj = scratch.take<Vec<T>>(tiles_of_weight<T>(2 * D) * d);
    out_proj = scratch.take<Vec<T>>(tiles_of_weight<T>(d) * D);
    for (int i = 0; i < 2; ++i) x_proj[i] = scratch.take<Vec<T>>(projected / kLanes<T> * D);
    for (int i = 0; i < 2; ++i)
      dt_proj[i] = scratch.take<Vec<T>>(tiles_of_weight<T>(D) * call.rank);
    A = scratch.take<T>(2 * D * call.states);
    spaces = scratch.take<BlockSpace<T>>(teams);
    for (int64_t i = 0; i < teams; ++i) {
      BlockSpace<T>& s = spaces[i];
      s.projected = scratch.take<T>(2 * S * projected);
      s.delta = scratch.take<T>(2 * S * D);
      if (call.xz) continue;
      s.normal = scratch.take<T>(L * d);
      s.scale = scratch.take<T>(L);
      s.xz = scratch.take<T>(L * 2 * D);
      s.merged = scratch.take<T>(L * D);
      s.pooled = scratch.take<T>(2 * S * D);
      s.scanned = scratch.take<T>(2 * S * D);
    }
  }

  // The caller's tensors where they are kept.
  BlockSpace<T> space_of(int64_t image, BlockSpace<T> s) const {
    const int64_t L = mixer.length, D = mixer.channels, S = mixer.steps;
    s.direction_stride = call.xz ? mixer.direction_stride : S * D;
    if (!call.xz) return s;
    s.normal = static_cast<T*>(call.normal) + image * L * call.width;
    s.scale = static_cast<T*>(call.scale) + image * L;
    s.xz = static_cast<T*>(call.xz) + image * L * 2 * D;
    s.merged = static_cast<T*>(call.merged) + image * L * D;
    s.pooled = static_cast<T*>(call.pooled) + image * S * D;
    s.scanned = static_cast<T*>(call.scanned) + image * S * D;
    return s;
  }

  int execute() {
    scratch.use(call.space);
    take();
    Stopwatch watch(call.seconds);
    pack();
    watch.stop(kPack);
    const int64_t threads = mixer.threads, whole = teams > 1 ? mixer.batch / teams * teams : 0;
    if (whole) parallel(threads, *this);
    for (int64_t image = whole; image < mixer.batch; ++image) run_image(image, threads, spaces[0], watch);
    return status;
  }

  void run(int thread, int threads) {
    const Share share(mixer.batch / teams * teams, thread, threads);
    Stopwatch watch(thread ? nullptr : call.seconds);
    for (int64_t image = share.begin; image < share.end; ++image)
      run_image(image, 1, spaces[thread], watch);
  }

  // All weights in one parallel region: each waits for the slowest thread.
  void pack() {
    const int64_t D = mixer.channels, d = call.width, R = call.rank, outputs = R + 2 * call.states;
    const T *in = static_cast<const T*>(call.in_proj), *out = static_cast<const T*>(call.out_proj);
    const T *x = static_cast<const T*>(call.x_proj), *dt = static_cast<const T*>(call.dt_proj);
    Packing<T, 6> job{{{in, 2 * D, d, d, 1, in_proj},
                       {out, d, D, D, 1, out_proj},
                       {x, outputs, D, D, 1, x_proj[0]},
                       {x + outputs * D, outputs, D, D, 1, x_proj[1]},
                       {dt, D, R, R, 1, dt_proj[0]},
                       {dt + D * R, D, R, R, 1, dt_proj[1]}}};
    parallel(mixer.threads, job);
    negative_exp(static_cast<const T*>(call.A_log), 2 * D * call.states, A);
  }

  void multiply(const T* a, int64_t rows, int64_t a_stride, int64_t inner, const Vec<T>* packed,
                int64_t outputs, T* out, int64_t threads, const T* addend = nullptr) {
    Product<T> job{a, rows, a_stride, inner, packed, outputs, addend, out, outputs};
    parallel(threads, job);
  }
  void note(int result) {
    if (result != kDone) status = result;
  }

  void run_image(int64_t image, int64_t threads, const BlockSpace<T>& own, Stopwatch& watch) {
    const BlockSpace<T> s = space_of(image, own);
    const int64_t L = mixer.length, D = mixer.channels, d = call.width;
    const T* x = static_cast<const T*>(call.x) + image * L * d;
    NormCall norm{L, d, threads, call.eps, x, call.norm_weight, s.normal, s.scale, nullptr, nullptr,
                  nullptr, nullptr};
    NormForward<T> normalise{norm};
    parallel(threads, normalise);
    watch.stop(kNormalise);
    multiply(s.normal, L, d, d, in_proj, 2 * D, s.xz, threads);
    watch.stop(kProducts);

    MixerCall one = mixer;
    one.batch = 1;
    one.threads = threads;
    one.x = s.xz;
    one.z = s.xz + D;
    one.x_stride[0] = L * 2 * D;
    one.x_stride[1] = 2 * D;
    one.order = mixer.order ? mixer.order + image * mixer.order_stride : nullptr;
    one.step = mixer.step ? mixer.step + image * mixer.step_stride : nullptr;
    one.reverse_step =
        mixer.reverse_step ? mixer.reverse_step + image * mixer.reverse_step_stride : nullptr;
    one.out = s.merged;
    one.direction_stride = s.direction_stride;
    one.pooled = s.pooled;
    one.scanned = s.scanned;
    note(MixerConvolve<T>(one).execute());
    watch.stop(kConvolve);
    for (int direction = 0; direction < 2; ++direction) scan(direction, threads, s, watch);
    note(MixerFinish<T>(one).execute());
    watch.stop(kFinish);
    multiply(s.merged, L, D, D, out_proj, d, static_cast<T*>(call.y) + image * L * d, threads, x);
    watch.stop(kProducts);
  }

  void scan(int direction, int64_t threads, const BlockSpace<T>& s, Stopwatch& watch) {
    const int64_t D = mixer.channels, S = mixer.steps, N = call.states;
    T *pooled = s.pooled + direction * s.direction_stride, *delta = s.delta + direction * S * D;
    T* matrices = s.projected + direction * S * projected;
    multiply(pooled, S, D, D, x_proj[direction], projected, matrices, threads);
    multiply(matrices, S, projected, call.rank, dt_proj[direction], D, delta, threads);
    watch.stop(kProducts);
    ScanCall one = scan_of_steps<T>(1, S, D, N, threads, direction, pooled, delta, matrices, call.rank,
                                    projected, A + direction * D * N,
                                    static_cast<const T*>(call.dt_bias) + direction * D);
    one.y = s.scanned + direction * s.direction_stride + (static_cast<const T*>(one.u) - pooled);
    note(ScanForward<T, false, false>(one).execute());
    watch.stop(kScan);
  }
};

template <class T>
static int64_t block_space(const BlockCall& call) {
  return BlockForward<T>(call).space();
}

template <class T>
static int block_forward(const BlockCall& call) {
  return BlockForward<T>(call).execute();
}

}  // namespace FASTVIM_LEVEL
