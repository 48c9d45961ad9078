// The selective scan, backward. States are kept at the start of each chunk only; the backward of a
// chunk computes them again, with the decays exp(delta A), into buffers that stay in cache.
//
// Gradients of A, D, the bias and fixed B and C are summed per thread, those of B and C per item,
// and then added in a fixed order: the same bits from run to run at a given number of threads.

namespace FASTVIM_LEVEL {

// Adds rows of `sums` (parts, tiles, states) to a contiguous (D, N).
template <class T>
static void add_tiles(const ScanPlan& plan, const Vec<T>* sums, int64_t parts, int64_t states,
                      void* to) {
  if (!to) return;
  T* out = static_cast<T*>(to);
  for (int64_t tile = 0; tile < plan.tiles(); ++tile) {
    const int64_t c = plan.first_channel(tile, kLanes<T>);
    const int lanes = plan.lanes_of(tile, kLanes<T>);
    for (int64_t n = 0; n < states; ++n) {
      Vec<T> total{};
      for (int64_t part = 0; part < parts; ++part)
        total += sums[(part * plan.tiles() + tile) * states + n];
      for (int lane = 0; lane < lanes; ++lane) out[(c + lane) * states + n] = total[lane];
    }
  }
}

template <class T, bool FixedB, bool FixedC>
struct ScanBackward {
  const ScanGradients& grads;
  const ScanCall& call;
  ScanPlan plan;
  ScanConstants<T> constants;
  int chunk;
  int64_t chunks;
  Scratch scratch;
  static constexpr int W = kLanes<T>;

  struct Local {  // of one thread
    Vec<T>*delta, *raw, *u, *y, *z, *grad_y, *grad_u, *grad_delta;  // (chunk)
    Vec<T>*decay, *states, *grad_B, *grad_C;                        // (chunk, N), states one more
    Vec<T>*state, *grad_state;                                      // (tiles of a block, N)
    Vec<T>* checkpoints;                                            // (chunks, tiles of a block, N)
    T *B, *C;                                                       // (chunk, N)
  };
  Local* locals = nullptr;
  Vec<T>*sum_A, *sum_B, *sum_C;  // (threads, tiles, N), B and C where fixed
  Vec<T>*sum_D, *sum_bias;       // (threads, tiles)
  T *part_B, *part_C;            // (items, L, N), where not fixed

  explicit ScanBackward(const ScanGradients& g)
      : grads(g), call(g.forward), plan(g.forward, W) {
    chunk = int(least<int64_t>(most<int64_t>(256 / most<int64_t>(call.states, 1), 4), 64));
    chunk = int(least<int64_t>(chunk, most<int64_t>(call.length, 1)));
    chunks = divide_up(call.length, chunk);
  }

  int execute() {
    const int64_t threads = call.threads, N = call.states, block = plan.largest_block() * N;
    const int64_t sums = threads * plan.tiles(), parts = plan.items * call.length * N;
    constants.reserve(scratch, plan, call);
    scratch.reserve<Local>(threads);
    for (int64_t i = 0; i < threads; ++i) {
      for (int j = 0; j < 8; ++j) scratch.reserve<Vec<T>>(chunk);
      for (int j = 0; j < 4; ++j) scratch.reserve<Vec<T>>((chunk + 1) * N);
      for (int j = 0; j < 2; ++j) scratch.reserve<Vec<T>>(block);
      scratch.reserve<Vec<T>>(chunks * block);
      for (int j = 0; j < 2; ++j) scratch.reserve<T>(chunk * N);
    }
    scratch.reserve<Vec<T>>(sums * (3 * N + 2));
    for (int j = 0; j < 2; ++j) scratch.reserve<T>(parts);
    if (!scratch.allocate()) return kNoMemory;

    constants.fill(scratch, plan, call);
    locals = scratch.take<Local>(threads);
    for (int64_t i = 0; i < threads; ++i) {
      Local& l = locals[i];
      Vec<T>** tiles[] = {&l.delta, &l.raw, &l.u, &l.y, &l.z, &l.grad_y, &l.grad_u,
                            &l.grad_delta};
      for (Vec<T>** tile : tiles)
        *tile = scratch.take<Vec<T>>(chunk);
      Vec<T>** histories[] = {&l.decay, &l.states, &l.grad_B, &l.grad_C};
      for (Vec<T>** history : histories)
        *history = scratch.take<Vec<T>>((chunk + 1) * N);
      Vec<T>** states[] = {&l.state, &l.grad_state};
      for (Vec<T>** state : states) *state = scratch.take<Vec<T>>(block);
      l.checkpoints = scratch.take<Vec<T>>(chunks * block);
      T** matrices[] = {&l.B, &l.C};
      for (T** matrix : matrices) *matrix = scratch.take<T>(chunk * N);
    }
    sum_A = scratch.take<Vec<T>>(sums * (3 * N + 2));
    memset(static_cast<void*>(sum_A), 0, size_t(sums * (3 * N + 2)) * sizeof(Vec<T>));
    sum_B = sum_A + sums * N;
    sum_C = sum_B + sums * N;
    sum_D = sum_C + sums * N;
    sum_bias = sum_D + sums;
    part_B = scratch.take<T>(parts);
    part_C = scratch.take<T>(parts);

    parallel(least(threads, plan.items), *this);

    add_tiles<T>(plan, sum_A, threads, N, grads.A);
    add_tiles<T>(plan, sum_D, threads, 1, grads.D);
    add_tiles<T>(plan, sum_bias, threads, 1, grads.bias);
    if (FixedB) add_tiles<T>(plan, sum_B, threads, N, grads.B);
    if (FixedC) add_tiles<T>(plan, sum_C, threads, N, grads.C);
    if (!FixedB) add_parts(part_B, call.B_shared, grads.B, grads.B_stride);
    if (!FixedC) add_parts(part_C, call.C_shared, grads.C, grads.C_stride);
    return kDone;
  }

