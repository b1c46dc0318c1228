"""trajectory_loss: values, gradients, registration, errors."""

import pytest
import torch
from tolerance import assert_no_worse
from torch.library import opcheck

from mim4dd import reference, trajectory_loss

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1,), (7,), (70_001,), (1, 5), (3, 1001), (2, 40_000), (0, 5)]


def make_inputs(shape, dtype, device):
    return torch.randn(3, *shape, dtype=dtype, device=device).unbind()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, dtype, device):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(shape, dtype, device)]
    upstream = torch.randn(shape[:-1], dtype=dtype, device=device)

    def of(loss, tensors):
        value = loss(*tensors)
        return value.detach(), *torch.autograd.grad(value, tensors, upstream.to(value.dtype))

    exact = of(
        reference.trajectory_loss, [tensor.detach().double().requires_grad_() for tensor in inputs]
    )
    plain = of(reference.trajectory_loss, inputs)
    for triple in zip(of(trajectory_loss, inputs), plain, exact, strict=True):
        if triple[2].numel():
            assert_no_worse(*triple)


def test_the_sum_is_taken_in_float64(device):
    """The error of a float32 sum of a million terms would show."""
    theta_T, theta_0, target = make_inputs((1_000_003,), torch.float32, device)
    exact = reference.trajectory_loss(theta_T.double(), theta_0.double(), target.double())
    actual = trajectory_loss(theta_T, theta_0, target)
    torch.testing.assert_close(actual.double(), exact, rtol=1.2e-7, atol=0)


def test_no_progress_is_one_and_a_match_is_zero(device):
    theta_0, target = torch.randn(2, 50, device=device)
    assert trajectory_loss(theta_0, theta_0, target) == 1
    assert trajectory_loss(target, theta_0, target) == 0


def test_every_row_is_a_trajectory_of_its_own(device):
    inputs = make_inputs((3, 20_001), torch.float32, device)
    together = trajectory_loss(*inputs)
    apart = torch.stack([trajectory_loss(*row) for row in zip(*inputs, strict=True)])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("shape", [(5,), (2, 4)])
def test_derivatives(shape, device):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(shape, torch.float64, device)]
    assert torch.autograd.gradcheck(trajectory_loss, inputs)
    assert torch.autograd.gradgradcheck(trajectory_loss, inputs)


@pytest.mark.parametrize("needed", range(1, 8))
def test_only_the_gradients_needed(needed, device):
    inputs = make_inputs((2, 50), torch.float64, device)
    for index, tensor in enumerate(inputs):
        tensor.requires_grad_(bool(needed >> index & 1))
    trajectory_loss(*inputs).sum().backward()
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    reference.trajectory_loss(*leaves).sum().backward()
    for tensor, leaf in zip(inputs, leaves, strict=True):
        if tensor.requires_grad:
            torch.testing.assert_close(tensor.grad, leaf.grad)
        else:
            assert tensor.grad is None


def test_a_second_derivative_is_no_silent_zero(device):
    theta_T, theta_0, target = make_inputs((6,), torch.float64, device)
    theta_T.requires_grad_()
    (gradient,) = torch.autograd.grad(
        trajectory_loss(theta_T, theta_0, target), theta_T, create_graph=True
    )
    (second,) = torch.autograd.grad(gradient.sum(), theta_T)
    torch.testing.assert_close(second, (2 / (theta_0 - target).square().sum()).expand_as(second))
    numerator, denominator = torch.ones(2, dtype=torch.float64, device=device)
    grad = torch.ones((), dtype=torch.float64, device=device)
    bare = torch.ops.mim4dd.trajectory_loss_bwd(
        theta_T, theta_0, target, numerator, denominator, grad, 1
    )
    with pytest.raises(RuntimeError, match="trajectory_loss_bwd is not differentiable"):
        bare[0].sum().backward()


