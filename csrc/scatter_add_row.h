// One row of scatter_add_rows: what goes into the kernel.
#pragma once

#include "arithmetic.h"
#include "isa.h"

namespace mim4dd {

template <typename T>
struct AddRow {
  // out += scale · source.
  void (*run)(T* out, const T* source, int64_t n, Arithmetic<T> scale);
};

}  // namespace mim4dd
