// The adjoint of the step of torch.optim.Adam and AdamW, one element: what is left to do of the
// later step is done on the way. docs/math.md derives it.
#pragma once

#include "adam_step_pass.h"
#include "adjoint_pass.h"

namespace mim4dd {

template <typename T, bool kPerParameter>
struct AdamAdjoint : AdjointPass<T, 9, kPerParameter ? 5 : 4, kPerParameter> {
  using V = Arithmetic<T>;

  Adam<V> adam;
  Switch<V> has_moment_adjoints;

  explicit AdamAdjoint(const Adam<V>& adam) : adam(adam) {}

  MIM4DD_HOST_DEVICE void element(const V& shared, const V* in, V* out, double* sums) const {
    const V adjoint = this->adjoint_of(in);
    const V theta = in[2], gradient = adam.decayed(in[3], theta), mean = in[4], square = in[5];
    const V lr = kPerParameter ? in[6] : shared;
    const V root = adam.root(square), denominator = root + adam.eps;
    const V scale = V(1) / (adam.correction1 * denominator), direction = mean * scale;
    const V of_direction = -lr * adjoint;
    // The square root has no derivative at 0: a parameter whose gradient was always 0 stays so.
    const V curvature = V(2) * denominator * root * adam.correction2;
    const V mean_term = of_direction * scale;
    const V square_term = root == V(0) ? V(0) : -of_direction * direction / curvature;
    const V of_mean = has_moment_adjoints.choose(mean_term + in[7], mean_term);
    const V of_square = has_moment_adjoints.choose(square_term + in[8], square_term);
    const V cotangent =
        adam.one_minus_beta1 * of_mean + V(2) * adam.one_minus_beta2 * of_square * gradient;
    const V decayed = adam.decays_theta.choose(of_direction, cotangent);
    out[0] = adam.decays.choose(adjoint + adam.weight_decay * decayed, adjoint);
    out[1] = adam.beta1 * of_mean;
    out[2] = adam.beta2 * of_square;
    out[3] = cotangent;
    const V taken = adam.decays_theta.choose(direction + adam.weight_decay * theta, direction);
    this->add_terms(adjoint, taken, out + 4, sums);
  }
};

}  // namespace mim4dd
