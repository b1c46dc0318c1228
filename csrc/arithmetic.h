// What a type is computed in, and integers rounded up.
#pragma once

#include <cstdint>
#include <type_traits>

#include "simd.h"

namespace mim4dd {

// Half precision is stored, never computed in.
template <typename T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

MIM4DD_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
MIM4DD_INLINE int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

}  // namespace mim4dd
