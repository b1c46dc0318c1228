// Passes over one row of features.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mim4dd {

template <typename T>
struct FeatureRows {
  // In double: the square of a float cannot overflow it.
  double (*sum_of_squares)(const T* row, int64_t n);

  void (*scale_row)(T* row, int64_t n, T factor);

  T (*dot)(const T* a, const T* b, int64_t n);

  // row := row·factors, one by one.
  void (*multiply_by)(T* row, const T* factors, int64_t n);

  // row := a·row + b·other.
  void (*combine)(T* row, const T* other, int64_t n, T a, T b);

  // out := factor·row.
  void (*scaled_copy)(const T* row, T* out, int64_t n, T factor);
};

template <typename T>
const FeatureRows<T>& feature_rows() {
  return kernels<FeatureRows<T>>();
}

}  // namespace mim4dd
