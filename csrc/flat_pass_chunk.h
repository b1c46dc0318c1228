// A part of a flat pass on a CPU: what goes into the kernels.
#pragma once

#include "flat_pass.h"
#include "isa.h"

namespace mim4dd {

template <typename Pass>
struct ChunkOf {
  // Elements [begin, end); what they sum to is added to `sums`.
  void (*run)(
      const Pass& pass,
      const typename Pass::Row& row,
      int64_t begin,
      int64_t end,
      double* sums);
};

}  // namespace mim4dd
