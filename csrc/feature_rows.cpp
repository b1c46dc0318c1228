#include "feature_rows.h"

#include "simd.h"

namespace mim4dd {

template <typename T>
MIM4DD_SIMD double sum_of_squares(const T* row, int64_t n) {
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
MIM4DD_SIMD void scale_row(T* row, int64_t n, T factor) {
#pragma omp simd
  for (int64_t d = 0; d < n; ++d) row[d] *= factor;
}

template <typename T>
MIM4DD_SIMD T dot(const T* a, const T* b, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < n; ++d) sum += static_cast<double>(a[d]) * b[d];
  return static_cast<T>(sum);
}

template <typename T>
MIM4DD_SIMD void multiply_by(T* row, const T* factors, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) row[j] *= factors[j];
}

template <typename T>
MIM4DD_SIMD void combine(T* row, const T* other, int64_t n, T a, T b) {
#pragma omp simd
  for (int64_t d = 0; d < n; ++d) row[d] = a * row[d] + b * other[d];
}

template <typename T>
MIM4DD_SIMD void scaled_copy(const T* row, T* out, int64_t n, T factor) {
#pragma omp simd
  for (int64_t d = 0; d < n; ++d) out[d] = factor * row[d];
}

#define MIM4DD_INSTANTIATE(T)                         \
  template double sum_of_squares(const T*, int64_t);  \
  template void scale_row(T*, int64_t, T);            \
  template void multiply_by(T*, const T*, int64_t);   \
  template T dot(const T*, const T*, int64_t);        \
  template void combine(T*, const T*, int64_t, T, T); \
  template void scaled_copy(const T*, T*, int64_t, T);

MIM4DD_INSTANTIATE(float)
MIM4DD_INSTANTIATE(double)

}  // namespace mim4dd
