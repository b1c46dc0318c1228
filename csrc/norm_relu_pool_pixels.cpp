// Group norm + ReLU + average pool of channels-last memory: (B, H, W, C) in place of (B, C, H, W).
// A block of channels of one sample is read from memory once. Vectors are of channels; numbers per
// channel are in arrays of the block, which stay in the first cache.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "norm_relu_pool.h"
#include "simd.h"

namespace mim4dd {
namespace {

// A block of one sample is to stay in a second cache, and to fill lines of memory.
constexpr int64_t kBlockBytes = int64_t{512} << 10, kLineBytes = 64;
// Of the pixels that a first cache holds between their mean and their squares.
constexpr int64_t kChunkBytes = int64_t{16} << 10;

// Channels [first, first + channels) of one sample.
template <typename S>
struct Block {
  const PoolShape& shape;
  int64_t sample, first, channels;

  int64_t first_group() const { return first / shape.group_channels(); }
  int64_t groups() const { return channels / shape.group_channels(); }
  int64_t statistic(int64_t group) const { return sample * shape.groups + first_group() + group; }
  const S* pixels(const S* base) const {
    return base == nullptr ? nullptr : base + sample * shape.pixels() * shape.channels + first;
  }
  S* pixels(S* base) const { return const_cast<S*>(pixels(static_cast<const S*>(base))); }
  const S* out_pixels(const S* base) const {
    return base == nullptr ? nullptr : base + sample * shape.out_pixels() * shape.channels + first;
  }
  S* out_pixels(S* base) const { return const_cast<S*>(out_pixels(static_cast<const S*>(base))); }
};

// Arrays of one number per channel of a block.
template <typename T>
class Arrays {
 public:
  Arrays(int64_t channels, int64_t count)
      : stride_((channels + 15) / 16 * 16), values_(stride_ * count) {}
  T* operator[](int64_t i) { return values_.data() + i * stride_; }
  void clear(int64_t i) { std::fill_n((*this)[i], stride_, T(0)); }

 private:
  int64_t stride_;
  std::vector<T> values_;
};

enum Row { kMean, kScale, kShift, kZero, kFirstFree };

// The pixels of a window together where its size is known: then what is per channel is loaded once
// for all four. visit(pixels, output pixel or -1, whether first and last of its output pixel).
// end_row() after each row of windows.
template <typename Visit, typename EndRow>
MIM4DD_INLINE void visit_pixels(const PoolShape& shape, const Visit& visit, const EndRow& end_row) {
  const int64_t width = shape.width, pool = shape.pool, out_width = shape.out_width();
  const auto single = [&](int64_t y, int64_t x) MIM4DD_INLINE_LAMBDA {
    visit(std::array<int64_t, 1>{y * width + x}, int64_t{-1}, true, true);
  };
  for (int64_t row = 0; row < shape.out_height(); ++row) {
    for (int64_t column = 0; column < out_width; ++column) {
      const int64_t corner = row * pool * width + column * pool, out = row * out_width + column;
      if (pool == 2) {
        visit(
            std::array<int64_t, 4>{corner, corner + 1, corner + width, corner + width + 1}, out,
            true, true);
        continue;
      }
      for (int64_t i = 0; i < pool * pool; ++i) {
        const int64_t pixel = corner + i / pool * width + i % pool;
        visit(std::array<int64_t, 1>{pixel}, out, i == 0, i == pool * pool - 1);
      }
    }
    for (int64_t y = row * pool; y < (row + 1) * pool; ++y) {
      for (int64_t x = out_width * pool; x < width; ++x) single(y, x);
    }
    end_row();
  }
  for (int64_t y = shape.out_height() * pool; y < shape.height; ++y) {
    for (int64_t x = 0; x < width; ++x) single(y, x);
    end_row();
  }
}

template <typename Visit>
MIM4DD_INLINE void visit_pixels(const PoolShape& shape, const Visit& visit) {
  visit_pixels(shape, visit, [] {});
}

// sums += part, and part is 0 again: of a sum by rows the rounding grows with the rows only.
template <typename T>
MIM4DD_INLINE void fold(T* __restrict part, T* __restrict sums, int64_t n) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) {
    sums[c] += part[c];
    part[c] = T(0);
  }
}

