// 3×3 convolutions of few channels, which are last.
#include "conv3x3_narrow.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "channels_last.h"
#include "conv3x3_checks.h"
#include "dispatch.h"

namespace mim4dd {
namespace {

template <typename T>
Tensor gradient(const Tensor& grad_output, const Tensor& input, const Tensor& weight) {
  Tensor grad_input =
      empty_channels_last(input, input.size(0), input.size(1), input.size(2), input.size(3));
  if (grad_input.numel() == 0) return grad_input;
  kernels<Conv3x3Narrow<T>>().gradient(
      grid_of(input), grad_output.const_data_ptr<T>(), filters_of<T>(weight),
      grad_input.mutable_data_ptr<T>());
  return grad_input;
}

}  // namespace

Tensor
conv3x3_narrow_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_images(input, weight);
  check_bias(bias, input, weight);
  Tensor output =
      empty_channels_last(input, input.size(0), weight.size(0), input.size(2), input.size(3));
  MIM4DD_DISPATCH_FLOATING(input.scalar_type(), "conv3x3_narrow", [&] {
    if (output.numel() == 0) return;
    const Tensor images = channels_last(input);
    const Tensor offset = bias ? torch::stable::contiguous(*bias) : Tensor();
    kernels<Conv3x3Narrow<scalar_t>>().convolve(
        grid_of(input), images.const_data_ptr<scalar_t>(), filters_of<scalar_t>(weight),
        bias ? offset.const_data_ptr<scalar_t>() : nullptr, output.mutable_data_ptr<scalar_t>());
  });
  return output;
}

std::tuple<Tensor, Tensor> conv3x3_narrow_bwd_cpu(
    const Tensor& grad_output,
    const Tensor& input,
    const Tensor& weight,
    std::vector<bool> mask) {
  check_upstream(grad_output, input, weight);
  check_mask(mask, 2);
  Tensor grad_input, grad_weight;  // without a value: None
  MIM4DD_DISPATCH_FLOATING(input.scalar_type(), "conv3x3_narrow_bwd", [&] {
    const Tensor upstream = channels_last(grad_output);
    if (mask[0]) grad_input = gradient<scalar_t>(upstream, input, weight);
    if (mask[1]) {
      grad_weight = filter_gradient<Conv3x3Narrow, scalar_t>(upstream, channels_last(input));
    }
  });
  return {grad_input, grad_weight};
}

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CPU, m) {
  m.impl("conv3x3_narrow", TORCH_BOX(&conv3x3_narrow_cpu));
  m.impl("conv3x3_narrow_bwd", TORCH_BOX(&conv3x3_narrow_bwd_cpu));
}

}  // namespace mim4dd
