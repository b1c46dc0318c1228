#include "unpacked.h"

#include <algorithm>
#include <type_traits>

#include "microkernel.h"

namespace mim4dd {
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
template <typename T, typename Isa>
struct Dots {
  using Kernel = Micro<T, Isa>;
  using Vector = typename Kernel::Vector;
  // So many rows of each side, and what they sum to, are what registers hold.
  static constexpr int kRows = Isa::kRows == 8 ? 5 : 3;
  // All rows of the left side stream by for every few of the right one.
  static constexpr int64_t kMostRows = Isa::kRows * 8;

  const Matrix<T> out, a, keys;
  const T alpha;

  // The sum over the lanes takes as long as a few of them, and the library is the better the more
  // rows there are.
  static bool wins(int64_t rows, int64_t depth) {
    return rows <= kMostRows &&
           depth * static_cast<int64_t>(sizeof(T)) >= 64 * std::min<int64_t>(rows, 32);
  }

  MIM4DD_INLINE void operator()() const {
    const int64_t rows = divide_up(a.rows, divide_up(a.rows, kRows));  // of groups alike
    for (int64_t j = 0; j < keys.rows; j += kRows) {
      const int64_t columns = std::min<int64_t>(kRows, keys.rows - j);
      for (int64_t i = 0; i < a.rows; i += rows) {
        with_count<kRows>(std::min(rows, a.rows - i), [&](auto count) MIM4DD_INLINE_LAMBDA {
          if (columns == kRows) return tile<count(), kRows>(i, j);
          for (int64_t last = j; last < keys.rows; ++last) tile<count(), 1>(i, last);
        });
      }
    }
  }

 private:
  template <int kA, int kB>
  MIM4DD_INLINE void tile(int64_t i, int64_t j) const {
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

// Rows of the right side lie along the columns of the result: each adds its multiples.
template <typename T, typename Isa>
struct Combinations {
  using Kernel = Micro<T, Isa>;
  using Vector = typename Kernel::Vector;
  static constexpr int kRows = Kernel::kRows, kVectors = Kernel::kVectors;
  static constexpr int64_t kColumns = Kernel::kColumns;
  // Terms summed in registers before they are added to the result: of more, float32 would round
  // too much, and the rows of the right side would leave the first cache between groups of rows.
  static constexpr int64_t kRun = 128;

  const Matrix<T> out, a, b;
  const bool accumulate;
  const T alpha;

  // The last panel of columns is moved to end with them, so part of it is formed twice. Results of
  // many rows must stay in the second cache, and registers be many, to be ahead of a library there.
  static bool wins(int64_t rows, int64_t columns) {
    const bool few = rows <= 32 || (kRows == 8 && rows * columns <= int64_t{1} << 17);
    return few && columns >= kColumns && 8 * round_up(columns, kColumns) <= 9 * columns;
  }

  MIM4DD_INLINE void operator()() const {
    for (int64_t j = 0; j < b.rows; j += kRun) {
      for (int64_t column = 0; column < b.columns; column += kColumns) {
        for (int64_t i = 0; i < a.rows; i += kRows) {
          with_count<kRows>(
              a.rows - i, [&](auto count) MIM4DD_INLINE_LAMBDA { tile<count()>(i, j, column); });
        }
      }
    }
  }

 private:
  template <int kA>
  MIM4DD_INLINE void tile(int64_t i, int64_t begin, int64_t column) const {
    const int64_t left = std::min(column, b.columns - kColumns);
    const int64_t end = std::min(b.rows, begin + kRun);
    Vector sum[kA][kVectors] = {};
    for (int64_t j = begin; j < end; ++j) {
      Vector right[kVectors];
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) {
        Kernel::load(right[n], b.row(j) + left + n * Kernel::kLanes);
      }
#pragma GCC unroll 8
      for (int m = 0; m < kA; ++m) {
        const Vector multiple = a.row(i + m)[j * a.column_stride] - Vector{};  // see Micro::advance
#pragma GCC unroll 2
        for (int n = 0; n < kVectors; ++n) sum[m][n] += multiple * right[n];
      }
    }
    const bool add = accumulate || begin > 0;
#pragma GCC unroll 8
    for (int m = 0; m < kA; ++m) write(sum[m], out.row(i + m) + left, column - left, add);
  }

  // The first `skipped` columns are those of another panel.
  MIM4DD_INLINE void write(const Vector (&sum)[kVectors], T* row, int64_t skipped, bool add) const {
    if (skipped > 0) {
      const T* const values = reinterpret_cast<const T*>(&sum);
      for (int64_t c = skipped; c < kColumns; ++c) {
        row[c] = alpha * values[c] + (add ? row[c] : T(0));
      }
      return;
    }
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) {
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

template <typename T, typename Isa>
bool multiply_on(
    const Matrix<T>& out,
    const Matrix<T>& a,
    const Matrix<T>& b,
    bool accumulate,
    T alpha) {
  if (b.column_stride == 1) {
    if (!Combinations<T, Isa>::wins(a.rows, b.columns)) return false;
    Isa::call(Combinations<T, Isa>{out, a, b, accumulate, alpha});
    return true;
  }
  const bool along_depth = a.column_stride == 1 && b.row_stride == 1;
  if (accumulate || !along_depth || !Dots<T, Isa>::wins(a.rows, a.columns)) return false;
  Isa::call(Dots<T, Isa>{out, a, b.transposed(), alpha});
  return true;
}

}  // namespace

template <typename T>
bool multiply_unpacked(
    const Matrix<T>& out,
    const Matrix<T>& a,
    const Matrix<T>& b,
    bool accumulate,
    T alpha) {
  if (out.column_stride != 1 || a.rows == 0 || a.columns == 0) return false;
  bool done = false;
  with_isa([&](auto isa) {
    using Isa = decltype(isa);
    // Of other CPUs it was not measured which is faster.
    if constexpr (!std::is_same_v<Isa, Baseline>) {
      done = multiply_on<T, Isa>(out, a, b, accumulate, alpha);
    }
  });
  return done;
}

template bool
multiply_unpacked(const Matrix<float>&, const Matrix<float>&, const Matrix<float>&, bool, float);
template bool multiply_unpacked(
    const Matrix<double>&,
    const Matrix<double>&,
    const Matrix<double>&,
    bool,
    double);

}  // namespace mim4dd
