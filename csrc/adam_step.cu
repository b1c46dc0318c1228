#include <torch/csrc/stable/library.h>

#include "adam_step.h"
#include "flat_pass_cuda.h"

namespace mim4dd {

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CUDA, m) {
  m.impl("adam_step", TORCH_BOX(&adam_step<CudaRunner>));
}

}  // namespace mim4dd
