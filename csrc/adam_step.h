// The step of torch.optim.Adam and AdamW as one pass.
#pragma once

#include <tuple>

#include "adam_step_pass.h"
#include "flat_pass_operands.h"

namespace mim4dd {

template <typename Runner>
std::tuple<Tensor, Tensor, Tensor> adam_step(
    const Tensor& theta,
    const Tensor& gradient,
    const Tensor& mean,
    const Tensor& square,
    const Tensor& lr,
    int64_t step,
    double beta1,
    double beta2,
    double eps,
    double eps_root,
    double weight_decay,
    bool decoupled) {
  check_like("adam_step", theta, "gradient", gradient);
  check_like("adam_step", theta, "mean", mean);
  check_like("adam_step", theta, "square", square);
  STD_TORCH_CHECK(step >= 1, "adam_step: step must count from 1, got ", step);
  check_step_size("adam_step", theta, lr);
  const Tensor theta_c = as_contiguous(theta), gradient_c = as_contiguous(gradient);
  const Tensor mean_c = as_contiguous(mean), square_c = as_contiguous(square),
               lr_c = as_contiguous(lr);
  Tensor new_theta = torch::stable::empty_like(theta_c);
  Tensor new_mean = torch::stable::empty_like(theta_c);
  Tensor new_square = torch::stable::empty_like(theta_c);
  MIM4DD_DISPATCH_FLOATING_AND_HALF(theta.scalar_type(), "adam_step", [&] {
    const bool per_parameter = lr.numel() != 1;
    const auto* step_sizes = lr_c.const_data_ptr<scalar_t>();
    using Pass = AdamStep<scalar_t>;
    Pass pass(
        {step_sizes, per_parameter}, {step, beta1, beta2, eps, eps_root, weight_decay, decoupled});
    pass.in[Pass::kTheta] = theta_c.const_data_ptr<scalar_t>();
    pass.in[Pass::kGradient] = gradient_c.const_data_ptr<scalar_t>();
    pass.in[Pass::kMean] = mean_c.const_data_ptr<scalar_t>();
    pass.in[Pass::kSquare] = square_c.const_data_ptr<scalar_t>();
    pass.in[Pass::kLr] = per_parameter ? step_sizes : pass.in[Pass::kTheta];
    pass.out[Pass::kNewTheta] = new_theta.mutable_data_ptr<scalar_t>();
    pass.out[Pass::kNewMean] = new_mean.mutable_data_ptr<scalar_t>();
    pass.out[Pass::kNewSquare] = new_square.mutable_data_ptr<scalar_t>();
    Runner()(pass, 1, theta.numel(), theta);
  });
  return {new_theta, new_mean, new_square};
}

}  // namespace mim4dd
