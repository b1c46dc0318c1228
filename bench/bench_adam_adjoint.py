"""adam_adjoint: a step back in one pass over memory, against plain PyTorch."""

import torch
from flat import CASES, assert_all_no_worse, double  # noqa: F401

from mim4dd import reference
from mim4dd.ops import adam_step  # noqa: F401  registers the op

STEP = 3

PROVIDERS = {"mim4dd": torch.ops.mim4dd.adam_adjoint, "torch": reference.adam_adjoint}


def bench_adam_adjoint(case, provider, device, measure):
    vectors = torch.randn(7, case.num_parameters, device=device)
    square = 0.1 + torch.rand_like(vectors[0])
    inputs = *vectors, square, torch.tensor(0.1, device=device)
    plain = reference.adam_adjoint(*inputs, STEP)
    exact = reference.adam_adjoint(*double(inputs), STEP)
    measure(
        lambda: PROVIDERS[provider](*inputs, STEP),
        lambda actual: assert_all_no_worse(actual, plain, exact),
        # λ, those of both moments, product, gradient and moments read; four vectors written.
        moved_bytes=11 * square.nbytes,
    )
