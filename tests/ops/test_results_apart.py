"""No result of an operator lies in memory of another or of an input, as PyTorch asks."""

import pytest
import torch
from contrastive_cases import Case

from mim4dd._library import apart, storage, tensors_in, triton_launcher
from mim4dd.reference import Critic, Kind, Reduce


def assert_apart(results, inputs=()):
    places = [storage(each) for each in [*tensors_in(inputs), *tensors_in(results)]]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("dims", [[16], [16, 40]], ids=str)
@pytest.mark.parametrize("reduce", [Reduce.NONE, Reduce.MEAN], ids=str)
@pytest.mark.parametrize("kind", [Kind.OUT, Kind.NCE], ids=str)
def test_contrastive(dims, reduce, kind, kernel_device):
    case = Case((9, 13, dims), torch.float32, kernel_device, bias=0.1 if kind == Kind.NCE else None)
    critic, wanted = Critic(kind), [True, True, True, case.bias is not None]
    forward, backward, second = (
        triton_launcher(f"contrastive{stage}", "contrastive") for stage in ("", "_bwd", "_bwd_bwd")
    )
    results = case.call(forward, critic, reduce, wanted)
    assert_apart(results)
    *_, lse, weight, _ = results
    upstream = (lse, weight, case.grad_loss, case.grad_lse)
    assert_apart(case.call(backward, critic, *upstream, wanted))
    if kind == Kind.NCE:
        return
    tangents = [[torch.ones_like(each) for each in side] for side in (case.query, case.key)]
    numbers = torch.ones_like(case.scale).expand(2, len(dims))
    assert_apart(case.call(second, critic, *upstream, *tangents, *numbers, wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_clip_loss(dtype, kernel_device):
    query, key = torch.randn(2, 40, 16, dtype=dtype, device=kernel_device).unbind()
    scale = torch.tensor(3.0, device=kernel_device)
    results = triton_launcher("clip_loss", "clip_loss")(query, key, scale, False)
    assert_apart(results)


def test_norm_relu_pool(kernel_device):
    maps = torch.randn(2, 4, 6, 6, device=kernel_device)
    inputs = maps, None, None, 2, 2, 1e-5
    output, *statistics = triton_launcher("norm_relu_pool", "norm_relu_pool")(*inputs)
    assert_apart([output, *statistics], inputs)


def test_what_shares_memory_is_copied():
    buffer, own = torch.arange(6.0), torch.ones(2)
    first, parts, other = apart((buffer[:2], [buffer[2:4], buffer[4:]], own), {storage(own)})
    assert_apart([first, *parts, other], [own])
    assert storage(first) == storage(buffer)
    assert torch.cat([first, *parts, other]).tolist() == [0, 1, 2, 3, 4, 5, 1, 1]
