// What all passes over planes (B, C, H, W) share: chunks of a plane, sums, windows, the affine map.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "norm_relu_pool.h"
#include "norm_relu_pool_pieces.h"
#include "parallel.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace planes {

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

template <typename T>
MIM4DD_INLINE T sum_of(const T* values, int64_t n) {
  PartialSums<T, 64> sum;
  in_parts<64>(n, [&](int64_t i, int part) MIM4DD_INLINE_LAMBDA { sum.parts[part] += values[i]; });
  return sum.total();
}

template <typename T>
MIM4DD_INLINE T square_sum_of(const T* values, T mean, int64_t n) {
  PartialSums<T, 64> sum;
  in_parts<64>(n, [&](int64_t i, int part) MIM4DD_INLINE_LAMBDA {
    const T deviation = values[i] - mean;
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
template <typename T, typename Width>
MIM4DD_INLINE void
pool_pairs(Width width, int64_t count, const T* __restrict rows, T* __restrict out) {
  const int64_t out_width = width / 2;
  for (int64_t y = 0; y < count; ++y) {
    const T *const upper = rows + 2 * y * width, *const lower = upper + width;
#pragma omp simd
    for (int64_t x = 0; x < out_width; ++x) {
      const T sum = (upper[2 * x] + upper[2 * x + 1]) + (lower[2 * x] + lower[2 * x + 1]);
      out[y * out_width + x] = sum * T(0.25);
    }
  }
}

// The average over windows of the rows of a chunk.
template <typename T>
MIM4DD_INLINE void pool_rows(const PoolShape& shape, const Chunk& chunk, const T* rows, T* out) {
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
      *out++ = sum * share;
    }
  }
}

// The transpose of pool_pairs.
template <typename T, typename Width>
MIM4DD_INLINE void
spread_pairs(Width width, int64_t count, const T* __restrict out, T* __restrict rows) {
  const int64_t out_width = width / 2;
  for (int64_t y = 0; y < count; ++y) {
    T *const upper = rows + 2 * y * width, *const lower = upper + width;
#pragma omp simd
    for (int64_t x = 0; x < out_width; ++x) {
      const T value = out[y * out_width + x] * T(0.25);
      upper[2 * x] = value;
      upper[2 * x + 1] = value;
      lower[2 * x] = value;
      lower[2 * x + 1] = value;
    }
    for (int64_t x = 2 * out_width; x < width; ++x) upper[x] = lower[x] = T(0);
  }
}

// The transpose of pool_rows: what each pixel of a chunk has of the gradient of the output.
template <typename T>
MIM4DD_INLINE void spread_rows(const PoolShape& shape, const Chunk& chunk, const T* out, T* rows) {
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
        row[x] = covered ? out[y * out_width + x / pool] * share : T(0);
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

template <typename T>
MIM4DD_INLINE Affine<T> affine_of(const NormInputs<T>& args, int64_t channel, T mean, T rstd) {
  return {mean, args.weight_of(channel) * rstd, args.bias_of(channel)};
}

// The upstream gradient behind the ReLU, of the pixels of a chunk.
template <typename T>
MIM4DD_INLINE void load_gradient(
    const PoolShape& shape,
    const Chunk& chunk,
    const Affine<T>& affine,
    const T* __restrict input,
    const T* __restrict grad_out,
    T* __restrict g) {
  spread_rows(shape, chunk, grad_out, g);
  const T* const x = input + chunk.first();
#pragma omp simd
  for (int64_t i = 0; i < chunk.size(); ++i) {
    g[i] = affine(x[i] - affine.mean) <= T(0) ? T(0) : g[i];
  }
}

// Whether the scratch of the sums is still that of the pass after it.
MIM4DD_INLINE bool kept(const PoolShape& shape) {
  return shape.group_channels() == 1 && chunk_windows(shape) >= shape.out_height();
}

MIM4DD_INLINE Piece piece_of(const PoolShape& shape, int64_t unit) {
  const int64_t in = shape.group_size(), out = shape.group_channels() * shape.out_pixels();
  return {{unit * in, 1, in, in}, {unit * out, 1, out, out}};
}

// body(arguments with the images of the group, unit, scratch) for every group of every sample.
template <typename Arguments, typename Body>
void for_each_group(const PoolShape& shape, const Arguments& args, const Body& body) {
  using T = typename Arguments::T;
  const int64_t grain = std::max<int64_t>(1, kGrain / shape.group_size());
  parallel_for(shape.batch * shape.groups, grain, [&](int64_t begin, int64_t end) {
    const Workspace<T> scratch(scratch_size(shape));
    const Workspace<T> copies(copied_numbers(args, piece_of(shape, 0)));
    for (int64_t unit = begin; unit < end; ++unit) {
      with_piece(args, piece_of(shape, unit), copies.data(), [&](const auto& of_group) {
        body(of_group, unit, scratch.data());
      });
    }
  });
}

}  // namespace planes
}  // namespace MIM4DD_ISA
}  // namespace mim4dd