// Mean and sum of squared deviations by channel: of a chunk by two passes over the cache, then
// merged with what is before it (Chan, Golub, LeVeque 1983).
template <typename S, typename T = Wide<S>>
MIM4DD_INLINE void channel_statistics(
    const Block<S>& block,
    const S* input,
    T* __restrict mean,
    T* __restrict squares,
    T* __restrict sum,
    T* __restrict part) {
  const int64_t n = block.channels, stride = block.shape.channels;
  // By all channels, so that results do not depend on the size of a block.
  const int64_t chunk = std::max<int64_t>(8, kChunkBytes / (stride * sizeof(S)));
  std::fill_n(mean, n, T(0));
  std::fill_n(squares, n, T(0));
  for (int64_t begin = 0; begin < block.shape.pixels(); begin += chunk) {
    const int64_t end = std::min(begin + chunk, block.shape.pixels());
    const auto each_pixel = [&](const auto& body) MIM4DD_INLINE_LAMBDA {
      int64_t p = begin;
      for (; p + 4 <= end; p += 4) {
        const S* const x = input + p * stride;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) {
          body(
              c, (static_cast<T>(x[c]) - part[c]), (static_cast<T>(x[stride + c]) - part[c]),
              (static_cast<T>(x[2 * stride + c]) - part[c]),
              (static_cast<T>(x[3 * stride + c]) - part[c]));
        }
      }
      for (; p < end; ++p) {
        const S* const x = input + p * stride;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) {
          body(c, static_cast<T>(x[c]) - part[c], T(0), T(0), T(0));
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
template <typename S, typename T = Wide<S>>
void group_statistics(
    const Block<S>& block,
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

// The rows kMean, kScale, kShift of the affine map before the ReLU, and kZero.
template <typename S, typename T = Wide<S>>
void fill_affine(
    const Block<S>& block,
    const NormInputs<S>& args,
    const T* mean,
    const T* rstd,
    Arrays<T>& rows) {
  const int64_t channels = block.shape.group_channels();
  for (int64_t group = 0; group < block.groups(); ++group) {
    const T of_group = mean[block.statistic(group)], scale = rstd[block.statistic(group)];
    for (int64_t c = group * channels; c < (group + 1) * channels; ++c) {
      rows[kMean][c] = of_group;
      rows[kScale][c] = args.weight_of(block.first + c) * scale;
      rows[kShift][c] = args.bias_of(block.first + c);
    }
  }
  rows.clear(kZero);
}

template <typename S>
MIM4DD_SIMD void write_forward(
    const Block<S>& block,
    const S* __restrict input,
    S* __restrict out,
    Arrays<Wide<S>>& rows) {
  using T = Wide<S>;
  const int64_t n = block.channels, stride = block.shape.channels;
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
            const T d = static_cast<T>(input[pixel * stride + c]) - mean[c];
            const T z = d * scale[c] + shift[c];
            sum += z <= T(0) ? T(0) : z;
          }
          return sum;
        };
        S* const to = out + at * stride;
        if (is_first && is_last) {
#pragma omp simd
          for (int64_t c = 0; c < n; ++c) to[c] = static_cast<S>(value(c) * share);
          return;
        }
        if (is_first) std::fill_n(held, n, T(0));
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) held[c] += value(c);
        if (is_last) {
          for (int64_t c = 0; c < n; ++c) to[c] = static_cast<S>(held[c] * share);
        }
      });
}

template <typename S>
MIM4DD_SIMD void statistics_of(const Block<S>& block, const S* input, Arrays<Wide<S>>& rows) {
  channel_statistics<S>(
      block, input, rows[kFirstFree], rows[kFirstFree + 1], rows[kFirstFree + 2],
      rows[kFirstFree + 3]);
}

