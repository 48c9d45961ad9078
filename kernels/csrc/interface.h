// What Python passes to the library: plain structs, mirrored field by field in native.py.
//
// Axes: B batch, L tokens (time of a scan), S steps, D channels, N states, K convolution width.
// Strides count elements. A pointer may be null where the comment says so.
#pragma once

#include <cstdint>

// The runtime that torch has loaded. The library is linked to none, so that a process has one. Null
// where native.py finds none: everything runs on one thread.
struct OpenMP {
  void (*parallel)(void (*job)(void*), void* argument, unsigned threads, unsigned flags);
  int (*thread_num)();
  int (*num_threads)();
};
extern OpenMP openmp;

struct ScanCall {
  int64_t batch, channels, length, states, threads, softplus;
  // (batch, channel, time); a reversed scan starts at the last element with a negative stride.
  const void *u, *delta, *z;  // z may be null
  int64_t u_stride[3], delta_stride[3], z_stride[3];
  const void* A;  // (D, N)
  int64_t A_stride[2];
  // (batch, group, state, time). `shared` channels have one group; 0 means a matrix (D, N) fixed
  // in time, whose group is the channel.
  const void *B, *C;
  int64_t B_stride[4], C_stride[4], B_shared, C_shared;
  const void *D, *bias;  // (D,), may be null
  void* y;               // null in the backward
  int64_t y_stride[3];
  void* state;  // (B, D, N) contiguous, may be null
};

struct ScanGradients {
  ScanCall forward;
  const void *y, *state;  // gradients that come in; state (B, D, N) may be null
  int64_t y_stride[3], state_stride[3];
  void *u, *delta, *z;  // gradients that go out; z null where the forward has none
  int64_t u_stride[3], delta_stride[3], z_stride[3];
  void* A;         // (D, N) contiguous
  void *B, *C;     // strided as given; (D, N) contiguous where fixed in time
  int64_t B_stride[4], C_stride[4];
  void *D, *bias;  // (D,) contiguous, may be null
};

enum Pooling : int64_t { kNone = 0, kMean = 1, kSum = 2, kMax = 3 };

struct MixerCall {
  int64_t batch, length, channels, steps, width, threads, pooling, gate;
  double scale, merge, eps;
  const void *x, *z;  // channels contiguous
  int64_t x_stride[2];  // (batch, token), of z too
  const void *conv_weight, *conv_bias, *skip;  // (2, D, K), (2, D) or null, (2, D)
  const void *norm_weight, *norm_bias;         // (D,) or null
  const int32_t *order, *step, *reverse_step;  // (L,) or (B, L) or null
  int64_t order_stride, step_stride, reverse_step_stride;  // of the batch, 0 if shared
  int64_t direction_stride;  // of everything (2, B, S, D)
  void *out;      // (B, L, D) contiguous: the output; in the backward the skip, then its gradient
  void *pooled;   // (2, B, S, D), null in the backward
  const void *scanned;  // (2, B, S, D)
  // The backward.
  const void *grad_out;  // (B, L, D) contiguous
  void *grad_scanned;    // (2, B, S, D), or (1, B, S, D) where both directions share the steps
  const void *grad_pooled;  // (2, B, S, D)
  void *grad_x, *grad_z;    // strided as x and z of a contiguous (B, L, 2 D)
  void *grad_conv_weight, *grad_conv_bias, *grad_skip;  // as their weights, bias may be null
  void *grad_norm_weight, *grad_norm_bias;              // (D,) or null
};

// RMSNorm of contiguous rows; the backward reads `y`'s gradient and fills `grad_x`, `grad_weight`.
struct NormCall {
  int64_t rows, channels, threads;
  double eps;
  const void *x, *weight;  // (rows, D), (D,)
  void *y, *scale;         // (rows, D), (rows,): 1 / root mean square of each row
  const void* grad_y;
  void *grad_x, *grad_weight;
  const void* addend;  // to grad_x, as it, or null
};

// `tensors` contiguous tensors of `sizes` elements each, of which none is empty.
struct MagnitudesCall {
  int64_t tensors, threads;
  const void* const* x;  // (tensors)
  const int64_t* sizes;  // (tensors)
  void* y;               // (tensors, 3): the least and the greatest number, and the norm
};