  // Adds the items of each group, in order.
  void add_parts(const T* parts, int64_t shared, void* to, const int64_t stride[4]) {
    const int64_t N = call.states, L = call.length;
    const int64_t items = shared / plan.span * plan.splits, groups = call.channels / shared;
    for (int64_t b = 0; b < call.batch; ++b)
      for (int64_t g = 0; g < groups; ++g) {
        const T* from = parts + (b * groups + g) * items * L * N;
        T* out = static_cast<T*>(to) + b * stride[0] + g * stride[1];
        for (int64_t t = 0; t < L; ++t)
          for (int64_t n = 0; n < N; ++n) {
            T total = from[t * N + n];
            for (int64_t i = 1; i < items; ++i) total += from[(i * L + t) * N + n];
            out[n * stride[2] + t * stride[3]] = total;
          }
      }
  }

  void run(int thread, int threads) {
    const Share share(plan.items, thread, threads);
    for (int64_t item = share.begin; item < share.end; ++item) {
      const ScanItem where(plan, item);
      keep_checkpoints(where, locals[thread]);
      for (int64_t k = chunks - 1; k >= 0; --k) differentiate(where, item, k, thread);
    }
  }

  int count_of(int64_t k) const { return int(least<int64_t>(chunk, call.length - k * chunk)); }

  ChunkMatrix<T> chunk_B(const ScanItem& item, int64_t k, const Local& local) const {
    return ChunkMatrix<T>(call.B, call.B_stride, call.B_shared, item.batch, item.span * plan.span,
                          k * chunk, count_of(k), int(call.states), local.B);
  }
  ChunkMatrix<T> chunk_C(const ScanItem& item, int64_t k, const Local& local) const {
    return ChunkMatrix<T>(call.C, call.C_stride, call.C_shared, item.batch, item.span * plan.span,
                          k * chunk, count_of(k), int(call.states), local.C);
  }

  void load_inputs(int64_t batch, int64_t tile, int64_t k, const Local& local) {
    const int64_t c = plan.first_channel(tile, W);
    const int lanes = plan.lanes_of(tile, W);
    load_delta<T>(call, local.delta, local.raw, constants.bias[tile],
                  at<T>(call.delta, call.delta_stride, batch, c, k * chunk), count_of(k), lanes);
    load_tile(local.u, at<T>(call.u, call.u_stride, batch, c, k * chunk), call.u_stride[1],
              call.u_stride[2], count_of(k), lanes);
  }

