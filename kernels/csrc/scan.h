// The selective scan, forward. A vector holds one time step of kLanes channels.
//
// Channels that share B and C are cut into tiles of up to kLanes; tiles into blocks; a thread takes
// whole (image, block) items and walks them chunk by chunk in time, so that B and C of a chunk are
// read once and everything a chunk needs stays in cache.

namespace FASTVIM_LEVEL {

// Which channels make up each tile, and which tiles each item.
struct ScanPlan {
  int64_t span;           // consecutive channels that share B and C
  int64_t spans;          // D / span
  int64_t tiles_of_span;  // tiles never straddle spans
  int64_t splits;         // blocks that the tiles of a span are cut into
  int64_t items;          // batch * spans * splits

  ScanPlan(const ScanCall& call, int lanes) {
    span = call.channels;
    if (call.B_shared) span = call.B_shared;
    if (call.C_shared) span = common_divisor(span, call.C_shared);
    spans = call.channels / most<int64_t>(span, 1);
    tiles_of_span = divide_up(span, lanes);
    // No more than it takes: each block reads B and C again.
    splits = blocks_of_item(call.batch * spans, tiles_of_span, call.threads);
    items = call.batch * spans * splits;
  }
  int64_t tiles() const { return spans * tiles_of_span; }
  int64_t largest_block() const { return divide_up(tiles_of_span, splits); }
  int64_t first_channel(int64_t tile, int lanes) const {
    return tile / tiles_of_span * span + tile % tiles_of_span * lanes;
  }
  int lanes_of(int64_t tile, int lanes) const {
    return int(least<int64_t>(lanes, span - tile % tiles_of_span * lanes));
  }

 private:
  static int64_t common_divisor(int64_t a, int64_t b) { return b ? common_divisor(b, a % b) : a; }
};

struct ScanItem {
  int64_t batch, span, split, first_tile, last_tile;
  ScanItem(const ScanPlan& plan, int64_t item) {
    split = item % plan.splits;
    span = item / plan.splits % plan.spans;
    batch = item / plan.splits / plan.spans;
    first_tile = span * plan.tiles_of_span + plan.tiles_of_span * split / plan.splits;
    last_tile = span * plan.tiles_of_span + plan.tiles_of_span * (split + 1) / plan.splits;
  }
};

// What depends on the channel alone, as tiles; unused lanes are zero.
template <class T>
struct ScanConstants {
  Vec<T>*A, *B, *C;  // (tiles, N); A times log2(e); B and C only where fixed in time
  Vec<T>*D, *bias;   // (tiles)
  Vec<T>* reach;     // (tiles): the largest |A| of each channel

  void reserve(Scratch& scratch, const ScanPlan& plan, const ScanCall& call) {
    for (int i = 0; i < 3; ++i) scratch.reserve<Vec<T>>(plan.tiles() * call.states);
    for (int i = 0; i < 3; ++i) scratch.reserve<Vec<T>>(plan.tiles());
  }
  void fill(Scratch& scratch, const ScanPlan& plan, const ScanCall& call) {
    Vec<T>** matrices[] = {&A, &B, &C};
    for (Vec<T>** matrix : matrices) *matrix = scratch.take<Vec<T>>(plan.tiles() * call.states);
    Vec<T>** vectors[] = {&D, &bias, &reach};
    for (Vec<T>** vector : vectors) *vector = scratch.take<Vec<T>>(plan.tiles());
    const int N = int(call.states);
    for (int64_t tile = 0; tile < plan.tiles(); ++tile) {
      const int64_t c = plan.first_channel(tile, kLanes<T>);
      const int lanes = plan.lanes_of(tile, kLanes<T>);
      matrix_tile(A + tile * N, call.A, call.A_stride, c, N, lanes);
      reach[tile] = Vec<T>{};
      for (int n = 0; n < N; ++n) {
        Vec<T>& a = A[tile * N + n];
        a *= Simd<T>::log2e;
        reach[tile] = a > reach[tile] ? a : -a > reach[tile] ? -a : reach[tile];
      }
      if (!call.B_shared) matrix_tile(B + tile * N, call.B, call.B_stride + 1, c, N, lanes);
      if (!call.C_shared) matrix_tile(C + tile * N, call.C, call.C_stride + 1, c, N, lanes);
      D[tile] = call.D ? load(static_cast<const T*>(call.D) + c, lanes) : Vec<T>{};
      bias[tile] = call.bias ? load(static_cast<const T*>(call.bias) + c, lanes) : Vec<T>{};
    }
  }

