// A pass over flat vectors on a CPU: threads over chunks, vector code inside.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "flat_pass.h"
#include "simd.h"

namespace mim4dd {

// The sums of a chunk are added in the order of chunks, whoever took them: their bits do not depend
// on the number of threads.
constexpr int64_t kChunk = 1 << 14;
constexpr int64_t kTile = 1 << 9;
// Below this many chunks a thread's share is done before another thread has woken up.
constexpr int64_t kGrain = 2;

template <typename Pass>
inline void run_element(
    const Pass& pass,
    const typename Pass::Row& row,
    int64_t i,
    double (*terms)[kTile],
    int64_t j) {
  // Not in the loop itself: there gcc would give every lane arrays of its own, in memory.
  typename Pass::value_t in[Pass::kInputs], out[Pass::kOutputSlots];
  double sums[Pass::kSumSlots];
  for (int k = 0; k < Pass::kInputs; ++k) {
    in[k] = static_cast<typename Pass::value_t>(pass.in[k][i]);
  }
  pass.element(row, in, out, sums);
  for (int k = 0; k < Pass::kOutputs; ++k) {
    pass.out[k][i] = static_cast<typename Pass::scalar_t>(out[k]);
  }
  for (int k = 0; k < Pass::kSums; ++k) terms[k][j] = sums[k];
}

inline double sum(const double* terms, int64_t n) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += terms[i];
  return total;
}

template <typename Pass>
MIM4DD_SIMD void run_chunk(
    const Pass pass,
    const typename Pass::Row row,
    const int64_t begin,
    const int64_t end,
    double* sums) {
  if constexpr (Pass::kSums == 0) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) run_element(pass, row, i, nullptr, 0);
  } else {
    // Through the first cache: with reductions in the same loop gcc makes no vector code.
    double terms[Pass::kSums][kTile];
    for (int64_t tile = begin; tile < end; tile += kTile) {
      const int64_t size = std::min(kTile, end - tile);
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) run_element(pass, row, tile + i, terms, i);
      for (int k = 0; k < Pass::kSums; ++k) sums[k] += sum(terms[k], size);
    }
  }
}

struct CpuRunner {
  template <typename Pass>
  void operator()(const Pass& pass, int64_t rows, int64_t numel, const Tensor&) const {
    const int64_t chunks = (numel + kChunk - 1) / kChunk;
    std::vector<double> sums(Pass::kSums * rows * chunks);
    torch::stable::parallel_for(0, rows * chunks, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t row = chunk / chunks, start = row * numel + chunk % chunks * kChunk;
        const int64_t stop = std::min(start + kChunk, (row + 1) * numel);
        run_chunk(pass, pass.load(row), start, stop, sums.data() + Pass::kSums * chunk);
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
