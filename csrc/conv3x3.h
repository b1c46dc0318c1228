// 3×3 convolutions of images whose channels are last: what goes into the kernels.
#pragma once

#include "arithmetic.h"
#include "isa.h"

namespace mim4dd {

constexpr int kTaps = 9;

// Images as rows of channels: (batch, height, width, channels), and their tiles of 2×2 pixels.
struct Grid {
  int64_t batch, height, width;

  MIM4DD_INLINE int64_t tile_rows() const { return (height + 1) / 2; }
  MIM4DD_INLINE int64_t tile_columns() const { return (width + 1) / 2; }
  MIM4DD_INLINE int64_t tiles() const { return batch * tile_rows() * tile_columns(); }
};

// 3×3 filters somewhere in memory. The adjoint of a convolution turns them by 180° and swaps their
// channels, which strides can say.
template <typename T>
struct Filters {
  const T* data;
  int64_t out_channels, in_channels, out_stride, in_stride, row_stride, column_stride;

  // A weight; taps are counted along the rows.
  MIM4DD_INLINE const T* at(int64_t out, int64_t tap, int64_t in) const {
    return data + out * out_stride + in * in_stride + tap / 3 * row_stride +
           tap % 3 * column_stride;
  }
  MIM4DD_INLINE Filters adjoint() const {
    return {
        data + 2 * (row_stride + column_stride),
        in_channels,
        out_channels,
        in_stride,
        out_stride,
        -row_stride,
        -column_stride};
  }
};

// Σ input * filters: one term of a convolution.
template <typename T>
struct Source {
  const T* input;
  Filters<T> filters;
};

// gradient: (out_channels, 3, 3, in_channels).
template <typename T>
using FilterGradientPass = void (*)(
    const Grid& grid,
    const T* grad_output,
    int64_t out_channels,
    const T* input,
    int64_t in_channels,
    T* gradient);

template <typename T>
struct Conv3x3 {
  // output = the sum over one or two sources, which share their channels, + bias, if not null.
  void (*convolve)(
      const Grid& grid,
      const Source<T>* sources,
      int64_t num_sources,
      const T* bias,
      T* output);
  FilterGradientPass<T> filter_gradient;
};

}  // namespace mim4dd
