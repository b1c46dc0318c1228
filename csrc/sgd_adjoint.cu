#include <torch/csrc/stable/library.h>

#include "flat_pass_cuda.h"
#include "sgd_adjoint.h"

namespace mim4dd {

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CUDA, m) {
  m.impl("sgd_adjoint", TORCH_BOX(&sgd_adjoint<CudaRunner>));
}

}  // namespace mim4dd
