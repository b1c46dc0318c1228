// The adjoint of the step of torch.optim.Adam and AdamW as one pass.
#pragma once

#include <tuple>

#include "adam_adjoint_pass.h"
#include "flat_pass_operands.h"

namespace mim4dd {

// λ without its product, the adjoints of both moments, the cotangent of the gradient, ∂L/∂lr, ‖λ‖².
template <typename Runner>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> adam_adjoint(
    const Tensor& theta_adjoint,
    const std::optional<Tensor>& mean_adjoint,
    const std::optional<Tensor>& square_adjoint,
    const std::optional<Tensor>& product,
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
  check_like("adam_adjoint", theta_adjoint, "mean_adjoint", mean_adjoint);
  check_like("adam_adjoint", theta_adjoint, "square_adjoint", square_adjoint);
  check_like("adam_adjoint", theta_adjoint, "product", product);
  check_like("adam_adjoint", theta_adjoint, "theta", theta);
  check_like("adam_adjoint", theta_adjoint, "gradient", gradient);
  check_like("adam_adjoint", theta_adjoint, "mean", mean);
  check_like("adam_adjoint", theta_adjoint, "square", square);
  STD_TORCH_CHECK(step >= 1, "adam_adjoint: step must count from 1, got ", step);
  check_step_size("adam_adjoint", theta_adjoint, lr);
  STD_TORCH_CHECK(
      mean_adjoint.has_value() == square_adjoint.has_value(),
      "adam_adjoint: mean_adjoint and square_adjoint must both be given, or neither");
  const Tensor adjoint_c = as_contiguous(theta_adjoint), theta_c = as_contiguous(theta);
  const Tensor gradient_c = as_contiguous(gradient), lr_c = as_contiguous(lr);
  const Tensor mean_c = as_contiguous(mean), square_c = as_contiguous(square);
  const auto mean_adjoint_c = as_contiguous(mean_adjoint);
  const auto square_adjoint_c = as_contiguous(square_adjoint), product_c = as_contiguous(product);
  Tensor new_adjoint = torch::stable::empty_like(adjoint_c);
  Tensor new_mean_adjoint = torch::stable::empty_like(adjoint_c);
  Tensor new_square_adjoint = torch::stable::empty_like(adjoint_c);
  Tensor cotangent = torch::stable::empty_like(adjoint_c);
  Tensor lr_gradient = torch::stable::empty_like(lr_c);
  Tensor squared_norm = new_doubles(theta, {});
  MIM4DD_DISPATCH_FLOATING_AND_HALF(theta.scalar_type(), "adam_adjoint", [&] {
    with_flag(lr.numel() != 1, [&](auto lr_per_parameter) {
      constexpr bool kPerParameter = decltype(lr_per_parameter)::value;
      const auto* adjoint = adjoint_c.const_data_ptr<scalar_t>();
      const auto* step_sizes = lr_c.const_data_ptr<scalar_t>();
      auto* of_lr = lr_gradient.mutable_data_ptr<scalar_t>();
      using Pass = AdamAdjoint<scalar_t, kPerParameter>;
      Pass pass({step, beta1, beta2, eps, eps_root, weight_decay, decoupled});
      pass.step_size = {step_sizes, kPerParameter};
      pass.in[Pass::kAdjoint] = adjoint;
      pass.in[Pass::kProduct] = pointer_or(product_c, adjoint);
      pass.in[Pass::kTheta] = weight_decay != 0 ? theta_c.const_data_ptr<scalar_t>() : adjoint;
      pass.in[Pass::kGradient] = gradient_c.const_data_ptr<scalar_t>();
      pass.in[Pass::kMean] = mean_c.const_data_ptr<scalar_t>();
      pass.in[Pass::kSquare] = square_c.const_data_ptr<scalar_t>();
      pass.in[Pass::kLr] = kPerParameter ? step_sizes : adjoint;
      pass.in[Pass::kMeanAdjoint] = pointer_or(mean_adjoint_c, adjoint);
      pass.in[Pass::kSquareAdjoint] = pointer_or(square_adjoint_c, adjoint);
      pass.out[Pass::kNewAdjoint] = new_adjoint.mutable_data_ptr<scalar_t>();
      pass.out[Pass::kNewMeanAdjoint] = new_mean_adjoint.mutable_data_ptr<scalar_t>();
      pass.out[Pass::kNewSquareAdjoint] = new_square_adjoint.mutable_data_ptr<scalar_t>();
      pass.out[Pass::kCotangent] = cotangent.mutable_data_ptr<scalar_t>();
      if constexpr (kPerParameter) pass.out[Pass::kLrGradient] = of_lr;
      pass.has_product = Switch<Arithmetic<scalar_t>>(product.has_value());
      pass.has_moment_adjoints = Switch<Arithmetic<scalar_t>>(mean_adjoint.has_value());
      pass.lr_gradient = of_lr;
      pass.squared_norm = squared_norm.mutable_data_ptr<double>();
      Runner()(pass, 1, theta.numel(), theta);
    });
  });
  return {new_adjoint, new_mean_adjoint, new_square_adjoint, cotangent, lr_gradient, squared_norm};
}

}  // namespace mim4dd
