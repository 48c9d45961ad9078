// All kernels at one instruction set. A file that includes this defines FASTVIM_LEVEL, the namespace,
// and FASTVIM_BYTES, the size of a vector, after switching the compiler to that set.
#include "vector.h"
#include "tiles.h"
#include "parallel.h"
#include "scan.h"
#include "scan_backward.h"
#include "mixer.h"
#include "mixer_finish_backward.h"
#include "mixer_convolve_backward.h"
#include "norm.h"
#include "magnitudes.h"
#include "product.h"
#include "steps.h"
#include "block.h"
#include "block_backward.h"

namespace FASTVIM_LEVEL {

extern const Kernels kernels;
const Kernels kernels = {
    {scan_forward<float>, scan_forward<double>},
    {scan_backward<float>, scan_backward<double>},
    {mixer_convolve<float>, mixer_convolve<double>},
    {mixer_finish<float>, mixer_finish<double>},
    {mixer_finish_backward<float>, mixer_finish_backward<double>},
    {mixer_convolve_backward<float>, mixer_convolve_backward<double>},
    {norm_forward<float>, norm_forward<double>},
    {norm_backward<float>, norm_backward<double>},
    {magnitudes<float>, magnitudes<double>},
    {product_space<float>, product_space<double>},
    {product<float>, product<double>},
    {rows_product_space<float>, rows_product_space<double>},
    {rows_product<float>, rows_product<double>},
    {steps_space<float>, steps_space<double>},
    {steps_backward<float>, steps_backward<double>},
    {block_space<float>, block_space<double>},
    {block_forward<float>, block_forward<double>},
    {block_backward_space<float>, block_backward_space<double>},
    {block_backward<float>, block_backward<double>},
};

}  // namespace FASTVIM_LEVEL