 private:
  static void matrix_tile(Vec<T>* tile, const void* matrix, const int64_t stride[2], int64_t c,
                          int states, int lanes) {
    load_tile(tile, static_cast<const T*>(matrix) + c * stride[0], stride[0], stride[1], states,
              lanes);
  }
};

// B or C of one chunk, (time, state): the tensor itself where states are contiguous, else a copy.
template <class T>
struct ChunkMatrix {
  const T* values = nullptr;
  int64_t stride = 0;

  ChunkMatrix(const void* matrix, const int64_t strides[4], int64_t shared, int64_t batch,
              int64_t channel, int64_t start, int count, int states, T* copy) {
    if (!shared) return;
    const T* from = static_cast<const T*>(matrix) + batch * strides[0] +
                    channel / shared * strides[1] + start * strides[3];
    if (strides[2] == 1) {
      values = from;
      stride = strides[3];
      return;
    }
    for (int n = 0; n < states; ++n)
      for (int t = 0; t < count; ++t)
        copy[t * states + n] = from[n * strides[2] + t * strides[3]];
    values = copy;
    stride = states;
  }
  ChunkMatrix from(int64_t t) const {
    ChunkMatrix later = *this;
    later.values += t * stride;
    return later;
  }
};

template <class T>
INLINE const T* at(const void* tensor, const int64_t stride[3], int64_t batch, int64_t channel,
                   int64_t time) {
  return static_cast<const T*>(tensor) + batch * stride[0] + channel * stride[1] +
         time * stride[2];
}

template <class T>
INLINE T* at(void* tensor, const int64_t stride[3], int64_t batch, int64_t channel, int64_t time) {
  return static_cast<T*>(tensor) + batch * stride[0] + channel * stride[1] + time * stride[2];
}

// Whether every |delta| times `reach` is below kNearLimit; NaN is not.
template <class T>
static bool is_near(const Vec<T>* delta, int count, Vec<T> reach) {
  typename Simd<T>::I far{};
  for (int t = 0; t < count; ++t) {
    const Vec<T> product = delta[t] * reach;
    far |= ~((product < kNearLimit<T>) & (product > -kNearLimit<T>));
  }
  int64_t any = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) any |= far[lane];
  return !any;
}

// `count` steps of one tile: h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t, y_t = C_t h_t.
// States is their number where the compiler should know it, so that they stay in registers, or 0.
template <class T, bool FixedB, bool FixedC, int States, class Decay>
static void advance(const Vec<T>* __restrict delta, const Vec<T>* __restrict u,
                    Vec<T>* __restrict y, Vec<T>* __restrict state, const Vec<T>* __restrict A,
                    const Vec<T>* fixed_B, const Vec<T>* fixed_C, ChunkMatrix<T> B,
                    ChunkMatrix<T> C, int count, int states) {
  const int N = States ? States : states;
  const Decay decay;
  Vec<T> registers[States ? States : 1];
  Vec<T>* h = States ? registers : state;
  if (States)
    for (int n = 0; n < N; ++n) h[n] = state[n];
  for (int t = 0; t < count; ++t) {
    const Vec<T> dt = delta[t], input = dt * u[t];
    const T *Bt = B.values + t * B.stride, *Ct = C.values + t * C.stride;
    Vec<T> out{};
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      const Vec<T> b = FixedB ? fixed_B[n] : splat<T>(Bt[n]);
      const Vec<T> c = FixedC ? fixed_C[n] : splat<T>(Ct[n]);
      h[n] = decay(dt, A[n]) * h[n] + input * b;
      out += h[n] * c;
    }
    y[t] = out;
  }
  if (States)
    for (int n = 0; n < N; ++n) state[n] = h[n];
}

