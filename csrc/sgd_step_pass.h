// The step of torch.optim.SGD, one element: theta, gradient and velocity read, theta and velocity
// written.
#pragma once

#include "flat_pass.h"

namespace mim4dd {

template <typename T, bool kMomentum>
struct SgdStep : FlatPass<T, kMomentum ? 4 : 3, kMomentum ? 2 : 1, 0> {
  using V = Arithmetic<T>;
  using Row = V;  // the step size, unless each parameter has its own
  enum { kTheta, kGradient, kLr, kVelocity };
  enum { kNewTheta, kNewVelocity };

  StepSize<T> step_size;
  V momentum, weight_decay;
  Switch<V> decays, nesterov;

  MIM4DD_HOST_DEVICE Row load(int64_t) const { return step_size.load(); }

  MIM4DD_HOST_DEVICE void element(const Row& shared, const V* from, V* to, double*) const {
    const V theta = from[kTheta], lr = step_size.per_parameter.choose(from[kLr], shared);
    V direction = decays.choose(from[kGradient] + weight_decay * theta, from[kGradient]);
    if constexpr (kMomentum) {
      const V velocity = momentum * from[kVelocity] + direction;
      to[kNewVelocity] = velocity;
      direction = nesterov.choose(direction + momentum * velocity, velocity);
    }
    to[kNewTheta] = theta - lr * direction;
  }
};

}  // namespace mim4dd
