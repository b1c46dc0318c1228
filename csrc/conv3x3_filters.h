// The gradient of 3×3 filters: the tasks that sum it over tiles in the transformed domain, and
// those that bring it back. A task writes what no other one writes.
#pragma once

#include "winograd.h"

namespace mim4dd {
namespace MIM4DD_ISA {

// Tiles to the gradient of the transformed filters, Σ V (A y Aᵀ): of one row of four points, over
// one chunk of the tiles. Columns and rows beyond the last channel stay unwritten, as nobody reads
// what becomes of them.
template <typename T>
struct FilterGradient {
  using Kernel = Winograd<T>;
  using Vector = typename Kernel::Vector;
  static constexpr int kResult = Kernel::kRows * Kernel::kColumns;
  // Vectors of output channels are written whole and read kRows numbers at a time.
  static constexpr int kWidth = std::max<int>(Kernel::kLanes, Kernel::kRows);

  Images<const T> grad_output, input;
  T* gradient;            // (chunks, 16, output tiles, input panels, kRows, kColumns)
  int64_t chunks, block;  // the tiles that are transformed at a time

  int64_t count() const { return 4 * chunks; }
  int64_t in_panels() const { return divide_up(input.channels, Kernel::kColumns); }
  int64_t out_panels() const { return divide_up(grad_output.channels, kWidth); }
  int64_t out_tiles() const { return out_panels() * (kWidth / Kernel::kRows); }
  int64_t point_size() const { return out_tiles() * in_panels() * kResult; }
  int64_t tile_size() const { return 4 * (in_panels() * Kernel::kColumns + out_panels() * kWidth); }
  int64_t scratch() const { return block * tile_size(); }

  MIM4DD_INLINE void operator()(T* scratch, int64_t index) const {
    const int64_t chunk = index / 4, tiles = input.grid.tiles();
    const int64_t begin = tiles * chunk / chunks, end = tiles * (chunk + 1) / chunks;
    T* const to = gradient + 4 * index * point_size();
    for (int64_t tile = begin; tile < end; tile += block) {
      const int64_t used = std::min(block, end - tile);
      const int64_t depth = round_up(used, Kernel::kSteps);
      T* const left = scratch + 4 * in_panels() * Kernel::kColumns * depth;
      Tile at(input.grid, tile);
      for (int64_t k = 0; k < depth; ++k, at.advance(input.grid)) {
        if (k == used) at = Tile(input.grid, tiles);  // which is read as zeros
        transform_input(scratch + k * Kernel::kColumns, at, index % 4, depth);
        transform_gradient(left + k * kWidth, at, index % 4, depth);
      }
      for (int64_t point = 0; point < 4; ++point) {
        multiply(
            to + point * point_size(), left + point * out_panels() * kWidth * depth,
            scratch + point * in_panels() * Kernel::kColumns * depth, depth, tile > begin);
      }
    }
  }

 private:
  MIM4DD_INLINE void multiply(T* to, const T* left, const T* right, int64_t depth, bool add) const {
    for (int64_t column = 0; column < in_panels(); ++column) {
      for (int64_t row = 0; row < out_tiles(); ++row) {
        const int64_t channel = row * Kernel::kRows;
        Kernel::template multiply_rows<kWidth>(
            to + (row * in_panels() + column) * kResult,
            left + channel / kWidth * kWidth * depth + channel % kWidth,
            right + column * Kernel::kColumns * depth, depth, add);
      }
    }
  }

  // first + sign second, in some pixels of a row.
  template <int kCount>
  static MIM4DD_INLINE void combine(
      Vector (&sum)[kCount],
      const T* const (&first)[kCount],
      const T* const (&second)[kCount],
      T sign,
      int64_t channel,
      int64_t channels) {
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) {
      Vector a, b;
      Kernel::load_channels(a, first[j], channel, channels);
      Kernel::load_channels(b, second[j], channel, channels);
      sum[j] = a + sign * b;
    }
  }

  // A row of Bᵀ d B.
  MIM4DD_INLINE void transform_input(T* to, const Tile& tile, int64_t row, int64_t depth) const {
    constexpr int kFirst[] = {-1, 0, 1, 0}, kSecond[] = {1, 1, 0, 2}, kSign[] = {-1, 1, -1, -1};
    const T *first[4], *second[4];
    for (int j = 0; j < 4; ++j) {
      first[j] = input.read(tile, kFirst[row], j - 1);
      second[j] = input.read(tile, kSecond[row], j - 1);
    }
    for (int64_t channel = 0; channel < input.channels; channel += Kernel::kLanes) {
      Vector d[4], v[4];
      combine(d, first, second, T(kSign[row]), channel, input.channels);
      Kernel::input_side(v, d);
      T* const panel =
          to + channel / Kernel::kColumns * Kernel::kColumns * depth + channel % Kernel::kColumns;
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        Kernel::store(panel + j * in_panels() * Kernel::kColumns * depth, v[j]);
      }
    }
  }

  // A row of A y Aᵀ.
  MIM4DD_INLINE void transform_gradient(T* to, const Tile& tile, int64_t row, int64_t depth) const {
    const T *first[2], *second[2];
    for (int j = 0; j < 2; ++j) {
      first[j] = row < 3 ? grad_output.read(tile, 0, j) : grad_output.zeros;
      second[j] = row > 0 ? grad_output.read(tile, 1, j) : grad_output.zeros;
    }
    for (int64_t channel = 0; channel < grad_output.channels; channel += Kernel::kLanes) {
      Vector y[2];
      combine(y, first, second, T(row < 2 ? 1 : -1), channel, grad_output.channels);
      const Vector m[4] = {y[0], y[0] + y[1], y[0] - y[1], -y[1]};
      T* const panel = to + channel / kWidth * kWidth * depth + channel % kWidth;
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) Kernel::store(panel + j * out_panels() * kWidth * depth, m[j]);
    }
  }
};

// The gradient of the transformed filters to that of the filters, (out_channels, 3, 3,
// in_channels), for one output channel.
template <typename T>
struct WriteFilterGradient {
  using Kernel = Winograd<T>;
  using Vector = typename Kernel::Vector;
  const FilterGradient<T>& sums;
  T* output;

  int64_t count() const { return sums.grad_output.channels; }

  MIM4DD_INLINE void operator()(T*, int64_t out) const {
    const int64_t channels = sums.input.channels, point_size = sums.point_size();
    T* const to = output + out * 9 * channels;
    for (int64_t channel = 0; channel < channels; channel += Kernel::kLanes) {
      const int64_t tile = out / Kernel::kRows * sums.in_panels() + channel / Kernel::kColumns;
      const T* from = sums.gradient + tile * sums.kResult + out % Kernel::kRows * Kernel::kColumns +
                      channel % Kernel::kColumns;
      Vector u[kPoints] = {}, g[9];
      for (int64_t chunk = 0; chunk < sums.chunks; ++chunk, from += kPoints * point_size) {
#pragma GCC unroll 16
        for (int p = 0; p < kPoints; ++p) {
          Vector part;
          Kernel::load(part, from + p * point_size);
          u[p] += part;
        }
      }
      Kernel::weight_adjoint(g, u);
#pragma GCC unroll 9
      for (int tap = 0; tap < 9; ++tap) {
        Kernel::store_channels(to + tap * channels, channel, channels, g[tap]);
      }
    }
  }
};

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