  // Runs forward, keeping the state that each chunk starts from.
  void keep_checkpoints(const ScanItem& item, const Local& local) {
    const int64_t N = call.states, tiles = item.last_tile - item.first_tile;
    for (int64_t i = 0; i < tiles * N; ++i) local.state[i] = Vec<T>{};
    for (int64_t k = 0; k < chunks; ++k) {
      memcpy(static_cast<void*>(local.checkpoints + k * tiles * N), local.state,
             size_t(tiles * N) * sizeof(Vec<T>));
      if (k == chunks - 1) break;
      const ChunkMatrix<T> B = chunk_B(item, k, local), C = chunk_C(item, k, local);
      for (int64_t tile = item.first_tile; tile < item.last_tile; ++tile) {
        load_inputs(item.batch, tile, k, local);
        const auto step = advance_for<T, FixedB, FixedC>(local.delta, count_of(k),
                                                         constants.reach[tile], int(N));
        step(local.delta, local.u, local.y, local.state + (tile - item.first_tile) * N,
             constants.A + tile * N, constants.B + tile * N, constants.C + tile * N, B, C,
             count_of(k), int(N));
      }
    }
    for (int64_t tile = item.first_tile; tile < item.last_tile; ++tile) {
      Vec<T>* state = local.grad_state + (tile - item.first_tile) * N;
      if (grads.state)
        load_tile(state,
                  at<T>(grads.state, grads.state_stride, item.batch,
                        plan.first_channel(tile, W), 0),
                  grads.state_stride[1], grads.state_stride[2], int(N), plan.lanes_of(tile, W));
      else
        for (int64_t n = 0; n < N; ++n) state[n] = Vec<T>{};
    }
  }

  void differentiate(const ScanItem& item, int64_t index, int64_t k, int thread) {
    const Local& local = locals[thread];
    const int N = int(call.states), count = count_of(k);
    const int64_t tiles = item.last_tile - item.first_tile;
    const ChunkMatrix<T> B = chunk_B(item, k, local), C = chunk_C(item, k, local);
    for (int i = 0; i < count * N; ++i) local.grad_B[i] = local.grad_C[i] = Vec<T>{};
    for (int64_t tile = item.first_tile; tile < item.last_tile; ++tile) {
      const int64_t within = tile - item.first_tile, sums = int64_t(thread) * plan.tiles() + tile;
      load_inputs(item.batch, tile, k, local);
      memcpy(static_cast<void*>(local.states), local.checkpoints + (k * tiles + within) * N,
             size_t(N) * sizeof(Vec<T>));
      if (!FixedB && !FixedC && is_near<T>(local.delta, count, constants.reach[tile]))
        recompute<NearDecay<T>>(tile, B, C, count, local);
      else
        recompute<AnyDecay<T>>(tile, B, C, count, local);
      load_grad_y(item.batch, tile, k, local, sums);
      reverse(tile, sums, B, C, count, local, local.grad_state + within * N);
      store_gradients(item.batch, tile, k, local, sums);
    }
    const int64_t part = (index * call.length + k * chunk) * N;
    if (!FixedB)
      for (int i = 0; i < count * N; ++i) part_B[part + i] = sum<T>(local.grad_B[i]);
    if (!FixedC)
      for (int i = 0; i < count * N; ++i) part_C[part + i] = sum<T>(local.grad_C[i]);
  }

  // The decays and states of a chunk; states[0] is where it starts.
  template <class Decay>
  void recompute(int64_t tile, ChunkMatrix<T> B, ChunkMatrix<T> C, int count, const Local& local) {
    const int N = int(call.states);
    const Vec<T>* A = constants.A + tile * N;
    const Decay decay_of;
    for (int t = 0; t < count; ++t) {
      const Vec<T> dt = local.delta[t], input = dt * local.u[t];
      const T *Bt = B.values + t * B.stride, *Ct = C.values + t * C.stride;
      const Vec<T>* h = local.states + t * N;
      Vec<T> out{};
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const Vec<T> decay = decay_of(dt, A[n]);
        const Vec<T> b = FixedB ? constants.B[tile * N + n] : splat<T>(Bt[n]);
        const Vec<T> c = FixedC ? constants.C[tile * N + n] : splat<T>(Ct[n]);
        const Vec<T> next = decay * h[n] + input * b;
        local.decay[t * N + n] = decay;
        local.states[(t + 1) * N + n] = next;
        out += next * c;
      }
      local.y[t] = out;
    }
  }

