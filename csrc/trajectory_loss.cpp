#include "trajectory_loss.h"

#include <torch/csrc/stable/library.h>

#include "flat_pass_cpu.h"

namespace mim4dd {

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CPU, m) {
  m.impl("trajectory_loss", TORCH_BOX(&trajectory_loss<CpuRunner>));
  m.impl("trajectory_loss_bwd", TORCH_BOX(&trajectory_loss_bwd<CpuRunner>));
}

}  // namespace mim4dd
