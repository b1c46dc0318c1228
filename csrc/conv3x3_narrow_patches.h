// The 3×3 convolution of few channels and the gradient of its filters, by products of patches: the
// 9 C numbers around a pixel. They are made for a few pixels at a time, in the first cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "conv3x3.h"
#include "microkernel.h"

namespace mim4dd {
namespace MIM4DD_ISA {

// Rows of one image. Each pixel is one sum of 9 C products, wherever tiles of rows end.
template <typename T>
struct NarrowForward {
  using Kernel = Micro<T>;
  using Vector = typename Kernel::Vector;
  static constexpr int kRows = Kernel::kRows, kLanes = Kernel::kLanes;
  static constexpr int kColumns = Kernel::kColumns;

  int64_t batch, height, width, in_channels, out_channels;
  int64_t row_tiles;
  const T *input, *packed, *bias;  // packed: (panels, depth, kColumns); bias: (panels, kColumns)
  T* output;

  static int64_t depth_of(int64_t in_channels) {
    return round_up(kTaps * in_channels, Kernel::kSteps);
  }
  static int64_t panels_of(int64_t out_channels) { return divide_up(out_channels, kColumns); }
  int64_t count() const { return batch * row_tiles; }
  int64_t scratch() const {
    return 3 * line_size() + patch_size() + left_size() + kRows * kColumns;
  }

  MIM4DD_INLINE void operator()(T* scratch, int64_t index) const {
    const int64_t image = index / row_tiles, tile = index % row_tiles;
    const int64_t top = height * tile / row_tiles, bottom = height * (tile + 1) / row_tiles;
    T* const patch = scratch + 3 * line_size();
    for (int64_t row = top - 1; row <= bottom; ++row) {
      read_line(scratch + (row + 3) % 3 * line_size(), image, row);
      if (row <= top) continue;
      const T* const lines[3] = {
          scratch + (row + 1) % 3 * line_size(), scratch + (row + 2) % 3 * line_size(),
          scratch + row % 3 * line_size()};
      T* const to = output + (image * height + row - 1) * width * out_channels;
      for (int64_t pixel = 0; pixel < width; pixel += kRows) {
        const int64_t used = std::min<int64_t>(kRows, width - pixel);
        multiply(to + pixel * out_channels, patch, lines, pixel, used);
      }
    }
  }

 private:
  // A pixel more on both sides, and a vector for those that begin in the last numbers.
  int64_t line_size() const { return (width + 2) * in_channels + kLanes; }
  int64_t patch_size() const { return round_up(kTaps * in_channels, kLanes) + 2 * kLanes; }
  int64_t left_size() const { return kRows * round_up(kTaps * in_channels, kLanes); }

  MIM4DD_INLINE void read_line(T* line, int64_t image, int64_t row) const {
    std::memset(line, 0, line_size() * sizeof(T));
    if (row < 0 || row >= height) return;
    const T* const from = input + (image * height + row) * width * in_channels;
    std::memcpy(line + in_channels, from, width * in_channels * sizeof(T));
  }

  MIM4DD_INLINE void multiply(T* to, T* patch, const T* const* lines, int64_t pixel, int64_t used)
      const {
    T* const left = patch + patch_size();
    T* const result = left + left_size();
    const int64_t depth = depth_of(in_channels);
    for (int64_t i = 0; i < kRows; ++i) {  // what is beyond the last pixel repeats it
      gather(patch, lines, (pixel + std::min(i, used - 1)) * in_channels);
      for (int64_t k = 0; k < depth; k += kLanes) copy(left + k * kRows + i * kLanes, patch + k);
    }
    for (int64_t n = 0; n < out_channels; n += kColumns) {
      Kernel::multiply_blocks(result, left, packed + n * depth, depth, false);
      for (int64_t i = 0; i < used; ++i) {
        for (int64_t k = 0; k < kColumns && n + k < out_channels; k += kLanes) {
          Vector sum, shift;
          Kernel::load(sum, result + i * kColumns + k);
          Kernel::load(shift, bias + n + k);
          Kernel::store_channels(to + i * out_channels, n + k, out_channels, sum + shift);
        }
      }
    }
  }
  // Vectors are written whole: the next row overwrites what is too much, and zeros the last one's.
  MIM4DD_INLINE void gather(T* patch, const T* const* lines, int64_t begin) const {
    const int64_t size = 3 * in_channels;
    for (int row = 0; row < 3; ++row) {
      for (int64_t k = 0; k < size; k += kLanes) {
        copy(patch + row * size + k, lines[row] + begin + k);
      }
    }
    const Vector zeros = {};
    Kernel::store(patch + 3 * size, zeros);
  }
  static MIM4DD_INLINE void copy(T* to, const T* from) {
    Vector part;
    Kernel::load(part, from);
    Kernel::store(to, part);
  }
};

// The gradient of the filters over some images, in tiles of kRows taps by kColumns output channels.
template <typename T>
struct NarrowFilterGradient {
  using Kernel = Micro<T>;
  using Vector = typename Kernel::Vector;
  static constexpr int kRows = Kernel::kRows, kLanes = Kernel::kLanes;
  static constexpr int kColumns = Kernel::kColumns, kTile = kRows * kColumns;

