// Passes over one row of features.
#pragma once

#include <cstdint>

namespace mim4dd {

// In double: the square of a float cannot overflow it.
template <typename T>
double sum_of_squares(const T* row, int64_t n);

template <typename T>
void scale_row(T* row, int64_t n, T factor);

template <typename T>
T dot(const T* a, const T* b, int64_t n);

// row := row·factors, one by one.
template <typename T>
void multiply_by(T* row, const T* factors, int64_t n);

// row := a·row + b·other.
template <typename T>
void combine(T* row, const T* other, int64_t n, T a, T b);

// out := factor·row.
template <typename T>
void scaled_copy(const T* row, T* out, int64_t n, T factor);

}  // namespace mim4dd
