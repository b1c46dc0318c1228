// Products with panels on vectors.
#include "packing.h"
#include "panels.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace {

template <typename T>
struct PanelProducts {
  using Kernel = Micro<T>;
  using Vector = typename Kernel::Vector;
  static constexpr int kLanes = Kernel::kLanes, kVectors = Kernel::kVectors;
  // Rows of a tile: of 32 registers 28 hold sums, two the right side, and one a multiple. Of 8 rows
  // a Xeon loads more than its fused multiply-adds wait for.
  static constexpr int kRows = kManyRegisters ? 14 : 6;
  static constexpr int64_t kColumns = Kernel::kColumns;
  // Terms between what is multiplied and what is fetched.
  static constexpr int64_t kAhead = 64;
  // Numbers in a line of the cache: with AVX-512, a row of a tile is two of them.
  static constexpr int64_t kLine = 64 / sizeof(T);

  // The rows of a tile of the left side: `chunks` of so many terms, `stride` numbers apart. kTerms:
  // their number, where it is known to the compiler.
  template <int kTerms>
  struct Left {
    const T* first;
    int64_t chunks, stride, some;

    MIM4DD_INLINE int64_t terms() const { return kTerms > 0 ? kTerms : some; }
  };

  // out (kA, kColumns) = alpha left right, or +=. In a chunk, rows lie kRowStride apart, terms
  // kTermStride.
  template <int kA, int kRowStride, int kTermStride, int kTerms>
  static MIM4DD_NOINLINE void
  tile(T* out, int64_t out_stride, const Left<kTerms>& left, const T* right, bool add, T alpha) {
    Vector sum[kA][kVectors] = {};
#pragma GCC unroll 16
    for (int m = 0; m < kA; ++m) {
      for (int64_t n = 0; n < kColumns; n += kLine) __builtin_prefetch(out + m * out_stride + n, 1);
    }
    for (int64_t chunk = 0; chunk < left.chunks; ++chunk) {
      const T* from = left.first + chunk * left.stride;
      if constexpr (kTerms > 0) {  // the next one is out of the CPU's sight
#pragma GCC unroll 16
        for (int m = 0; m < kA; ++m) {
          for (int64_t n = 0; n < kTerms; n += kLine) {
            __builtin_prefetch(from + left.stride + m * kRowStride + n);
          }
        }
      }
      for (int64_t j = 0; j < left.terms(); ++j, from += kTermStride, right += kColumns) {
        // Of 512 terms the left side comes from beyond the second cache, faster than a CPU looks.
        if constexpr (kTerms == 0) __builtin_prefetch(from + kAhead * kTermStride);
        Vector values[kVectors];
#pragma GCC unroll 2
        for (int n = 0; n < kVectors; ++n) Kernel::load(values[n], right + n * kLanes);
#pragma GCC unroll 16
        for (int m = 0; m < kA; ++m) {
          const Vector multiple = from[m * kRowStride] - Vector{};  // see Micro::advance
#pragma GCC unroll 2
          for (int n = 0; n < kVectors; ++n) sum[m][n] += multiple * values[n];
        }
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kA; ++m) {
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) {
        T* const to = out + m * out_stride + n * kLanes;
        Vector result = alpha * sum[m][n];
        if (add) {
          Vector old;
          Kernel::load(old, to);
          result += old;
        }
        Kernel::store(to, result);
      }
    }
  }

  struct MultiplyPanel {
    T* const out;
    const T *const left, *const right;
    const int64_t rows, terms;
    const bool add;
    const T alpha;

    MIM4DD_INLINE void operator()() const {
      for (int64_t begin = 0; begin < terms; begin += kPanelRun) {
        const int64_t run = std::min(kPanelRun, terms - begin);
        in_groups<kRows>(rows, [&](int64_t i, auto count) MIM4DD_INLINE_LAMBDA {
          const Left<0> group{left + begin * rows + i * run, 1, 0, run};
          tile<count(), 1, count()>(
              out + i * kColumns, kColumns, group, right + begin * kColumns, add || begin > 0,
              alpha);
        });
      }
    }
  };

  struct MultiplyWeights {
    const Matrix<T> out;
    const T* const weights;
    const int64_t stride, queries;
    const T* const right;
    const bool add;

