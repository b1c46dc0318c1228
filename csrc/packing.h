// Operands on their way into the order in which products read them.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "matrix.h"
#include "microkernel.h"

namespace mim4dd {
namespace MIM4DD_ISA {

// body(std::integral_constant<int, n>()) for an n from 1 to kMost, as what depends on it is
// unrolled.
template <int kMost, typename Body>
MIM4DD_INLINE void with_count(int64_t n, const Body& body) {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_count<kMost - 1>(n, body);
  }
  body(std::integral_constant<int, kMost>());
}

// body(first, std::integral_constant<int, n>()) for groups of n of the rows, at most kMost, and all
// about as large: what a small group loads serves few sums.
template <int kMost, typename Body>
MIM4DD_INLINE void in_groups(int64_t rows, const Body& body) {
  for (int64_t first = 0, n; first < rows; first += n) {
    const int64_t left = rows - first;
    n = divide_up(left, divide_up(left, kMost));
    with_count<kMost>(n, [&](auto count) MIM4DD_INLINE_LAMBDA { body(first, count); });
  }
}

template <typename T>
struct Packing {
  using Kernel = Micro<T>;
  using Vector = typename Kernel::Vector;
  static constexpr int kVectors = Kernel::kVectors;
  static constexpr int64_t kColumns = Kernel::kColumns;
  // Rows of a tile of the result. Where a CPU has 16 registers, 12 of them hold sums, two the right
  // side, and one a multiple.
  static constexpr int kRows = kManyRegisters ? 8 : 6;

  // Columns from `column` on of a run of rows, with zeros after the last one.
  static MIM4DD_INLINE void pack_panel(const Matrix<T>& run, int64_t column, T* to) {
    const int64_t columns = std::min(kColumns, run.columns - column);
    if (columns < kColumns) std::fill_n(to, run.rows * kColumns, T(0));
    if (run.column_stride == 1) return pack_rows(run, column, columns, to);
    for (int64_t c = 0; c < columns; c += Kernel::kLanes) {
      pack_columns(run, column + c, std::min<int64_t>(Kernel::kLanes, columns - c), to + c);
    }
  }

  // A left side (rows, terms) by groups of its rows: for each term, the rows' numbers beside each
  // other. Group i begins where its first row would, had each row as many numbers as terms.
  template <int kTogether>
  static MIM4DD_NOINLINE void pack_left(const Matrix<T>& left, T* to) {
    // So many terms at once: of a turned side, that many lines stay in the first cache.
    constexpr int64_t kAtOnce = 16;
    for (int64_t first = 0; first < left.columns; first += kAtOnce) {
      const int64_t last = std::min(left.columns, first + kAtOnce);
      in_groups<kTogether>(left.rows, [&](int64_t i, auto count) MIM4DD_INLINE_LAMBDA {
        T* group = to + i * left.columns + first * count();
        const T* from = left.row(i) + first * left.column_stride;
        for (int64_t j = first; j < last; ++j, group += count(), from += left.column_stride) {
          if (left.row_stride == 1) {
            std::memcpy(group, from, count() * sizeof(T));
            continue;
          }
          for (int m = 0; m < count(); ++m) group[m] = from[m * left.row_stride];
        }
      });
    }
  }

 private:
  static MIM4DD_INLINE void
  pack_rows(const Matrix<T>& run, int64_t column, int64_t columns, T* to) {
    for (int64_t j = 0; j < run.rows; ++j, to += kColumns) {
      const T* from = run.row(j) + column;
      if (columns < kColumns) {
        std::copy_n(from, columns, to);
        continue;
      }
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) {
        Vector values;
        Kernel::load(values, from + n * Kernel::kLanes);
        Kernel::store(to + n * Kernel::kLanes, values);
      }
    }
  }

  // Of columns that lie along the depth, a square of lanes at a time is transposed in registers.
  static MIM4DD_NOINLINE void
  pack_columns(const Matrix<T>& run, int64_t column, int64_t columns, T* to) {
    constexpr int kLanes = Kernel::kLanes;
    const T* const from = run.data + column * run.column_stride;
    int64_t j = 0;
    for (; j + kLanes <= run.rows && columns == kLanes; j += kLanes) {
      Vector square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) Kernel::load(square[i], from + i * run.column_stride + j);
      transpose<kLanes / 2>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) Kernel::store(to + (j + i) * kColumns, square[i]);
    }
    for (; j < run.rows; ++j) {
      for (int64_t c = 0; c < columns; ++c) to[j * kColumns + c] = from[c * run.column_stride + j];
    }
  }

  // Exchange what lies beside the diagonal, of the whole square and then of its quarters.
  template <int kHalf>
  static MIM4DD_INLINE void transpose(Vector (&square)[Kernel::kLanes]) {
    if constexpr (kHalf > 0) {
#pragma GCC unroll 16
      for (int i = 0; i < Kernel::kLanes; ++i) {
        if ((i & kHalf) == 0) {
          exchange<kHalf>(square[i], square[i + kHalf], std::make_index_sequence<Kernel::kLanes>());
        }
      }
      transpose<kHalf / 2>(square);
    }
  }

  template <int kHalf, size_t... kLane>
  static MIM4DD_INLINE void exchange(Vector& upper, Vector& lower, std::index_sequence<kLane...>) {
    constexpr int kLanes = Kernel::kLanes;
    const Vector before = upper;
    pick<(kLane & kHalf ? kLanes + kLane - kHalf : kLane)...>(upper, before, lower);
    pick<(kLane & kHalf ? kLanes + kLane : kLane + kHalf)...>(lower, before, lower);
  }

  // Lanes of both vectors, those of b counted on from those of a.
  template <size_t... kLane>
  static MIM4DD_INLINE void pick(Vector& to, const Vector& a, const Vector& b) {
#if defined(__clang__)
    to = __builtin_shufflevector(a, b, kLane...);
#else  // GCC has that only from 12 on
    using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    typedef Index Lanes __attribute__((vector_size(kVectorBytes)));
    to = __builtin_shuffle(a, b, Lanes{static_cast<Index>(kLane)...});
#endif
  }
};

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
