// The trajectory-matching loss of K trajectories in one pass, and its gradients in another.
#pragma once

#include <tuple>
#include <vector>

#include "flat_pass_operands.h"
#include "trajectory_loss_pass.h"

namespace mim4dd {

inline int64_t
check_trajectories(const Tensor& theta_T, const Tensor& theta_0, const Tensor& theta_target) {
  STD_TORCH_CHECK(
      theta_T.dim() == 1 || theta_T.dim() == 2,
      "trajectory_loss: theta_T must be (P) or (K, P), got ", theta_T.dim(), " dimensions");
  check_like("trajectory_loss", theta_T, "theta_0", theta_0);
  check_like("trajectory_loss", theta_T, "theta_target", theta_target);
  return theta_T.dim() == 1 ? 1 : theta_T.size(0);
}

inline std::vector<int64_t> of_trajectories(const Tensor& theta_T) {
  if (theta_T.dim() == 1) return {};
  return {theta_T.size(0)};
}

// Loss, numerator and denominator, each () or (K).
template <typename Runner>
std::tuple<Tensor, Tensor, Tensor>
trajectory_loss(const Tensor& theta_T, const Tensor& theta_0, const Tensor& theta_target) {
  const int64_t rows = check_trajectories(theta_T, theta_0, theta_target);
  const Tensor end = as_contiguous(theta_T), start = as_contiguous(theta_0);
  const Tensor target = as_contiguous(theta_target);
  const std::vector<int64_t> shape = of_trajectories(theta_T);
  Tensor loss = torch::stable::new_empty(theta_T, shape);
  Tensor numerator = new_doubles(theta_T, shape), denominator = new_doubles(theta_T, shape);
  MIM4DD_DISPATCH_FLOATING_AND_HALF(theta_T.scalar_type(), "trajectory_loss", [&] {
    using Pass = TrajectoryLoss<scalar_t>;
    Pass pass;
    pass.in[Pass::kEnd] = end.const_data_ptr<scalar_t>();
    pass.in[Pass::kStart] = start.const_data_ptr<scalar_t>();
    pass.in[Pass::kTarget] = target.const_data_ptr<scalar_t>();
    pass.loss = loss.mutable_data_ptr<scalar_t>();
    pass.numerator = numerator.mutable_data_ptr<double>();
    pass.denominator = denominator.mutable_data_ptr<double>();
    Runner()(pass, rows, theta_T.size(-1), theta_T);
  });
  return {loss, numerator, denominator};
}

// Those beyond the first `count` are empty.
template <typename Runner>
std::tuple<Tensor, Tensor, Tensor> trajectory_loss_bwd(
    const Tensor& theta_T,
    const Tensor& theta_0,
    const Tensor& theta_target,
    const Tensor& numerator,
    const Tensor& denominator,
    const Tensor& upstream,
    int64_t count) {
  const int64_t rows = check_trajectories(theta_T, theta_0, theta_target);
  STD_TORCH_CHECK(count >= 1 && count <= 3, "trajectory_loss_bwd: count must be 1 to 3");
  for (const Tensor& of_row : {numerator, denominator, upstream}) {
    STD_TORCH_CHECK(
        of_row.numel() == rows && of_row.device() == theta_T.device(),
        "trajectory_loss_bwd: numerator, denominator and upstream must have ", rows,
        " elements on the device of theta_T");
  }
  const Tensor end = as_contiguous(theta_T), start = as_contiguous(theta_0);
  const Tensor target = as_contiguous(theta_target), upstream_c = as_contiguous(upstream);
  const Tensor numerator_c = as_contiguous(numerator), denominator_c = as_contiguous(denominator);
  Tensor gradients[3];
  for (int k = 0; k < 3; ++k) {
    gradients[k] =
        k < count ? torch::stable::empty_like(end) : torch::stable::new_empty(theta_T, {0});
  }
  MIM4DD_DISPATCH_FLOATING_AND_HALF(theta_T.scalar_type(), "trajectory_loss_bwd", [&] {
    const auto run = [&](auto of_count) {
      constexpr int kCount = decltype(of_count)::value;
      using Pass = TrajectoryGradient<scalar_t, kCount>;
      Pass pass;
      pass.in[Pass::kEnd] = end.const_data_ptr<scalar_t>();
      pass.in[Pass::kTarget] = target.const_data_ptr<scalar_t>();
      if constexpr (kCount > 1) pass.in[Pass::kStart] = start.const_data_ptr<scalar_t>();
      for (int k = 0; k < kCount; ++k) pass.out[k] = gradients[k].mutable_data_ptr<scalar_t>();
      pass.upstream = upstream_c.const_data_ptr<scalar_t>();
      pass.numerator = numerator_c.const_data_ptr<double>();
      pass.denominator = denominator_c.const_data_ptr<double>();
      Runner()(pass, rows, theta_T.size(-1), theta_T);
    };
    if (count == 1) run(std::integral_constant<int, 1>());
    if (count == 2) run(std::integral_constant<int, 2>());
    if (count == 3) run(std::integral_constant<int, 3>());
  });
  return {gradients[0], gradients[1], gradients[2]};
}

}  // namespace mim4dd
