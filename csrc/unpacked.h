// Products straight from where their operands lie. A library packs them first, which takes long
// where one of them has few rows.
#pragma once

#include "matrix.h"

namespace mim4dd {

// out = alpha a b, or out += alpha a b, if a library is not faster at it; else false, and nothing
// is done.
template <typename T>
bool multiply_unpacked(
    const Matrix<T>& out,
    const Matrix<T>& a,
    const Matrix<T>& b,
    bool accumulate,
    T alpha);

}  // namespace mim4dd
