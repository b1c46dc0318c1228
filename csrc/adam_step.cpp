#include "adam_step.h"

#include <torch/csrc/stable/library.h>

#include "flat_pass_cpu.h"

namespace mim4dd {

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CPU, m) { m.impl("adam_step", TORCH_BOX(&adam_step<CpuRunner>)); }

}  // namespace mim4dd