// Matrices fixed in time are rare, and do with the general decay.
template <class T, bool FixedB, bool FixedC>
static auto advance_for(const Vec<T>* delta, int count, Vec<T> reach, int states) {
  if constexpr (!FixedB && !FixedC)
    if (is_near<T>(delta, count, reach))
      return states == 16 ? advance<T, FixedB, FixedC, 16, NearDecay<T>>
                          : advance<T, FixedB, FixedC, 0, NearDecay<T>>;
  return states == 16 ? advance<T, FixedB, FixedC, 16, AnyDecay<T>>
                      : advance<T, FixedB, FixedC, 0, AnyDecay<T>>;
}

// delta with its bias and softplus; `raw`, before the softplus, where the backward needs it.
template <class T>
static void load_delta(const ScanCall& call, Vec<T>* delta, Vec<T>* raw, Vec<T> bias,
                       const T* from, int count, int lanes) {
  load_tile(delta, from, call.delta_stride[1], call.delta_stride[2], count, lanes);
  for (int t = 0; t < count; ++t) {
    const Vec<T> biased = delta[t] + bias;
    if (raw) raw[t] = biased;
    delta[t] = call.softplus ? softplus<T>(biased) : biased;
  }
}

template <class T, bool FixedB, bool FixedC>
struct ScanForward {
  const ScanCall& call;
  ScanPlan plan;
  ScanConstants<T> constants;
  int chunk;
  Scratch scratch;
  char* memory = nullptr;
  static constexpr int W = kLanes<T>;
  static constexpr int kChunk = 128, kLine = 64 / sizeof(T);  // in steps

  explicit ScanForward(const ScanCall& c)
      : call(c), plan(c, W), chunk(int(evenly(c.length, kChunk))) {}

  struct Local {  // of one thread
    Vec<T>*delta, *u, *y, *z, *state;
    T *B, *C;
  };
  Local* locals = nullptr;

  int execute() {
    constants.reserve(scratch, plan, call);
    scratch.reserve<Local>(call.threads);
    for (int i = 0; i < call.threads; ++i) {
      for (int j = 0; j < 4; ++j) scratch.reserve<Vec<T>>(chunk);
      scratch.reserve<Vec<T>>(plan.largest_block() * call.states);
      for (int j = 0; j < 2; ++j) scratch.reserve<T>(chunk * call.states);
    }
    if (!scratch.allocate()) return kNoMemory;
    constants.fill(scratch, plan, call);
    locals = scratch.take<Local>(call.threads);
    for (int i = 0; i < call.threads; ++i) {
      Local& l = locals[i];
      Vec<T>** tiles[] = {&l.delta, &l.u, &l.y, &l.z};
      for (Vec<T>** tile : tiles) *tile = scratch.take<Vec<T>>(chunk);
      l.state = scratch.take<Vec<T>>(plan.largest_block() * call.states);
      T** matrices[] = {&l.B, &l.C};
      for (T** matrix : matrices) *matrix = scratch.take<T>(chunk * call.states);
    }
    parallel(least(call.threads, plan.items), *this);
    return kDone;
  }

  void run(int thread, int threads) {
    const Share share(plan.items, thread, threads);
    for (int64_t item = share.begin; item < share.end; ++item)
      scan(ScanItem(plan, item), locals[thread]);
  }

