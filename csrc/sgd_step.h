// What the CPU and the CUDA kernel of sgd_step share: the checks that memory safety needs. The
// messages for users are in mim4dd/ops/sgd_step.py.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "dispatch.h"

namespace mim4dd {

using torch::stable::Tensor;

inline void check_sgd_step(const Tensor& theta, const Tensor& direction, const Tensor& lr) {
  STD_TORCH_CHECK(
      direction.numel() == theta.numel() && (lr.numel() == 1 || lr.numel() == theta.numel()),
      "sgd_step: theta, direction and lr must have P, P and 1 or P elements, got ", theta.numel(),
      ", ", direction.numel(), ", ", lr.numel());
  STD_TORCH_CHECK(
      direction.scalar_type() == theta.scalar_type() && lr.scalar_type() == theta.scalar_type(),
      "sgd_step: theta, direction and lr must share a dtype");
  STD_TORCH_CHECK(
      direction.device() == theta.device() && lr.device() == theta.device(),
      "sgd_step: theta, direction and lr must share a device");
}

}  // namespace mim4dd
