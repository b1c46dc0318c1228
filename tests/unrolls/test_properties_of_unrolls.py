"""The unroll's ops and the unroll itself on any shape, dtype and strides, against float64."""

import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from properties import DTYPES, LAYOUTS, SIZES, drawn, examples, seeds
from tolerance import assert_no_worse
from torch import nn

from mim4dd import (
    NormReLUPool2d,
    flatten_parameters,
    norm_relu_pool,
    reference,
    sgd_step,
    trajectory_loss,
    unroll_adam,
    unroll_sgd,
)
from mim4dd._unroll.functional import FunctionalModel

_LENGTHS = st.sampled_from([0, 1, 2, 7, 31, 64, 129, 1023, 1024, 4097])


def of_seed(seed):
    return torch.Generator().manual_seed(seed)


@given(_LENGTHS, DTYPES, LAYOUTS, LAYOUTS, st.sampled_from([0.0, 0.9]), st.booleans(), seeds)
@examples(25)
def test_sgd_step(size, dtype, layout, other, momentum, per_parameter, seed):
    generator = of_seed(seed)
    if size == 0:
        layout = other = "contiguous"
    theta = drawn((size,), dtype, layout, generator)
    gradient, velocity = (drawn((size,), dtype, other, generator, 30.0) for _ in range(2))
    lr = torch.rand((size,) if per_parameter else (), generator=generator).to(dtype)
    inputs = {"theta": theta, "gradient": gradient, "lr": lr}
    inputs |= {"velocity": velocity} if momentum else {}
    options = {"momentum": momentum, "weight_decay": 0.1, "nesterov": momentum > 0}

    def step(function, kind):
        found = function(**{name: x.to(kind) for name, x in inputs.items()}, **options)
        return found if momentum else (found,)

    for triple in zip(
        step(sgd_step, dtype), step(reference.sgd_step, dtype),
        step(reference.sgd_step, torch.float64), strict=True,
    ):  # fmt: skip
        if size:
            assert_no_worse(*triple)
        else:
            assert triple[0].shape == (0,)


@given(SIZES, st.sampled_from([None, 1, 3]), DTYPES, LAYOUTS, LAYOUTS, seeds)
@examples(25)
def test_trajectory_loss(size, rows, dtype, layout, other, seed):
    generator = of_seed(seed)
    shape = (size,) if rows is None else (rows, size)
    places = [drawn(shape, dtype, kind, generator) for kind in (layout, other, "contiguous")]
    results = []
    for kind, backend in ((dtype, None), (dtype, "reference"), (torch.float64, "reference")):
        leaves = [x.to(kind).detach().requires_grad_() for x in places]
        loss = trajectory_loss(*leaves, backend=backend)
        gradients = torch.autograd.grad(loss.sum(), leaves)
        results.append([loss.detach(), *gradients])
    exact = results[2]
    end, start, target = (x.double() for x in places)
    gone, left = (start - target).norm(dim=-1), (end - target).norm(dim=-1)
    # What is rounded are differences of parameters, to ε of these: as large a share of the loss as
    # they are of what was gone, twice. In half precision they are rounded no more than once.
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    share = eps * (end.norm(dim=-1) + start.norm(dim=-1) + 2 * target.norm(dim=-1))
    rounding = (4 * share * (1 / gone + 1 / left.clamp(min=1e-30))).max().item()
    for actual, plain, true in zip(*results, strict=True):
        if true.abs().max() > torch.finfo(dtype).max / 2:
            continue
        slack = rounding * true.abs().max()
        assert_no_worse(actual, plain.nan_to_num(0, 0, 0), true, slack)
    assert torch.isfinite(exact[0]).all()


@given(
    st.integers(1, 3), st.sampled_from([1, 2, 3, 4, 7, 8, 9]), st.sampled_from([1, 2, 3, 7, 8, 17]),
    st.sampled_from([1, 2, 5, 8]), st.sampled_from([1, 2, 3]), DTYPES, LAYOUTS,
    st.sampled_from([1e-3, 1.0, 100.0]), seeds,
)  # fmt: skip
@examples(25)
def test_norm_relu_pool(batch, channels, height, width, pool, dtype, layout, scale, seed):
    generator = of_seed(seed)
    pool = min(pool, height, width)
    maps = drawn((batch, channels, height, width), dtype, layout, generator, scale)
    affine = [drawn((channels,), dtype, "contiguous", generator) for _ in range(2)]
    # torch refuses to normalise a single number.
    assume(height * width > 1)
    groups = [each for each in (1, channels) if channels % each == 0][seed % 2]
    cotangent = torch.randn(
        batch, channels, height // pool, width // pool, generator=generator, dtype=torch.float64
    )
    results = []
    for kind, backend in ((dtype, None), (dtype, "reference"), (torch.float64, "reference")):
        leaves = [x.to(kind).detach().requires_grad_() for x in (maps, *affine)]
        found = norm_relu_pool(*leaves, num_groups=groups, pool=pool, backend=backend)
        gradients = torch.autograd.grad(found, leaves, cotangent.to(kind))
        results.append([found.detach(), *gradients])
    # A normalised value is off by ε of itself and of the mean over the deviation, so is the sign
    # of what is near 0, at which the derivative of ReLU jumps by what stands above it.
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    normalised = F.group_norm(maps.double(), groups, *(x.double() for x in affine), 1e-5)
    near = (normalised.abs() < 64 * eps * (1 + normalised.abs().amax())) & (normalised != 0)
    if near.any():
        results = [each[:1] for each in results]
    # The gradient by a map is a difference, divided by a deviation of at least √eps.
    deviation = maps.double().reshape(batch, groups, -1).var(-1, unbiased=False).add(1e-5).sqrt()
    slacks = [64 * eps * x for x in (1.0, 1 / deviation.min().item(), 1.0, 1.0)]
    of_terms = cotangent.abs().sum().item() * max(1.0, affine[0].abs().max().item())
    for index, (actual, plain, true) in enumerate(zip(*results, strict=True)):
        terms = of_terms if index else 1.0
        assert_no_worse(actual, plain.nan_to_num(0, 0, 0), true, slacks[index] * terms)


