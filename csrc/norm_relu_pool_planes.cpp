// Group norm + ReLU + average pool of planes (B, C, H, W). A group of one sample is read from
// memory once: it stays in the cache from the sums to what is made of them.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "norm_relu_pool.h"
#include "simd.h"

namespace mim4dd {
namespace {

// Elements of a plane that are worked on together: two arrays of them stay in a first cache, or in
// a second one where a plane is not much larger.
constexpr int64_t kChunk = 4096, kWholePlane = 16384;
// Elements that are worth waking a thread for.
constexpr int64_t kGrain = 1 << 15;

// Rows [begin, end) of a plane, and the rows of the output that come from them.
struct Chunk {
  int64_t begin, end, out_begin, out_end, width;

  int64_t first() const { return begin * width; }
  int64_t size() const { return (end - begin) * width; }
};

// As many whole windows as fit, and the rows below the last window with it.
MIM4DD_INLINE int64_t chunk_windows(const PoolShape& shape) {
  if (shape.pixels() <= kWholePlane) return std::max<int64_t>(1, shape.out_height());
  return std::max<int64_t>(1, kChunk / (shape.pool * shape.width));
}

MIM4DD_INLINE Chunk chunk_at(const PoolShape& shape, int64_t window, int64_t windows) {
  const int64_t stop = std::min(window + windows, shape.out_height());
  const int64_t end = stop == shape.out_height() ? shape.height : stop * shape.pool;
  return {window * shape.pool, end, window, stop, shape.width};
}

MIM4DD_INLINE int64_t scratch_size(const PoolShape& shape) {
  const int64_t rows = chunk_windows(shape) * shape.pool + shape.pool;
  return std::min(rows, shape.height) * shape.width;
}

template <typename Body>
MIM4DD_INLINE void for_each_chunk(const PoolShape& shape, const Body& body) {
  const int64_t windows = chunk_windows(shape);
  int64_t window = 0;
  do {  // once at least: an image smaller than the window has no output, but a gradient
    body(chunk_at(shape, window, windows));
    window += windows;
  } while (window < shape.out_height());
}

// A sum in as many parts as several vectors have lanes, since each waits for its last addition; the
// parts are added as a tree. Named to the compiler as one reduction it would add them one by one.
template <typename T, int kParts>
struct PartialSums {
  T parts[kParts] = {};