def test_bits_do_not_depend_on_the_number_of_threads():
    inputs = make_inputs((3, 100_001), torch.float32, "cpu")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(trajectory_loss(*inputs))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_strided_inputs(device):
    inputs = [tensor.T[::2] for tensor in make_inputs((50, 6), torch.float64, device)]
    leaves = [tensor.requires_grad_() for tensor in inputs]
    loss = trajectory_loss(*leaves)
    torch.testing.assert_close(loss, reference.trajectory_loss(*leaves))
    # The upstream gradient of a sum is expanded.
    fused = torch.autograd.grad(loss.sum(), leaves)
    plain = torch.autograd.grad(reference.trajectory_loss(*leaves).sum(), leaves)
    for pair in zip(fused, plain, strict=True):
        torch.testing.assert_close(*pair)


@pytest.mark.parametrize("shape", [(6,), (2, 6)])
def test_registration(shape, device):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(shape, torch.float32, device)]
    opcheck(torch.ops.mim4dd.trajectory_loss.default, inputs)
    sums = torch.rand(3, *shape[:-1], device=device)
    for count in (1, 2, 3):
        arguments = (*make_inputs(shape, torch.float32, device), *sums[:2].double(), sums[2])
        opcheck(torch.ops.mim4dd.trajectory_loss_bwd.default, (*arguments, count))


def test_the_bare_ops_read_nothing_out_of_bounds(device):
    theta_T, theta_0, target = make_inputs((3, 8), torch.float32, device)
    with pytest.raises(RuntimeError, match="theta_0 must have 24 elements, got 16"):
        torch.ops.mim4dd.trajectory_loss(theta_T, theta_0[1:], target)
    one = torch.ones((), device=device)
    with pytest.raises(RuntimeError, match="must have 3 elements"):
        torch.ops.mim4dd.trajectory_loss_bwd(
            theta_T, theta_0, target, one.double(), one.double(), one, 1
        )


def test_compiles(device):
    inputs = make_inputs((100,), torch.float32, device)
    compiled = torch.compile(trajectory_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), trajectory_loss(*inputs))
    leaf = inputs[0].clone().requires_grad_()
    (actual,) = torch.autograd.grad(compiled(leaf, *inputs[1:]), leaf)
    (expected,) = torch.autograd.grad(trajectory_loss(leaf, *inputs[1:]), leaf)
    assert torch.equal(actual, expected)


def test_a_diverged_student_is_not_hidden():
    assert trajectory_loss(torch.full((3,), torch.nan), torch.zeros(3), torch.ones(3)).isnan()
    assert trajectory_loss(torch.full((3,), torch.inf), torch.zeros(3), torch.ones(3)).isinf()


def test_an_expert_that_stood_still_is_not_hidden_where_nothing_looks_at_values():
    """As on a GPU and compiled: there the loss itself says so."""
    theta_T, start = torch.randn(2, 5)
    assert torch.ops.mim4dd.trajectory_loss(theta_T, start, start)[0].isinf()
    assert torch.ops.mim4dd.trajectory_loss(start, start, start)[0].isnan()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"theta_T": torch.zeros(2, 2, 2)}, ValueError, "theta_T must be \\(P,\\) or \\(K, P\\)"),
        ({"theta_T": torch.zeros(())}, ValueError, "theta_T must be \\(P,\\) or \\(K, P\\)"),
        ({"theta_T": torch.zeros(4).long()}, TypeError, "floating-point"),
        ({"theta_0": torch.zeros(3)}, ValueError, "theta_0 must have the shape of theta_T"),
        ({"theta_target": torch.zeros(4).double()}, TypeError, "share a dtype"),
        ({"theta_target": torch.zeros(4)}, ValueError, "the expert did not move"),
        ({"backend": "triton"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {
        "theta_T": torch.ones(4),
        "theta_0": torch.zeros(4),
        "theta_target": torch.ones(4),
    }
    with pytest.raises(error, match=message):
        trajectory_loss(**(arguments | change))


def test_one_expert_of_several_that_stood_still():
    theta_0, target = torch.zeros(2, 4), torch.tensor([[1.0], [0.0]]).expand(2, 4)
    with pytest.raises(ValueError, match="the expert did not move"):
        trajectory_loss(torch.ones(2, 4), theta_0, target)
