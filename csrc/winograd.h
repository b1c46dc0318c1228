// F(2×2, 3×3): a 3×3 convolution as 16 products of matrices instead of 36, on tiles of 2×2 outputs
// that read 4×4 inputs (Lavin & Gray 2016). With V = Bᵀ d B, U = G g Gᵀ and M = Σ U V over
// channels, the output is Aᵀ M A; the gradient of U is Σ V (A y Aᵀ) over tiles. All on vectors of
// channels.
//
//   Bᵀ = 1  0 −1  0     G = 1    0    0      Aᵀ = 1  1  1  0
//        0  1  1  0         1/2  1/2  1/2         0  1 −1 −1
//        0 −1  1  0         1/2 −1/2  1/2
//        0  1  0 −1         0    0    1
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv3x3.h"
#include "microkernel.h"

namespace mim4dd {
namespace MIM4DD_ISA {

constexpr int kPoints = 16;  // of the transformed domain, row by row

// Where a tile starts; in an image that there is not beyond the last one.
struct Tile {
  int64_t image, row, column;

  Tile(const Grid& grid, int64_t index)
      : image(index / (grid.tile_rows() * grid.tile_columns())),
        row(2 * (index / grid.tile_columns() % grid.tile_rows())),
        column(2 * (index % grid.tile_columns())) {}

  void advance(const Grid& grid) {
    if ((column += 2) < grid.width) return;
    column = 0;
    if ((row += 2) < grid.height) return;
    row = 0;
    ++image;
  }
};

// A tensor of images, and as many zeros as it has channels for what is outside.
template <typename T>
struct Images {
  Grid grid;
  int64_t channels;
  T* data;
  const T* zeros;

  // The pixel at an offset from a tile, or null.
  T* find(const Tile& tile, int64_t row, int64_t column) const {
    row += tile.row;
    column += tile.column;
    const bool inside = tile.image < grid.batch && row >= 0 && row < grid.height && column >= 0 &&
                        column < grid.width;
    return inside ? data + ((tile.image * grid.height + row) * grid.width + column) * channels
                  : nullptr;
  }
  const T* read(const Tile& tile, int64_t row, int64_t column) const {
    const T* pixel = find(tile, row, column);
    return pixel ? pixel : zeros;
  }
};

template <typename T>
struct Winograd : Micro<T> {
  using typename Micro<T>::Vector;

  // One side of Bᵀ d B.
  static MIM4DD_INLINE void input_side(Vector (&v)[4], const Vector (&d)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  static MIM4DD_INLINE void input(Vector (&v)[kPoints], const Vector (&d)[kPoints]) {
    Vector half[4][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vector column[4] = {d[j], d[4 + j], d[8 + j], d[12 + j]};
      input_side(half[j], column);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vector row[4] = {half[0][i], half[1][i], half[2][i], half[3][i]};
      Vector out[4];
      input_side(out, row);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) v[4 * i + j] = out[j];
    }
  }

  // y = Aᵀ m A, (2, 2).
  static MIM4DD_INLINE void output(Vector (&y)[4], const Vector (&m)[kPoints]) {
    Vector half[2][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      half[0][j] = m[j] + m[4 + j] + m[8 + j];
      half[1][j] = m[4 + j] - m[8 + j] - m[12 + j];
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      y[2 * i] = half[i][0] + half[i][1] + half[i][2];
      y[2 * i + 1] = half[i][1] - half[i][2] - half[i][3];
    }
  }

  // One side of G g Gᵀ.
  static MIM4DD_INLINE void weight_side(Vector (&u)[4], const Vector (&g)[3]) {
    const Vector even = (g[0] + g[2]) * T(0.5), odd = g[1] * T(0.5);
    u[0] = g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = g[2];
  }
  static MIM4DD_INLINE void weight(Vector (&u)[kPoints], const Vector (&g)[9]) {
    Vector half[3][4];
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
      const Vector column[3] = {g[j], g[3 + j], g[6 + j]};
      weight_side(half[j], column);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vector row[3] = {half[0][i], half[1][i], half[2][i]};
      Vector out[4];
      weight_side(out, row);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) u[4 * i + j] = out[j];
    }
  }

  // One side of Gᵀ u G, the adjoint of `weight`.
  static MIM4DD_INLINE void weight_adjoint_side(Vector (&g)[3], const Vector (&u)[4]) {
    const Vector even = (u[1] + u[2]) * T(0.5);
    g[0] = u[0] + even;
    g[1] = (u[1] - u[2]) * T(0.5);
    g[2] = u[3] + even;
  }
  static MIM4DD_INLINE void weight_adjoint(Vector (&g)[9], const Vector (&u)[kPoints]) {
    Vector half[4][3];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vector column[4] = {u[j], u[4 + j], u[8 + j], u[12 + j]};
      weight_adjoint_side(half[j], column);
    }
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      const Vector row[4] = {half[0][i], half[1][i], half[2][i], half[3][i]};
      Vector out[3];
      weight_adjoint_side(out, row);
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) g[3 * i + j] = out[j];
    }
  }
};

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
