// Group norm + ReLU + average pool of channels-last memory, (B, H, W, C) in place of (B, C, H, W),
// and its first derivative. A block of channels of one sample is read from memory once. Vectors are
// of channels; numbers per channel are in arrays of the block, which stay in the first cache.
#include <algorithm>
#include <cmath>

#include "norm_relu_pool_pixels.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace pixels {

// Of the pixels that a first cache holds between their mean and their squares.
constexpr int64_t kChunkBytes = int64_t{16} << 10;

// Mean and sum of squared deviations by channel: of a chunk by two passes over the cache, then
// merged with what is before it (Chan, Golub, LeVeque 1983).
template <typename T>
MIM4DD_INLINE void channel_statistics(
    const Block& block,
    const T* input,
    T* __restrict mean,
    T* __restrict squares,
    T* __restrict sum,
    T* __restrict part) {
  const int64_t n = block.channels, stride = block.stride;
  // By all channels, so that results do not depend on the size of a block.
  const int64_t chunk = std::max<int64_t>(8, kChunkBytes / (block.shape.channels * sizeof(T)));
  std::fill_n(mean, n, T(0));
  std::fill_n(squares, n, T(0));
  for (int64_t begin = 0; begin < block.shape.pixels(); begin += chunk) {
    const int64_t end = std::min(begin + chunk, block.shape.pixels());
    const auto each_pixel = [&](const auto& body) MIM4DD_INLINE_LAMBDA {
      int64_t p = begin;
      for (; p + 4 <= end; p += 4) {
        const T* const x = input + p * stride;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) {
          body(
              c, (x[c] - part[c]), (x[stride + c] - part[c]), (x[2 * stride + c] - part[c]),
              (x[3 * stride + c] - part[c]));
        }
      }
      for (; p < end; ++p) {
        const T* const x = input + p * stride;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) {
          body(c, x[c] - part[c], T(0), T(0), T(0));
        }
      }
    };
    std::fill_n(sum, n, T(0));
    std::fill_n(part, n, T(0));
    each_pixel([&](int64_t c, T a, T b, T d, T e)
                   MIM4DD_INLINE_LAMBDA { sum[c] += (a + b) + (d + e); });
    const T count = static_cast<T>(end - begin), before = static_cast<T>(begin);
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
      part[c] = sum[c] / count;
      sum[c] = T(0);
    }
    each_pixel([&](int64_t c, T a, T b, T d, T e)
                   MIM4DD_INLINE_LAMBDA { sum[c] += (a * a + b * b) + (d * d + e * e); });
    const T share = count / (before + count);
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
      const T apart = part[c] - mean[c];
      squares[c] += sum[c] + apart * apart * (before * share);
      mean[c] += apart * share;
    }
  }
}

// Of the groups of a block, from those of its channels.
template <typename T>
void group_statistics(
    const Block& block,
    const T* mean,
    const T* squares,
    double eps,
    T* group_mean,
    T* group_rstd) {
  const int64_t channels = block.shape.group_channels();
  const T pixels = static_cast<T>(block.shape.pixels());
  for (int64_t group = 0; group < block.groups(); ++group) {
    const int64_t first = group * channels;
    T sum = 0, square = 0;
    for (int64_t c = first; c < first + channels; ++c) sum += mean[c];
    const T average = sum / static_cast<T>(channels);
    for (int64_t c = first; c < first + channels; ++c) {
      square += squares[c] + (mean[c] - average) * (mean[c] - average) * pixels;
    }
    const T variance = square / static_cast<T>(block.shape.group_size());
    group_mean[block.statistic(group)] = average;
    group_rstd[block.statistic(group)] = T(1) / std::sqrt(variance + static_cast<T>(eps));
  }
}

template <typename T>
void write_forward(
    const Block& block,
    const T* __restrict input,
    T* __restrict out,
    Arrays<T>& rows) {
  const int64_t n = block.channels, stride = block.stride;
  const T *const mean = rows[kMean], *const scale = rows[kScale], *const shift = rows[kShift];
  T* const held = rows[kFirstFree];
  const T share = T(1) / static_cast<T>(block.shape.pool * block.shape.pool);
  visit_pixels(
      block.shape,
      [&](const auto& pixels, int64_t at, bool is_first, bool is_last) MIM4DD_INLINE_LAMBDA {
        if (at < 0) return;
        const auto value = [&](int64_t c) MIM4DD_INLINE_LAMBDA {
          T sum = 0;
          for (const int64_t pixel : pixels) {
            const T d = input[pixel * stride + c] - mean[c];
            const T z = d * scale[c] + shift[c];
            sum += z <= T(0) ? T(0) : z;
          }
          return sum;
        };
        T* const to = out + at * stride;
        if (is_first && is_last) {
#pragma omp simd
          for (int64_t c = 0; c < n; ++c) to[c] = value(c) * share;
          return;
        }
        if (is_first) std::fill_n(held, n, T(0));
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) held[c] += value(c);
        if (is_last) {
          for (int64_t c = 0; c < n; ++c) to[c] = held[c] * share;
        }
      });
}

template <typename T>
void statistics_of(const Block& block, const T* input, Arrays<T>& rows) {
  channel_statistics<T>(
      block, input, rows[kFirstFree], rows[kFirstFree + 1], rows[kFirstFree + 2],
      rows[kFirstFree + 3]);
}