  MIM4DD_INLINE T total() {
#if defined(__GNUC__)
#pragma GCC unroll 8
#endif
    for (int half = kParts / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    }
    return parts[0];
  }
};

// body(i, part) for all i < n.
template <int kParts, typename Body>
MIM4DD_INLINE void in_parts(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kParts <= n; i += kParts) {
#pragma omp simd
    for (int part = 0; part < kParts; ++part) body(i + part, part);
  }
  const int rest = static_cast<int>(n - i);
  for (int part = 0; part < rest; ++part) body(i + part, part);
}

template <typename T, typename S>
MIM4DD_INLINE T sum_of(const S* values, int64_t n) {
  PartialSums<T, 64> sum;
  in_parts<64>(n, [&](int64_t i, int part) MIM4DD_INLINE_LAMBDA {
    sum.parts[part] += static_cast<T>(values[i]);
  });
  return sum.total();
}

template <typename T, typename S>
MIM4DD_INLINE T square_sum_of(const S* values, T mean, int64_t n) {
  PartialSums<T, 64> sum;
  in_parts<64>(n, [&](int64_t i, int part) MIM4DD_INLINE_LAMBDA {
    const T deviation = static_cast<T>(values[i]) - mean;
    sum.parts[part] += deviation * deviation;
  });
  return sum.total();
}

// body(width) with a constant where it is small and common, so that loops over a row of it are
// unrolled, else with the number itself.
template <typename Body>
MIM4DD_INLINE void with_width(int64_t width, const Body& body) {
  switch (width) {
    case 8:
      return body(std::integral_constant<int64_t, 8>{});
    case 16:
      return body(std::integral_constant<int64_t, 16>{});
    case 32:
      return body(std::integral_constant<int64_t, 32>{});
    default:
      return body(width);
  }
}

// The average over windows of 2 of `count` pairs of rows.
template <typename S, typename T, typename Width>
MIM4DD_INLINE void
pool_pairs(Width width, int64_t count, const T* __restrict rows, S* __restrict out) {
  const int64_t out_width = width / 2;
  for (int64_t y = 0; y < count; ++y) {
    const T *const upper = rows + 2 * y * width, *const lower = upper + width;
#pragma omp simd
    for (int64_t x = 0; x < out_width; ++x) {
      const T sum = (upper[2 * x] + upper[2 * x + 1]) + (lower[2 * x] + lower[2 * x + 1]);
      out[y * out_width + x] = static_cast<S>(sum * T(0.25));
    }
  }
}

// The average over windows of the rows of a chunk.
template <typename S, typename T>
MIM4DD_INLINE void pool_rows(const PoolShape& shape, const Chunk& chunk, const T* rows, S* out) {
  const int64_t width = shape.width, out_width = shape.out_width(), pool = shape.pool;
  out += chunk.out_begin * out_width;
  if (pool == 2) {
    with_width(width, [&](auto known) MIM4DD_INLINE_LAMBDA {
      pool_pairs(known, chunk.out_end - chunk.out_begin, rows, out);
    });
    return;
  }
  const T share = T(1) / static_cast<T>(pool * pool);
  for (int64_t y = chunk.out_begin; y < chunk.out_end; ++y, rows += pool * width) {
    for (int64_t x = 0; x < out_width; ++x) {
      T sum = 0;
      for (int64_t i = 0; i < pool; ++i) {
        for (int64_t j = 0; j < pool; ++j) sum += rows[i * width + x * pool + j];
      }
      *out++ = static_cast<S>(sum * share);
    }
  }
}

// The transpose of pool_pairs.
template <typename S, typename T, typename Width>
MIM4DD_INLINE void
spread_pairs(Width width, int64_t count, const S* __restrict out, T* __restrict rows) {
  const int64_t out_width = width / 2;
  for (int64_t y = 0; y < count; ++y) {
    T *const upper = rows + 2 * y * width, *const lower = upper + width;
#pragma omp simd
    for (int64_t x = 0; x < out_width; ++x) {
      const T value = static_cast<T>(out[y * out_width + x]) * T(0.25);
      upper[2 * x] = value;
      upper[2 * x + 1] = value;
      lower[2 * x] = value;
      lower[2 * x + 1] = value;
    }
    for (int64_t x = 2 * out_width; x < width; ++x) upper[x] = lower[x] = T(0);
  }
}

// The transpose of pool_rows: what each pixel of a chunk has of the gradient of the output.
template <typename S, typename T>
MIM4DD_INLINE void spread_rows(const PoolShape& shape, const Chunk& chunk, const S* out, T* rows) {
  const int64_t width = shape.width, out_width = shape.out_width(), pool = shape.pool;
  const int64_t count = chunk.out_end - chunk.out_begin;
  out += chunk.out_begin * out_width;
  if (pool == 2) {
    with_width(
        width, [&](auto known) MIM4DD_INLINE_LAMBDA { spread_pairs(known, count, out, rows); });
  } else {
    const T share = T(1) / static_cast<T>(pool * pool);
    for (int64_t y = 0; y < count; ++y) {
      T* const row = rows + y * pool * width;
      for (int64_t x = 0; x < width; ++x) {
        const bool covered = x < out_width * pool;
        row[x] = covered ? static_cast<T>(out[y * out_width + x / pool]) * share : T(0);
      }
      for (int64_t i = 1; i < pool; ++i) std::copy_n(row, width, row + i * width);
    }
  }
  std::fill_n(rows + count * pool * width, chunk.size() - count * pool * width, T(0));
}

// The affine map before the ReLU, (x - mean)·scale + shift. A NaN passes.
template <typename T>
struct Affine {
  T mean, scale, shift;

