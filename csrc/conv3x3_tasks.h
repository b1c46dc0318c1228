// The tasks that a 3×3 convolution is made of. A task writes what no other one writes.
#pragma once

#include <cstring>

#include "winograd.h"

namespace mim4dd {
namespace MIM4DD_ISA {

// Sizes of a convolution of one or two inputs, each with filters of its own, that are added up.
template <typename T>
struct Layout {
  using Kernel = Winograd<T>;
  int64_t inputs, in_channels, out_channels;

  int64_t blocks() const { return divide_up(in_channels, Kernel::kLanes); }
  int64_t depth() const {
    return (inputs - 1) * blocks() * Kernel::kLanes + round_up(in_channels, Kernel::kSteps);
  }
  int64_t out_panels() const { return divide_up(out_channels, Kernel::kColumns); }
  // One line more than the numbers: points a power of two apart would share a set of the cache.
  int64_t point_stride() const {
    return inputs * blocks() * Kernel::kRows * Kernel::kLanes + Kernel::kLanes;
  }
  int64_t tile_panel() const { return kPoints * point_stride(); }
  int64_t out_panel() const { return kPoints * depth() * Kernel::kColumns; }
};

// Filters to (output panel, point, depth, kColumns), for one panel and kLanes input channels.
template <typename T>
struct TransformFilters {
  using Kernel = Winograd<T>;
  using Vector = typename Kernel::Vector;
  Layout<T> layout;
  Filters<T> filters[2];
  T* packed;

  int64_t count() const { return layout.out_panels() * layout.inputs * layout.blocks(); }

  MIM4DD_INLINE void operator()(T*, int64_t index) const {
    const int64_t block = index % layout.blocks();
    const int64_t input = index / layout.blocks() % layout.inputs;
    const int64_t panel = index / layout.blocks() / layout.inputs;
    const int64_t first = (input * layout.blocks() + block) * Kernel::kLanes;
    const int64_t rows = std::min<int64_t>(Kernel::kLanes, layout.depth() - first);
    T* const to = packed + panel * layout.out_panel() + first * Kernel::kColumns;
    Taps taps[Kernel::kLanes];
    gather(taps, filters[input], panel * Kernel::kColumns, block * Kernel::kLanes);
    for (int64_t k = 0; k < rows; ++k) transform(to + k * Kernel::kColumns, taps[k]);
  }

 private:
  using Taps = T[9][Kernel::kColumns];

  // taps[in][tap][out], zero beyond the last channels, by loops along what is contiguous.
  static MIM4DD_INLINE void
  gather(Taps (&taps)[Kernel::kLanes], const Filters<T>& from, int64_t out, int64_t in) {
    const int64_t columns = std::min<int64_t>(Kernel::kColumns, from.out_channels - out);
    const int64_t rows = std::min<int64_t>(Kernel::kLanes, from.in_channels - in);
    if (columns < Kernel::kColumns || rows < Kernel::kLanes) std::memset(taps, 0, sizeof taps);
    for (int tap = 0; tap < 9; ++tap) {
      const T* source = from.at(out, tap, in);
      if (from.out_stride == 1) {
        for (int64_t k = 0; k < rows; ++k, source += from.in_stride) {
          for (int64_t n = 0; n < columns; ++n) taps[k][tap][n] = source[n];
        }
      } else {
        for (int64_t n = 0; n < columns; ++n, source += from.out_stride) {
          for (int64_t k = 0; k < rows; ++k) taps[k][tap][n] = source[k * from.in_stride];
        }
      }
    }
  }
  MIM4DD_INLINE void transform(T* to, const Taps& taps) const {
    for (int n = 0; n < Kernel::kColumns; n += Kernel::kLanes) {
      Vector g[9], u[kPoints];
#pragma GCC unroll 9
      for (int tap = 0; tap < 9; ++tap) Kernel::load(g[tap], taps[tap] + n);
      Kernel::weight(u, g);
#pragma GCC unroll 16
      for (int p = 0; p < kPoints; ++p) {
        Kernel::store(to + p * layout.depth() * Kernel::kColumns + n, u[p]);
      }
    }
  }
};

// Some panels of kRows tiles from input to output.
template <typename T>
struct Convolve {
  using Kernel = Winograd<T>;
  using Vector = typename Kernel::Vector;
  Layout<T> layout;
  Images<const T> inputs[2];
  const T *packed, *bias;  // bias: null or (out_channels)
  Images<T> output;
  int64_t panels;  // of a task

