// The backward of a whole residual block, one stage after the other over all images: the gradients of
// its weights are sums over them.

namespace FASTVIM_LEVEL {

template <class T>
struct BlockBackward {
  const BlockGradients& call;
  const BlockCall& block;
  const MixerCall& mixer;
  int64_t rows, steps, directions;  // B L, B S, of the gradient of the scanned steps
  Scratch scratch;
  T *grad_merged, *skip, *grad_xz;    // (B L, D), (B L, D), (B L, 2 D)
  T *grad_scanned, *grad_pooled;      // (1 or 2, B S, D), (2, B S, D)
  T *A, *grad_normal;                 // (2, D, N), (B L, d_model)
  Products<T> products;               // their space is the steps' too

  explicit BlockBackward(const BlockGradients& c)
      : call(c), block(c.forward), mixer(block.mixer) {
    rows = mixer.batch * mixer.length;
    steps = mixer.batch * mixer.steps;
    directions = mixer.reverse_step ? 2 : 1;
    const int64_t D = mixer.channels;
    scratch.reserve<T>(rows * D);
    scratch.reserve<T>(rows * D);
    scratch.reserve<T>(rows * 2 * D);
    scratch.reserve<T>(directions * steps * D);
    scratch.reserve<T>(2 * steps * D);
    scratch.reserve<T>(2 * D * block.states);
    scratch.reserve<T>(rows * block.width);
    scratch.reserve<char>(space_of_parts());
  }
  int64_t size() const { return scratch.size(); }

  int execute() {
    const int64_t D = mixer.channels, d = block.width, A_size = 2 * D * block.states;
    scratch.use(call.space);
    grad_merged = scratch.take<T>(rows * D);
    skip = scratch.take<T>(rows * D);
    grad_xz = scratch.take<T>(rows * 2 * D);
    grad_scanned = scratch.take<T>(directions * steps * D);
    grad_pooled = scratch.take<T>(2 * steps * D);
    A = scratch.take<T>(A_size);
    grad_normal = scratch.take<T>(rows * d);
    products = {mixer.threads, scratch.take<char>(space_of_parts())};

    products.rows({rows, d, D, 0, call.grad_y, block.merged, d, D, call.grad_out_proj});
    products.product({rows, d, D, 0, 0, call.grad_y, block.out_proj, d, {1, D}, D, grad_merged});
    negative_exp(static_cast<const T*>(block.A_log), A_size, A);
    const int status = differentiate_mixer();
    if (status != kDone) return status;
    for (int64_t i = 0; i < A_size; ++i) static_cast<T*>(call.grad_A_log)[i] *= A[i];
    products.rows({rows, 2 * D, d, 0, grad_xz, block.normal, 2 * D, d, call.grad_in_proj});
    products.product({rows, 2 * D, d, 0, 0, grad_xz, block.in_proj, 2 * D, {1, d}, d, grad_normal});
    return norm_backward<T>({rows, d, mixer.threads, block.eps, block.x, block.norm_weight, nullptr,
                             block.scale, grad_normal, call.grad_x, call.grad_norm_weight,
                             call.grad_y});
  }

 private:
  int64_t space_of_parts() const {
    const int64_t D = mixer.channels, d = block.width, t = mixer.threads;
    const int64_t sizes[] = {product_space<T>({rows, d, D, t}), product_space<T>({rows, 2 * D, d, t}),
                             rows_product_space<T>({rows, d, D, t}),
                             rows_product_space<T>({rows, 2 * D, d, t}), steps_space<T>(of_steps())};
    int64_t largest = 0;
    for (const int64_t size : sizes) largest = most(largest, size);
    return largest;
  }

  StepsCall of_steps() const {
    return {mixer.batch,    mixer.steps,  mixer.channels,    block.rank,        block.states,
            mixer.threads,  directions == 1, block.pooled,   grad_scanned,      block.x_proj,
            block.dt_proj,  block.dt_bias,  A,               grad_pooled,       call.grad_x_proj,
            call.grad_dt_proj, call.grad_dt_bias, call.grad_A_log, products.space};
  }

  int differentiate_mixer() {
    const int64_t D = mixer.channels, L = mixer.length;
    MixerCall one = mixer;
    one.x = block.xz;
    one.z = static_cast<T*>(block.xz) + D;
    one.x_stride[0] = L * 2 * D;
    one.x_stride[1] = 2 * D;
    one.out = skip;
    one.scanned = block.scanned;
    one.grad_out = grad_merged;
    one.grad_scanned = grad_scanned;
    one.grad_pooled = grad_pooled;
    one.grad_x = grad_xz;
    one.grad_z = grad_xz + D;
    int status = mixer_finish_backward<T>(one);
    if (status == kDone) status = steps_backward<T>(of_steps());
    if (status == kDone) status = mixer_convolve_backward<T>(one);
    return status;
  }
};

template <class T>
static int64_t block_backward_space(const BlockGradients& call) {
  return BlockBackward<T>(call).size();
}

template <class T>
static int block_backward(const BlockGradients& call) {
  return BlockBackward<T>(call).execute();
}

}  // namespace FASTVIM_LEVEL
