"""Ops that declare a rule: the same gradients by each form that is made of it."""

import pytest
import torch
from torch.func import grad

from mim4dd.ops import _norm_relu_pool_op, clip_loss, sgd_step, trajectory_loss

DOUBLE = torch.float64
OPS = torch.ops.mim4dd


def random(*shape):
    return torch.randn(shape, dtype=DOUBLE)


def case(name):
    """A rule, tensors to differentiate by, and the numbers that follow them."""
    vectors = [random(7) for _ in range(3)]
    return {
        "norm_relu_pool": (
            _norm_relu_pool_op.norm_relu_pool,
            [random(2, 4, 5, 4), random(4), random(4)],
            [2, 2, 1e-5],
        ),
        "sgd_step": (sgd_step._step, [*vectors, random(7)], [0.9, 0.1, True]),
        "trajectory_loss": (trajectory_loss._loss, vectors, []),
        "clip_loss": (
            clip_loss._loss,
            [random(5, 3), random(5, 3), torch.tensor(2.0, dtype=DOUBLE)],
            [True],
        ),
    }[name]


NAMES = ["norm_relu_pool", "sgd_step", "trajectory_loss", "clip_loss"]


def gradients(call, tensors, numbers):
    leaves = [each.clone().requires_grad_() for each in tensors]
    value = call(*leaves, *numbers)[0]
    return torch.autograd.grad(value.square().sum(), leaves)


@pytest.mark.parametrize("name", NAMES)
def test_every_form_has_the_same_gradients(name):
    rule, tensors, numbers = case(name)
    expected = gradients(rule, tensors, numbers)
    compiled = torch.compile(rule.__call__, fullgraph=True, backend="aot_eager")
    for call in (getattr(OPS, name), compiled):
        assert all(map(torch.equal, gradients(call, tensors, numbers), expected))
    transformed = grad(
        lambda *leaves: rule(*leaves, *numbers)[0].square().sum(), tuple(range(len(tensors)))
    )
    torch.testing.assert_close(transformed(*tensors), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_call_takes_the_short_way(name):
    """What torch.library generates takes as long as several small ops."""
    rule, tensors, numbers = case(name)
    leaves = [each.requires_grad_() for each in tensors]
    assert type(rule(*leaves, *numbers)[0].grad_fn).__name__ == "Mim4ddOpBackward"
    with torch.no_grad():
        assert rule(*leaves, *numbers)[0].grad_fn is None
    assert rule(*(each.detach() for each in leaves), *numbers)[0].grad_fn is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_no_gradient_where_none_is_wanted(name, place):
    rule, tensors, numbers = case(name)
    expected = gradients(rule, tensors, numbers)[place]
    leaf = tensors[place].requires_grad_()
    value = rule(*tensors, *numbers)[0].square().sum()
    value.backward()
    torch.testing.assert_close(leaf.grad, expected)
    assert all(each.grad is None for each in tensors if each is not leaf)