@given(
    st.sampled_from([1, 2, 7, 16]), st.sampled_from([0, 1, 5, 33]), st.sampled_from([1, 3, 17, 64]),
    DTYPES, LAYOUTS, seeds,
)  # fmt: skip
@examples(25)
def test_scatter_add_rows(number, batch, size, dtype, layout, seed):
    generator = of_seed(seed)
    rows = torch.randint(number, (batch,), generator=generator)
    out = drawn((number, size), dtype, "contiguous", generator)
    source = drawn((batch, size), dtype, layout if batch else "contiguous", generator)
    exact = out.double().index_add(0, rows, 0.3 * source.double())
    plain = out.clone()
    reference.scatter_add_rows(plain, rows, source, 0.3)
    found = out.clone()
    torch.ops.mim4dd.scatter_add_rows(found, rows, source, scale=0.3)
    assert_no_worse(found, plain, exact)


def smooth_model():
    """Without kinks, so that a rounding stays one."""
    return nn.Sequential(nn.Linear(5, 6), nn.Softplus(), nn.Linear(6, 3))


@given(
    st.integers(1, 6), st.sampled_from([1, 2, 3, 5]), LAYOUTS, st.booleans(),
    st.sampled_from([0.0, 0.5]), st.sampled_from(["scalar", "per step"]),
    st.sampled_from(["device", "checkpoints"]), seeds,
)  # fmt: skip
@examples(12)
def test_unroll_sgd(steps, batch, layout, soft, momentum, lr_shape, history, seed):
    generator = of_seed(seed)
    model = smooth_model().double()
    theta_0 = drawn((57,), torch.float64, layout, generator, 0.5).requires_grad_()
    images = drawn((5, 5), torch.float64, layout, generator).requires_grad_()
    labels = torch.randint(3, (5,), generator=generator)
    inputs = [theta_0, images]
    if soft:
        labels = torch.rand(5, 3, generator=generator, dtype=torch.float64).softmax(1)
        inputs.append(labels.requires_grad_())
    # Of as many steps as there are parameter tensors a shape says too little.
    assume(steps != 4)
    lr = torch.rand((steps,) if lr_shape == "per step" else (), generator=generator).double() / 9
    inputs.append(lr.requires_grad_())
    batches = torch.randint(5, (steps, batch), generator=generator)
    arguments = theta_0, images, labels, batches
    unrolled = unroll_sgd(model, *arguments, lr=lr, momentum=momentum, history=history)
    plain = reference.unroll_sgd(FunctionalModel(model), *arguments, lr, momentum)
    torch.testing.assert_close(unrolled, plain, rtol=1e-11, atol=1e-11)
    cotangent = torch.randn(57, generator=generator, dtype=torch.float64)
    found, expected = (torch.autograd.grad(x, inputs, cotangent) for x in (unrolled, plain))
    for actual, true in zip(found, expected, strict=True):
        scale = true.abs().max().item() + 1
        torch.testing.assert_close(actual, true, rtol=1e-9, atol=1e-11 * scale)


@given(st.integers(1, 4), st.sampled_from([1, 3]), LAYOUTS, seeds)
@examples(8)
def test_unroll_adam_descends_as_torch_does(steps, batch, layout, seed):
    generator = of_seed(seed)
    model = smooth_model().double()
    theta_0 = drawn((57,), torch.float64, layout, generator, 0.5)
    images = drawn((5, 5), torch.float64, layout, generator).requires_grad_()
    labels = torch.randint(3, (5,), generator=generator)
    batches = torch.randint(5, (steps, batch), generator=generator)
    unrolled = unroll_adam(model, theta_0, images, labels, batches, lr=0.01)
    with torch.no_grad():
        nn.utils.vector_to_parameters(theta_0.clone(), model.parameters())
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for rows in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images.detach()[rows]), labels[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(unrolled, flatten_parameters(model), rtol=1e-9, atol=1e-10)
    (gradient,) = torch.autograd.grad(unrolled.sum(), images)
    assert gradient.isfinite().all()


@given(DTYPES, st.sampled_from([1, 3, 8]), seeds)
@examples(6)
def test_the_module_is_its_function(dtype, channels, seed):
    maps = drawn((2, channels, 5, 6), dtype, "contiguous", of_seed(seed))
    module = NormReLUPool2d(channels, channels, 2).to(dtype)
    expected = norm_relu_pool(maps, module.weight, module.bias, num_groups=channels, pool=2)
    assert torch.equal(module(maps), expected)
