"""The contrastive op: every critic, all derivatives, registration, layers, what is ignored."""

import itertools
import math

import pytest
import torch
from contrastive_problem import CRITICS, Problem, assert_same
from torch.library import opcheck

from mim4dd import clip_loss, info_nce, reference
from mim4dd.ops.contrastive import contrastive, reduced_contrastive, reduced_loss
from mim4dd.reference import Critic, Kind, Reduce

# Every pair of options occurs with every critic; all combinations would be eight times as many.
OPTIONS = [
    ({"hardness": hardness, "normalize": normalize}, num_excluded)
    for hardness, normalize, num_excluded in [
        (0.0, False, 0),
        (0.5, False, 1),
        (0.0, True, 4),
        (0.5, True, 0),
    ]
]


@pytest.mark.parametrize(("options", "num_excluded"), OPTIONS, ids=str)
@pytest.mark.parametrize("critic", CRITICS, ids=lambda c: f"{c.kind.name}-{c.decoupled}")
def test_values_and_derivatives(critic, options, num_excluded, device):
    critic = critic._replace(**options)
    # With rows of this length no shift is needed, with those 60 times as long it is.
    for by_index, ignoring, spread in itertools.product((False, True), (False, True), (1, 60)):
        # More keys than queries, and fewer.
        for m in (19, 11):
            problem = Problem(
                critic, by_index, ignoring, spread, device, m=m, num_excluded=num_excluded
            )
            expected = problem.reference()
            actual = problem.op()
            assert_same(actual, expected)
            assert_same(problem.derivatives(actual), problem.derivatives(expected))


@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (2, 7), (9, 130), (13, 600), (33, 40), (70, 200), (300, 150)]
)
def test_products_of_every_shape(queries, keys, device):
    """Sizes by which every way to multiply is taken, with rests of rows, columns and depth."""
    sizes = (15, 16, 17, 31, 34, 131, 300, 600)
    critic = Critic(normalize=True)
    problem = Problem(critic, False, False, 1.0, device, queries, keys, sizes)
    expected, actual = problem.reference(), problem.op()
    assert_same(actual, expected)
    assert_same(problem.derivatives(actual), problem.derivatives(expected))


@pytest.mark.parametrize("critic", CRITICS, ids=lambda c: f"{c.kind.name}-{c.decoupled}")
def test_gradients_formed_along_with_the_losses(critic, device):
    """As they are where the upstream gradient is the same for every query of a layer."""
    problem = Problem(critic, False, True, 1, device)
    factor = torch.randn(2, dtype=torch.float64, device=device)
    gradients = [
        torch.autograd.grad((contrast.loss.sum(1) * factor).sum(), problem.inputs)
        for contrast in (problem.reference(), problem.op(uniform=True))
    ]
    assert_same(gradients[1], gradients[0])


