// What lies between pooled and scanned steps: x_proj, dt_proj and the scan of each direction.

namespace FASTVIM_LEVEL {

// A from its parameter, log(-A).
template <class T>
static void negative_exp(const T* log, int64_t count, T* A) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const int lanes = int(least<int64_t>(kLanes<T>, count - i));
    store(A + i, -exp<T>(load(log + i, lanes)), lanes);
  }
}

// The scan of one direction over channel-last steps; `matrices` are x_proj's outputs (B, S, `row`), of
// which B and C follow the first `rank`.
template <class T>
static ScanCall scan_of_steps(int64_t batch, int64_t steps, int64_t channels, int64_t states,
                              int64_t threads, int direction, const T* pooled, const T* delta,
                              const T* matrices, int64_t rank, int64_t row, const T* A,
                              const T* bias) {
  // The reverse direction starts at the last step.
  const int64_t last = direction ? steps - 1 : 0, sign = direction ? -1 : 1;
  ScanCall call{};
  call.batch = batch;
  call.channels = channels;
  call.length = steps;
  call.states = states;
  call.threads = threads;
  call.softplus = 1;
  call.u = pooled + last * channels;
  call.delta = delta + last * channels;
  int64_t* vectors[] = {call.u_stride, call.delta_stride, call.y_stride};
  for (int64_t* stride : vectors) {
    stride[0] = steps * channels;
    stride[1] = 1;
    stride[2] = sign * channels;
  }
  call.A = A;
  call.A_stride[0] = states;
  call.A_stride[1] = 1;
  call.B = matrices + last * row + rank;
  call.C = matrices + last * row + rank + states;
  int64_t* stride_of_matrices[] = {call.B_stride, call.C_stride};
  for (int64_t* stride : stride_of_matrices) {
    stride[0] = steps * row;
    stride[2] = 1;
    stride[3] = sign * row;
  }
  call.B_shared = call.C_shared = channels;
  call.bias = bias;
  return call;
}

template <class T>
struct StepsBackward {
  const StepsCall& call;
  int64_t rows, outputs;  // B S, R + 2 N
  Scratch scratch;
  T *projected, *grad_projected;  // (B S, R + 2 N)
  T *delta, *grad_delta;          // (B S, D), before the bias and the softplus
  Products<T> products;
  int status = kDone;

  explicit StepsBackward(const StepsCall& c)
      : call(c), rows(c.batch * c.steps), outputs(c.rank + 2 * c.states) {
    for (int i = 0; i < 2; ++i) scratch.reserve<T>(rows * outputs);
    for (int i = 0; i < 2; ++i) scratch.reserve<T>(rows * call.channels);
    scratch.reserve<char>(space_of_products());
  }
  int64_t size() const { return scratch.size(); }

  int execute() {
    scratch.use(call.space);
    projected = scratch.take<T>(rows * outputs);
    grad_projected = scratch.take<T>(rows * outputs);
    delta = scratch.take<T>(rows * call.channels);
    grad_delta = scratch.take<T>(rows * call.channels);
    products = {call.threads, scratch.take<char>(space_of_products())};
    for (int direction = 0; direction < 2; ++direction) differentiate(direction);
    return status;
  }

 private:
  int64_t space_of_products() const {
    const int64_t R = call.rank, D = call.channels, P = outputs, t = call.threads;
    // Outputs and inner sizes of products, outputs of products over rows.
    const int64_t sizes[][2] = {{P, D}, {D, R}, {R, D}, {D, P}}, over_rows[] = {D, P};
    int64_t largest = 0;
    for (const auto& size : sizes)
      largest = most(largest, product_space<T>({rows, size[1], size[0], t}));
    for (const int64_t size : over_rows)
      largest = most(largest, rows_product_space<T>({rows, size, D, t}));
    return largest;
  }

  void differentiate(int direction) {
    const int64_t R = call.rank, D = call.channels, P = outputs, N = call.states;
    const T* pooled = of(call.pooled, direction, rows * D);
    const T* grad_scanned = of(call.grad_scanned, call.shared ? 0 : direction, rows * D);
    const T *x_proj = of(call.x_proj, direction, P * D), *dt_proj = of(call.dt_proj, direction, D * R);
    T* grad_pooled = of(call.grad_pooled, direction, rows * D);
    products.product({rows, D, P, 0, 0, pooled, x_proj, D, {D, 1}, P, projected});
    products.product({rows, R, D, 0, 0, projected, dt_proj, P, {R, 1}, D, delta});

    ScanGradients scan{};
    scan.forward = scan_of_steps<T>(call.batch, call.steps, D, N, call.threads, direction, pooled,
                                    delta, projected, R, P, of(call.A, direction, D * N),
                                    of(call.dt_bias, direction, D));
    const ScanCall out =
        scan_of_steps<T>(call.batch, call.steps, D, N, call.threads, direction, grad_pooled,
                         grad_delta, grad_projected, R, P, nullptr, nullptr);
    scan.y = grad_scanned + (static_cast<const T*>(out.u) - grad_pooled);
    scan.u = const_cast<void*>(out.u);
    scan.delta = const_cast<void*>(out.delta);
    int64_t* vectors[] = {scan.y_stride, scan.u_stride, scan.delta_stride};
    for (int64_t* stride : vectors) memcpy(stride, out.u_stride, sizeof out.u_stride);
    scan.B = const_cast<void*>(out.B);
    scan.C = const_cast<void*>(out.C);
    memcpy(scan.B_stride, out.B_stride, sizeof out.B_stride);
    memcpy(scan.C_stride, out.C_stride, sizeof out.C_stride);
    scan.A = of(call.grad_A, direction, D * N);
    scan.bias = of(call.grad_dt_bias, direction, D);
    const int result = scan_backward<T>(scan);
    if (result != kDone) status = result;

    products.product({rows, D, R, 0, 0, grad_delta, dt_proj, D, {1, R}, P, grad_projected});
    products.rows({rows, D, R, 0, grad_delta, projected, D, P, of(call.grad_dt_proj, direction, D * R)});
    products.rows({rows, P, D, 0, grad_projected, pooled, P, D, of(call.grad_x_proj, direction, P * D)});
    products.product({rows, P, D, 0, 1, grad_projected, x_proj, P, {1, D}, D, grad_pooled});
  }

  static const T* of(const void* tensor, int direction, int64_t size) {
    return static_cast<const T*>(tensor) + direction * size;
  }
  static T* of(void* tensor, int direction, int64_t size) {
    return static_cast<T*>(tensor) + direction * size;
  }
};

template <class T>
static int64_t steps_space(const StepsCall& call) {
  return StepsBackward<T>(call).size();
}

template <class T>
static int steps_backward(const StepsCall& call) {
  return StepsBackward<T>(call).execute();
}

}  // namespace FASTVIM_LEVEL
