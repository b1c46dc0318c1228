// theta - lr * direction on a CPU: two streams read, one written, threads over contiguous ranges.
#include "sgd_step.h"

#include <torch/csrc/stable/library.h>

namespace mim4dd {
namespace {

// Below this many elements a thread's share finishes before another thread has woken up.
constexpr int64_t kGrain = 1 << 15;

template <typename scalar_t>
void sgd_step_range(
    const scalar_t* __restrict theta,
    const scalar_t* __restrict direction,
    const scalar_t* __restrict lr,
    bool lr_is_scalar,
    scalar_t* __restrict out,
    int64_t begin,
    int64_t end) {
  if (lr_is_scalar) {
    const scalar_t step = *lr;
    for (int64_t i = begin; i < end; ++i) out[i] = theta[i] - step * direction[i];
  } else {
    for (int64_t i = begin; i < end; ++i) out[i] = theta[i] - lr[i] * direction[i];
  }
}

}  // namespace

Tensor sgd_step_cpu(const Tensor& theta, const Tensor& direction, const Tensor& lr) {
  check_sgd_step(theta, direction, lr);
  const Tensor theta_c = torch::stable::contiguous(theta);
  const Tensor direction_c = torch::stable::contiguous(direction);
  const Tensor lr_c = torch::stable::contiguous(lr);
  Tensor out = torch::stable::empty_like(theta_c);
  MIM4DD_DISPATCH_FLOATING(theta.scalar_type(), "sgd_step", [&] {
    const auto* theta_ptr = theta_c.const_data_ptr<scalar_t>();
    const auto* direction_ptr = direction_c.const_data_ptr<scalar_t>();
    const auto* lr_ptr = lr_c.const_data_ptr<scalar_t>();
    auto* out_ptr = out.mutable_data_ptr<scalar_t>();
    const bool lr_is_scalar = lr.numel() == 1;
    torch::stable::parallel_for(0, theta.numel(), kGrain, [&](int64_t begin, int64_t end) {
      sgd_step_range(theta_ptr, direction_ptr, lr_ptr, lr_is_scalar, out_ptr, begin, end);
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CPU, m) { m.impl("sgd_step", TORCH_BOX(&sgd_step_cpu)); }

}  // namespace mim4dd