    MIM4DD_INLINE void operator()() const {
      for (int64_t begin = 0; begin < queries; begin += kPanelRun) {
        const int64_t run = std::min(kPanelRun, queries - begin);
        for (int64_t column = 0; column < out.columns; column += kColumns) {
          const T* panel = right + begin * round_up(out.columns, kColumns) + column * run;
          in_groups<kRows>(out.rows, [&](int64_t i, auto count) MIM4DD_INLINE_LAMBDA {
            const T* from = weights + begin / kColumns * stride + i * kColumns;
            const Left<kColumns> whole{from, run / kColumns, stride, kColumns};
            write<count()>(whole, run % kColumns, i, column, panel, add || begin > 0);
          });
        }
      }
    }

   private:
    template <int kA>
    MIM4DD_INLINE void write(
        const Left<kColumns>& left,
        int64_t rest,
        int64_t i,
        int64_t column,
        const T* panel,
        bool adds) const {
      const int64_t width = std::min(kColumns, out.columns - column);
      T* const to = out.row(i) + column;
      if (rest == 0 && width == kColumns) {
        return tile<kA, kColumns, 1>(to, out.row_stride, left, panel, adds, T(1));
      }
      // The last queries, which fill no panel, or columns.
      T values[kA * kColumns];
      tile<kA, kColumns, 1>(values, kColumns, left, panel, false, T(1));
      if (rest > 0) {
        const Left<0> last{left.first + left.chunks * left.stride, 1, 0, rest};
        const T* after = panel + left.chunks * kColumns * kColumns;
        tile<kA, kColumns, 1>(values, kColumns, last, after, true, T(1));
      }
      for (int m = 0; m < kA; ++m) {
        T* const row = to + m * out.row_stride;
        for (int64_t c = 0; c < width; ++c) {
          row[c] = values[m * kColumns + c] + (adds ? row[c] : T(0));
        }
      }
    }
  };

  struct Exponentiate {
    T* const logits;
    const int64_t keys;
    const T* const shifts;
    T* const sums;

    MIM4DD_INLINE void operator()() const {
      T run[kColumns] = {}, shift[kColumns];
      std::copy_n(shifts, kColumns, shift);
      for (int64_t j = 0; j < keys; ++j) {
        T* const row = logits + j * kColumns;
#pragma omp simd
        for (int64_t i = 0; i < kColumns; ++i) {
          row[i] = vector_exp(row[i] - shift[i]);
          run[i] += row[i];
        }
      }
      for (int64_t i = 0; i < kColumns; ++i) sums[i] += run[i];
    }
  };

  struct PackLeft {
    const Matrix<T> left;
    T* const to;

    MIM4DD_INLINE void operator()() const {
      for (int64_t begin = 0; begin < left.columns; begin += kPanelRun) {
        const int64_t run = std::min(kPanelRun, left.columns - begin);
        Packing<T>::template pack_left<kRows>(
            {left.data + begin * left.column_stride, left.rows, run, left.row_stride,
             left.column_stride},
            to + begin * left.rows);
      }
    }
  };

  struct PackPanels {
    const Matrix<T> right;
    T* const to;

    MIM4DD_INLINE void operator()() const {
      for (int64_t column = 0; column < right.columns; column += kColumns) {
        Packing<T>::pack_panel(right, column, to + column * right.rows);
      }
    }
  };
};

template <typename T>
void pack_left(const Matrix<T>& left, T* to) {
  typename PanelProducts<T>::PackLeft{left, to}();
}

template <typename T>
void pack_panels(const Matrix<T>& right, T* to) {
  typename PanelProducts<T>::PackPanels{right, to}();
}

template <typename T>
void multiply_panel(
    T* out,
    const T* left,
    int64_t rows,
    const T* right,
    int64_t terms,
    bool add,
    T alpha) {
  typename PanelProducts<T>::MultiplyPanel{out, left, right, rows, terms, add, alpha}();
}

template <typename T>
void exponentiate_panel(T* logits, int64_t keys, const T* shifts, T* sums) {
  typename PanelProducts<T>::Exponentiate{logits, keys, shifts, sums}();
}

template <typename T>
void multiply_weights(
    const Matrix<T>& out,
    const T* weights,
    int64_t stride,
    int64_t queries,
    const T* right,
    bool add) {
  typename PanelProducts<T>::MultiplyWeights{out, weights, stride, queries, right, add}();
}

template <typename T>
constexpr Panels<T> panels_of_this_cpu() {
  if constexpr (kVectorBytes >= 32) {
    return {Micro<T>::kColumns, pack_left<T>,          pack_panels<T>,
            multiply_panel<T>,  exponentiate_panel<T>, multiply_weights<T>};
  }
  return {};
}

template <typename T>
constexpr Panels<T> kPanels = panels_of_this_cpu<T>();

}  // namespace

MIM4DD_TABLE(Panels, float)
MIM4DD_TABLE(Panels, double)

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