// Rows of the first derivative.
enum FirstRow {
  kFirstG = kFirstFree,
  kFirstGd,
  kFirstByD,
  kFirstConstant,
  kFirstPartG,
  kFirstPartGd,
  kFirstRows
};

template <typename S>
MIM4DD_SIMD void sum_first(
    const Block<S>& block,
    const S* __restrict input,
    const S* __restrict grad_out,
    Arrays<Wide<S>>& rows) {
  using T = Wide<S>;
  const int64_t n = block.channels, stride = block.shape.channels;
  const T *const mean = rows[kMean], *const scale = rows[kScale], *const shift = rows[kShift];
  T *const part_g = rows[kFirstPartG], *const part_gd = rows[kFirstPartGd];
  const T share = T(1) / static_cast<T>(block.shape.pool * block.shape.pool);
  visit_pixels(
      block.shape,
      [&](const auto& pixels, int64_t at, bool, bool) MIM4DD_INLINE_LAMBDA {
        if (at < 0) return;
        const S* const upstream = grad_out + at * stride;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) {
          const T g = static_cast<T>(upstream[c]) * share;
          T sum = 0, with_d = 0;
          for (const int64_t pixel : pixels) {
            const T d = static_cast<T>(input[pixel * stride + c]) - mean[c];
            const T gated = d * scale[c] + shift[c] <= T(0) ? T(0) : g;
            sum += gated;
            with_d += gated * d;
          }
          part_g[c] += sum;
          part_gd[c] += with_d;
        }
      },
      [&]() MIM4DD_INLINE_LAMBDA {
        fold(part_g, rows[kFirstG], n);
        fold(part_gd, rows[kFirstGd], n);
      });
}

template <typename S>
MIM4DD_SIMD void write_first(
    const Block<S>& block,
    const S* __restrict input,
    const S* __restrict grad_out,
    S* __restrict grad_input,
    Arrays<Wide<S>>& rows) {
  using T = Wide<S>;
  const T *const by_d = rows[kFirstByD], *const constant = rows[kFirstConstant];
  const int64_t n = block.channels, stride = block.shape.channels;
  const T *const mean = rows[kMean], *const scale = rows[kScale], *const shift = rows[kShift];
  const T share = T(1) / static_cast<T>(block.shape.pool * block.shape.pool);
  visit_pixels(block.shape, [&](const auto& pixels, int64_t at, bool, bool) MIM4DD_INLINE_LAMBDA {
    const S* const upstream = grad_out + std::max<int64_t>(at, 0) * stride;
    const T factor = at < 0 ? T(0) : share;
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
      const T g = at < 0 ? T(0) : static_cast<T>(upstream[c]) * factor;
      for (const int64_t pixel : pixels) {
        const T d = static_cast<T>(input[pixel * stride + c]) - mean[c];
        const T gated = d * scale[c] + shift[c] <= T(0) ? T(0) : g;
        grad_input[pixel * stride + c] =
            static_cast<S>(scale[c] * gated + (by_d[c] * d + constant[c]));
      }
    }
  });
}

// Rows of the second derivative.
enum SecondRow {
  kG = kFirstFree,
  kGd,
  kU,
  kUd,
  kGu,
  kByG,
  kByD,
  kByU,
  kConstant,
  kOutD,
  kOut,
  kHeld,
  kPartG,
  kPartGd,
  kPartU,
  kPartUd,
  kPartGu,
  kSecondRows
};

