#include <torch/csrc/stable/library.h>

#include "adam_adjoint.h"
#include "flat_pass_cuda.h"

namespace mim4dd {

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CUDA, m) {
  m.impl("adam_adjoint", TORCH_BOX(&adam_adjoint<CudaRunner>));
}

}  // namespace mim4dd