@pytest.mark.parametrize("by_rules", [False, True], ids=["function", "rules"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_what_comes_through_the_reduced_and_the_single_losses(reduction, by_rules, device):
    """Both ways at once, either one alone, and with a second derivative."""
    problem = Problem(Critic(), False, True, 1, device)
    pairs = (problem.query, problem.key, *problem.shared)
    factor = torch.randn(2, dtype=torch.float64, device=device)

    def derivatives(reduced, loss):
        through = (reduced * factor).sum(), (loss * problem.upstream[0]).sum()
        of_single = torch.autograd.grad(through[1], problem.inputs, retain_graph=True)
        first = torch.autograd.grad(sum(through), problem.inputs, create_graph=True)
        along = sum((a * t).sum() for a, t in zip(first, problem.tangents, strict=True))
        second = torch.autograd.grad(along, problem.inputs, retain_graph=True)
        return of_single, first, second, torch.autograd.grad(through[0], problem.inputs)

    expected = problem.reference()
    if by_rules:
        wanted = [True, True, True, False]
        outputs = torch.ops.mim4dd.contrastive(
            *pairs, *problem.critic, Reduce[reduction.upper()], wanted
        )
        reduced, loss = outputs[0], outputs[2]
    else:
        reduced, contrast = reduced_contrastive(*pairs, problem.critic, reduction)
        loss = contrast.loss
    plain = reduced_loss(expected, reduction)
    torch.testing.assert_close(reduced, plain)
    for actual, exact in zip(
        derivatives(reduced, loss), derivatives(plain, expected.loss), strict=True
    ):
        assert_same(actual, exact)


def test_a_second_walk_over_a_kept_graph_gives_the_same(device):
    """The gradients formed along with the losses are scaled in place only on the last walk."""
    new = {"dtype": torch.float64, "device": device}
    query, key = torch.randn(2, 6, 4, **new).requires_grad_().unbind()
    loss = 3 * info_nce(query, key)
    walks = [
        torch.autograd.grad(loss, (query, key), retain_graph=keep) for keep in (True, True, False)
    ]
    expected = torch.autograd.grad(3 * info_nce(query, key, backend="reference"), (query, key))
    for walk in walks:
        for actual, plain in zip(walk, expected, strict=True):
            torch.testing.assert_close(actual, plain)


def test_a_broken_promise_of_uniformity_costs_only_time(device):
    problem = Problem(Critic(), False, False, 1, device)
    expected, actual = problem.reference(), problem.op(uniform=True)
    assert_same(problem.derivatives(actual), problem.derivatives(expected))


def test_what_is_ignored_may_hold_anything(device):
    problem = Problem(Critic(), False, True, 1, device)
    problem.labels[3], problem.key_labels[4] = reference.IGNORE, reference.IGNORE
    expected = [*problem.op(), *problem.derivatives(problem.op())]
    with torch.no_grad():
        problem.query[0][3] = math.nan
        problem.key[0][4] = math.inf
    actual = [*problem.op(), *problem.derivatives(problem.op())]
    assert_same(actual, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("critic", CRITICS, ids=lambda c: f"{c.kind.name}-{c.decoupled}")
@pytest.mark.parametrize("spread", [1, 1000])
def test_non_finite_keys_reach_every_query(critic, bad, spread, device):
    problem = Problem(critic, False, False, spread, device)
    problem.query = [query.detach().abs() for query in problem.query]
    with torch.no_grad():
        problem.key[1][7, 2] = bad
    loss, _, weight = problem.op()
    assert loss[1].isnan().all()
    assert loss[0].isfinite().all()
    gradient = torch.autograd.grad(loss[1].sum(), problem.key[1])[0]
    if (weight > 0).any():
        assert gradient.isnan().any()


@pytest.mark.parametrize("no", ["queries", "keys"])
def test_nothing_that_takes_part(no, device):
    problem = Problem(Critic(), False, False, 1, device)
    (problem.labels if no == "queries" else problem.key_labels).fill_(reference.IGNORE)
    expected = problem.reference()
    assert_same(problem.op(), expected)
    assert_same(problem.derivatives(problem.op()), problem.derivatives(expected))


EXTREMES = ["certain", "large", "duplicated keys", "one member", "one class"]


def extreme_inputs(extreme, device, n=96, d=24):
    """Query, key, labels, logit_scale."""
    key = torch.nn.functional.normalize(torch.randn(n, d, device=device), dim=1)
    query, scale = key + 0.1 * torch.randn_like(key), 10.0
    labels = torch.arange(n, device=device) % 5
    if extreme == "certain":  # p of the positive is 1 to the last digit
        labels, scale = torch.arange(n, device=device), 60.0
    elif extreme == "large":
        scale = 1e4
    elif extreme == "duplicated keys":
        key[n // 2 :] = key[: n - n // 2]
    elif extreme == "one member":
        labels[0] = 99
    else:
        labels = torch.zeros_like(labels)
    return query, key, labels, scale


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("kind", Kind)
def test_no_less_exact_than_plain_torch(extreme, kind, device):
    """In float32, by the root mean square over draws: in one draw, rounding is a matter of luck."""
    critic = Critic(kind)

    def run(inputs, upstream, dtype, plain):
        query, key, labels, scale = inputs
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (query, key)]
        pairs = labels, labels, None, torch.tensor(scale, dtype=dtype, device=device), None, critic
        if plain:
            loss = reference.contrastive(*leaves, *pairs).loss
        else:
            q, k = leaves
            loss = contrastive([q], [k], *pairs, uniform=False).loss[0]
        return loss.detach(), *torch.autograd.grad(loss, leaves, upstream.to(dtype))

    ours, plain, size = (torch.zeros(3, dtype=torch.float64) for _ in range(3))
    for _ in range(16):
        inputs = extreme_inputs(extreme, device)
        upstream = torch.rand(len(inputs[0]), device=device)
        exact = run(inputs, upstream, torch.float64, True)
        size += torch.stack([e.square().sum().cpu() for e in exact])
        for errors, is_plain in ((ours, False), (plain, True)):
            actual = run(inputs, upstream, torch.float32, is_plain)
            pairs = zip(actual, exact, strict=True)
            errors += torch.stack([(a - e).square().sum().cpu() for a, e in pairs])
    rounding = torch.full((3,), 1e-6, dtype=torch.float64)
    if kind == Kind.IN and extreme == "large":
        # Its gradients vanish but for one weight in a few draws, where nothing averages out by how
        # much rounding a logit moves it.
        rounding[1:] = torch.finfo(torch.float32).eps * inputs[-1]
    budget = 1.1 * plain.sqrt() + rounding * size.sqrt()
    assert (ours.sqrt() <= budget).all(), f"ours {ours.sqrt()}, plain {plain.sqrt()}"


def test_hardness_counts_in_what_needs_no_shift(device):
    """Logits of 36 that it raises to 108, of which float32 has no exponential."""
    key_labels = torch.tensor([0, 1, 1], device=device)
    rows = torch.full((1, 1), 72.0, device=device), torch.ones(3, 1, device=device)
    scale = torch.tensor(0.5, device=device)
    pairs = key_labels[:1], key_labels, None, scale, None, Critic(hardness=1.0)
    loss = contrastive([rows[0]], [rows[1]], *pairs, uniform=False).loss
    torch.testing.assert_close(loss[0, 0].item(), 72 + math.log(2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, normalize, device, pytestconfig):
    query, key = torch.randn(2, 40, 33, device=device).to(dtype).requires_grad_().unbind()
    scale = torch.tensor(0.5, device=device)
    labels = torch.randint(4, (40,), device=device)
    critic = Critic(normalize=normalize)
    wide = [tensor.detach().float().requires_grad_() for tensor in (query, key)]
    shared = labels, labels, None, scale, None, critic
    expected = contrastive([wide[0]], [wide[1]], *shared, uniform=True)
    actual = contrastive([query], [key], *shared, uniform=True)
    assert actual.loss.dtype == torch.float32
    torch.testing.assert_close(actual.loss, expected.loss)
    moved = moved_by_half_weights(*wide, labels, scale, normalize)
    for a, e, of_weights in zip(
        torch.autograd.grad(actual.loss.sum(), (query, key)),
        torch.autograd.grad(expected.loss.sum(), wide),
        moved,
        strict=True,
    ):
        if device == "cpu" and not pytestconfig.getoption("--triton-on-cpu"):
            torch.testing.assert_close(a, e.to(dtype))
        error = (a.float() - e).norm(dim=1)
        assert (error <= torch.finfo(dtype).eps * (of_weights + e.norm(dim=1))).all()


def moved_by_half_weights(query, key, labels, scale, normalize):
    """Norms that rows of both gradients move by, over a dtype's eps, if p - y is rounded to it.

    That is what a GPU's tensor cores multiply; a CPU rounds the gradients alone.
    """
    query, key = query.detach(), key.detach()
    lengths = [
        side.norm(dim=1) if normalize else torch.ones_like(side[:, 0]) for side in (query, key)
    ]
    units = query / lengths[0][:, None], key / lengths[1][:, None]
    positive = (labels[:, None] == labels).float()
    y = positive / positive.sum(1, keepdim=True)
    weights = ((scale * units[0] @ units[1].T).softmax(1) - y).abs()
    sums = weights @ units[1].abs(), weights.T @ units[0].abs()
    return [scale * side.norm(dim=1) / length for side, length in zip(sums, lengths, strict=True)]


@pytest.mark.parametrize("uniform", [False, True])
def test_the_same_bits_every_time(uniform, device):
    problem = Problem(Critic(normalize=True), False, False, 1, device, n=300, m=700, sizes=(40, 9))

    def run():
        contrast = problem.op(uniform)
        return [*contrast, *torch.autograd.grad(contrast.loss.sum(), problem.inputs)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize(
    "critic", [Critic(), Critic(Kind.IN, normalize=True), Critic(Kind.NCE)], ids=str
)
def test_registration(critic, device):
    problem = Problem(critic, False, False, 1, device, num_excluded=2)
    pairs = (problem.query, problem.key, *problem.shared)
    ops = torch.ops.mim4dd
    for reduction in Reduce:
        opcheck(ops.contrastive.default, (*pairs, *critic, reduction, [True, True, True, False]))
    opcheck(ops.contrastive.default, (*pairs, *critic, Reduce.MEAN, [False] * 4))
    with torch.no_grad():
        _, lse, weight = problem.op()
    saved = (lse, weight, problem.upstream[0].detach(), problem.upstream[1].detach())
    opcheck(ops.contrastive_bwd.default, (*pairs, *critic, *saved, [True, True, True, False]))
    if critic.normalize:
        return
    zeros = torch.zeros(2, dtype=torch.float64, device=device)
    tangents = (
        [t.detach() for t in problem.query],
        [t.detach() for t in problem.key],
        zeros,
        zeros,
    )
    detached = [[t.detach() for t in side] for side in pairs[:2]]
    opcheck(
        ops.contrastive_bwd_bwd.default,
        (
            *detached,
            *pairs[2:5],
            pairs[5].detach(),
            None,
            *critic,
            *saved,
            *tangents,
            [True] * 3 + [False],
        ),
    )


def test_a_third_derivative_is_refused(device):
    problem = Problem(Critic(), False, False, 1, device)
    first = torch.autograd.grad(problem.op().loss.sum(), problem.query[0], create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), problem.query[0], create_graph=True)
    with pytest.raises(RuntimeError, match="a third was asked for"):
        torch.autograd.grad(second[0].sum(), problem.query[0])


def test_large_and_small_upstream_gradients_of_half_precision(device):
    """A loss scale beyond float16 is no infinite gradient, nor a small one 0."""
    query, key = torch.randn(2, 8, 4, device=device).half().unbind()
    query.requires_grad_()
    for factor, spread, temperature in ((1e5, 1, 100.0), (1e-8, 50, 0.01)):
        gradients = [
            torch.autograd.grad(
                factor
                * info_nce(
                    query, spread * key, temperature=temperature, reduction="sum", backend=backend
                ),
                query,
            )[0]
            for backend in (None, "reference")
        ]
        assert (gradients[1] != 0).any()
        torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 1e30), (torch.float32, 1e-9), (torch.float64, 1e200)]
)
def test_rows_of_any_size_are_normalized(dtype, size, device):
    rows = torch.randn(6, 4, dtype=dtype, device=device)
    pairs = rows[:3], rows[3:]
    functions = [
        lambda a, b, backend: info_nce(a, b, normalize=True, backend=backend),
        lambda a, b, backend: clip_loss(a, b, normalize=True, backend=backend),
        lambda a, b, backend: info_nce(a, b, negative_keys=b, normalize=True, backend=backend),
    ]
    for function in functions:
        for backend in (None, "reference"):
            expected = function(*pairs, backend)
            torch.testing.assert_close(
                function(*(size * each for each in pairs), backend), expected
            )


@pytest.mark.parametrize("size", [0.0, 1e-10, 1.0, 1e10])
def test_gradients_of_normalized_rows_among_which_one_has_another_length(size, device):
    """Keys of ordinary length are not copied to be normalised; those with others among them are."""
    problem = Problem(Critic(normalize=True), False, False, 1, device)
    with torch.no_grad():
        problem.key[0][3] *= size
    gradients = [
        torch.autograd.grad(contrast.loss.sum(), problem.inputs)
        for contrast in (problem.reference(), problem.op(uniform=True))
    ]
    for place, (expected, actual) in enumerate(zip(*gradients, strict=True)):
        if place == 2:  # the length of a gradient is the inverse of its row's
            expected, actual = (
                g * problem.key[0].norm(dim=1, keepdim=True) for g in (expected, actual)
            )
        assert_same([actual], [expected])


def test_ignored_rows_reach_no_derivative_through_their_length(device):
    new = {"dtype": torch.float64, "device": device}
    query = torch.randn(4, 4, **new)
    query[1] = math.nan
    query.requires_grad_()
    index = torch.tensor([0, -1, 2, 3], device=device)
    second = []
    for backend in (None, "reference"):
        loss = info_nce(
            query,
            torch.eye(4, **new),
            positive_index=index,
            normalize=True,
            backend=backend,
        )
        (first,) = torch.autograd.grad(loss, query, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), query)[0])
        assert (second[-1][1] == 0).all()
    torch.testing.assert_close(*second)


def test_tangents_of_another_shape_are_refused():
    rows, zeros = torch.randn(5, 3), torch.zeros(1)
    for tangents in (([rows], [rows[:2]]), ([rows[:, :1]], [rows])):
        with pytest.raises(RuntimeError, match=r"tangent|hold query"):
            torch.ops.mim4dd.contrastive_bwd_bwd(
                *([rows], [rows], torch.arange(5), None, None, torch.tensor(1.0), None, *Critic()),
                *(torch.zeros(1, 5), torch.ones(5), torch.ones(1, 5), None),
                *(*tangents, zeros, zeros, [True, True, False, False]),
            )
