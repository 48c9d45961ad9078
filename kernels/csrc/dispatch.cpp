// The library's entry points: checks the tables, then calls the best kernels of this processor.
#include <cstdlib>
#include <cstring>

#include "interface.h"

namespace plain {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

OpenMP openmp{};

namespace {

struct Level {
  const char* name;
  const Kernels* kernels;
};

// The levels that run here, best first; returns their number.
int find_levels(Level* levels) {
  int count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    levels[count++] = {"avx512", &avx512::kernels};
  if (has_avx2) levels[count++] = {"avx2", &avx2::kernels};
#endif
  levels[count++] = {"plain", &plain::kernels};
  return count;
}

Level levels[3];
const int level_count = find_levels(levels);
const Level* level = levels;

// Whether `table` has only numbers in [0, limit), each once if `distinct`.
bool fits(const int32_t* table, int64_t stride, const MixerCall& call, int64_t limit,
          bool distinct) {
  if (!table) return true;
  char* seen = distinct ? static_cast<char*>(malloc(size_t(limit + 1))) : nullptr;
  bool good = true;
  for (int64_t b = 0; b < (stride ? call.batch : 1) && good; ++b) {
    if (seen) memset(seen, 0, size_t(limit));
    for (int64_t t = 0; t < call.length && good; ++t) {
      const int32_t number = table[b * stride + t];
      good = number >= 0 && number < limit && !(seen && seen[number]);
      if (good && seen) seen[number] = 1;
    }
  }
  free(seen);
  return good;
}

bool tables_fit(const MixerCall& call) {
  return fits(call.order, call.order_stride, call, call.length, true) &&
         fits(call.step, call.step_stride, call, call.steps, false) &&
         fits(call.reverse_step, call.reverse_step_stride, call, call.steps, false);
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))

extern "C" {

EXPORT void fastvim_use_openmp(const OpenMP* runtime) { openmp = *runtime; }

EXPORT const char* fastvim_level() { return level->name; }

// Switches to the named level, for tests; 0 if this processor lacks it.
EXPORT int fastvim_set_level(const char* name) {
  for (int i = 0; i < level_count; ++i)
    if (!strcmp(levels[i].name, name)) {
      level = levels + i;
      return 1;
    }
  return 0;
}

EXPORT int fastvim_scan_forward(const ScanCall* call, int is_double) {
  return level->kernels->scan_forward[is_double](*call);
}

EXPORT int fastvim_scan_backward(const ScanGradients* call, int is_double) {
  return level->kernels->scan_backward[is_double](*call);
}

EXPORT int fastvim_mixer_convolve(const MixerCall* call, int is_double) {
  if (!tables_fit(*call)) return kBadTable;
  return level->kernels->mixer_convolve[is_double](*call);
}

EXPORT int fastvim_mixer_finish(const MixerCall* call, int is_double) {
  return level->kernels->mixer_finish[is_double](*call);
}

EXPORT int fastvim_mixer_finish_backward(const MixerCall* call, int is_double) {
  if (!tables_fit(*call)) return kBadTable;
  return level->kernels->mixer_finish_backward[is_double](*call);
}

EXPORT int fastvim_mixer_convolve_backward(const MixerCall* call, int is_double) {
  return level->kernels->mixer_convolve_backward[is_double](*call);
}

EXPORT int fastvim_norm_forward(const NormCall* call, int is_double) {
  return level->kernels->norm_forward[is_double](*call);
}

EXPORT int fastvim_norm_backward(const NormCall* call, int is_double) {
  return level->kernels->norm_backward[is_double](*call);
}

EXPORT int fastvim_magnitudes(const MagnitudesCall* call, int is_double) {
  return level->kernels->magnitudes[is_double](*call);
}

// The bytes that fastvim_product wants as `space`.
EXPORT int64_t fastvim_product_space(const ProductCall* call, int is_double) {
  return level->kernels->product_space[is_double](*call);
}

EXPORT int fastvim_product(const ProductCall* call, int is_double) {
  return level->kernels->product[is_double](*call);
}

// The bytes that fastvim_rows_product wants as `space`.
EXPORT int64_t fastvim_rows_product_space(const RowsProductCall* call, int is_double) {
  return level->kernels->rows_product_space[is_double](*call);
}

EXPORT int fastvim_rows_product(const RowsProductCall* call, int is_double) {
  return level->kernels->rows_product[is_double](*call);
}

// The bytes that fastvim_steps_backward wants as `space`.
EXPORT int64_t fastvim_steps_space(const StepsCall* call, int is_double) {
  return level->kernels->steps_space[is_double](*call);
}

EXPORT int fastvim_steps_backward(const StepsCall* call, int is_double) {
  return level->kernels->steps_backward[is_double](*call);
}

// The bytes that fastvim_block_forward wants as `space`.
EXPORT int64_t fastvim_block_space(const BlockCall* call, int is_double) {
  return level->kernels->block_space[is_double](*call);
}

EXPORT int fastvim_block_forward(const BlockCall* call, int is_double) {
  if (!tables_fit(call->mixer)) return kBadTable;
  return level->kernels->block_forward[is_double](*call);
}

// The bytes that fastvim_block_backward wants as `space`.
EXPORT int64_t fastvim_block_backward_space(const BlockGradients* call, int is_double) {
  return level->kernels->block_backward_space[is_double](*call);
}

EXPORT int fastvim_block_backward(const BlockGradients* call, int is_double) {
  if (!tables_fit(call->forward.mixer)) return kBadTable;
  return level->kernels->block_backward[is_double](*call);
}
}
