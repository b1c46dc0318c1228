// The step of torch.optim.SGD as one pass.
#pragma once

#include <tuple>

#include "flat_pass_operands.h"
#include "sgd_step_pass.h"

namespace mim4dd {

template <typename Runner>
std::tuple<Tensor, Tensor> sgd_step(
    const Tensor& theta,
    const Tensor& gradient,
    const Tensor& lr,
    const std::optional<Tensor>& velocity,
    double momentum,
    double weight_decay,
    bool nesterov) {
  check_like("sgd_step", theta, "gradient", gradient);
  check_like("sgd_step", theta, "velocity", velocity);
  check_step_size("sgd_step", theta, lr);
  STD_TORCH_CHECK(
      velocity.has_value() || (momentum == 0 && !nesterov),
      "sgd_step: momentum needs a velocity, zeros before the first step");
  const Tensor theta_c = as_contiguous(theta), gradient_c = as_contiguous(gradient);
  const Tensor lr_c = as_contiguous(lr);
  const auto velocity_c = as_contiguous(velocity);
  Tensor new_theta = torch::stable::empty_like(theta_c);
  Tensor new_velocity = velocity.has_value() ? torch::stable::empty_like(theta_c)
                                             : torch::stable::new_empty(theta, {0});
  MIM4DD_DISPATCH_FLOATING_AND_HALF(theta.scalar_type(), "sgd_step", [&] {
    with_flag(velocity.has_value(), [&](auto with_momentum) {
      constexpr bool kMomentum = decltype(with_momentum)::value;
      const bool per_parameter = lr.numel() != 1;
      const auto* step_sizes = lr_c.const_data_ptr<scalar_t>();
      using Pass = SgdStep<scalar_t, kMomentum>;
      Pass pass;
      pass.in[Pass::kTheta] = theta_c.const_data_ptr<scalar_t>();
      pass.in[Pass::kGradient] = gradient_c.const_data_ptr<scalar_t>();
      pass.in[Pass::kLr] = per_parameter ? step_sizes : pass.in[Pass::kTheta];
      pass.out[Pass::kNewTheta] = new_theta.mutable_data_ptr<scalar_t>();
      if constexpr (kMomentum) {
        pass.in[Pass::kVelocity] = velocity_c->template const_data_ptr<scalar_t>();
        pass.out[Pass::kNewVelocity] = new_velocity.mutable_data_ptr<scalar_t>();
      }
      pass.step_size = {step_sizes, per_parameter};
      pass.momentum = static_cast<Arithmetic<scalar_t>>(momentum);
      pass.weight_decay = static_cast<Arithmetic<scalar_t>>(weight_decay);
      pass.decays = Switch<Arithmetic<scalar_t>>(weight_decay != 0);
      pass.nesterov = Switch<Arithmetic<scalar_t>>(nesterov);
      Runner()(pass, 1, theta.numel(), theta);
    });
  });
  return {new_theta, new_velocity};
}

}  // namespace mim4dd
