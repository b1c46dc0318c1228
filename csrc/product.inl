// Products of matrices on vectors.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "microkernel.h"
#include "product.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace {

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

template <typename T, int kCount>
MIM4DD_INLINE T sum_of(const T* lanes) {
  if constexpr (kCount == 1) {
    return *lanes;
  } else {
    constexpr int kHalf = kCount / 2;
    typedef T Half __attribute__((vector_size(kHalf * sizeof(T)), aligned(alignof(T))));
    const Half sum =
        *reinterpret_cast<const Half*>(lanes) + *reinterpret_cast<const Half*>(lanes + kHalf);
    return sum_of<T, kHalf>(reinterpret_cast<const T*>(&sum));
  }
}

// Rows of both sides lie along the depth: a result is a sum of products of vectors, then over
// their lanes.
template <typename T>
struct Dots {
  using Kernel = Micro<T>;
  using Vector = typename Kernel::Vector;
  // So many rows of each side, and what they sum to, are what registers hold.
  static constexpr int kRows = kManyRegisters ? 5 : 3;

  const Matrix<T> out, a, keys;
  const T alpha;

  // The sum over the lanes takes as long as a few of them; to turn a panel of the right side
  // around, as long as some rows.
  static bool wins(int64_t rows, int64_t depth) {
    return rows <= 16 && depth * static_cast<int64_t>(sizeof(T)) >= 128 * rows;
  }

  MIM4DD_INLINE void operator()() const {
    for (int64_t j = 0; j < keys.rows; j += kRows) {
      const int64_t columns = std::min<int64_t>(kRows, keys.rows - j);
      in_groups<kRows>(a.rows, [&](int64_t i, auto count) MIM4DD_INLINE_LAMBDA {
        if (columns == kRows) return tile<count(), kRows>(i, j);
        for (int64_t last = j; last < keys.rows; ++last) tile<count(), 1>(i, last);
      });
    }
  }

 private:
  template <int kA, int kB>
  MIM4DD_NOINLINE void tile(int64_t i, int64_t j) const {
    Vector sum[kA][kB] = {};
    int64_t d = 0;
    for (; d + Kernel::kLanes <= a.columns; d += Kernel::kLanes) {
      Vector right[kB];
#pragma GCC unroll 8
      for (int n = 0; n < kB; ++n) Kernel::load(right[n], keys.row(j + n) + d);
#pragma GCC unroll 8
      for (int m = 0; m < kA; ++m) {
        Vector left;
        Kernel::load(left, a.row(i + m) + d);
#pragma GCC unroll 8
        for (int n = 0; n < kB; ++n) sum[m][n] += left * right[n];
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < kA; ++m) {
#pragma GCC unroll 8
      for (int n = 0; n < kB; ++n) {
        T total = sum_of<T, Kernel::kLanes>(reinterpret_cast<const T*>(&sum[m][n]));
        for (int64_t rest = d; rest < a.columns; ++rest) {
          total += a.row(i + m)[rest] * keys.row(j + n)[rest];
        }
        out.row(i + m)[j + n] = alpha * total;
      }
    }
  }
};

// Rows of the right side, along the columns of the result: each adds its multiples.
template <typename T>
struct Combinations {
  using Kernel = Micro<T>;
  using Vector = typename Kernel::Vector;
  // Where a CPU has 16 registers, 12 of them hold sums, two the right side, and one a multiple.
  static constexpr int kRows = kManyRegisters ? 8 : 6, kVectors = Kernel::kVectors;
  static constexpr int64_t kColumns = Kernel::kColumns;
  // Terms summed in registers before they are added to the result: of more, float32 would round
  // too much, and a panel of the right side would leave the first cache.
  static constexpr int64_t kRun = 128;
  // Terms between what is multiplied and what is fetched.
  static constexpr int64_t kAhead = 32;
  // So many rows repay a panel's way into one place.
  static constexpr int64_t kPackedFrom = 4 * kRows + 1;

  const Matrix<T> out, a, b;
  const bool accumulate;
  const T alpha;

  MIM4DD_INLINE void operator()() const {
    alignas(64) T packed[kRun * kColumns];
    const bool lying = b.column_stride == 1 && b.columns >= kColumns && a.rows < kPackedFrom;
    for (int64_t begin = 0; begin < b.rows; begin += kRun) {
      const Matrix<T> run = b.middle_rows(begin, std::min(b.rows, begin + kRun));
      for (int64_t column = 0; column < b.columns; column += kColumns) {
        Panel panel{
            packed, kColumns, begin, run.rows, column, 0, std::min(kColumns, b.columns - column)};
        if (lying) {
          // The last panel is moved to end with the columns; what it shares is not written again.
          panel.first = kColumns - panel.last;
          panel.last = kColumns;
          panel.column -= panel.first;
          panel.right = run.data + panel.column;
          panel.stride = run.row_stride;
        } else {
          pack(run, column, packed);
        }
        in_groups<kRows>(a.rows, [&](int64_t i, auto count) MIM4DD_INLINE_LAMBDA {
          // What is left of the columns may need half of the sums.
          if (panel.last <= Kernel::kLanes) return tile<count(), 1>(panel, i);
          tile<count(), kVectors>(panel, i);
        });
      }
    }
  }

