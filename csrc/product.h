// Products by kernels of our own. What they read next lies in the first cache, packed if many rows
// repay it; a library packs whole operands, and is tuned for fewer CPUs.
#pragma once

#include "isa.h"
#include "matrix.h"

namespace mim4dd {

template <typename T>
struct Products {
  // out = alpha a b, or out += alpha a b, if a library is not faster at it; else false, and nothing
  // is done.
  bool (*multiply)(
      const Matrix<T>& out,
      const Matrix<T>& a,
      const Matrix<T>& b,
      bool accumulate,
      T alpha);
};

}  // namespace mim4dd
