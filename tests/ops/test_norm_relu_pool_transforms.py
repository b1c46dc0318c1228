"""norm_relu_pool under torch's transforms: vmap, torch.func, forward AD, registration, compile."""

import pytest
import torch
from ops.test_norm_relu_pool import LAYOUTS, OPS, Case, make, plain
from torch.library import opcheck

from mim4dd import norm_relu_pool

IN_DIMS = [(0, 0, 0), (1, 0, 1), (None, 0, 0), (2, None, None), (0, 0, None)]


def over_axis(in_dims, case, size, device):
    """Arguments with the new axis where in_dims says, and the loop's slices of them."""
    parts = zip(*(make(case, device=device)[0] for _ in range(size)), strict=True)
    given = [
        tensors[0] if dim is None else torch.stack(tensors, dim)
        for tensors, dim in zip(parts, in_dims, strict=True)
    ]
    return [t.requires_grad_() for t in given]


def looped(function, in_dims, size):
    def call(*given):
        slices = [
            [t if dim is None else t.select(dim, i) for t, dim in zip(given, in_dims, strict=True)]
            for i in range(size)
        ]
        return torch.stack([function(*inputs) for inputs in slices])

    return call


@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap_inside_autograd_to_second_order(in_dims, device):
    case = Case(2, 4, 5, 4, 2, 2)
    given = over_axis(in_dims, case, 3, device)

    def ours(x, weight, bias):
        return norm_relu_pool(x, weight, bias, **case.options)

    def theirs(x, weight, bias):
        return plain(x, weight, bias, **case.options)

    results = []
    cotangent = torch.randn(3, 2, 4, 2, 2, dtype=torch.float64, device=device)
    directions = [torch.randn_like(t) for t in given]
    for call in (torch.vmap(ours, in_dims), looped(theirs, in_dims, 3)):
        out = call(*given)
        first = torch.autograd.grad(out, given, cotangent, create_graph=True)
        second = torch.autograd.grad(first, given, directions)
        results.append([out, *first, *second])
    torch.testing.assert_close(*results)


def test_vmap_of_what_a_grouped_convolution_made_copies_nothing(device):
    """Its K·C channels of each sample are where the op wants them."""
    maps = torch.randn(2, 3 * 4, 6, 6, device=device).unflatten(1, (3, 4))
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    with Watch():
        torch.vmap(lambda x: norm_relu_pool(x, None, None, num_groups=4), in_dims=1)(maps)
    assert "mim4dd::norm_relu_pool" in seen
    assert not any("clone" in name or "copy" in name for name in seen)


def test_torch_func(device):
    case = Case(2, 4, 5, 4, 2, 2)
    inputs, grad_out, tangents = make(case, device=device)

    def loss(function):
        return lambda *given: (function(*given, **case.options) * grad_out).square().sum()

    first = [torch.func.grad(loss(f), (0, 1, 2))(*inputs) for f in (norm_relu_pool, plain)]
    torch.testing.assert_close(*first)
    _, pull = torch.func.vjp(lambda *given: norm_relu_pool(*given, **case.options), *inputs)
    torch.testing.assert_close(pull(grad_out), derive_once(inputs, grad_out, case.options))

    def product(function):
        gradient = torch.func.grad(loss(function), (0, 1, 2))
        return torch.func.vjp(gradient, *inputs)[1](tuple(tangents))

    torch.testing.assert_close(product(norm_relu_pool), product(plain))


def derive_once(inputs, grad_out, options):
    leaves = [t.detach().requires_grad_() for t in inputs]
    return torch.autograd.grad(plain(*leaves, **options), leaves, grad_out)


def test_gradients_of_every_sample(device):
    """vmap over grad: the weight is shared, its gradients are not."""
    case = Case(3, 4, 4, 4, 4, 2)
    (x, weight, bias), *_ = make(case, device=device)

    def gradients(function):
        def loss(image, weight, bias):
            return function(image[None], weight, bias, **case.options).square().sum()

        return torch.func.grad(loss, (0, 1, 2))

    ours = torch.vmap(gradients(norm_relu_pool), (0, None, None))(x, weight, bias)
    one_by_one = [gradients(plain)(image, weight, bias) for image in x]
    expected = tuple(torch.stack(parts) for parts in zip(*one_by_one, strict=True))
    torch.testing.assert_close(ours, expected)


def test_forward_ad_is_refused_and_the_reference_has_it():
    case = Case(2, 16, 4, 4, 4, 2)  # a channel alone may be dead behind its ReLU
    inputs, grad_out, tangents = make(case)

    def ours(*given):
        return norm_relu_pool(*given, **case.options)

    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(ours, tuple(inputs), tuple(tangents))
    for argnums in ((0, 1, 2), (1,)):
        over_reverse = torch.func.grad(lambda *given: (ours(*given) * grad_out).sum(), argnums)
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            torch.func.jvp(over_reverse, tuple(inputs), tuple(tangents))
    pull = torch.func.vjp(ours, *inputs)[1]  # the tangent comes in with the cotangent only
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(pull, (grad_out,), (torch.randn_like(grad_out),))
    _, out = torch.func.jvp(
        lambda x: norm_relu_pool(x, *inputs[1:], **case.options, backend="reference"),
        (inputs[0],),
        (tangents[0],),
    )
    assert out.abs().amax() > 0


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_registration(affine, layout, device):
    case = Case(2, 4, 5, 4, 2, 2)
    (x, *numbers), grad_out, (along, *along_numbers) = make(case, torch.float32, device, layout)
    if not affine:
        numbers, along_numbers = [None, None], [None, None]
    inputs = [None if t is None else t.requires_grad_() for t in (x, *numbers)]
    opcheck(OPS.norm_relu_pool.default, (*inputs, 2, 2, 1e-5))
    _, mean, rstd = (t.detach() for t in OPS.norm_relu_pool(*inputs, 2, 2, 1e-5))
    saved = (grad_out.requires_grad_(), *inputs, mean, rstd, 2, 2)
    opcheck(OPS.norm_relu_pool_bwd.default, (*saved, True, affine, affine))
    opcheck(OPS.norm_relu_pool_bwd.default, (*saved, True, False, False))
    constants = [t.detach() if isinstance(t, torch.Tensor) else t for t in saved]
    for along_input in (along, None):
        arguments = (along_input, *along_numbers, *constants, True, True, affine)
        opcheck(OPS.norm_relu_pool_bwd_bwd.default, arguments)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_compiles(layout, device):
    case = Case(2, 4, 6, 6, 4, 2)
    inputs, grad_out, _ = make(case, torch.float32, device, layout)
    leaves = [t.requires_grad_() for t in inputs]

    def call(*given):
        return norm_relu_pool(*given, **case.options)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    results = []
    for function in (call, compiled):
        out = function(*leaves)
        results.append((out, *torch.autograd.grad(out, leaves, grad_out)))
    torch.testing.assert_close(*results)
