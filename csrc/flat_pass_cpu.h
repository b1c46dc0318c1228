// A pass over flat vectors on a CPU: threads over chunks, vector code inside.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "flat_pass_chunk.h"
#include "parallel.h"

namespace mim4dd {

// The sums of a chunk are added in the order of chunks, whoever took them: their bits do not depend
// on the number of threads.
constexpr int64_t kChunk = 1 << 14;
// Below this many chunks a thread's share is done before another thread has woken up.
constexpr int64_t kGrain = 2;

struct CpuRunner {
  template <typename Pass>
  void operator()(const Pass& pass, int64_t rows, int64_t numel, const torch::stable::Tensor&)
      const {
    const int64_t chunks = divide_up(numel, kChunk);
    std::vector<double> sums(Pass::kSums * rows * chunks);
    parallel_for(rows * chunks, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t row = chunk / chunks, start = row * numel + chunk % chunks * kChunk;
        const int64_t stop = std::min(start + kChunk, (row + 1) * numel);
        kernels<ChunkOf<Pass>>().run(
            pass, pass.load(row), start, stop, sums.data() + Pass::kSums * chunk);
      }
    });
    if constexpr (Pass::kSums > 0) {
      for (int64_t row = 0; row < rows; ++row) {
        double total[Pass::kSums] = {};
        for (int64_t i = 0; i < Pass::kSums * chunks; ++i) {
          total[i % Pass::kSums] += sums[Pass::kSums * row * chunks + i];
        }
        pass.finish(row, total);
      }
    }
  }
};

}  // namespace mim4dd
