// 3×3 convolutions of few channels, which are last: what goes into the kernels.
#pragma once

#include "conv3x3.h"

namespace mim4dd {

template <typename T>
struct Conv3x3Narrow {
  // output = input * filters + bias, if not null.
  void (*convolve)(
      const Grid& grid,
      const T* input,
      const Filters<T>& filters,
      const T* bias,
      T* output);
  FilterGradientPass<T> filter_gradient;
  // filters: those of the convolution itself.
  void (
      *gradient)(const Grid& grid, const T* grad_output, const Filters<T>& filters, T* grad_input);
};

}  // namespace mim4dd
