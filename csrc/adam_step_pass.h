// The step of torch.optim.Adam and AdamW, one element: theta, gradient and both moments read, theta
// and both moments written.
#pragma once

#include <cmath>

#include "flat_pass.h"

namespace mim4dd {

// What the steps and their adjoints share. The corrections of the moments for their start at zero
// are 1 − beta^step.
template <typename V>
struct Adam {
  V beta1, beta2, one_minus_beta1, one_minus_beta2, correction1, correction2;
  V eps, eps_root, weight_decay;
  Switch<V> decays, decays_gradient, decays_theta;

  Adam(
      int64_t step,
      double beta_of_mean,
      double beta_of_square,
      double beside_root,
      double below_root,
      double decay,
      bool decoupled)
      : beta1(static_cast<V>(beta_of_mean)),
        beta2(static_cast<V>(beta_of_square)),
        one_minus_beta1(static_cast<V>(1 - beta_of_mean)),
        one_minus_beta2(static_cast<V>(1 - beta_of_square)),
        correction1(static_cast<V>(1 - std::pow(beta_of_mean, static_cast<double>(step)))),
        correction2(static_cast<V>(1 - std::pow(beta_of_square, static_cast<double>(step)))),
        eps(static_cast<V>(beside_root)),
        eps_root(static_cast<V>(below_root)),
        weight_decay(static_cast<V>(decay)),
        decays(decay != 0),
        decays_gradient(decay != 0 && !decoupled),
        decays_theta(decay != 0 && decoupled) {}

  MIM4DD_HOST_DEVICE V decayed(V gradient, V theta) const {
    return decays_gradient.choose(gradient + weight_decay * theta, gradient);
  }
  MIM4DD_HOST_DEVICE V root(V square) const { return std::sqrt(square / correction2 + eps_root); }
};

template <typename T>
struct AdamStep : FlatPass<T, 5, 3, 0> {
  using V = Arithmetic<T>;
  using Row = V;
  enum { kTheta, kGradient, kMean, kSquare, kLr };
  enum { kNewTheta, kNewMean, kNewSquare };

  StepSize<T> step_size;
  Adam<V> adam;

  AdamStep(StepSize<T> size, const Adam<V>& numbers) : step_size(size), adam(numbers) {}

  MIM4DD_HOST_DEVICE Row load(int64_t) const { return step_size.load(); }

  MIM4DD_HOST_DEVICE void element(const Row& shared, const V* from, V* to, double*) const {
    const V lr = step_size.per_parameter.choose(from[kLr], shared);
    const V gradient = adam.decayed(from[kGradient], from[kTheta]);
    const V mean = adam.beta1 * from[kMean] + adam.one_minus_beta1 * gradient;
    const V square = adam.beta2 * from[kSquare] + adam.one_minus_beta2 * gradient * gradient;
    const V direction = mean / (adam.correction1 * (adam.root(square) + adam.eps));
    const V theta =
        adam.decays_theta.choose(from[kTheta] * (V(1) - lr * adam.weight_decay), from[kTheta]);
    to[kNewTheta] = theta - lr * direction;
    to[kNewMean] = mean;
    to[kNewSquare] = square;
  }
};

}  // namespace mim4dd
