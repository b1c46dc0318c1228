// theta - lr * direction on a GPU: one grid-stride pass. lr is read from device memory, so a
// learned step size never makes the host wait.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "sgd_step.h"

namespace mim4dd {
namespace {

constexpr int kThreads = 256;
// Enough blocks to fill the largest GPU several times over; the grid stride covers the rest.
constexpr int64_t kMaxBlocks = 4096;

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) sgd_step_kernel(
    const scalar_t* __restrict__ theta,
    const scalar_t* __restrict__ direction,
    const scalar_t* __restrict__ lr,
    int64_t lr_stride,  // 0 for a scalar step size, 1 for one per parameter
    scalar_t* __restrict__ out,
    int64_t numel) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < numel;
       i += stride) {
    out[i] = theta[i] - lr[i * lr_stride] * direction[i];
  }
}

}  // namespace

Tensor sgd_step_cuda(const Tensor& theta, const Tensor& direction, const Tensor& lr) {
  check_sgd_step(theta, direction, lr);
  const torch::stable::accelerator::DeviceGuard guard(theta.get_device_index());
  const Tensor theta_c = torch::stable::contiguous(theta);
  const Tensor direction_c = torch::stable::contiguous(direction);
  const Tensor lr_c = torch::stable::contiguous(lr);
  Tensor out = torch::stable::empty_like(theta_c);
  const int64_t numel = theta.numel();
  if (numel == 0) return out;
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(theta.get_device_index(), &stream));
  const auto blocks =
      static_cast<unsigned>(std::min((numel + kThreads - 1) / kThreads, kMaxBlocks));
  MIM4DD_DISPATCH_FLOATING(theta.scalar_type(), "sgd_step", [&] {
    sgd_step_kernel<scalar_t><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        theta_c.const_data_ptr<scalar_t>(), direction_c.const_data_ptr<scalar_t>(),
        lr_c.const_data_ptr<scalar_t>(), lr.numel() == 1 ? 0 : 1, out.mutable_data_ptr<scalar_t>(),
        numel);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CUDA, m) { m.impl("sgd_step", TORCH_BOX(&sgd_step_cuda)); }

}  // namespace mim4dd
