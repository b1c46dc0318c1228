// Images whose channels are last, and the tasks over them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>

#include "gemm.h"
#include "microkernel.h"

namespace mim4dd {

inline Tensor channels_last(const Tensor& tensor) {
  return torch::stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast);
}

inline Tensor empty_channels_last(
    const Tensor& like,
    int64_t first,
    int64_t second,
    int64_t third,
    int64_t fourth) {
  return torch::stable::empty(
      {first, second, third, fourth}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      torch::headeronly::MemoryFormat::ChannelsLast);
}

// Every task(scratch, 0 … count - 1), the next one always by the thread that is free.
template <typename T, typename Isa, typename Task>
void run(const Task& task, int64_t scratch_size) {
  const int64_t count = task.count();
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), count);
  const int64_t padded = round_up(scratch_size, 64 / sizeof(T));
  const Tensor scratch = empty_matrix<T>(threads, padded);
  T* const base = scratch.mutable_data_ptr<T>();
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t i = next++; i < count; i = next++) Isa::call(task, base + worker * padded, i);
    }
  });
}

}  // namespace mim4dd
