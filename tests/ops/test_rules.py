"""Ops that declare a rule: the same gradients by each form that is made of it."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad

from mim4dd.ops import _norm_relu_pool_op, _rules, clip_loss, sgd_step, trajectory_loss

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


def first_of(call, numbers):
    """The value alone, as a function of tensors alone."""
    return lambda *tensors: call(*tensors, *numbers)[0]


def gradients(call, tensors, numbers):
    leaves = [each.clone().requires_grad_() for each in tensors]
    value = call(*leaves, *numbers)[0]
    return torch.autograd.grad(value.square().sum(), leaves)


@pytest.mark.parametrize("name", NAMES)
def test_every_form_has_the_same_gradients(name):
    rule, tensors, numbers = case(name)
    expected = gradients(rule, tensors, numbers)
    # What compiled code calls; each op's own tests compile it.
    bare = gradients(getattr(OPS, name), tensors, numbers)
    assert all(map(torch.equal, bare, expected))
    transformed = grad(
        lambda *leaves: rule(*leaves, *numbers)[0].square().sum(), tuple(range(len(tensors)))
    )
    torch.testing.assert_close(transformed(*tensors), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_call_takes_the_short_way(name, monkeypatch):
    """What torch.library generates takes as long as several small ops, a node without need too."""
    rule, tensors, numbers = case(name)
    leaves = [each.requires_grad_() for each in tensors]
    assert type(rule(*leaves, *numbers)[0].grad_fn).__name__ == "Mim4ddOpBackward"
    monkeypatch.setattr(_rules.Mim4ddOp, "apply", None)
    with torch.no_grad():
        rule(*leaves, *numbers)
    rule(*(each.detach() for each in leaves), *numbers)


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


def dual(rule, tensors, numbers):
    """Value and tangent, in the forward mode of torch.autograd."""
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(each, each.cos()) for each in tensors]
        return forward_ad.unpack_dual(rule(*duals, *numbers)[0])


@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_is_by_formula_or_refused(name):
    rule, tensors, numbers = case(name)
    if rule.formula is None:
        with pytest.raises(RuntimeError, match=f"^{name} has no forward-mode derivative"):
            dual(rule, tensors, numbers)
        return
    value, tangent = dual(rule, tensors, numbers)
    torch.testing.assert_close(value, rule(*tensors, *numbers)[0])
    step = 1e-6
    ahead, behind = (
        rule(*(each + sign * step * each.cos() for each in tensors), *numbers)[0]
        for sign in (1, -1)
    )
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_op_refuses_forward_mode(name, monkeypatch):
    rule, tensors, numbers = case(name)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    which = "the compiled " if rule.formula else ""
    with pytest.raises(RuntimeError, match=f"^{which}{name} has no forward-mode derivative"):
        dual(rule, tensors, numbers)
    with forward_ad.dual_level():  # no tangent comes in
        torch.testing.assert_close(
            rule(*tensors, *numbers)[0], getattr(OPS, name)(*tensors, *numbers)[0]
        )


@pytest.mark.parametrize("name", NAMES)
def test_both_kinds_of_vmap(name):
    rule, tensors, numbers = case(name)
    many = [torch.stack([each, 0.5 * each, each + 1]) for each in tensors]
    expected = torch.stack([rule(*each, *numbers)[0] for each in zip(*many, strict=True)])
    for call in (rule, getattr(OPS, name)):
        torch.testing.assert_close(torch.vmap(first_of(call, numbers))(*many), expected)
    leaves = [each.requires_grad_() for each in tensors]
    value = rule(*leaves, *numbers)[0]
    upstream = torch.stack([value.detach(), value.detach().cos()])
    one_by_one = [torch.autograd.grad(value, leaves, each, retain_graph=True) for each in upstream]
    parts = [torch.stack(each) for each in zip(*one_by_one, strict=True)]
    options = {"retain_graph": True}
    older = torch.autograd.grad(value, leaves, upstream, is_grads_batched=True, **options)
    newer = torch.vmap(lambda x: torch.autograd.grad(value, leaves, x, **options))(upstream)
    for batched in (older, newer):
        torch.testing.assert_close(list(batched), parts)
