// The trajectory-matching loss of K trajectories, one element: both squared distances in one pass
// over the three vectors, all gradients in another.
#pragma once

#include "flat_pass.h"

namespace mim4dd {

template <typename T>
struct TrajectoryLoss : FlatPass<T, 3, 0, 2> {
  using V = Arithmetic<T>;
  struct Row {};
  enum { kEnd, kStart, kTarget };

  T* loss;
  double *numerator, *denominator;

  MIM4DD_HOST_DEVICE Row load(int64_t) const { return {}; }

  MIM4DD_HOST_DEVICE void element(const Row&, const V* from, V*, double* sums) const {
    const double left = from[kEnd] - from[kTarget], gone = from[kStart] - from[kTarget];
    sums[0] = left * left;
    sums[1] = gone * gone;
  }

  MIM4DD_HOST_DEVICE void finish(int64_t row, const double* sums) const {
    numerator[row] = sums[0];
    denominator[row] = sums[1];
    loss[row] = static_cast<T>(static_cast<V>(sums[0] / sums[1]));
  }
};

// The gradients of the first kCount of theta_T, theta_0 and theta_target.
template <typename T, int kCount>
struct TrajectoryGradient : FlatPass<T, kCount == 1 ? 2 : 3, kCount, 0> {
  using V = Arithmetic<T>;
  struct Row {
    V end, start;  // factors of theta_T − theta_target and of theta_0 − theta_target
  };
  enum { kEnd, kTarget, kStart };
  enum { kOfEnd, kOfStart, kOfTarget };

  const T* upstream;
  const double *numerator, *denominator;

  MIM4DD_HOST_DEVICE Row load(int64_t row) const {
    const double end = 2 * static_cast<double>(static_cast<V>(upstream[row])) / denominator[row];
    return {static_cast<V>(end), static_cast<V>(-end * (numerator[row] / denominator[row]))};
  }

  MIM4DD_HOST_DEVICE void element(const Row& row, const V* from, V* to, double*) const {
    const V of_end = row.end * (from[kEnd] - from[kTarget]);
    to[kOfEnd] = of_end;
    if constexpr (kCount > 1) {
      const V of_start = row.start * (from[kStart] - from[kTarget]);
      to[kOfStart] = of_start;
      if constexpr (kCount > 2) to[kOfTarget] = -(of_end + of_start);
    }
  }
};

}  // namespace mim4dd