template <bool kTangent, typename S, typename T = Wide<S>>
MIM4DD_INLINE void sum_second_as(
    const Block<S>& block,
    const S* __restrict input,
    const S* __restrict tangent,
    const S* __restrict grad_out,
    Arrays<T>& rows) {
  const int64_t n = block.channels, stride = block.shape.channels;
  const T *const mean = rows[kMean], *const scale = rows[kScale], *const shift = rows[kShift];
  T *const s_g = rows[kPartG], *const s_gd = rows[kPartGd], *const s_u = rows[kPartU];
  T *const s_ud = rows[kPartUd], *const s_gu = rows[kPartGu];
  const T share = T(1) / static_cast<T>(block.shape.pool * block.shape.pool);
  visit_pixels(
      block.shape,
      [&](const auto& pixels, int64_t at, bool, bool) MIM4DD_INLINE_LAMBDA {
        const S* const upstream = grad_out + std::max<int64_t>(at, 0) * stride;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) {
          const T g = at < 0 ? T(0) : static_cast<T>(upstream[c]) * share;
          T sum_g = 0, sum_gd = 0, sum_u = 0, sum_ud = 0, sum_gu = 0;
          for (const int64_t pixel : pixels) {
            const T d = static_cast<T>(input[pixel * stride + c]) - mean[c];
            const T gated = d * scale[c] + shift[c] <= T(0) ? T(0) : g;
            sum_g += gated;
            sum_gd += gated * d;
            if constexpr (kTangent) {
              const T u = static_cast<T>(tangent[pixel * stride + c]);
              sum_u += u;
              sum_ud += u * d;
              sum_gu += u * gated;
            }
          }
          s_g[c] += sum_g;
          s_gd[c] += sum_gd;
          if constexpr (kTangent) {
            s_u[c] += sum_u;
            s_ud[c] += sum_ud;
            s_gu[c] += sum_gu;
          }
        }
      },
      [&]() MIM4DD_INLINE_LAMBDA {
        constexpr int kSums = kTangent ? 5 : 2;
        for (int i = 0; i < kSums; ++i) fold(rows[kPartG + i], rows[kG + i], n);
      });
}

template <typename S>
MIM4DD_SIMD void sum_second(
    const Block<S>& block,
    const S* input,
    const S* tangent,
    const S* grad_out,
    Arrays<Wide<S>>& rows) {
  if (tangent == nullptr) {
    sum_second_as<false, S>(block, input, tangent, grad_out, rows);
  } else {
    sum_second_as<true, S>(block, input, tangent, grad_out, rows);
  }
}

template <bool kTangent, typename S, typename T = Wide<S>>
MIM4DD_INLINE void write_second_as(
    const Block<S>& block,
    const S* __restrict input,
    const S* __restrict tangent,
    const S* __restrict grad_out,
    S* __restrict grad_grad_out,
    S* __restrict grad_input,
    Arrays<T>& rows) {
  const int64_t n = block.channels, stride = block.shape.channels;
  const T *const mean = rows[kMean], *const scale = rows[kScale], *const shift = rows[kShift];
  const T *const by_g = rows[kByG], *const by_d = rows[kByD], *const by_u = rows[kByU];
  const T *const constant = rows[kConstant], *const out_d = rows[kOutD], *const out = rows[kOut];
  T* const held = rows[kHeld];
  const T share = T(1) / static_cast<T>(block.shape.pool * block.shape.pool);
  visit_pixels(
      block.shape,
      [&](const auto& pixels, int64_t at, bool is_first, bool is_last) MIM4DD_INLINE_LAMBDA {
        const S* const upstream = grad_out + std::max<int64_t>(at, 0) * stride;
        if (grad_input != nullptr) {
#pragma omp simd
          for (int64_t c = 0; c < n; ++c) {
            const T g = at < 0 ? T(0) : static_cast<T>(upstream[c]) * share;
            for (const int64_t pixel : pixels) {
              const T d = static_cast<T>(input[pixel * stride + c]) - mean[c];
              const T gated = d * scale[c] + shift[c] <= T(0) ? T(0) : g;
              T value = by_g[c] * gated + (by_d[c] * d + constant[c]);
              if constexpr (kTangent) {
                value += by_u[c] * static_cast<T>(tangent[pixel * stride + c]);
              }
              grad_input[pixel * stride + c] = static_cast<S>(value);
            }
          }
        }
        if (grad_grad_out == nullptr || at < 0) return;
        if (is_first) std::fill_n(held, n, T(0));
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) {
          T sum = 0;
          for (const int64_t pixel : pixels) {
            const T d = static_cast<T>(input[pixel * stride + c]) - mean[c];
            T value = out_d[c] * d + out[c];
            if constexpr (kTangent) {
              value += scale[c] * static_cast<T>(tangent[pixel * stride + c]);
            }
            sum += d * scale[c] + shift[c] <= T(0) ? T(0) : value;
          }
          held[c] += sum;
        }
        if (!is_last) return;
        S* const to = grad_grad_out + at * stride;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) to[c] = static_cast<S>(held[c] * share);
      });
}

