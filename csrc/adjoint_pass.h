// What the adjoints of the optimisers' steps share: λ with the product of the later step, and the
// two sums over it, ∂L/∂lr of one step size and ‖λ‖².
#pragma once

#include "flat_pass.h"

namespace mim4dd {

template <typename T, int inputs, int outputs, bool kPerParameter>
struct AdjointPass : FlatPass<T, inputs, outputs, 2> {
  using V = Arithmetic<T>;
  using Row = V;
  enum { kAdjoint, kProduct, kOwnInputs };  // those of both come first

  StepSize<T> step_size;
  Switch<V> has_product;
  T* lr_gradient;  // of the one step size
  double* squared_norm;

  MIM4DD_HOST_DEVICE Row load(int64_t) const { return step_size.load(); }

  MIM4DD_HOST_DEVICE V adjoint_of(const V* from) const {
    return has_product.choose(from[kAdjoint] + from[kProduct], from[kAdjoint]);
  }

  // `of_lr` is that of the parameter, where each has its own step size.
  MIM4DD_HOST_DEVICE static void
  add_terms(V adjoint, V direction, [[maybe_unused]] V* of_lr, double* sums) {
    if constexpr (kPerParameter) {
      *of_lr = -adjoint * direction;
      sums[0] = 0;
    } else {
      sums[0] = static_cast<double>(adjoint) * static_cast<double>(direction);
    }
    sums[1] = static_cast<double>(adjoint) * static_cast<double>(adjoint);
  }

  MIM4DD_HOST_DEVICE void finish(int64_t, const double* sums) const {
    if constexpr (!kPerParameter) *lr_gradient = static_cast<T>(static_cast<V>(-sums[0]));
    *squared_norm = sums[1];
  }
};

}  // namespace mim4dd
