// One element of scatter_add_rows.
#pragma once

#include "arithmetic.h"
#include "host_device.h"

namespace mim4dd {

template <typename T>
MIM4DD_HOST_DEVICE T scaled_sum(T sum, T term, Arithmetic<T> scale) {
  using V = Arithmetic<T>;
  return static_cast<T>(static_cast<V>(sum) + scale * static_cast<V>(term));
}

}  // namespace mim4dd
