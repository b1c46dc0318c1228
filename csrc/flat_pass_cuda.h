// A pass over flat vectors on a GPU: a grid-stride loop over packs of elements. Sums go through one
// partial per block, which a second kernel adds in a fixed order: no atomics, the same bits in
// every run. Nothing makes the host wait.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>

#include "flat_pass_operands.h"

namespace mim4dd {

constexpr int kThreads = 256;
// Enough blocks to fill the largest GPU several times over; the grid stride covers the rest.
constexpr int64_t kMaxBlocks = 2048;
constexpr int64_t kMaxRows = 65535;  // of a grid's second dimension

template <typename T>
constexpr int kPack = sizeof(T) == 8 ? 2 : 4;  // 16 bytes, 8 of half precision: registers

// The sums over a block, in thread 0.
template <int kSums>
__device__ void sum_over_block(double (&sums)[kSums]) {
  __shared__ double of_warp[kThreads / 32][kSums];
  for (int k = 0; k < kSums; ++k) {
    for (int offset = 16; offset > 0; offset /= 2) {
      sums[k] += __shfl_down_sync(0xffffffffu, sums[k], offset);
    }
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32][k] = sums[k];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int k = 0; k < kSums; ++k) {
      for (int warp = 1; warp < kThreads / 32; ++warp) sums[k] += of_warp[warp][k];
    }
  }
}

// What moves so many bytes in one instruction.
template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using Type = uint16_t;
};
template <>
struct WordOf<4> {
  using Type = uint32_t;
};
template <>
struct WordOf<8> {
  using Type = uint2;
};
template <>
struct WordOf<16> {
  using Type = uint4;
};

// Elements [first, first + kCount) of a row.
template <int kCount, typename Pass>
__device__ void
run_pack(const Pass& pass, const typename Pass::Row& row, int64_t first, double* sums) {
  using T = typename Pass::scalar_t;
  using V = typename Pass::value_t;
  using Word = typename WordOf<sizeof(T) * kCount>::Type;
  union Values {
    Word word;
    T of[kCount];
  };
  Values in[Pass::kInputs], out[Pass::kOutputSlots];
#pragma unroll
  for (int k = 0; k < Pass::kInputs; ++k) {
    in[k].word = *reinterpret_cast<const Word*>(pass.in[k] + first);
  }
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    V values[Pass::kInputs], results[Pass::kOutputSlots];
#pragma unroll
    for (int k = 0; k < Pass::kInputs; ++k) values[k] = static_cast<V>(in[k].of[j]);
    double terms[Pass::kSumSlots] = {};
    pass.element(row, values, results, terms);
#pragma unroll
    for (int k = 0; k < Pass::kOutputs; ++k) out[k].of[j] = static_cast<T>(results[k]);
#pragma unroll
    for (int k = 0; k < Pass::kSums; ++k) sums[k] += terms[k];
  }
  // A plain assignment the compiler would split into a store for each value.
#pragma unroll
  for (int k = 0; k < Pass::kOutputs; ++k) {
    __stwb(reinterpret_cast<Word*>(pass.out[k] + first), out[k].word);
  }
}

template <typename Pass>
__global__ void __launch_bounds__(kThreads)
    flat_pass_kernel(const Pass pass, int64_t numel, bool packed, double* __restrict__ partials) {
  constexpr int kCount = kPack<typename Pass::scalar_t>;
  const int64_t row = blockIdx.y, base = row * numel;
  const auto shared = pass.load(row);
  double sums[Pass::kSumSlots] = {};
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t packs = packed ? numel / kCount : 0;
  for (int64_t i = thread; i < packs; i += stride) {
    run_pack<kCount>(pass, shared, base + i * kCount, sums);
  }
  for (int64_t i = packs * kCount + thread; i < numel; i += stride) {
    run_pack<1>(pass, shared, base + i, sums);
  }
  if constexpr (Pass::kSums > 0) {
    sum_over_block(sums);
    if (threadIdx.x == 0) {
      double* const of_block = partials + (row * gridDim.x + blockIdx.x) * Pass::kSums;
      for (int k = 0; k < Pass::kSums; ++k) of_block[k] = sums[k];
    }
  }
}

template <typename Pass>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const Pass pass, int blocks, const double* __restrict__ partials) {
  const double* const of_row = partials + static_cast<int64_t>(blockIdx.x) * blocks * Pass::kSums;
  double sums[Pass::kSums] = {};
  for (int block = threadIdx.x; block < blocks; block += kThreads) {
    for (int k = 0; k < Pass::kSums; ++k) sums[k] += of_row[block * Pass::kSums + k];
  }
  sum_over_block(sums);
  if (threadIdx.x == 0) pass.finish(blockIdx.x, sums);
}

// Whether every row of every vector starts where a pack may: a row of a (T + 1, P) history need
// not.
template <typename Pass>
bool can_pack(const Pass& pass, int64_t rows, int64_t numel) {
  using T = typename Pass::scalar_t;
  const auto fits = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % (sizeof(T) * kPack<T>) == 0;
  };
  bool all = rows == 1 || numel % kPack<T> == 0;
  for (int k = 0; k < Pass::kInputs; ++k) all = all && fits(pass.in[k]);
  for (int k = 0; k < Pass::kOutputs; ++k) all = all && fits(pass.out[k]);
  return all;
}

struct CudaRunner {
  template <typename Pass>
  void operator()(const Pass& pass, int64_t rows, int64_t numel, const Tensor& like) const {
    if (rows == 0 || (numel == 0 && Pass::kSums == 0)) return;
    STD_TORCH_CHECK(rows <= kMaxRows, "at most ", kMaxRows, " rows on a GPU, got ", rows);
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    void* handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &handle));
    const auto stream = static_cast<cudaStream_t>(handle);
    const bool packed = can_pack(pass, rows, numel);
    const int64_t per_block = kThreads * (packed ? kPack<typename Pass::scalar_t> : 1);
    const auto blocks = static_cast<unsigned>(
        std::clamp<int64_t>((numel + per_block - 1) / per_block, 1, kMaxBlocks));
    const dim3 grid(blocks, static_cast<unsigned>(rows));
    if constexpr (Pass::kSums > 0) {
      const Tensor partials = new_doubles(like, {rows, blocks, Pass::kSums});
      auto* const sums = partials.mutable_data_ptr<double>();
      flat_pass_kernel<<<grid, kThreads, 0, stream>>>(pass, numel, packed, sums);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
      finish_kernel<<<grid.y, kThreads, 0, stream>>>(pass, static_cast<int>(blocks), sums);
    } else {
      flat_pass_kernel<<<grid, kThreads, 0, stream>>>(pass, numel, packed, nullptr);
    }
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace mim4dd
