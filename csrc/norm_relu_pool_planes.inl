// Group norm + ReLU + average pool of planes (B, C, H, W), and its first derivative. A group of one
// sample is read from memory once: it stays in the cache from the sums to what is made of them.
#include <cmath>

#include "norm_relu_pool_planes.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace planes {

template <typename T>
MIM4DD_INLINE void write_forward(
    const PoolShape& shape,
    const Affine<T>& affine,
    const T* __restrict input,
    T* __restrict out,
    T* __restrict scratch) {
  for_each_chunk(shape, [&](const Chunk& chunk) MIM4DD_INLINE_LAMBDA {
    const T* const x = input + chunk.first();
    const int64_t n = chunk.size();
    if (shape.pool == 1) {
      T* const to = out + chunk.first();
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const T z = affine(x[i] - affine.mean);
        to[i] = z <= T(0) ? T(0) : z;
      }
      return;
    }
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const T z = affine(x[i] - affine.mean);
      scratch[i] = z <= T(0) ? T(0) : z;
    }
    pool_rows(shape, chunk, scratch, out);
  });
}

template <typename T>
MIM4DD_NOINLINE void
forward_group(const PoolShape& shape, const ForwardArguments<T>& args, int64_t unit, T* scratch) {
  const int64_t channels = shape.group_channels(), n = shape.group_size();
  const int64_t first = unit * channels;
  const T* const input = args.input;
  const T mean = sum_of<T>(input, n) / static_cast<T>(n);
  const T variance = square_sum_of<T>(input, mean, n) / static_cast<T>(n);
  const T rstd = T(1) / std::sqrt(variance + static_cast<T>(args.eps));
  args.mean[unit] = mean;
  args.rstd[unit] = rstd;
  for (int64_t i = 0; i < channels; ++i) {
    const Affine<T> affine = affine_of<T>(args, (first + i) % shape.channels, mean, rstd);
    T* const out = args.out + i * shape.out_pixels();
    write_forward<T>(shape, affine, input + i * shape.pixels(), out, scratch);
  }
}

template <typename T>
MIM4DD_NOINLINE void backward_group(
    const PoolShape& shape,
    const BackwardArguments<T>& args,
    int64_t unit,
    FirstSums<T>* sums,
    T* g) {
  const int64_t channels = shape.group_channels(), first = unit * channels;
  const T rstd = args.rstd[unit];
  for (int64_t i = 0; i < channels; ++i) {
    const Affine<T> affine =
        affine_of<T>(args, (first + i) % shape.channels, args.mean[unit], rstd);
    const T* const input = args.input + i * shape.pixels();
    const T* const grad_out = args.grad_out + i * shape.out_pixels();
    T g_sum = 0, gd_sum = 0;
    for_each_chunk(shape, [&](const Chunk& chunk) MIM4DD_INLINE_LAMBDA {
      spread_rows(shape, chunk, grad_out, g);
      const T* const x = input + chunk.first();
      PartialSums<T, 32> a, b;
      in_parts<32>(chunk.size(), [&](int64_t j, int part) MIM4DD_INLINE_LAMBDA {
        const T d = x[j] - affine.mean;
        g[j] = affine(d) <= T(0) ? T(0) : g[j];
        a.parts[part] += g[j];
        b.parts[part] += g[j] * d;
      });
      g_sum += a.total();
      gd_sum += b.total();
    });
    sums[i] = {g_sum, gd_sum};
    args.grad_weight_of[first + i] = rstd * gd_sum;
    args.grad_bias_of[first + i] = g_sum;
  }
  if (args.grad_input == nullptr) return;
  const auto factors = first_factors<T>(
      channels, shape.group_size(), rstd, [&](int64_t i) { return sums[i]; },
      [&](int64_t i) { return args.weight_of((first + i) % shape.channels); });
  for (int64_t i = 0; i < channels; ++i) {
    const Affine<T> affine =
        affine_of<T>(args, (first + i) % shape.channels, args.mean[unit], rstd);
    const T* const input = args.input + i * shape.pixels();
    const T* const grad_out = args.grad_out + i * shape.out_pixels();
    T* const grad_input = args.grad_input + i * shape.pixels();
    for_each_chunk(shape, [&](const Chunk& chunk) MIM4DD_INLINE_LAMBDA {
      if (!kept(shape)) load_gradient<T>(shape, chunk, affine, input, grad_out, g);
      const T* const x = input + chunk.first();
      T* const to = grad_input + chunk.first();
#pragma omp simd
      for (int64_t j = 0; j < chunk.size(); ++j) {
        const T d = x[j] - affine.mean;
        to[j] = affine.scale * g[j] + (factors.by_d * d + factors.constant);
      }
    });
  }
}

}  // namespace planes

template <typename Stored>
void forward_planes(const PoolShape& shape, const ForwardArguments<Stored>& args) {
  using T = Arithmetic<Stored>;
  planes::for_each_group(shape, args, [&](const auto& of_group, int64_t unit, T* scratch) {
    planes::forward_group<T>(shape, of_group, unit, scratch);
  });
}

template <typename Stored>
void backward_planes(const PoolShape& shape, const BackwardArguments<Stored>& args) {
  using T = Arithmetic<Stored>;
  planes::for_each_group(shape, args, [&](const auto& of_group, int64_t unit, T* scratch) {
    const Workspace<FirstSums<T>> sums(shape.group_channels());
    planes::backward_group<T>(shape, of_group, unit, sums.data(), scratch);
  });
}

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