  int64_t count() const { return divide_up(output.grid.tiles(), panels * Kernel::kRows); }
  int64_t scratch() const { return panels * layout.tile_panel() + kPoints * kResult; }

  MIM4DD_INLINE void operator()(T* scratch, int64_t index) const {
    const int64_t begin = index * panels * Kernel::kRows;
    const int64_t used = std::min(
        panels, divide_up(output.grid.tiles() - begin, static_cast<int64_t>(Kernel::kRows)));
    T* const result = scratch + panels * layout.tile_panel();
    Tile tile(output.grid, begin);
    for (int64_t i = 0; i < used * Kernel::kRows; ++i, tile.advance(output.grid)) {
      T* to =
          scratch + i / Kernel::kRows * layout.tile_panel() + i % Kernel::kRows * Kernel::kLanes;
      for (int64_t source = 0; source < layout.inputs; ++source) {
        transform(to, inputs[source], tile);
        to += layout.blocks() * Kernel::kRows * Kernel::kLanes;
      }
    }
    for (int64_t column = 0; column < layout.out_panels(); ++column) {
      const T* right = packed + column * layout.out_panel();
      for (int64_t panel = 0; panel < used; ++panel) {
        const T* left = scratch + panel * layout.tile_panel();
        for (int p = 0; p < kPoints; ++p) {
          Kernel::multiply_blocks(
              result + p * kResult, left + p * layout.point_stride(),
              right + p * layout.depth() * Kernel::kColumns, layout.depth(), false);
        }
        write(result, begin + panel * Kernel::kRows, column * Kernel::kColumns);
      }
    }
  }

 private:
  static constexpr int kResult = Kernel::kRows * Kernel::kColumns;

  MIM4DD_INLINE void transform(T* to, const Images<const T>& from, const Tile& tile) const {
    const T* pixels[kPoints];
    for (int i = 0; i < kPoints; ++i) pixels[i] = from.read(tile, i / 4 - 1, i % 4 - 1);
    for (int64_t channel = 0; channel < from.channels; channel += Kernel::kLanes) {
      Vector d[kPoints], v[kPoints];
#pragma GCC unroll 16
      for (int i = 0; i < kPoints; ++i) {
        Kernel::load_channels(d[i], pixels[i], channel, from.channels);
      }
      Kernel::input(v, d);
#pragma GCC unroll 16
      for (int p = 0; p < kPoints; ++p) {
        Kernel::store(to + p * layout.point_stride() + channel * Kernel::kRows, v[p]);
      }
    }
  }
  MIM4DD_INLINE void write(const T* result, int64_t first, int64_t channel) const {
    const int64_t columns = std::min<int64_t>(Kernel::kColumns, layout.out_channels - channel);
    Tile tile(output.grid, first);
    for (int row = 0; row < Kernel::kRows; ++row, tile.advance(output.grid)) {
      T* pixels[4];
      for (int i = 0; i < 4; ++i) pixels[i] = output.find(tile, i / 2, i % 2);
      if (!pixels[0]) return;  // nor is there a tile after it
      for (int64_t n = 0; n < columns; n += Kernel::kLanes) {
        Vector m[kPoints], y[4], offset = {};
#pragma GCC unroll 16
        for (int p = 0; p < kPoints; ++p) {
          Kernel::load(m[p], result + p * kResult + row * Kernel::kColumns + n);
        }
        Kernel::output(y, m);
        if (bias) Kernel::load_channels(offset, bias, channel + n, layout.out_channels);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          if (!pixels[i]) continue;
          Kernel::store_channels(pixels[i], channel + n, layout.out_channels, y[i] + offset);
        }
      }
    }
  }
};

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