template <typename S>
MIM4DD_SIMD void write_second(
    const Block<S>& block,
    const S* input,
    const S* tangent,
    const S* grad_out,
    S* grad_grad_out,
    S* grad_input,
    Arrays<Wide<S>>& rows) {
  if (tangent == nullptr) {
    write_second_as<false, S>(block, input, tangent, grad_out, grad_grad_out, grad_input, rows);
  } else {
    write_second_as<true, S>(block, input, tangent, grad_out, grad_grad_out, grad_input, rows);
  }
}

template <typename S>
void forward_block(const Block<S>& block, const ForwardArguments<S>& args) {
  Arrays<Wide<S>> rows(block.channels, kFirstFree + 4);
  const S* const input = block.pixels(args.input);
  statistics_of<S>(block, input, rows);
  group_statistics<S>(
      block, rows[kFirstFree], rows[kFirstFree + 1], args.eps, args.mean, args.rstd);
  fill_affine<S>(block, args, args.mean, args.rstd, rows);
  write_forward<S>(block, input, block.out_pixels(args.out), rows);
}

template <typename S>
void backward_block(const Block<S>& block, const BackwardArguments<S>& args) {
  using T = Wide<S>;
  const PoolShape& shape = block.shape;
  Arrays<T> rows(block.channels, kFirstRows);
  T *const g = rows[kFirstG], *const gd = rows[kFirstGd];
  const S *const input = block.pixels(args.input), *const upstream =
                                                       block.out_pixels(args.grad_out);
  fill_affine<S>(block, args, args.mean, args.rstd, rows);
  sum_first<S>(block, input, upstream, rows);
  const int64_t channels = shape.group_channels();
  for (int64_t group = 0; group < block.groups(); ++group) {
    const int64_t first = group * channels, of_sample = block.sample * shape.channels + block.first;
    const T rstd = args.rstd[block.statistic(group)];
    const auto factors = first_factors<T>(
        channels, shape.group_size(), rstd,
        [&](int64_t i) { return FirstSums<T>{g[first + i], gd[first + i]}; },
        [&](int64_t i) { return args.weight_of(block.first + first + i); });
    for (int64_t c = first; c < first + channels; ++c) {
      rows[kFirstByD][c] = factors.by_d;
      rows[kFirstConstant][c] = factors.constant;
      args.grad_weight_of[of_sample + c] = rstd * gd[c];
      args.grad_bias_of[of_sample + c] = g[c];
    }
  }
  if (args.grad_input == nullptr) return;
  write_first<S>(block, input, upstream, block.pixels(args.grad_input), rows);
}