  MIM4DD_INLINE T operator()(T d) const { return d * scale + shift; }
};

template <typename S, typename T = Wide<S>>
MIM4DD_INLINE Affine<T> affine_of(const NormInputs<S>& args, int64_t channel, T mean, T rstd) {
  return {mean, args.weight_of(channel) * rstd, args.bias_of(channel)};
}

template <typename S, typename T = Wide<S>>
MIM4DD_INLINE void write_forward(
    const PoolShape& shape,
    const Affine<T>& affine,
    const S* __restrict input,
    S* __restrict out,
    T* __restrict scratch) {
  for_each_chunk(shape, [&](const Chunk& chunk) MIM4DD_INLINE_LAMBDA {
    const S* const x = input + chunk.first();
    const int64_t n = chunk.size();
    if (shape.pool == 1) {
      S* const to = out + chunk.first();
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const T z = affine(static_cast<T>(x[i]) - affine.mean);
        to[i] = static_cast<S>(z <= T(0) ? T(0) : z);
      }
      return;
    }
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const T z = affine(static_cast<T>(x[i]) - affine.mean);
      scratch[i] = z <= T(0) ? T(0) : z;
    }
    pool_rows(shape, chunk, scratch, out);
  });
}

template <typename S>
MIM4DD_SIMD void forward_group(
    const PoolShape& shape,
    const ForwardArguments<S>& args,
    int64_t unit,
    Wide<S>* scratch) {
  using T = Wide<S>;
  const int64_t channels = shape.group_channels(), n = shape.group_size();
  const int64_t first = unit * channels;
  const S* const input = args.input + first * shape.pixels();
  const T mean = sum_of<T>(input, n) / static_cast<T>(n);
  const T variance = square_sum_of<T>(input, mean, n) / static_cast<T>(n);
  const T rstd = T(1) / std::sqrt(variance + static_cast<T>(args.eps));
  args.mean[unit] = mean;
  args.rstd[unit] = rstd;
  for (int64_t i = 0; i < channels; ++i) {
    const Affine<T> affine = affine_of<S>(args, (first + i) % shape.channels, mean, rstd);
    S* const out = args.out + (first + i) * shape.out_pixels();
    write_forward<S>(shape, affine, input + i * shape.pixels(), out, scratch);
  }
}

// The upstream gradient behind the ReLU, of the pixels of a chunk.
template <typename S, typename T = Wide<S>>
MIM4DD_INLINE void load_gradient(
    const PoolShape& shape,
    const Chunk& chunk,
    const Affine<T>& affine,
    const S* __restrict input,
    const S* __restrict grad_out,
    T* __restrict g) {
  spread_rows(shape, chunk, grad_out, g);
  const S* const x = input + chunk.first();
#pragma omp simd
  for (int64_t i = 0; i < chunk.size(); ++i) {
    g[i] = affine(static_cast<T>(x[i]) - affine.mean) <= T(0) ? T(0) : g[i];
  }
}

// Whether the scratch of the sums is still that of the pass after it.
MIM4DD_INLINE bool kept(const PoolShape& shape) {
  return shape.group_channels() == 1 && chunk_windows(shape) >= shape.out_height();
}

