#include <torch/csrc/stable/library.h>

#include "flat_pass_cuda.h"
#include "trajectory_loss.h"

namespace mim4dd {

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CUDA, m) {
  m.impl("trajectory_loss", TORCH_BOX(&trajectory_loss<CudaRunner>));
  m.impl("trajectory_loss_bwd", TORCH_BOX(&trajectory_loss_bwd<CudaRunner>));
}

}  // namespace mim4dd
