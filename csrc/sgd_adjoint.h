// The adjoint of the step of torch.optim.SGD as one pass.
#pragma once

#include <tuple>

#include "flat_pass_operands.h"
#include "sgd_adjoint_pass.h"

namespace mim4dd {

// λ without its product, ν, the cotangent of the gradient, ∂L/∂lr, ‖λ‖².
template <typename Runner>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sgd_adjoint(
    const Tensor& theta_adjoint,
    const std::optional<Tensor>& velocity_adjoint,
    const std::optional<Tensor>& product,
    const Tensor& theta,
    const Tensor& gradient,
    const std::optional<Tensor>& velocity,
    const Tensor& lr,
    double momentum,
    double weight_decay,
    bool nesterov) {
  check_like("sgd_adjoint", theta_adjoint, "velocity_adjoint", velocity_adjoint);
  check_like("sgd_adjoint", theta_adjoint, "product", product);
  check_like("sgd_adjoint", theta_adjoint, "theta", theta);
  check_like("sgd_adjoint", theta_adjoint, "gradient", gradient);
  check_like("sgd_adjoint", theta_adjoint, "velocity", velocity);
  check_step_size("sgd_adjoint", theta_adjoint, lr);
  STD_TORCH_CHECK(
      velocity.has_value() || (momentum == 0 && !nesterov && !velocity_adjoint.has_value()),
      "sgd_adjoint: momentum needs the velocity after the step");
  const Tensor adjoint_c = as_contiguous(theta_adjoint), theta_c = as_contiguous(theta);
  const Tensor gradient_c = as_contiguous(gradient), lr_c = as_contiguous(lr);
  const auto velocity_adjoint_c = as_contiguous(velocity_adjoint),
             product_c = as_contiguous(product);
  const auto velocity_c = as_contiguous(velocity);
  Tensor new_adjoint = torch::stable::empty_like(adjoint_c);
  Tensor cotangent = torch::stable::empty_like(adjoint_c);
  Tensor new_velocity_adjoint = velocity.has_value() ? torch::stable::empty_like(adjoint_c)
                                                     : torch::stable::new_empty(theta, {0});
  Tensor lr_gradient = torch::stable::empty_like(lr_c);
  Tensor squared_norm = new_doubles(theta, {});
  MIM4DD_DISPATCH_FLOATING_AND_HALF(theta.scalar_type(), "sgd_adjoint", [&] {
    with_flag(velocity.has_value(), [&](auto with_momentum) {
      with_flag(lr.numel() != 1, [&](auto lr_per_parameter) {
        constexpr bool kMomentum = decltype(with_momentum)::value;
        constexpr bool kPerParameter = decltype(lr_per_parameter)::value;
        const auto* adjoint = adjoint_c.const_data_ptr<scalar_t>();
        const auto* step_sizes = lr_c.const_data_ptr<scalar_t>();
        auto* of_lr = lr_gradient.mutable_data_ptr<scalar_t>();
        using Pass = SgdAdjoint<scalar_t, kMomentum, kPerParameter>;
        Pass pass;
        pass.in[Pass::kAdjoint] = adjoint;
        pass.in[Pass::kProduct] = pointer_or(product_c, adjoint);
        // Neither is read where the velocity alone is the direction.
        const bool needs_gradient = !kMomentum || nesterov;
        pass.in[Pass::kGradient] = needs_gradient ? gradient_c.const_data_ptr<scalar_t>() : adjoint;
        pass.in[Pass::kTheta] = needs_gradient && weight_decay != 0
                                    ? theta_c.const_data_ptr<scalar_t>()
                                    : pass.in[Pass::kGradient];
        pass.in[Pass::kLr] = kPerParameter ? step_sizes : adjoint;
        pass.out[Pass::kNewAdjoint] = new_adjoint.mutable_data_ptr<scalar_t>();
        pass.out[Pass::kCotangent] = cotangent.mutable_data_ptr<scalar_t>();
        if constexpr (kMomentum) {
          pass.in[Pass::kVelocity] = velocity_c->template const_data_ptr<scalar_t>();
          pass.in[Pass::kVelocityAdjoint] = pointer_or(velocity_adjoint_c, adjoint);
          pass.out[Pass::kNewVelocityAdjoint] = new_velocity_adjoint.mutable_data_ptr<scalar_t>();
        }
        if constexpr (kPerParameter) pass.out[Pass::kLrGradient] = of_lr;
        pass.step_size = {step_sizes, kPerParameter};
        using Choice = Switch<Arithmetic<scalar_t>>;
        pass.momentum = static_cast<Arithmetic<scalar_t>>(momentum);
        pass.weight_decay = static_cast<Arithmetic<scalar_t>>(weight_decay);
        pass.decays = Choice(weight_decay != 0);
        pass.nesterov = Choice(nesterov);
        pass.has_product = Choice(product.has_value());
        pass.has_velocity_adjoint = Choice(velocity_adjoint.has_value());
        pass.lr_gradient = of_lr;
        pass.squared_norm = squared_norm.mutable_data_ptr<double>();
        Runner()(pass, 1, theta.numel(), theta);
      });
    });
  });
  return {new_adjoint, new_velocity_adjoint, cotangent, lr_gradient, squared_norm};
}

}  // namespace mim4dd
