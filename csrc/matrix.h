// Matrices somewhere in memory, as views that own nothing.
#pragma once

#include <cstdint>

#include "simd.h"

namespace mim4dd {

template <typename T>
struct Matrix {
  T* data;
  int64_t rows, columns, row_stride, column_stride = 1;

  MIM4DD_INLINE T* row(int64_t i) const { return data + i * row_stride; }
  MIM4DD_INLINE Matrix transposed() const {
    return {data, columns, rows, column_stride, row_stride};
  }
  MIM4DD_INLINE Matrix middle_rows(int64_t begin, int64_t end) const {
    return {data + begin * row_stride, end - begin, columns, row_stride, column_stride};
  }
};

}  // namespace mim4dd
