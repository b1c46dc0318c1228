// The second derivative of group norm + ReLU + average pool of planes (B, C, H, W).

#include "norm_relu_pool_planes.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace planes {

template <typename T>
MIM4DD_INLINE SecondSums<T> second_sums(
    const PoolShape& shape,
    const Affine<T>& affine,
    const T* input,
    const T* tangent,
    const T* grad_out,
    T* __restrict g) {
  SecondSums<T> sums{0, 0, 0, 0, 0};
  for_each_chunk(shape, [&](const Chunk& chunk) MIM4DD_INLINE_LAMBDA {
    spread_rows(shape, chunk, grad_out, g);
    const T* const x = input + chunk.first();
    PartialSums<T, 16> s_g, s_gd, s_u, s_ud, s_gu;
    const auto add = [&](int64_t j, int part) MIM4DD_INLINE_LAMBDA {
      const T d = x[j] - affine.mean;
      g[j] = affine(d) <= T(0) ? T(0) : g[j];
      s_g.parts[part] += g[j];
      s_gd.parts[part] += g[j] * d;
      return d;
    };
    if (tangent == nullptr) {
      in_parts<16>(chunk.size(), add);
    } else {
      const T* const along = tangent + chunk.first();
      in_parts<16>(chunk.size(), [&](int64_t j, int part) MIM4DD_INLINE_LAMBDA {
        const T d = add(j, part), u = along[j];
        s_u.parts[part] += u;
        s_ud.parts[part] += u * d;
        s_gu.parts[part] += g[j] * u;
      });
    }
    sums.g += s_g.total(), sums.gd += s_gd.total(), sums.u += s_u.total();
    sums.ud += s_ud.total(), sums.gu += s_gu.total();
  });
  return sums;
}

template <typename T>
MIM4DD_INLINE void write_second(
    const PoolShape& shape,
    const Affine<T>& affine,
    const SecondFactors<T>& f,
    const T* input,
    const T* tangent,
    const T* grad_out,
    T* grad_grad_out,
    T* grad_input,
    T* __restrict g) {
  for_each_chunk(shape, [&](const Chunk& chunk) MIM4DD_INLINE_LAMBDA {
    const int64_t n = chunk.size();
    const T* const x = input + chunk.first();
    const T* const along = tangent == nullptr ? nullptr : tangent + chunk.first();
    if (grad_input != nullptr) {
      T* const to = grad_input + chunk.first();
      if (!kept(shape)) load_gradient<T>(shape, chunk, affine, input, grad_out, g);
      if (along == nullptr) {
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
          const T d = x[j] - affine.mean;
          to[j] = f.by_g * g[j] + (f.by_d * d + f.constant);
        }
      } else {
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
          const T d = x[j] - affine.mean, u = along[j];
          to[j] = f.by_g * g[j] + f.by_u * u + (f.by_d * d + f.constant);
        }
      }
    }
    if (grad_grad_out == nullptr) return;
    // g is not needed any more.
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const T d = x[j] - affine.mean;
      g[j] = affine(d) <= T(0) ? T(0) : f.out_by_d * d + f.out_constant;
    }
    if (along != nullptr) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        const T z = affine(x[j] - affine.mean);
        g[j] += z <= T(0) ? T(0) : affine.scale * along[j];
      }
    }
    pool_rows(shape, chunk, g, grad_grad_out);
  });
}

template <typename T>
MIM4DD_NOINLINE void second_group(
    const PoolShape& shape,
    const SecondArguments<T>& args,
    int64_t unit,
    SecondSums<T>* sums,
    T* g) {
  const int64_t channels = shape.group_channels(), first = unit * channels;
  const T rstd = args.rstd[unit];
  const auto channel = [&](int64_t i) { return (first + i) % shape.channels; };
  const auto tangent_of = [&](const T* values, int64_t i) {
    return values == nullptr ? T(0) : values[channel(i)];
  };
  const auto plane = [](const T* base, int64_t i, int64_t size) {
    return base == nullptr ? nullptr : base + i * size;
  };
  for (int64_t i = 0; i < channels; ++i) {
    sums[i] = second_sums<T>(
        shape, affine_of<T>(args, channel(i), args.mean[unit], rstd),
        plane(args.input, i, shape.pixels()), plane(args.tangent, i, shape.pixels()),
        plane(args.grad_out, i, shape.out_pixels()), g);
  }
  const SecondMeans means = second_means<T>(
      channels, shape.group_size(), rstd, [&](int64_t i) { return sums[i]; },
      [&](int64_t i) { return args.weight_of(channel(i)); },
      [&](int64_t i) { return tangent_of(args.weight_tangent, i); });
  for (int64_t i = 0; i < channels; ++i) {
    args.grad_weight_of[first + i] = weight_sum<T>(means, sums[i]);
    const SecondFactors<T> factors = second_factors<T>(
        means, args.weight_of(channel(i)), tangent_of(args.weight_tangent, i),
        tangent_of(args.bias_tangent, i));
    write_second<T>(
        shape, affine_of<T>(args, channel(i), args.mean[unit], rstd), factors,
        plane(args.input, i, shape.pixels()), plane(args.tangent, i, shape.pixels()),
        plane(args.grad_out, i, shape.out_pixels()),
        const_cast<T*>(plane(args.grad_grad_out, i, shape.out_pixels())),
        const_cast<T*>(plane(args.grad_input, i, shape.pixels())), g);
  }
}

}  // namespace planes

template <typename Stored>
void second_planes(const PoolShape& shape, const SecondArguments<Stored>& args) {
  using T = Arithmetic<Stored>;
  planes::for_each_group(shape, args, [&](const auto& of_group, int64_t unit, T* scratch) {
    const Workspace<SecondSums<T>> sums(shape.group_channels());
    planes::second_group<T>(shape, of_group, unit, sums.data(), scratch);
  });
}

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
