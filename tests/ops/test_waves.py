"""The CPU's passes over logits in several tiles and waves, of every loss that is cut into them."""

import itertools
import math

import pytest
import torch
from contrastive_problem import CRITICS, Problem, assert_same
from paired import both_directions, make_inputs

from mim4dd import _C, clip_loss, reference
from mim4dd.reference import Critic

pytestmark = pytest.mark.usefixtures("small_tiles")
# Of rows and columns there is a rest, of waves too; both layers share one. MANY rows fill panels,
# a fifth of them ignored.
N, M, MANY = 72, 90, 200


def in_pairs(pairing, critic, spread, n=N, **options):
    """A problem whose queries are paired with keys by index, by label, as views, or not at all."""
    m = n if pairing == "views" else M
    problem = Problem(critic, pairing in ("index", "none"), True, spread, "cpu", n, m, **options)
    if pairing == "views":  # one positive by label, once the query itself is left out
        problem.labels = problem.key_labels = torch.arange(n) % (n // 2)
        problem.excluded = torch.arange(n)[:, None]
    elif pairing == "none":  # the log-sum-exp alone
        problem.labels.fill_(reference.NO_POSITIVE)
    return problem


@pytest.mark.parametrize("pairing", ["index", "label", "views", "none"])
@pytest.mark.parametrize("critic", CRITICS, ids=lambda c: f"{c.kind.name}-{c.decoupled}")
def test_values_and_derivatives(critic, pairing):
    # Without a shift of the logits and with one.
    for options, spread in itertools.product(({}, {"hardness": 0.5, "normalize": True}), (1, 60)):
        problem = in_pairs(pairing, critic._replace(**options), spread, num_excluded=2)
        expected, actual = problem.reference(), problem.op()
        assert_same(actual, expected)
        assert_same(problem.derivatives(actual), problem.derivatives(expected))


@pytest.mark.parametrize("pairing", ["index", "label", "views"])
@pytest.mark.parametrize("critic", CRITICS, ids=lambda c: f"{c.kind.name}-{c.decoupled}")
def test_gradients_formed_along_with_the_losses(critic, pairing):
    for normalize, spread in itertools.product((False, True), (1, 60)):
        problem = in_pairs(pairing, critic._replace(normalize=normalize), spread)
        gradients = [
            torch.autograd.grad(contrast.loss.sum(), problem.inputs)
            for contrast in (problem.reference(), problem.op(uniform=True))
        ]
        assert_same(gradients[1], gradients[0])


def assert_close_in_norm(actual, expected):
    """To the rounding of float32; of a number, on the scale of the largest beside it."""
    largest = max(each.norm() for each in expected)
    for a, e in zip(actual, expected, strict=True):
        scale = largest if e.ndim == 0 else e.norm()
        assert (a - e).norm() <= 3e-5 * scale


# In float32, where panels serve, and without a shift of the logits.
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("uniform", [False, True])
def test_panels(uniform, normalize):
    exact = in_pairs("index", Critic(normalize=normalize), 0.5, MANY, sizes=(17, 3), num_excluded=2)
    rounded = exact.to(torch.float32)
    expected, actual = exact.reference(), rounded.op(uniform)
    assert_close_in_norm(actual, expected)
    assert_close_in_norm(rounded.derivatives(actual), exact.derivatives(expected))
    gradients = [
        torch.autograd.grad(contrast.loss.sum(), problem.inputs)
        for contrast, problem in ((rounded.op(uniform), rounded), (exact.reference(), exact))
    ]
    assert_close_in_norm(*gradients)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [3, N - 1])
def test_a_bad_query_of_any_wave_shows_in_its_own_loss_and_every_key(row, bad):
    problem = in_pairs("index", Critic(), 1)
    problem.labels = torch.arange(N)
    with torch.no_grad():
        problem.query[0][row, 0] = bad
    loss = problem.op().loss[0]
    assert loss.isnan().nonzero().tolist() == [[row]]
    assert torch.autograd.grad(loss.sum(), problem.key[0])[0].isnan().any(1).all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_clip_loss(spread, normalize):
    inputs = [
        *make_inputs(80, 5, torch.float64, "cpu", spread),
        torch.tensor(7.0, dtype=torch.float64, requires_grad=True),
    ]
    upstream, tangents = torch.rand(80).double(), [torch.randn_like(each) for each in inputs]

    def fused(query, key, scale):
        return clip_loss(query, key, logit_scale=scale, normalize=normalize, reduction="none")

    def textbook(query, key, scale):
        if normalize:
            query, key = (reference.unit_rows(side)[0] for side in (query, key))
        return sum(both_directions(query, key, scale)) / 2

    def derivatives(loss):
        first = torch.autograd.grad(loss, inputs, upstream, create_graph=True)
        return loss, *first, *torch.autograd.grad(first, inputs, tangents)

    assert_same(*(derivatives(function(*inputs)) for function in (fused, textbook)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_a_bad_row_of_any_wave_leaves_no_clip_loss(spread, bad):
    for side, row in itertools.product((0, 1), (2, N - 1)):
        inputs = [each.detach() for each in make_inputs(N, 5, torch.float32, "cpu", spread)]
        inputs[side][row, 1] = bad
        assert clip_loss(*inputs, logit_scale=7.0, reduction="none").isnan().all()


@pytest.mark.parametrize("sizes", [(0, 64, 0), (48, 64, 0), (32, 0, 0), (32, 64, -1)])
def test_sizes_that_fit_no_memory_are_refused(sizes):
    with pytest.raises(ValueError, match=f"got {', '.join(map(str, sizes[:2]))} and {sizes[2]}"):
        _C.set_tile_sizes(*sizes)
