"""sgd_adjoint with momentum: a step back in one pass over memory, against plain PyTorch."""

import torch
from flat import CASES, assert_all_no_worse, double  # noqa: F401

from mim4dd import reference
from mim4dd.ops import sgd_adjoint  # noqa: F401  registers the op

MOMENTUM = 0.9

PROVIDERS = {"mim4dd": torch.ops.mim4dd.sgd_adjoint, "torch": reference.sgd_adjoint}


def bench_sgd_adjoint(case, provider, device, measure):
    vectors = torch.randn(6, case.num_parameters, device=device)
    inputs = *vectors, torch.tensor(0.1, device=device)
    plain = reference.sgd_adjoint(*inputs, MOMENTUM)
    exact = reference.sgd_adjoint(*double(inputs), MOMENTUM)
    measure(
        lambda: PROVIDERS[provider](*inputs, MOMENTUM),
        lambda actual: assert_all_no_worse(actual, plain, exact),
        # λ, ν, product and velocity read; λ, ν and cotangent written.
        moved_bytes=7 * vectors[0].nbytes,
    )