  void scan(const ScanItem& item, const Local& local) {
    const int N = int(call.states);
    const int64_t tiles = item.last_tile - item.first_tile, c0 = item.span * plan.span;
    for (int64_t i = 0; i < tiles * N; ++i) local.state[i] = Vec<T>{};
    for (int64_t start = 0; start < call.length; start += chunk) {
      const int count = int(least<int64_t>(chunk, call.length - start));
      const ChunkMatrix<T> B(call.B, call.B_stride, call.B_shared, item.batch, c0, start, count, N,
                             local.B);
      const ChunkMatrix<T> C(call.C, call.C_stride, call.C_shared, item.batch, c0, start, count, N,
                             local.C);
      for (int64_t tile = item.first_tile; tile < item.last_tile; ++tile) {
        const bool last = tile + 1 == item.last_tile;
        scan_tile(item.batch, tile, start, count, B, C, local,
                  local.state + (tile - item.first_tile) * N, last ? item.first_tile : tile + 1,
                  last ? start + chunk : start);
      }
    }
    if (call.state) store_states(item, local);
  }

  // Asks for kLine steps of the next tile, whose rows the processor does not foresee. Always inline:
  // of a function that does nothing else, the compiler drops the calls.
  INLINE_MEMBER void fetch(int64_t batch, int64_t tile, int64_t start) const {
    if (call.u_stride[2] != 1 || start >= call.length) return;
    const int64_t c = plan.first_channel(tile, W);
    const int lanes = plan.lanes_of(tile, W);
    for (int64_t i = c; i < c + lanes; ++i) {
      __builtin_prefetch(at<T>(call.u, call.u_stride, batch, i, start));
      __builtin_prefetch(at<T>(call.delta, call.delta_stride, batch, i, start));
      __builtin_prefetch(at<T>(call.y, call.y_stride, batch, i, start), 1);
    }
  }

  void scan_tile(int64_t batch, int64_t tile, int64_t start, int count, ChunkMatrix<T> B,
                 ChunkMatrix<T> C, const Local& local, Vec<T>* state, int64_t next,
                 int64_t next_start) {
    const int64_t c = plan.first_channel(tile, W), first = tile * call.states;
    const int lanes = plan.lanes_of(tile, W);
    load_delta<T>(call, local.delta, nullptr, constants.bias[tile],
                  at<T>(call.delta, call.delta_stride, batch, c, start), count, lanes);
    load_tile(local.u, at<T>(call.u, call.u_stride, batch, c, start), call.u_stride[1],
              call.u_stride[2], count, lanes);
    const auto step = advance_for<T, FixedB, FixedC>(local.delta, count, constants.reach[tile],
                                                     int(call.states));
    for (int t = 0; t < count; t += kLine) {
      fetch(batch, next, next_start + t);
      step(local.delta + t, local.u + t, local.y + t, state, constants.A + first,
           constants.B + first, constants.C + first, B.from(t), C.from(t), least(kLine, count - t),
           int(call.states));
    }
    if (call.D)
      for (int t = 0; t < count; ++t) local.y[t] += constants.D[tile] * local.u[t];
    if (call.z) {
      load_tile(local.z, at<T>(call.z, call.z_stride, batch, c, start), call.z_stride[1],
                call.z_stride[2], count, lanes);
      for (int t = 0; t < count; ++t) local.y[t] *= silu<T>(local.z[t]);
    }
    store_tile(at<T>(call.y, call.y_stride, batch, c, start), local.y, call.y_stride[1],
               call.y_stride[2], count, lanes);
  }

  void store_states(const ScanItem& item, const Local& local) {
    const int64_t N = call.states;
    for (int64_t tile = item.first_tile; tile < item.last_tile; ++tile) {
      const int64_t c = plan.first_channel(tile, W);
      store_tile(static_cast<T*>(call.state) + (item.batch * call.channels + c) * N,
                 local.state + (tile - item.first_tile) * N, N, int64_t(1), int(N),
                 plan.lanes_of(tile, W));
    }
  }
};

template <class T>
static int scan_forward(const ScanCall& call) {
  if (!call.batch || !call.channels) return kDone;
  if (call.B_shared && call.C_shared) return ScanForward<T, false, false>(call).execute();
  if (call.B_shared) return ScanForward<T, false, true>(call).execute();
  if (call.C_shared) return ScanForward<T, true, false>(call).execute();
  return ScanForward<T, true, true>(call).execute();
}

}  // namespace FASTVIM_LEVEL
