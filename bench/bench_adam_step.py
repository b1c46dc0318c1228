"""adam_step: one pass over memory, against the ways to take it in PyTorch.

torch.optim writes in place, which spares it the allocation of the results that a trajectory keeps.
"""

import torch
from flat import CASES, assert_all_no_worse, double  # noqa: F401

from mim4dd import reference
from mim4dd.ops import adam_step  # noqa: F401  registers the op

STEP = 3


def fused(*inputs):
    return torch.ops.mim4dd.adam_step(*inputs, STEP)


def plain(*inputs):
    return reference.adam_step(*inputs, STEP)


PROVIDERS = {"mim4dd": fused, "torch": plain, "torch.optim.Adam(fused)": None}


def bench_adam_step(case, provider, device, measure):
    theta, gradient, mean = torch.randn(3, case.num_parameters, device=device)
    square = 0.1 + torch.rand_like(theta)
    inputs = theta, gradient, mean, square, torch.tensor(0.1, device=device)
    answer, exact = plain(*inputs), plain(*double(inputs))
    moved_bytes = 7 * theta.nbytes  # four reads and three writes: what any way has to move
    call = PROVIDERS[provider]
    if call is None:
        parameter = torch.nn.Parameter(theta.clone())
        parameter.grad = gradient
        optimizer = torch.optim.Adam([parameter], lr=0.1, fused=True)
        optimizer.state[parameter] = {
            "step": torch.tensor(STEP - 1.0, device=device),
            "exp_avg": mean.clone(),
            "exp_avg_sq": square.clone(),
        }
        optimizer.step()
        assert_all_no_worse([parameter.detach()], answer[:1], exact[:1])
        measure(lambda: optimizer.step() or (), lambda _: None, moved_bytes=moved_bytes)
        return
    measure(
        lambda: call(*inputs),
        lambda actual: assert_all_no_worse(actual, answer, exact),
        moved_bytes=moved_bytes,
    )