  // The gradient of y before the gate; also that of z.
  void load_grad_y(int64_t batch, int64_t tile, int64_t k, const Local& local, int64_t sums) {
    const int64_t c = plan.first_channel(tile, W);
    const int lanes = plan.lanes_of(tile, W), count = count_of(k);
    load_tile(local.grad_y, at<T>(grads.y, grads.y_stride, batch, c, k * chunk),
              grads.y_stride[1], grads.y_stride[2], count, lanes);
    if (call.z) {
      load_tile(local.z, at<T>(call.z, call.z_stride, batch, c, k * chunk), call.z_stride[1],
                call.z_stride[2], count, lanes);
      for (int t = 0; t < count; ++t) {
        const Vec<T> z = local.z[t], gate = sigmoid<T>(z), grad = local.grad_y[t];
        const Vec<T> y = local.y[t] + constants.D[tile] * local.u[t];
        local.z[t] = grad * y * gate * (T(1) + z * (T(1) - gate));
        local.grad_y[t] = grad * z * gate;
      }
      store_tile(at<T>(grads.z, grads.z_stride, batch, c, k * chunk), local.z, grads.z_stride[1],
                 grads.z_stride[2], count, lanes);
    }
    for (int t = 0; t < count; ++t) sum_D[sums] += local.grad_y[t] * local.u[t];
  }

  void reverse(int64_t tile, int64_t sums, ChunkMatrix<T> B, ChunkMatrix<T> C, int count,
               const Local& local, Vec<T>* __restrict grad_state) {
    const int N = int(call.states);
    const Vec<T>* A = constants.A + tile * N;
    Vec<T>* __restrict grad_A = sum_A + sums * N;
    for (int t = count - 1; t >= 0; --t) {
      const Vec<T> dt = local.delta[t], u = local.u[t], grad_y = local.grad_y[t], input = dt * u;
      const T *Bt = B.values + t * B.stride, *Ct = C.values + t * C.stride;
      const Vec<T>*decay = local.decay + t * N, *h = local.states + t * N;
      Vec<T>*__restrict grad_B = FixedB ? sum_B + sums * N : local.grad_B + t * N;
      Vec<T>*__restrict grad_C = FixedC ? sum_C + sums * N : local.grad_C + t * N;
      Vec<T> through_B{}, through_A{};
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        const Vec<T> b = FixedB ? constants.B[tile * N + n] : splat<T>(Bt[n]);
        const Vec<T> c = FixedC ? constants.C[tile * N + n] : splat<T>(Ct[n]);
        const Vec<T> grad = grad_state[n] + grad_y * c;
        const Vec<T> before = grad * decay[n];
        const Vec<T> grad_exponent = before * h[n];
        grad_C[n] += grad_y * h[N + n];
        grad_B[n] += grad * input;
        grad_A[n] += grad_exponent * dt;
        through_B += grad * b;
        through_A += grad_exponent * A[n];
        grad_state[n] = before;
      }
      // A carries a factor log2(e) for exp2.
      local.grad_delta[t] = u * through_B + through_A * T(0.69314718055994531);
      local.grad_u[t] = dt * through_B + constants.D[tile] * grad_y;
    }
  }

  void store_gradients(int64_t batch, int64_t tile, int64_t k, const Local& local, int64_t sums) {
    const int64_t c = plan.first_channel(tile, W);
    const int lanes = plan.lanes_of(tile, W), count = count_of(k);
    for (int t = 0; t < count; ++t) {
      if (call.softplus) local.grad_delta[t] *= sigmoid<T>(local.raw[t]);
      sum_bias[sums] += local.grad_delta[t];
    }
    store_tile(at<T>(grads.delta, grads.delta_stride, batch, c, k * chunk), local.grad_delta,
               grads.delta_stride[1], grads.delta_stride[2], count, lanes);
    store_tile(at<T>(grads.u, grads.u_stride, batch, c, k * chunk), local.grad_u,
               grads.u_stride[1], grads.u_stride[2], count, lanes);
  }
};

template <class T>
static int scan_backward(const ScanGradients& grads) {
  const ScanCall& call = grads.forward;
  if (call.B_shared && call.C_shared) return ScanBackward<T, false, false>(grads).execute();
  if (call.B_shared) return ScanBackward<T, false, true>(grads).execute();
  if (call.C_shared) return ScanBackward<T, true, false>(grads).execute();
  return ScanBackward<T, true, true>(grads).execute();
}

}  // namespace FASTVIM_LEVEL
