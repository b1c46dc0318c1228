#include "feature_rows.h"
#include "simd.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace {

template <typename T>
double sum_of_squares(const T* row, int64_t n) {
  // Converting every number would take as long as some rows of the product that needs the length.
  constexpr int64_t kRun = 128;
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = n - begin < kRun ? n : begin + kRun;
    T of_run = 0;
#pragma omp simd reduction(+ : of_run)
    for (int64_t d = begin; d < end; ++d) of_run += row[d] * row[d];
    sum += of_run;
  }
  return sum;
}

template <typename T>
void scale_row(T* row, int64_t n, T factor) {
#pragma omp simd
  for (int64_t d = 0; d < n; ++d) row[d] *= factor;
}

template <typename T>
T dot(const T* a, const T* b, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < n; ++d) sum += static_cast<double>(a[d]) * b[d];
  return static_cast<T>(sum);
}

template <typename T>
void multiply_by(T* row, const T* factors, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) row[j] *= factors[j];
}

template <typename T>
void combine(T* row, const T* other, int64_t n, T a, T b) {
#pragma omp simd
  for (int64_t d = 0; d < n; ++d) row[d] = a * row[d] + b * other[d];
}

template <typename T>
void scaled_copy(const T* row, T* out, int64_t n, T factor) {
#pragma omp simd
  for (int64_t d = 0; d < n; ++d) out[d] = factor * row[d];
}

template <typename T>
constexpr FeatureRows<T> kFeatureRows{sum_of_squares<T>, scale_row<T>, dot<T>,
                                      multiply_by<T>,    combine<T>,   scaled_copy<T>};

}  // namespace

MIM4DD_TABLE(FeatureRows, float)
MIM4DD_TABLE(FeatureRows, double)

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
