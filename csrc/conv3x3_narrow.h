// The gradient to the input of a 3×3 convolution of few channels: what goes into the kernel.
#pragma once

#include "conv3x3.h"

namespace mim4dd {

template <typename T>
struct Conv3x3Narrow {
  // Both images channels last; filters: those of the convolution itself.
  void (
      *gradient)(const Grid& grid, const T* grad_output, const Filters<T>& filters, T* grad_input);
};

}  // namespace mim4dd
