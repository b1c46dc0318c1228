// A thread takes a column and walks through the batch: no atomics. rows stay on the device, so that
// one out of range stops the kernel, as in PyTorch's own indexing.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/macros/Macros.h>

#include "scatter_add_rows.h"

namespace mim4dd {
namespace {

constexpr int kThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kThreads) scatter_add_rows_kernel(
    T* out,
    int64_t num_rows,
    const int64_t* __restrict__ rows,
    const T* __restrict__ source,
    int64_t batch,
    int64_t width,
    Arithmetic<T> scale) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= width) return;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t row = rows[b];
    CUDA_KERNEL_ASSERT(row >= 0 && row < num_rows && "rows must index the rows of out");
    T& sum = out[row * width + column];
    sum = scaled_sum(sum, source[b * width + column], scale);
  }
}

struct ByColumns {
  template <typename T>
  static void run(
      T* out,
      int64_t num_rows,
      const int64_t* rows,
      const T* source,
      int64_t batch,
      int64_t width,
      Arithmetic<T> scale,
      const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    const auto blocks = static_cast<unsigned>((width + kThreads - 1) / kThreads);
    scatter_add_rows_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        out, num_rows, rows, source, batch, width, scale);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CUDA, m) {
  m.impl("scatter_add_rows", TORCH_BOX(&scatter_add_rows<ByColumns>));
}

}  // namespace mim4dd
