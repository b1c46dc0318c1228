// The second derivative of group norm + ReLU + average pool of channels-last memory.
#include <algorithm>

#include "norm_relu_pool_pixels.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace pixels {

// Rows of the second derivative.
enum SecondRow {
  kByG = kFirstFree,
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

template <bool kTangent, typename T>
MIM4DD_INLINE void sum_second_as(
    const Block& block,
    const T* __restrict input,
    const T* __restrict tangent,
    const T* __restrict grad_out,
    Arrays<T>& rows,
    Arrays<double>& sums) {
  const int64_t n = block.channels, stride = block.stride;
  const T *const mean = rows[kMean], *const scale = rows[kScale], *const shift = rows[kShift];
  T *const s_g = rows[kPartG], *const s_gd = rows[kPartGd], *const s_u = rows[kPartU];
  T *const s_ud = rows[kPartUd], *const s_gu = rows[kPartGu];
  const T share = T(1) / static_cast<T>(block.shape.pool * block.shape.pool);
  visit_pixels(
      block.shape,
      [&](const auto& pixels, int64_t at, bool, bool) MIM4DD_INLINE_LAMBDA {
        const T* const upstream = grad_out + std::max<int64_t>(at, 0) * stride;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) {
          const T g = at < 0 ? T(0) : upstream[c] * share;
          T sum_g = 0, sum_gd = 0, sum_u = 0, sum_ud = 0, sum_gu = 0;
          for (const int64_t pixel : pixels) {
            const T d = input[pixel * stride + c] - mean[c];
            const T gated = d * scale[c] + shift[c] <= T(0) ? T(0) : g;
            sum_g += gated;
            sum_gd += gated * d;
            if constexpr (kTangent) {
              const T u = tangent[pixel * stride + c];
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
        for (int i = 0; i < kSums; ++i) fold(rows[kPartG + i], sums[i], n);
      });
}

template <typename T>
void sum_second(
    const Block& block,
    const T* input,
    const T* tangent,
    const T* grad_out,
    Arrays<T>& rows,
    Arrays<double>& sums) {
  if (tangent == nullptr) {
    sum_second_as<false, T>(block, input, tangent, grad_out, rows, sums);
  } else {
    sum_second_as<true, T>(block, input, tangent, grad_out, rows, sums);
  }
}

template <bool kTangent, typename T>
MIM4DD_INLINE void write_second_as(
    const Block& block,
    const T* __restrict input,
    const T* __restrict tangent,
    const T* __restrict grad_out,
    T* __restrict grad_grad_out,
    T* __restrict grad_input,
    Arrays<T>& rows) {
  const int64_t n = block.channels, stride = block.stride;
  const T *const mean = rows[kMean], *const scale = rows[kScale], *const shift = rows[kShift];
  const T *const by_g = rows[kByG], *const by_d = rows[kByD], *const by_u = rows[kByU];
  const T *const constant = rows[kConstant], *const out_d = rows[kOutD], *const out = rows[kOut];
  T* const held = rows[kHeld];
  const T share = T(1) / static_cast<T>(block.shape.pool * block.shape.pool);
  visit_pixels(
      block.shape,
      [&](const auto& pixels, int64_t at, bool is_first, bool is_last) MIM4DD_INLINE_LAMBDA {
        const T* const upstream = grad_out + std::max<int64_t>(at, 0) * stride;
        if (grad_input != nullptr) {
#pragma omp simd
          for (int64_t c = 0; c < n; ++c) {
            const T g = at < 0 ? T(0) : upstream[c] * share;
            for (const int64_t pixel : pixels) {
              const T d = input[pixel * stride + c] - mean[c];
              const T gated = d * scale[c] + shift[c] <= T(0) ? T(0) : g;
              T value = by_g[c] * gated + (by_d[c] * d + constant[c]);
              if constexpr (kTangent) {
                value += by_u[c] * tangent[pixel * stride + c];
              }
              grad_input[pixel * stride + c] = value;
            }
          }
        }
        if (grad_grad_out == nullptr || at < 0) return;
        if (is_first) std::fill_n(held, n, T(0));
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) {
          T sum = 0;
          for (const int64_t pixel : pixels) {
            const T d = input[pixel * stride + c] - mean[c];
            T value = out_d[c] * d + out[c];
            if constexpr (kTangent) {
              value += scale[c] * tangent[pixel * stride + c];
            }
            sum += d * scale[c] + shift[c] <= T(0) ? T(0) : value;
          }
          held[c] += sum;
        }
        if (!is_last) return;
        T* const to = grad_grad_out + at * stride;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) to[c] = held[c] * share;
      });
}

template <typename T>
void write_second(
    const Block& block,
    const T* input,
    const T* tangent,
    const T* grad_out,
    T* grad_grad_out,
    T* grad_input,
    Arrays<T>& rows) {
  if (tangent == nullptr) {
    write_second_as<false, T>(block, input, tangent, grad_out, grad_grad_out, grad_input, rows);
  } else {
    write_second_as<true, T>(block, input, tangent, grad_out, grad_grad_out, grad_input, rows);
  }
}

template <typename T>
void fill_second(
    const Block& block,
    const SecondArguments<T>& args,
    Arrays<double>& by_channel,
    Arrays<T>& rows) {
  const PoolShape& shape = block.shape;
  const int64_t channels = shape.group_channels();
  const auto tangent_of = [](const T* values, int64_t i) { return values ? values[i] : T(0); };
  for (int64_t group = 0; group < block.groups(); ++group) {
    const int64_t first = group * channels;
    const auto sums = [&](int64_t i) {
      const int64_t c = first + i;
      return SecondSums<double>{
          by_channel[0][c], by_channel[1][c], by_channel[2][c], by_channel[3][c], by_channel[4][c]};
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

template <typename T>
MIM4DD_NOINLINE void second_block(const Block& block, const SecondArguments<T>& args) {
  Arrays<T> rows(block.channels, kSecondRows);
  Arrays<double> sums(block.channels, 5);
  fill_affine<T>(block, args, args.mean, args.rstd, rows);
  sum_second<T>(block, args.input, args.tangent, args.grad_out, rows, sums);
  fill_second<T>(block, args, sums, rows);
  write_second<T>(
      block, args.input, args.tangent, args.grad_out, args.grad_grad_out, args.grad_input, rows);
}

}  // namespace pixels

template <typename Stored>
void second_pixels(const PoolShape& shape, const SecondArguments<Stored>& args) {
  pixels::for_each_block(shape, args, [](const pixels::Block& block, const auto& of_block) {
    pixels::second_block(block, of_block);
  });
}

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
