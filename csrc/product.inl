// Products of matrices on vectors.
#include <algorithm>
#include <type_traits>

#include "packing.h"
#include "parallel.h"
#include "product.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace {

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
  static constexpr int kRows = Packing<T>::kRows, kVectors = Kernel::kVectors;
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
    // The terms of a turned left side lie a row apart: rows of a power of two meet in few sets of
    // the first cache, and every panel would fetch them anew. Measured with 16 registers only.
    const bool turned = kRows == 6 && a.row_stride == 1 && a.column_stride != 1 &&
                        a.rows >= kPackedFrom && b.columns >= 4 * kColumns;
    const Workspace<T> multiples(turned ? a.rows * std::min(kRun, b.rows) : 0);
    const bool lying = b.column_stride == 1 && b.columns >= kColumns && a.rows < kPackedFrom;
    for (int64_t begin = 0; begin < b.rows; begin += kRun) {
      const Matrix<T> run = b.middle_rows(begin, std::min(b.rows, begin + kRun));
      Matrix<T> left{
          a.row(0) + begin * a.column_stride, a.rows, run.rows, a.row_stride, a.column_stride};
      if (turned) Packing<T>::template pack_left<kRows>(left, multiples.data());
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
          Packing<T>::pack_panel(run, column, packed);
        }
        in_groups<kRows>(a.rows, [&](int64_t i, auto count) MIM4DD_INLINE_LAMBDA {
          const Multiples of{
              turned ? multiples.data() + i * run.rows : left.row(i), turned ? 1 : a.row_stride,
              turned ? count() : a.column_stride};
          // What is left of the columns may need half of the sums.
          if (panel.last <= Kernel::kLanes) return tile<count(), 1>(panel, i, of);
          tile<count(), kVectors>(panel, i, of);
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
  // Of the left side, the rows of a tile.
  struct Multiples {
    const T* first;
    int64_t row_stride, term_stride;
  };

  template <int kA, int kB>
  MIM4DD_NOINLINE void tile(const Panel& panel, int64_t i, const Multiples& of) const {
    Vector sum[kA][kB] = {};
    // A result in the third cache comes while its sums are formed.
#pragma GCC unroll 8
    for (int m = 0; m < kA; ++m) {
      T* const row = out.row(i + m) + panel.column;
#pragma GCC unroll 2
      for (int n = 0; n < kB; ++n) __builtin_prefetch(row + n * Kernel::kLanes, 1);
    }
    const T* from = panel.right;
    const T* multiples = of.first;
    for (int64_t j = 0; j < panel.terms; ++j, from += panel.stride, multiples += of.term_stride) {
      // The terms of a transposed left side lie farther apart than a CPU looks ahead.
      __builtin_prefetch(multiples + kAhead * of.term_stride);
      Vector right[kB];
#pragma GCC unroll 2
      for (int n = 0; n < kB; ++n) Kernel::load(right[n], from + n * Kernel::kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < kA; ++m) {
        const Vector multiple = multiples[m * of.row_stride] - Vector{};  // see Micro::advance
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
