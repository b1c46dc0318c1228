// Parts of all flat passes on vectors.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "adam_adjoint_pass.h"
#include "flat_pass_chunk.h"
#include "sgd_adjoint_pass.h"
#include "sgd_step_pass.h"
#include "trajectory_loss_pass.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace {

constexpr int64_t kTile = 1 << 9;

template <typename Pass>
MIM4DD_INLINE void run_element(
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

MIM4DD_INLINE double sum(const double* terms, int64_t n) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += terms[i];
  return total;
}

template <typename Pass>
void run_chunk(
    const Pass& given,
    const typename Pass::Row& row_of_it,
    int64_t begin,
    int64_t end,
    double* sums) {
  const Pass pass = given;  // or a store could change it, as far as the compiler knows
  const typename Pass::Row row = row_of_it;
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

template <typename Pass>
constexpr ChunkOf<Pass> kChunkOf{run_chunk<Pass>};

}  // namespace

#define MIM4DD_CHUNKS(T)                             \
  MIM4DD_TABLE(ChunkOf, SgdStep<T, false>)           \
  MIM4DD_TABLE(ChunkOf, SgdStep<T, true>)            \
  MIM4DD_TABLE(ChunkOf, SgdAdjoint<T, false, false>) \
  MIM4DD_TABLE(ChunkOf, SgdAdjoint<T, false, true>)  \
  MIM4DD_TABLE(ChunkOf, SgdAdjoint<T, true, false>)  \
  MIM4DD_TABLE(ChunkOf, SgdAdjoint<T, true, true>)   \
  MIM4DD_TABLE(ChunkOf, AdamStep<T>)                 \
  MIM4DD_TABLE(ChunkOf, AdamAdjoint<T, false>)       \
  MIM4DD_TABLE(ChunkOf, AdamAdjoint<T, true>)        \
  MIM4DD_TABLE(ChunkOf, TrajectoryLoss<T>)           \
  MIM4DD_TABLE(ChunkOf, TrajectoryGradient<T, 1>)    \
  MIM4DD_TABLE(ChunkOf, TrajectoryGradient<T, 2>)    \
  MIM4DD_TABLE(ChunkOf, TrajectoryGradient<T, 3>)

MIM4DD_CHUNKS(float)
MIM4DD_CHUNKS(double)
MIM4DD_CHUNKS(c10::BFloat16)
MIM4DD_CHUNKS(c10::Half)

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
