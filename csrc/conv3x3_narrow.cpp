// The gradient to the input of a 3×3 convolution of few channels, which are last.
#include "conv3x3_narrow.h"

#include <torch/csrc/stable/library.h>

#include "channels_last.h"
#include "dispatch.h"

namespace mim4dd {
namespace {

// What memory safety needs: callers of the bare operator come by no other check.
void check(const Tensor& grad_output, const Tensor& weight) {
  STD_TORCH_CHECK(
      grad_output.dim() == 4 && weight.dim() == 4 && weight.size(0) == grad_output.size(1) &&
          weight.size(2) == 3 && weight.size(3) == 3,
      "conv3x3_narrow_bwd: grad_out must be (B, O, H, W) and weight (O, C, 3, 3)");
  STD_TORCH_CHECK(
      weight.size(0) > 0 && weight.size(1) > 0,
      "conv3x3_narrow_bwd: weight must have at least one channel");
  STD_TORCH_CHECK(
      grad_output.scalar_type() == weight.scalar_type(),
      "conv3x3_narrow_bwd: grad_out and weight must share a dtype");
  STD_TORCH_CHECK(
      grad_output.device() == weight.device(),
      "conv3x3_narrow_bwd: grad_out and weight must share a device");
}

}  // namespace

Tensor conv3x3_narrow_bwd_cpu(const Tensor& grad_output, const Tensor& weight) {
  check(grad_output, weight);
  Tensor grad_input = empty_channels_last(
      grad_output, grad_output.size(0), weight.size(1), grad_output.size(2), grad_output.size(3));
  MIM4DD_DISPATCH_FLOATING(grad_output.scalar_type(), "conv3x3_narrow_bwd", [&] {
    if (grad_input.numel() == 0) return;
    const Tensor upstream = channels_last(grad_output);
    kernels<Conv3x3Narrow<scalar_t>>().gradient(
        {grad_output.size(0), grad_output.size(2), grad_output.size(3)},
        upstream.const_data_ptr<scalar_t>(), filters_of<scalar_t>(weight),
        grad_input.mutable_data_ptr<scalar_t>());
  });
  return grad_input;
}

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CPU, m) {
  m.impl("conv3x3_narrow_bwd", TORCH_BOX(&conv3x3_narrow_bwd_cpu));
}

}  // namespace mim4dd
