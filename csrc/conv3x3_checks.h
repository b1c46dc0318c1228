// What memory safety needs of the operators of 3×3 convolutions: callers of the bare ones come by
// no other check.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

namespace mim4dd {

using torch::stable::Tensor;

inline void check_dtype(const Tensor& tensor, const Tensor& input) {
  STD_TORCH_CHECK(
      tensor.scalar_type() == input.scalar_type(), "conv3x3: all tensors must share a dtype");
  STD_TORCH_CHECK(tensor.device() == input.device(), "conv3x3: all tensors must share a device");
}

inline void check_images(const Tensor& input, const Tensor& weight) {
  STD_TORCH_CHECK(
      input.dim() == 4 && weight.dim() == 4 && weight.size(1) == input.size(1) &&
          weight.size(2) == 3 && weight.size(3) == 3,
      "conv3x3: input must be (B, C, H, W) and weight (O, C, 3, 3)");
  STD_TORCH_CHECK(
      weight.size(0) > 0 && weight.size(1) > 0, "conv3x3: weight must have at least one channel");
  check_dtype(weight, input);
}

inline void check_upstream(const Tensor& grad_output, const Tensor& input, const Tensor& weight) {
  check_images(input, weight);
  STD_TORCH_CHECK(
      grad_output.dim() == 4 && grad_output.size(0) == input.size(0) &&
          grad_output.size(1) == weight.size(0) && grad_output.size(2) == input.size(2) &&
          grad_output.size(3) == input.size(3),
      "conv3x3: grad_out must be (B, O, H, W), the shape of the output");
  check_dtype(grad_output, input);
}

inline void
check_bias(const std::optional<Tensor>& bias, const Tensor& input, const Tensor& weight) {
  if (!bias) return;
  STD_TORCH_CHECK(
      bias->dim() == 1 && bias->size(0) == weight.size(0), "conv3x3: bias must be (O,)");
  check_dtype(*bias, input);
}

inline void check_mask(const std::vector<bool>& mask, size_t flags) {
  STD_TORCH_CHECK(mask.size() == flags, "conv3x3: mask must be ", flags, " flags");
}

}  // namespace mim4dd