// Rows of the first derivative.
enum FirstRow { kFirstByD = kFirstFree, kFirstConstant, kFirstPartG, kFirstPartGd, kFirstRows };

template <typename T>
void sum_first(
    const Block& block,
    const T* __restrict input,
    const T* __restrict grad_out,
    Arrays<T>& rows,
    Arrays<double>& sums) {
  const int64_t n = block.channels, stride = block.stride;
  const T *const mean = rows[kMean], *const scale = rows[kScale], *const shift = rows[kShift];
  T *const part_g = rows[kFirstPartG], *const part_gd = rows[kFirstPartGd];
  const T share = T(1) / static_cast<T>(block.shape.pool * block.shape.pool);
  visit_pixels(
      block.shape,
      [&](const auto& pixels, int64_t at, bool, bool) MIM4DD_INLINE_LAMBDA {
        if (at < 0) return;
        const T* const upstream = grad_out + at * stride;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) {
          const T g = upstream[c] * share;
          T sum = 0, with_d = 0;
          for (const int64_t pixel : pixels) {
            const T d = input[pixel * stride + c] - mean[c];
            const T gated = d * scale[c] + shift[c] <= T(0) ? T(0) : g;
            sum += gated;
            with_d += gated * d;
          }
          part_g[c] += sum;
          part_gd[c] += with_d;
        }
      },
      [&]() MIM4DD_INLINE_LAMBDA {
        fold(part_g, sums[0], n);
        fold(part_gd, sums[1], n);
      });
}

template <typename T>
void write_first(
    const Block& block,
    const T* __restrict input,
    const T* __restrict grad_out,
    T* __restrict grad_input,
    Arrays<T>& rows) {
  const T *const by_d = rows[kFirstByD], *const constant = rows[kFirstConstant];
  const int64_t n = block.channels, stride = block.stride;
  const T *const mean = rows[kMean], *const scale = rows[kScale], *const shift = rows[kShift];
  const T share = T(1) / static_cast<T>(block.shape.pool * block.shape.pool);
  visit_pixels(block.shape, [&](const auto& pixels, int64_t at, bool, bool) MIM4DD_INLINE_LAMBDA {
    const T* const upstream = grad_out + std::max<int64_t>(at, 0) * stride;
    const T factor = at < 0 ? T(0) : share;
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
      const T g = at < 0 ? T(0) : upstream[c] * factor;
      for (const int64_t pixel : pixels) {
        const T d = input[pixel * stride + c] - mean[c];
        const T gated = d * scale[c] + shift[c] <= T(0) ? T(0) : g;
        grad_input[pixel * stride + c] = scale[c] * gated + (by_d[c] * d + constant[c]);
      }
    }
  });
}

template <typename T>
MIM4DD_NOINLINE void forward_block(const Block& block, const ForwardArguments<T>& args) {
  Arrays<T> rows(block.channels, kFirstFree + 4);
  statistics_of<T>(block, args.input, rows);
  group_statistics<T>(
      block, rows[kFirstFree], rows[kFirstFree + 1], args.eps, args.mean, args.rstd);
  fill_affine<T>(block, args, args.mean, args.rstd, rows);
  write_forward<T>(block, args.input, args.out, rows);
}

template <typename T>
MIM4DD_NOINLINE void backward_block(const Block& block, const BackwardArguments<T>& args) {
  const PoolShape& shape = block.shape;
  Arrays<T> rows(block.channels, kFirstRows);
  Arrays<double> sums(block.channels, 2);
  const double *const g = sums[0], *const gd = sums[1];
  fill_affine<T>(block, args, args.mean, args.rstd, rows);
  sum_first<T>(block, args.input, args.grad_out, rows, sums);
  const int64_t channels = shape.group_channels();
  for (int64_t group = 0; group < block.groups(); ++group) {
    const int64_t first = group * channels, of_sample = block.sample * shape.channels + block.first;
    const T rstd = args.rstd[block.statistic(group)];
    const auto factors = first_factors<T>(
        channels, shape.group_size(), rstd,
        [&](int64_t i) { return FirstSums<double>{g[first + i], gd[first + i]}; },
        [&](int64_t i) { return args.weight_of(block.first + first + i); });
    for (int64_t c = first; c < first + channels; ++c) {
      rows[kFirstByD][c] = factors.by_d;
      rows[kFirstConstant][c] = factors.constant;
      args.grad_weight_of[of_sample + c] = static_cast<T>(rstd * gd[c]);
      args.grad_bias_of[of_sample + c] = static_cast<T>(g[c]);
    }
  }
  if (args.grad_input == nullptr) return;
  write_first<T>(block, args.input, args.grad_out, args.grad_input, rows);
}

}  // namespace pixels

template <typename Stored>
void forward_pixels(const PoolShape& shape, const ForwardArguments<Stored>& args) {
  pixels::for_each_block(shape, args, [](const pixels::Block& block, const auto& of_block) {
    pixels::forward_block(block, of_block);
  });
}

template <typename Stored>
void backward_pixels(const PoolShape& shape, const BackwardArguments<Stored>& args) {
  pixels::for_each_block(shape, args, [](const pixels::Block& block, const auto& of_block) {
    pixels::backward_block(block, of_block);
  });
}

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