template <typename S, typename T = Wide<S>>
void fill_second(const Block<S>& block, const SecondArguments<S>& args, Arrays<T>& rows) {
  const PoolShape& shape = block.shape;
  const int64_t channels = shape.group_channels();
  const auto tangent_of = [](const T* values, int64_t i) { return values ? values[i] : T(0); };
  for (int64_t group = 0; group < block.groups(); ++group) {
    const int64_t first = group * channels;
    const auto sums = [&](int64_t i) {
      const int64_t c = first + i;
      return SecondSums<T>{rows[kG][c], rows[kGd][c], rows[kU][c], rows[kUd][c], rows[kGu][c]};
    };
    const SecondMeans means = second_means<T>(
        channels, shape.group_size(), args.rstd[block.statistic(group)], sums,
        [&](int64_t i) { return args.weight_of(block.first + first + i); },
        [&](int64_t i) { return tangent_of(args.weight_tangent, block.first + first + i); });
    for (int64_t i = 0; i < channels; ++i) {
      const int64_t c = first + i, channel = block.first + c;
      args.grad_weight_of[block.sample * shape.channels + channel] = weight_sum<T>(means, sums(i));
      const auto f = second_factors<T>(
          means, args.weight_of(channel), tangent_of(args.weight_tangent, channel),
          tangent_of(args.bias_tangent, channel));
      rows[kByG][c] = f.by_g;
      rows[kByD][c] = f.by_d;
      rows[kByU][c] = f.by_u;
      rows[kConstant][c] = f.constant;
      rows[kOutD][c] = f.out_by_d;
      rows[kOut][c] = f.out_constant;
    }
  }
}

template <typename S>
void second_block(const Block<S>& block, const SecondArguments<S>& args) {
  Arrays<Wide<S>> rows(block.channels, kSecondRows);
  const S *const input = block.pixels(args.input), *const tangent = block.pixels(args.tangent);
  const S* const upstream = block.out_pixels(args.grad_out);
  fill_affine<S>(block, args, args.mean, args.rstd, rows);
  sum_second<S>(block, input, tangent, upstream, rows);
  fill_second<S>(block, args, rows);
  write_second<S>(
      block, input, tangent, upstream, block.out_pixels(args.grad_grad_out),
      block.pixels(args.grad_input), rows);
}

// body(block) for all blocks of whole groups of every sample.
template <typename S, typename Body>
void for_each_block(const PoolShape& shape, const Body& body) {
  const int64_t channels = shape.group_channels();
  const int64_t least = std::max<int64_t>(1, kLineBytes / static_cast<int64_t>(sizeof(S)));
  const int64_t group_bytes = shape.group_size() * static_cast<int64_t>(sizeof(S));
  const int64_t line_groups = (least + channels - 1) / channels;
  int64_t groups = std::max(line_groups, kBlockBytes / group_bytes / line_groups * line_groups);
  // Samples alone may be too few for all threads.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t blocks = std::max<int64_t>(1, (2 * threads + shape.batch - 1) / shape.batch);
  if (threads > 1 && shape.batch % threads != 0) {
    const int64_t share = (shape.groups + blocks - 1) / blocks;
    groups = std::min(groups, (share + line_groups - 1) / line_groups * line_groups);
  }
  groups = std::min(groups, shape.groups);
  const int64_t per_sample = (shape.groups + groups - 1) / groups;
  torch::stable::parallel_for(0, shape.batch * per_sample, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % per_sample * groups;
      const int64_t count = std::min(groups, shape.groups - first);
      body(Block<S>{shape, i / per_sample, first * channels, count * channels});
    }
  });
}

}  // namespace

template <typename S>
void forward_pixels(const PoolShape& shape, const ForwardArguments<S>& args) {
  for_each_block<S>(shape, [&](const Block<S>& block) { forward_block(block, args); });
}

template <typename S>
void backward_pixels(const PoolShape& shape, const BackwardArguments<S>& args) {
  for_each_block<S>(shape, [&](const Block<S>& block) { backward_block(block, args); });
}

template <typename S>
void second_pixels(const PoolShape& shape, const SecondArguments<S>& args) {
  for_each_block<S>(shape, [&](const Block<S>& block) { second_block(block, args); });
}

#define MIM4DD_INSTANTIATE(S)                                                   \
  template void forward_pixels(const PoolShape&, const ForwardArguments<S>&);   \
  template void backward_pixels(const PoolShape&, const BackwardArguments<S>&); \
  template void second_pixels(const PoolShape&, const SecondArguments<S>&);

MIM4DD_INSTANTIATE(float)
MIM4DD_INSTANTIATE(double)
MIM4DD_INSTANTIATE(c10::BFloat16)
MIM4DD_INSTANTIATE(c10::Half)

}  // namespace mim4dd