 private:
  // Of the right side, some rows and as many columns as a tile has.
  struct Panel {
    const T* right;
    int64_t stride;
    int64_t begin, terms;  // rows of the right side
    int64_t column;        // of the result, where the panel begins
    int64_t first, last;   // columns of the panel that are written
  };

  // Columns from `column` on of a run of rows, with zeros after the last one.
  static MIM4DD_INLINE void pack(const Matrix<T>& run, int64_t column, T* to) {
    const int64_t columns = std::min(kColumns, run.columns - column);
    if (columns < kColumns) std::fill_n(to, run.rows * kColumns, T(0));
    if (run.column_stride == 1) return pack_rows(run, column, columns, to);
    for (int64_t c = 0; c < columns; c += Kernel::kLanes) {
      pack_columns(run, column + c, std::min<int64_t>(Kernel::kLanes, columns - c), to + c);
    }
  }

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

  template <int kA, int kB>
  MIM4DD_NOINLINE void tile(const Panel& panel, int64_t i) const {
    Vector sum[kA][kB] = {};
    // A result in the third cache comes while its sums are formed.
#pragma GCC unroll 8
    for (int m = 0; m < kA; ++m) {
      T* const row = out.row(i + m) + panel.column;
#pragma GCC unroll 2
      for (int n = 0; n < kB; ++n) __builtin_prefetch(row + n * Kernel::kLanes, 1);
    }
    const T* from = panel.right;
    const T* multiples = a.row(i) + panel.begin * a.column_stride;
    for (int64_t j = 0; j < panel.terms; ++j, from += panel.stride, multiples += a.column_stride) {
      // The terms of a transposed left side lie farther apart than a CPU looks ahead.
      __builtin_prefetch(multiples + kAhead * a.column_stride);
      Vector right[kB];
#pragma GCC unroll 2
      for (int n = 0; n < kB; ++n) Kernel::load(right[n], from + n * Kernel::kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < kA; ++m) {
        const Vector multiple = multiples[m * a.row_stride] - Vector{};  // see Micro::advance
#pragma GCC unroll 2
        for (int n = 0; n < kB; ++n) sum[m][n] += multiple * right[n];
      }
    }
    const bool add = accumulate || panel.begin > 0;
#pragma GCC unroll 8
    for (int m = 0; m < kA; ++m) write(sum[m], out.row(i + m) + panel.column, panel, add);
  }

  template <int kB>
  MIM4DD_INLINE void write(const Vector (&sum)[kB], T* row, const Panel& panel, bool add) const {
    if (panel.last - panel.first < kB * Kernel::kLanes) {
      T values[kB * Kernel::kLanes];
#pragma GCC unroll 2
      for (int n = 0; n < kB; ++n) Kernel::store(values + n * Kernel::kLanes, sum[n]);
      for (int64_t c = panel.first; c < panel.last; ++c) {
        row[c] = alpha * values[c] + (add ? row[c] : T(0));
      }
      return;
    }
#pragma GCC unroll 2
    for (int n = 0; n < kB; ++n) {
      Vector result = alpha * sum[n];
      if (add) {
        Vector old;
        Kernel::load(old, row + n * Kernel::kLanes);
        result += old;
      }
      Kernel::store(row + n * Kernel::kLanes, result);
    }
  }
};

template <typename T>
bool multiply(
    const Matrix<T>& out,
    const Matrix<T>& a,
    const Matrix<T>& b,
    bool accumulate,
    T alpha) {
  // Of other CPUs it was not measured which is faster.
  if (kVectorBytes < 32) return false;
  if (out.column_stride != 1 || a.rows == 0 || a.columns == 0) return false;
  const bool along_depth = a.column_stride == 1 && b.row_stride == 1;
  if (!accumulate && along_depth && Dots<T>::wins(a.rows, a.columns)) {
    Dots<T>{out, a, b.transposed(), alpha}();
    return true;
  }
  if (b.column_stride != 1 && b.row_stride != 1) return false;
  Combinations<T>{out, a, b, accumulate, alpha}();
  return true;
}

template <typename T>
constexpr Products<T> kProducts{multiply<T>};

}  // namespace

MIM4DD_TABLE(Products, float)
MIM4DD_TABLE(Products, double)

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
