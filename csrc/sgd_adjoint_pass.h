// The adjoint of the step of torch.optim.SGD, one element: what is left to do of the later step is
// done on the way. docs/math.md derives it.
#pragma once

#include "adjoint_pass.h"

namespace mim4dd {

template <typename T, bool kMomentum, bool kPerParameter>
struct SgdAdjoint : AdjointPass<
                        T,
                        kMomentum ? 7 : 5,
                        2 + (kMomentum ? 1 : 0) + (kPerParameter ? 1 : 0),
                        kPerParameter> {
  using V = Arithmetic<T>;
  using Base = typename SgdAdjoint::AdjointPass;
  enum { kTheta = Base::kOwnInputs, kGradient, kLr, kVelocity, kVelocityAdjoint };
  enum { kNewAdjoint, kCotangent, kNewVelocityAdjoint, kLrGradient = kMomentum ? 3 : 2 };

  V momentum, weight_decay;
  Switch<V> decays, nesterov, has_velocity_adjoint;

  MIM4DD_HOST_DEVICE void element(const V& shared, const V* from, V* to, double* sums) const {
    const V adjoint = this->adjoint_of(from);
    V direction = decays.choose(from[kGradient] + weight_decay * from[kTheta], from[kGradient]);
    const V lr = kPerParameter ? from[kLr] : shared;
    const V of_direction = -lr * adjoint;
    V cotangent = of_direction;
    if constexpr (kMomentum) {
      direction = nesterov.choose(direction + momentum * from[kVelocity], from[kVelocity]);
      V of_velocity = nesterov.choose(momentum * of_direction, of_direction);
      of_velocity = has_velocity_adjoint.choose(of_velocity + from[kVelocityAdjoint], of_velocity);
      to[kNewVelocityAdjoint] = momentum * of_velocity;
      cotangent = nesterov.choose(of_velocity + of_direction, of_velocity);
    }
    to[kNewAdjoint] = decays.choose(adjoint + weight_decay * cotangent, adjoint);
    to[kCotangent] = cotangent;
    this->add_terms(adjoint, direction, to + kLrGradient, sums);
  }
};

}  // namespace mim4dd
