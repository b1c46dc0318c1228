// Group norm + ReLU + average pool: what the two memory layouts and the three derivatives share.
//
// With d = x - mean, r = rstd, everything that an element needs is linear in what is read of it;
// the factors are per channel and follow from a few sums over the plane (docs/math.md).
#pragma once

#include <cstdint>

#include "arithmetic.h"
#include "isa.h"

namespace mim4dd {

struct PoolShape {
  int64_t batch, channels, height, width, groups, pool;

  MIM4DD_INLINE int64_t pixels() const { return height * width; }
  MIM4DD_INLINE int64_t out_height() const { return height / pool; }
  MIM4DD_INLINE int64_t out_width() const { return width / pool; }
  MIM4DD_INLINE int64_t out_pixels() const { return out_height() * out_width(); }
  MIM4DD_INLINE int64_t group_channels() const { return channels / groups; }
  MIM4DD_INLINE int64_t group_size() const { return group_channels() * pixels(); }
};

// The inputs that every derivative has; weight and bias may be null. Images are stored in half
// precision where all else is in float32.
template <typename Stored>
struct NormInputs {
  using Image = Stored;
  using T = Arithmetic<Stored>;

  const Stored* input;
  const T *weight, *bias;

  MIM4DD_INLINE T weight_of(int64_t channel) const { return weight ? weight[channel] : T(1); }
  MIM4DD_INLINE T bias_of(int64_t channel) const { return bias ? bias[channel] : T(0); }
};

// kInputImages and kOutputImages: how many images have the size of the input, and of the output.
template <typename Stored>
struct ForwardArguments : NormInputs<Stored> {
  using typename NormInputs<Stored>::T;
  static constexpr int64_t kInputImages = 1, kOutputImages = 1;

  double eps;
  Stored* out;
  T *mean, *rstd;  // (B, G)
};

template <typename Stored>
struct BackwardArguments : NormInputs<Stored> {
  using typename NormInputs<Stored>::T;
  static constexpr int64_t kInputImages = 2, kOutputImages = 1;

  const T *mean, *rstd;  // (B, G)
  const Stored* grad_out;
  Stored* grad_input;                // null where not wanted
  T *grad_weight_of, *grad_bias_of;  // (B, C), by sample
};

template <typename Stored>
struct SecondArguments : NormInputs<Stored> {
  using typename NormInputs<Stored>::T;
  static constexpr int64_t kInputImages = 3, kOutputImages = 2;

  const T *mean, *rstd;  // (B, G)
  const Stored* grad_out;
  const Stored* tangent;                   // cotangent of grad_input; may be null
  const T *weight_tangent, *bias_tangent;  // (C,), may be null
  Stored *grad_grad_out, *grad_input;      // null where not wanted
  T* grad_weight_of;                       // (B, C), by sample
};

// Sums over the pixels of one channel: of g = upstream gradient behind the ReLU, and with d.
template <typename T>
struct FirstSums {
  T g, gd;
};

// Of u = the tangent of the input too.
template <typename T>
struct SecondSums {
  T g, gd, u, ud, gu;
};

// grad_input = scale·g + by_d·d + constant, with scale = weight·rstd.
template <typename T>
struct FirstFactors {
  T by_d, constant;
};

// grad_input = by_g·g + by_d·d + by_u·u + constant, and of the ReLU's output
// scale·u + out_by_d·d + out_constant.
template <typename T>
struct SecondFactors {
  T by_g, by_d, by_u, constant, out_by_d, out_constant;
};

// Of a group: sums(i) and weight(i) of its i-th channel. All arithmetic of a group is in double,
// since it is little and its differences cancel.
template <typename T, typename Sums, typename Weight>
MIM4DD_INLINE FirstFactors<T>
first_factors(int64_t channels, int64_t size, T rstd, const Sums& sums, const Weight& weight) {
  double a = 0, ad = 0;
  for (int64_t i = 0; i < channels; ++i) {
    a += static_cast<double>(weight(i)) * sums(i).g;
    ad += static_cast<double>(weight(i)) * sums(i).gd;
  }
  const double r = rstd, share = 1.0 / static_cast<double>(size);
  return {static_cast<T>(-r * r * r * ad * share), static_cast<T>(-r * a * share)};
}

// Means over a group that the second derivative is made of; a = weight·g, x̂ = r·d, u = tangent,
// b = weight tangent·g.
struct SecondMeans {
  double r, u, ux, a, ax, b, bx, au;

  // The mean of (a·dx̂), with dx̂ = r (u - mean u - x̂ mean(u x̂)).
  double a_dx() const { return r * (au - u * a - ux * ax); }
};

template <typename T, typename Sums, typename Weight, typename Tangent>
MIM4DD_INLINE SecondMeans second_means(
    int64_t channels,
    int64_t size,
    T rstd,
    const Sums& sums,
    const Weight& weight,
    const Tangent& weight_tangent) {
  SecondMeans m{static_cast<double>(rstd), 0, 0, 0, 0, 0, 0, 0};
  const double share = 1.0 / static_cast<double>(size);
  for (int64_t i = 0; i < channels; ++i) {
    const auto s = sums(i);
    const double w = weight(i) * share, t = weight_tangent(i) * share;
    m.u += s.u * share;
    m.ux += m.r * s.ud * share;
    m.a += w * s.g;
    m.ax += m.r * w * s.gd;
    m.b += t * s.g;
    m.bx += m.r * t * s.gd;
    m.au += w * s.gu;
  }
  return m;
}

template <typename T>
MIM4DD_INLINE SecondFactors<T>
second_factors(const SecondMeans& m, double weight, double weight_tangent, double bias_tangent) {
  const double r = m.r, curvature = m.bx + m.a_dx();
  return {
      static_cast<T>(r * (weight_tangent - r * m.ux * weight)),
      static_cast<T>(r * r * (2 * r * m.ux * m.ax - curvature)),
      static_cast<T>(-r * r * m.ax),
      static_cast<T>(r * (r * m.ux * m.a - m.b + r * m.u * m.ax)),
      static_cast<T>(r * (weight_tangent - r * m.ux * weight)),
      static_cast<T>(bias_tangent - r * m.u * weight)};
}

// The sum over g·dx̂: what the weight's second derivative is.
template <typename T, typename Sums>
MIM4DD_INLINE T weight_sum(const SecondMeans& m, const Sums& s) {
  return static_cast<T>(m.r * (s.gu - m.u * s.g - m.r * m.ux * s.gd));
}

template <typename Stored>
struct NormReluPool {
  // Contiguous (B, C, H, W): planes of pixels.
  void (*forward_planes)(const PoolShape& shape, const ForwardArguments<Stored>& args);
  void (*backward_planes)(const PoolShape& shape, const BackwardArguments<Stored>& args);
  void (*second_planes)(const PoolShape& shape, const SecondArguments<Stored>& args);
  // The same in channels-last memory: pixels of channels.
  void (*forward_pixels)(const PoolShape& shape, const ForwardArguments<Stored>& args);
  void (*backward_pixels)(const PoolShape& shape, const BackwardArguments<Stored>& args);
  void (*second_pixels)(const PoolShape& shape, const SecondArguments<Stored>& args);
};

}  // namespace mim4dd
