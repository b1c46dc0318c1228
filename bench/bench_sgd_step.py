"""sgd_step with momentum: one pass over memory, against the ways to take it in PyTorch.

torch.optim writes in place, which spares it the allocation of the results that a trajectory keeps.
"""

import torch
from flat import CASES, assert_all_no_worse, double  # noqa: F401

from mim4dd import reference, sgd_step

MOMENTUM = 0.9


def fused(theta, gradient, lr, velocity):
    return sgd_step(theta, gradient, lr, velocity=velocity, momentum=MOMENTUM)


def plain(theta, gradient, lr, velocity):
    return reference.sgd_step(theta, gradient, lr, velocity, MOMENTUM)


def foreach(theta, gradient, lr, velocity):
    velocities = torch._foreach_mul([velocity], MOMENTUM)
    torch._foreach_add_(velocities, [gradient])
    thetas = torch._foreach_sub([theta], torch._foreach_mul(velocities, lr))
    return thetas[0], velocities[0]


PROVIDERS = {
    "mim4dd": fused,
    "torch": plain,
    "torch._foreach": foreach,
    "torch.optim.SGD(fused)": None,
}


def bench_sgd_step(case, provider, device, measure):
    theta, gradient, velocity = torch.randn(3, case.num_parameters, device=device)
    inputs = theta, gradient, torch.tensor(0.1, device=device), velocity
    answer, exact = plain(*inputs), plain(*double(inputs))
    moved_bytes = 5 * theta.nbytes  # three reads and two writes: what any way has to move
    call = PROVIDERS[provider]
    if call is None:
        parameter = torch.nn.Parameter(theta.clone())
        parameter.grad = gradient
        optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=MOMENTUM, fused=True)
        optimizer.state[parameter]["momentum_buffer"] = velocity.clone()
        optimizer.step()
        assert_all_no_worse([parameter.detach()], answer[:1], exact[:1])
        measure(lambda: optimizer.step() or (), lambda _: None, moved_bytes=moved_bytes)
        return
    measure(
        lambda: call(*inputs),
        lambda actual: assert_all_no_worse(actual, answer, exact),
        moved_bytes=moved_bytes,
    )