// out = a weight^T, added to what is there if `adds`. Rows are contiguous, strides those of rows.
struct ProductCall {
  int64_t rows, inner, outputs, threads, adds;
  const void *a, *weight;                         // (rows, inner), (outputs, inner)
  int64_t a_stride, weight_stride[2], out_stride;  // of `weight` both
  void *out, *space;  // (rows, outputs); as many bytes as product_space says
};

// out = a^T b, over the rows that they share: the gradient of a weight.
struct RowsProductCall {
  int64_t rows, outputs, columns, threads;
  const void *a, *b;  // (rows, outputs), (rows, columns)
  int64_t a_stride, b_stride;
  void *out, *space;  // (outputs, columns) contiguous; as many bytes as rows_product_space says
};

// From the gradient of both directions' scanned steps to that of the pooled ones, and of what lies
// between: projections, dt's bias, A. All contiguous.
struct StepsCall {
  int64_t batch, steps, channels, rank, states, threads;
  int64_t shared;  // whether both directions have one grad_scanned
  const void *pooled, *grad_scanned;            // (2, B, S, D), (2 or 1, B, S, D)
  const void *x_proj, *dt_proj, *dt_bias, *A;   // (2, R + 2 N, D), (2, D, R), (2, D), (2, D, N)
  void *grad_pooled, *grad_x_proj, *grad_dt_proj, *grad_dt_bias, *grad_A;  // as what they are of
  void* space;  // as many bytes as steps_space says
};

// A residual block. Of `mixer` the sizes, settings, tables and weights count.
struct BlockCall {
  MixerCall mixer;
  int64_t width, rank, states;  // d_model, R, N
  double eps;
  const void *x, *norm_weight;             // (B, L, d_model) contiguous, (d_model,)
  const void *in_proj, *out_proj;          // (2 D, d_model), (d_model, D)
  const void *x_proj, *dt_proj, *dt_bias;  // (2, R + 2 N, D), (2, D, R), (2, D)
  const void* A_log;                       // (2, D, N)
  void *y, *space;                         // as x; as many bytes as block_space says
  double* seconds;  // (kStages), may be null: what the first thread spent on each stage is added
  // What a backward wants to have kept, or all null: after the norm (B, L, d_model) and its scale
  // (B, L), after in_proj (B, L, 2 D), before out_proj (B, L, D), the steps (2, B, S, D).
  void *normal, *scale, *xz, *merged, *pooled, *scanned;
};

// The gradients of a block, of which `forward` has what was kept, and in `mixer` where to leave those of
// the convolution, the skip and the norm before the gate. `forward.space` is not used.
struct BlockGradients {
  BlockCall forward;
  const void* grad_y;
  void *grad_x, *grad_norm_weight, *grad_in_proj, *grad_out_proj;  // as what they are of
  void *grad_x_proj, *grad_dt_proj, *grad_dt_bias, *grad_A_log;
  void* space;  // as many bytes as block_backward_space says
};

enum Stage : int { kPack, kNormalise, kProducts, kConvolve, kScan, kFinish, kStages };

enum Status : int { kDone = 0, kNoMemory = 1, kBadTable = 2 };

// One instruction set's kernels, each for float and double.
struct Kernels {
  int (*scan_forward[2])(const ScanCall&);
  int (*scan_backward[2])(const ScanGradients&);
  int (*mixer_convolve[2])(const MixerCall&);
  int (*mixer_finish[2])(const MixerCall&);
  int (*mixer_finish_backward[2])(const MixerCall&);
  int (*mixer_convolve_backward[2])(const MixerCall&);
  int (*norm_forward[2])(const NormCall&);
  int (*norm_backward[2])(const NormCall&);
  int (*magnitudes[2])(const MagnitudesCall&);
  int64_t (*product_space[2])(const ProductCall&);
  int (*product[2])(const ProductCall&);
  int64_t (*rows_product_space[2])(const RowsProductCall&);
  int (*rows_product[2])(const RowsProductCall&);
  int64_t (*steps_space[2])(const StepsCall&);
  int (*steps_backward[2])(const StepsCall&);
  int64_t (*block_space[2])(const BlockCall&);
  int (*block_forward[2])(const BlockCall&);
  int64_t (*block_backward_space[2])(const BlockGradients&);
  int (*block_backward[2])(const BlockGradients&);
};