  int64_t batch, height, width, in_channels, out_channels;
  int64_t chunks;  // of images: as many for every number of threads
  const T *input, *grad_output;
  T* sums;  // (chunks, panels, tap_tiles, kRows, kColumns)

  static int64_t sums_size(int64_t in_channels, int64_t out_channels) {
    return divide_up(out_channels, kColumns) * divide_up(kTaps * in_channels, kRows) * kTile;
  }
  int64_t count() const { return chunks; }
  int64_t scratch() const { return 3 * in_channels * line_size() + left_size() + right_size(); }

  MIM4DD_INLINE void operator()(T* scratch, int64_t chunk) const {
    T* const to = sums + chunk * sums_size(in_channels, out_channels);
    T* const left = scratch + 3 * in_channels * line_size();
    T* const right = left + left_size();
    const int64_t depth = round_up(width, Kernel::kSteps);
    bool add = false;
    for (int64_t image = batch * chunk / chunks; image < batch * (chunk + 1) / chunks; ++image) {
      read_planes(scratch, image, -1);
      read_planes(scratch, image, 0);
      for (int64_t row = 0; row < height; ++row, add = true) {
        read_planes(scratch, image, row + 1);
        for (int64_t tap = 0; tap < tap_tiles(); ++tap) gather(left, scratch, row, tap);
        T* tile = to;
        for (int64_t n = 0; n < out_channels; n += kColumns) {
          read_panel(right, image, row, n);
          for (int64_t tap = 0; tap < tap_tiles(); ++tap, tile += kTile) {
            const T* const taps = left + tap * kRows * padded_width();
            Kernel::multiply_blocks(tile, taps, right, depth, add);
          }
        }
      }
    }
  }

 private:
  int64_t tap_tiles() const { return divide_up(kTaps * in_channels, kRows); }
  int64_t padded_width() const { return round_up(width, kLanes); }
  int64_t line_size() const { return padded_width() + 2; }
  int64_t left_size() const { return tap_tiles() * kRows * padded_width(); }
  int64_t right_size() const { return padded_width() * kColumns; }

  // A row as planes, with zeros around it.
  MIM4DD_INLINE void read_planes(T* planes, int64_t image, int64_t row) const {
    T* const to = planes + (row + 3) % 3 * in_channels * line_size();
    std::memset(to, 0, in_channels * line_size() * sizeof(T));
    if (row < 0 || row >= height) return;
    const T* const from = input + (image * height + row) * width * in_channels;
    for (int64_t channel = 0; channel < in_channels; ++channel) {
      T* const plane = to + channel * line_size() + 1;
      for (int64_t x = 0; x < width; ++x) plane[x] = from[x * in_channels + channel];
    }
  }
  // kRows taps: of each, the numbers that it meets along a row, in blocks of kLanes pixels.
  MIM4DD_INLINE void gather(T* left, const T* planes, int64_t row, int64_t tile) const {
    T* const to = left + tile * kRows * padded_width();
    for (int64_t i = 0; i < kRows; ++i) {
      const int64_t place = tile * kRows + i, tap = place / in_channels;
      const bool is_tap = place < kTaps * in_channels;
      const T* const line =
          planes + ((row + tap / 3 + 2) % 3 * in_channels + place % in_channels) * line_size();
      for (int64_t x = 0; x < padded_width(); x += kLanes) {
        Vector part = {};
        if (is_tap) Kernel::load(part, line + x + tap % 3);
        Kernel::store(to + x * kRows + i * kLanes, part);
      }
    }
  }
  MIM4DD_INLINE void read_panel(T* right, int64_t image, int64_t row, int64_t n) const {
    const T* const from = grad_output + (image * height + row) * width * out_channels;
    for (int64_t x = 0; x < padded_width(); ++x, right += kColumns) {
      for (int64_t k = 0; k < kColumns; k += kLanes) {
        Vector part = {};
        if (x < width && n + k < out_channels) {
          Kernel::load_channels(part, from + x * out_channels, n + k, out_channels);
        }
        Kernel::store(right + k, part);
      }
    }
  }
};

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