template <typename S>
MIM4DD_SIMD void backward_group(
    const PoolShape& shape,
    const BackwardArguments<S>& args,
    int64_t unit,
    FirstSums<Wide<S>>* sums,
    Wide<S>* g) {
  using T = Wide<S>;
  const int64_t channels = shape.group_channels(), first = unit * channels;
  const T rstd = args.rstd[unit];
  for (int64_t i = 0; i < channels; ++i) {
    const Affine<T> affine =
        affine_of<S>(args, (first + i) % shape.channels, args.mean[unit], rstd);
    const S* const input = args.input + (first + i) * shape.pixels();
    const S* const grad_out = args.grad_out + (first + i) * shape.out_pixels();
    T g_sum = 0, gd_sum = 0;
    for_each_chunk(shape, [&](const Chunk& chunk) MIM4DD_INLINE_LAMBDA {
      spread_rows(shape, chunk, grad_out, g);
      const S* const x = input + chunk.first();
      PartialSums<T, 32> a, b;
      in_parts<32>(chunk.size(), [&](int64_t j, int part) MIM4DD_INLINE_LAMBDA {
        const T d = static_cast<T>(x[j]) - affine.mean;
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
        affine_of<S>(args, (first + i) % shape.channels, args.mean[unit], rstd);
    const S* const input = args.input + (first + i) * shape.pixels();
    const S* const grad_out = args.grad_out + (first + i) * shape.out_pixels();
    S* const grad_input = args.grad_input + (first + i) * shape.pixels();
    for_each_chunk(shape, [&](const Chunk& chunk) MIM4DD_INLINE_LAMBDA {
      if (!kept(shape)) load_gradient<S>(shape, chunk, affine, input, grad_out, g);
      const S* const x = input + chunk.first();
      S* const to = grad_input + chunk.first();
#pragma omp simd
      for (int64_t j = 0; j < chunk.size(); ++j) {
        const T d = static_cast<T>(x[j]) - affine.mean;
        to[j] = static_cast<S>(affine.scale * g[j] + (factors.by_d * d + factors.constant));
      }
    });
  }
}

template <typename S, typename T = Wide<S>>
MIM4DD_INLINE SecondSums<T> second_sums(
    const PoolShape& shape,
    const Affine<T>& affine,
    const S* input,
    const S* tangent,
    const S* grad_out,
    T* __restrict g) {
  SecondSums<T> sums{0, 0, 0, 0, 0};
  for_each_chunk(shape, [&](const Chunk& chunk) MIM4DD_INLINE_LAMBDA {
    spread_rows(shape, chunk, grad_out, g);
    const S* const x = input + chunk.first();
    PartialSums<T, 16> s_g, s_gd, s_u, s_ud, s_gu;
    const auto add = [&](int64_t j, int part) MIM4DD_INLINE_LAMBDA {
      const T d = static_cast<T>(x[j]) - affine.mean;
      g[j] = affine(d) <= T(0) ? T(0) : g[j];
      s_g.parts[part] += g[j];
      s_gd.parts[part] += g[j] * d;
      return d;
    };
    if (tangent == nullptr) {
      in_parts<16>(chunk.size(), add);
    } else {
      const S* const along = tangent + chunk.first();
      in_parts<16>(chunk.size(), [&](int64_t j, int part) MIM4DD_INLINE_LAMBDA {
        const T d = add(j, part), u = static_cast<T>(along[j]);
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

template <typename S, typename T = Wide<S>>
MIM4DD_INLINE void write_second(
    const PoolShape& shape,
    const Affine<T>& affine,
    const SecondFactors<T>& f,
    const S* input,
    const S* tangent,
    const S* grad_out,
    S* grad_grad_out,
    S* grad_input,
    T* __restrict g) {
  for_each_chunk(shape, [&](const Chunk& chunk) MIM4DD_INLINE_LAMBDA {
    const int64_t n = chunk.size();
    const S* const x = input + chunk.first();
    const S* const along = tangent == nullptr ? nullptr : tangent + chunk.first();
    if (grad_input != nullptr) {
      S* const to = grad_input + chunk.first();
      if (!kept(shape)) load_gradient<S>(shape, chunk, affine, input, grad_out, g);
      if (along == nullptr) {
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
          const T d = static_cast<T>(x[j]) - affine.mean;
          to[j] = static_cast<S>(f.by_g * g[j] + (f.by_d * d + f.constant));
        }
      } else {
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
          const T d = static_cast<T>(x[j]) - affine.mean, u = static_cast<T>(along[j]);
          to[j] = static_cast<S>(f.by_g * g[j] + f.by_u * u + (f.by_d * d + f.constant));
        }
      }
    }
    if (grad_grad_out == nullptr) return;
    // g is not needed any more.
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const T d = static_cast<T>(x[j]) - affine.mean;
      g[j] = affine(d) <= T(0) ? T(0) : f.out_by_d * d + f.out_constant;
    }
    if (along != nullptr) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        const T z = affine(static_cast<T>(x[j]) - affine.mean);
        g[j] += z <= T(0) ? T(0) : affine.scale * static_cast<T>(along[j]);
      }
    }
    pool_rows(shape, chunk, g, grad_grad_out);
  });
}

template <typename S>
MIM4DD_SIMD void second_group(
    const PoolShape& shape,
    const SecondArguments<S>& args,
    int64_t unit,
    SecondSums<Wide<S>>* sums,
    Wide<S>* g) {
  using T = Wide<S>;
  const int64_t channels = shape.group_channels(), first = unit * channels;
  const T rstd = args.rstd[unit];
  const auto channel = [&](int64_t i) { return (first + i) % shape.channels; };
  const auto tangent_of = [&](const T* values, int64_t i) {
    return values == nullptr ? T(0) : values[channel(i)];
  };
  const auto plane = [&](const S* base, int64_t i, int64_t size) {
    return base == nullptr ? nullptr : base + (first + i) * size;
  };
  for (int64_t i = 0; i < channels; ++i) {
    sums[i] = second_sums<S>(
        shape, affine_of<S>(args, channel(i), args.mean[unit], rstd),
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
    write_second<S>(
        shape, affine_of<S>(args, channel(i), args.mean[unit], rstd), factors,
        plane(args.input, i, shape.pixels()), plane(args.tangent, i, shape.pixels()),
        plane(args.grad_out, i, shape.out_pixels()),
        const_cast<S*>(plane(args.grad_grad_out, i, shape.out_pixels())),
        const_cast<S*>(plane(args.grad_input, i, shape.pixels())), g);
  }
}

// body(unit, scratch) for every group of every sample.
template <typename T, typename Body>
void for_each_group(const PoolShape& shape, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kGrain / shape.group_size());
  torch::stable::parallel_for(
      0, shape.batch * shape.groups, grain, [&](int64_t begin, int64_t end) {
        std::vector<T> scratch(scratch_size(shape));
        for (int64_t unit = begin; unit < end; ++unit) body(unit, scratch.data());
      });
}

}  // namespace

template <typename S>
void forward_planes(const PoolShape& shape, const ForwardArguments<S>& args) {
  for_each_group<Wide<S>>(
      shape, [&](int64_t unit, Wide<S>* scratch) { forward_group<S>(shape, args, unit, scratch); });
}

template <typename S>
void backward_planes(const PoolShape& shape, const BackwardArguments<S>& args) {
  for_each_group<Wide<S>>(shape, [&](int64_t unit, Wide<S>* scratch) {
    std::vector<FirstSums<Wide<S>>> sums(shape.group_channels());
    backward_group<S>(shape, args, unit, sums.data(), scratch);
  });
}

template <typename S>
void second_planes(const PoolShape& shape, const SecondArguments<S>& args) {
  for_each_group<Wide<S>>(shape, [&](int64_t unit, Wide<S>* scratch) {
    std::vector<SecondSums<Wide<S>>> sums(shape.group_channels());
    second_group<S>(shape, args, unit, sums.data(), scratch);
  });
}

#define MIM4DD_INSTANTIATE(S)                                                   \
  template void forward_planes(const PoolShape&, const ForwardArguments<S>&);   \
  template void backward_planes(const PoolShape&, const BackwardArguments<S>&); \
  template void second_planes(const PoolShape&, const SecondArguments<S>&);

MIM4DD_INSTANTIATE(float)
MIM4DD_INSTANTIATE(double)
MIM4DD_INSTANTIATE(c10::BFloat16)
MIM4DD_INSTANTIATE(c10::Half)

}  // namespace mim4dd
