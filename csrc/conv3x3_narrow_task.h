// The gradient to the input of a 3×3 convolution of few channels, as images have. They fill no
// vector, but nine taps of them do: the numbers of a pixel of the gradient of the output, times the
// filters as (O, 9 C), are what it adds to the 3×3 pixels around it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "conv3x3.h"
#include "microkernel.h"

namespace mim4dd {
namespace MIM4DD_ISA {

// The gradient of one tile of pixels of one image. Where tiles end changes no result: each pixel is
// the sum of nine windows of C products, always in one order, and products at the edge of a tile
// are formed by both its sides.
template <typename T>
struct NarrowGradient {
  using Kernel = Micro<T>;
  using Vector = typename Kernel::Vector;

  int64_t batch, height, width, in_channels, out_channels;
  int64_t row_tiles, columns;     // of a tile; at most width
  const T *grad_output, *packed;  // packed: (panels, depth, kColumns)
  T* grad_input;

  static int64_t depth_of(int64_t out_channels) { return round_up(out_channels, Kernel::kSteps); }
  static int64_t panels_of(int64_t in_channels) {
    return divide_up(kTaps * in_channels, Kernel::kColumns);
  }
  int64_t column_tiles() const { return divide_up(width, columns); }
  int64_t count() const { return batch * row_tiles * column_tiles(); }
  int64_t scratch() const { return left_size() + kResult + line_size() + 3 * products_size(); }

  MIM4DD_INLINE void operator()(T* scratch, int64_t index) const {
    const Tile tile = find(index);
    T* const line = scratch + left_size() + kResult;
    T* const products = line + line_size();
    for (int64_t row = tile.top - 1; row <= tile.bottom; ++row) {
      multiply(products + (row + 3) % 3 * products_size(), scratch, tile, row);
      if (row > tile.top) write(line, products, tile, row - 1);
    }
  }

 private:
  static constexpr int kResult = Kernel::kRows * Kernel::kColumns;

  struct Tile {
    int64_t image, top, bottom, left, right;
  };

  int64_t left_size() const { return Kernel::kRows * round_up(out_channels, Kernel::kLanes); }
  // Products of a pixel.
  int64_t pixel_size() const { return panels_of(in_channels) * Kernel::kColumns; }
  // A vector more, for those that begin in the last channels.
  int64_t line_size() const { return columns * in_channels + Kernel::kLanes; }
  int64_t products_size() const { return (columns + 2) * pixel_size() + Kernel::kLanes; }

  MIM4DD_INLINE Tile find(int64_t index) const {
    const int64_t row = index / column_tiles() % row_tiles;
    const int64_t left = index % column_tiles() * columns;
    return {
        index / column_tiles() / row_tiles, height * row / row_tiles,
        height * (row + 1) / row_tiles, left, std::min(left + columns, width)};
  }

  // Products of the pixels left - 1 … right of a row, zero outside the image.
  MIM4DD_INLINE void multiply(T* to, T* scratch, const Tile& tile, int64_t row) const {
    const int64_t size = pixel_size(), pixels = tile.right - tile.left + 2;
    if (row < 0 || row >= height) {
      std::memset(to, 0, pixels * size * sizeof(T));
      return;
    }
    const int64_t begin = std::max<int64_t>(tile.left - 1, 0);
    const int64_t end = std::min(tile.right + 1, width);
    if (begin == tile.left) std::memset(to, 0, size * sizeof(T));
    if (end == tile.right) std::memset(to + (pixels - 1) * size, 0, size * sizeof(T));
    const T* const from = grad_output + (tile.image * height + row) * width * out_channels;
    to += (begin - tile.left + 1) * size;
    for (int64_t pixel = begin; pixel < end; pixel += Kernel::kRows, to += Kernel::kRows * size) {
      const int64_t used = std::min<int64_t>(Kernel::kRows, end - pixel);
      multiply_panel(to, scratch, from + pixel * out_channels, used);
    }
  }
  MIM4DD_INLINE void multiply_panel(T* to, T* left, const T* pixels, int64_t used) const {
    T* const result = left + left_size();
    const int64_t depth = depth_of(out_channels), size = pixel_size();
    gather(left, pixels, used);
    for (int64_t n = 0; n < size; n += Kernel::kColumns) {
      Kernel::multiply_blocks(result, left, packed + n * depth, depth, false);
      for (int64_t i = 0; i < used; ++i) {
        for (int k = 0; k < Kernel::kColumns; k += Kernel::kLanes) {
          Vector part;
          Kernel::load(part, result + i * Kernel::kColumns + k);
          Kernel::store(to + i * size + n + k, part);
        }
      }
    }
  }
  // kRows pixels in blocks of kLanes channels. What is beyond the last pixel repeats it: it costs
  // nothing, and numbers left from before could be slow denormals.
  MIM4DD_INLINE void gather(T* to, const T* pixels, int64_t used) const {
    for (int64_t channel = 0; channel < out_channels; channel += Kernel::kLanes) {
      for (int64_t i = 0; i < Kernel::kRows; ++i, to += Kernel::kLanes) {
        const T* const pixel = pixels + std::min(i, used - 1) * out_channels;
        Vector part;
        Kernel::load_channels(part, pixel, channel, out_channels);
        Kernel::store(to, part);
      }
    }
  }

  // A row of the gradient. Vectors are written whole: the next pixel overwrites what is too much.
  MIM4DD_INLINE void write(T* line, const T* products, const Tile& tile, int64_t row) const {
    const int64_t size = pixel_size(), pixels = tile.right - tile.left;
    const T* windows[kTaps];
    for (int tap = 0; tap < kTaps; ++tap) {
      windows[tap] = products + (row + 1 - tap / 3 + 3) % 3 * products_size() +
                     (2 - tap % 3) * size + tap * in_channels;
    }
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      for (int64_t channel = 0; channel < in_channels; channel += Kernel::kLanes) {
        Vector sum = {};
#pragma GCC unroll 9
        for (int tap = 0; tap < kTaps; ++tap) {
          Vector part;
          Kernel::load(part, windows[tap] + pixel * size + channel);
          sum += part;
        }
        Kernel::store(line + pixel * in_channels + channel, sum);
      }
    }
    T* const to = grad_input + ((tile.image * height + row) * width + tile.left) * in_channels;
    std::memcpy(to, line, pixels * in_channels * sizeof(T));
  }
};

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
