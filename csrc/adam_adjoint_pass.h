// The adjoint of the step of torch.optim.Adam and AdamW, one element: what is left to do of the
// later step is done on the way. docs/math.md derives it.
#pragma once

#include "adam_step_pass.h"
#include "adjoint_pass.h"

namespace mim4dd {

template <typename T, bool kPerParameter>
struct AdamAdjoint : AdjointPass<T, 9, kPerParameter ? 5 : 4, kPerParameter> {
  using V = Arithmetic<T>;
  using Base = typename AdamAdjoint::AdjointPass;
  enum { kTheta = Base::kOwnInputs, kGradient, kMean, kSquare, kLr, kMeanAdjoint, kSquareAdjoint };
  enum { kNewAdjoint, kNewMeanAdjoint, kNewSquareAdjoint, kCotangent, kLrGradient };

  Adam<V> adam;
  Switch<V> has_moment_adjoints;

  explicit AdamAdjoint(const Adam<V>& numbers) : adam(numbers) {}

  MIM4DD_HOST_DEVICE void element(const V& shared, const V* from, V* to, double* sums) const {
    const V adjoint = this->adjoint_of(from);
    const V theta = from[kTheta], gradient = adam.decayed(from[kGradient], theta),
            mean = from[kMean], square = from[kSquare];
    const V lr = kPerParameter ? from[kLr] : shared;
    const V root = adam.root(square), denominator = root + adam.eps;
    const V scale = V(1) / (adam.correction1 * denominator), direction = mean * scale;
    const V of_direction = -lr * adjoint;
    // The square root has no derivative at 0: a parameter whose gradient was always 0 stays so.
    const V curvature = V(2) * denominator * root * adam.correction2;
    const V mean_term = of_direction * scale;
    const V square_term = root == V(0) ? V(0) : -of_direction * direction / curvature;
    const V of_mean = has_moment_adjoints.choose(mean_term + from[kMeanAdjoint], mean_term);
    const V of_square = has_moment_adjoints.choose(square_term + from[kSquareAdjoint], square_term);
    const V cotangent =
        adam.one_minus_beta1 * of_mean + V(2) * adam.one_minus_beta2 * of_square * gradient;
    const V decayed = adam.decays_theta.choose(of_direction, cotangent);
    to[kNewAdjoint] = adam.decays.choose(adjoint + adam.weight_decay * decayed, adjoint);
    to[kNewMeanAdjoint] = adam.beta1 * of_mean;
    to[kNewSquareAdjoint] = adam.beta2 * of_square;
    to[kCotangent] = cotangent;
    const V taken = adam.decays_theta.choose(direction + adam.weight_decay * theta, direction);
    this->add_terms(adjoint, taken, to + kLrGradient, sums);
  }
};

}  // namespace mim4dd
