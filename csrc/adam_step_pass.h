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
      double beta1,
      double beta2,
      double eps,
      double eps_root,
      double weight_decay,
      bool decoupled)
      : beta1(static_cast<V>(beta1)),
        beta2(static_cast<V>(beta2)),
        one_minus_beta1(static_cast<V>(1 - beta1)),
        one_minus_beta2(static_cast<V>(1 - beta2)),
        correction1(static_cast<V>(1 - std::pow(beta1, static_cast<double>(step)))),
        correction2(static_cast<V>(1 - std::pow(beta2, static_cast<double>(step)))),
        eps(static_cast<V>(eps)),
        eps_root(static_cast<V>(eps_root)),
        weight_decay(static_cast<V>(weight_decay)),
        decays(weight_decay != 0),
        decays_gradient(weight_decay != 0 && !decoupled),
        decays_theta(weight_decay != 0 && decoupled) {}

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

  AdamStep(StepSize<T> step_size, const Adam<V>& adam) : step_size(step_size), adam(adam) {}

  MIM4DD_HOST_DEVICE Row load(int64_t) const { return step_size.load(); }

  MIM4DD_HOST_DEVICE void element(const Row& shared, const V* in, V* out, double*) const {
    const V lr = step_size.per_parameter.choose(in[kLr], shared);
    const V gradient = adam.decayed(in[kGradient], in[kTheta]);
    const V mean = adam.beta1 * in[kMean] + adam.one_minus_beta1 * gradient;
    const V square = adam.beta2 * in[kSquare] + adam.one_minus_beta2 * gradient * gradient;
    const V direction = mean / (adam.correction1 * (adam.root(square) + adam.eps));
    const V theta =
        adam.decays_theta.choose(in[kTheta] * (V(1) - lr * adam.weight_decay), in[kTheta]);
    out[kNewTheta] = theta - lr * direction;
    out[kNewMean] = mean;
    out[kNewSquare] = square;
  }
};

}  // namespace mim4dd
