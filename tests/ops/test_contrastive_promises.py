"""What every backend of the contrastive losses promises, held to one set of cases.

On a CPU the C++ kernels, the Triton launchers in both forms, and mim4dd.reference where its own
arithmetic can: it defines the values, not their digits.
"""

import math
import os
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from contrastive_cases import (
    Case,
    check,
    check_second_order,
    first_order,
    name,
    over_layers,
    run,
    run_second_order,
    second_order,
)

from mim4dd.reference import IGNORE, NO_POSITIVE, Critic, Kind, Reduce


class Backend(NamedTuple):
    """The three ops, and the device that they run on."""

    ops: Any
    device: str
    second_order: bool = True  # whether to judge that too: both forms of Triton have the same
    rows: int = 34  # queries that reach every path: several tiles, or some chunks of rows

    @property
    def interpreted(self):
        return self.ops is not torch.ops.mim4dd and self.device == "cpu"


@pytest.fixture(params=["cpu", "fused", "chunked"])
def backend(request, monkeypatch):
    """Every kernel, whatever the shape; chunks of a few rows, so that there is more than one."""
    if request.param == "cpu":
        return Backend(torch.ops.mim4dd, "cpu")
    if "MIM4DD_CPU" in os.environ:
        pytest.skip("Triton's kernels do not depend on the CPU's instruction set")
    pytest.importorskip("triton")
    device = request.getfixturevalue("kernel_device")
    from mim4dd.kernels import _chunked, contrastive

    fused = request.param == "fused"
    monkeypatch.setattr(contrastive, "fuses", lambda query, key: fused)
    monkeypatch.setattr(_chunked, "WORKSPACE", 2**11)
    return Backend(contrastive, device) if device != "cpu" else interpreted(contrastive, fused)


def interpreted(ops, fused):
    """Each program of the interpreter is slow, and each row of the chunked form is one."""
    return Backend(ops, "cpu", second_order=not fused, rows=34 if fused else 10)


with_kind = pytest.mark.parametrize(
    "critic",
    [Critic(), Critic(decoupled=True), Critic(Kind.IN), Critic(Kind.IN, True), Critic(Kind.NCE)],
    ids=name,
)


# Ways to name positives that outweigh all negatives.
def by_index(case):
    case.labels, case.key_labels = torch.arange(len(case.labels)), None


def by_label(case):
    case.key_labels = torch.randperm(1000)[: len(case.key_labels)]
    case.labels = case.key_labels[: len(case.labels)].clone()


def among_masked(case):
    by_index(case)
    case.key_labels = torch.arange(len(case.key[0]))
    case.key_labels[3] = IGNORE
    case.labels[7] = IGNORE


def beside_several(case):
    """One query has two keys; of its second derivatives no digit is promised."""
    by_label(case)
    case.key_labels[40] = case.labels[-1]
    case.grad_loss[:, -1] = 0


def of_several(case):
    """Two keys of each class, close to each other."""
    case.key[0][1::2] = case.key[0][::2]
    case.query[0][1::2] = case.query[0][::2]
    case.key[0] += 0.1 * torch.randn_like(case.key[0])
    case.labels = torch.arange(len(case.labels)) // 2
    case.key_labels = torch.arange(len(case.key_labels)) // 2


DOMINATED = [
    (by_index, Critic()),
    (by_label, Critic()),
    (among_masked, Critic()),
    (by_index, Critic(hardness=0.02)),
    (beside_several, Critic()),
    (by_index, Critic(Kind.IN)),
    (of_several, Critic(Kind.IN)),
]


@pytest.mark.parametrize(
    ("positives", "critic"),
    DOMINATED,
    ids=lambda v: name(v) if isinstance(v, Critic) else v.__name__,
)
def test_digits_near_p_1(positives, critic, backend):
    """In float32 1 − p has no digits left; what is formed from the negatives has all.

    Each row of the gradients is held to its own size, and derivatives of them, whose terms cancel
    in some row of some draws, to that of all rows.
    """
    case = Case((backend.rows, 66, [24]), torch.float32, "cpu", scale=1.0)
    rows = 30**0.5 * F.normalize(torch.randn(66, 24), dim=1)
    case.query, case.key = [rows[: backend.rows].clone()], [rows]
    case.grad_loss, case.grad_lse = case.grad_loss.abs() + 0.1, 0 * case.grad_lse
    positives(case)
    tangents = [torch.randn_like(leaf) for leaf in case.leaves(None)]
    case.move(backend.device)
    tangents = [tangent.to(backend.device) for tangent in tangents]
    (loss, *_), first = run(backend.ops, case, critic)
    _, (exact, *_), exact_first = first_order(case, critic, torch.float64)
    assert (exact.median() - math.log(2) * (positives is of_several)) < 1e-5
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)
    of_sum = case.call(backend.ops.contrastive, critic, Reduce.SUM, [True, True, True, False])[-1]
    upstream, case.grad_loss = case.grad_loss, torch.ones_like(case.grad_loss)
    _, _, exact_of_sum = first_order(case, critic, torch.float64)
    pairs = [*zip(first, exact_first, strict=True)]
    pairs += zip(over_layers(of_sum), exact_of_sum, strict=True)
    for found, true in pairs:
        size = true.norm(dim=-1) if true.ndim else true.abs()
        error = (found - true).norm(dim=-1) if true.ndim else (found - true).abs()
        assert (error <= 1e-3 * size).all(), f"{(error / size).max():.1e} of a row"
    if backend.second_order:
        case.grad_loss = upstream
        second = run_second_order(backend.ops, case, critic, tangents)
        exact_second = second_order(case, critic, tangents, torch.float64)
        for found, true in [
            *zip(second[2:4], exact_second[2:4], strict=True),
            (second[0], exact_second[0]),
        ]:
            assert (found - true).norm() <= 1e-3 * true.norm()


def test_a_known_loss_near_p_1(backend):
    """Of two orthogonal pairs: log(1 + e^−scale)."""
    case = Case((2, 2, [2]), torch.float32, backend.device, scale=20.0)
    case.query = case.key = [torch.eye(2, device=backend.device)]
    case.labels, case.key_labels = torch.arange(2, device=backend.device), None
    for critic in (Critic(), Critic(Kind.IN)):
        (loss, *_), _ = run(backend.ops, case, critic)
        torch.testing.assert_close(
            loss.double(), loss.new_full((1, 2), math.log1p(math.exp(-20)), dtype=torch.float64),
            rtol=1e-5, atol=0,
        )  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 1e3])  # without a shift and with one
@pytest.mark.parametrize("critic", [Critic(), Critic(Kind.IN)], ids=name)
def test_positives_alone_pull_nothing(critic, scale, backend):
    """With no negative p − y is 0 exactly, in every order; "out" then has one key."""
    num_keys = 40 if critic.kind == Kind.IN else 1
    case = Case((backend.rows, num_keys, [5]), torch.float32, backend.device, scale=scale)
    case.labels.zero_()
    case.key_labels.zero_()
    case.grad_lse.zero_()
    tangents = [torch.randn_like(leaf) for leaf in case.leaves(None)]
    (loss, *_), first = run(backend.ops, case, critic)
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(num_keys)))
    assert not any(gradient.any() for gradient in first)
    if backend.second_order:
        second = run_second_order(backend.ops, case, critic, tangents)
        assert not any(gradient.any() for gradient in (second[0], *second[2:]))


def test_negatives_that_outweigh_the_positives_by_more_than_a_float_holds(backend):
    """Each sum of exponentials is finite, their ratio is not.

    On a CPU also where no maximum is subtracted: logits up to 40, of many keys.
    """
    cpu = backend.ops is torch.ops.mim4dd
    num_keys, scale = (10_000, 39.9) if cpu else (100, 44.5)
    case = Case((1, num_keys, [1]), torch.float32, backend.device, scale=scale)
    case.labels.zero_()
    case.key_labels = (torch.arange(num_keys, device=backend.device) > 0).long()
    case.query, case.key = [torch.ones_like(case.query[0])], [2.0 * case.key_labels[:, None] - 1]
    case.grad_loss, case.grad_lse = torch.ones_like(case.grad_loss), 0 * case.grad_lse
    (loss, *_), first = run(backend.ops, case, Critic(Kind.IN))
    _, (exact, *_), exact_first = first_order(case, Critic(Kind.IN), torch.float64)
    for actual, true in zip([loss, *first], [exact, *exact_first], strict=True):
        torch.testing.assert_close(actual, true.float(), rtol=1e-3, atol=1e-6)


LABELS = {
    "one class": ([0] * 6, [0] * 7),  # no negative
    "two classes": ([0] * 6, [1] * 7),  # no positive
    "one member": ([0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1]),  # one key of class 0
    "mostly ignored": ([0, 0, -1, -1, 5, 2**40], [-1] * 6 + [2**40]),
    "no key": ([0] * 6, [-1] * 7),
    "only the log-sum-exp": ([NO_POSITIVE] * 6, None),
    "by index": ([0, 6, 3, -1, 7, 5], None),  # one of them is no key
}


@pytest.mark.parametrize("labels", LABELS)
@with_kind
def test_labels(critic, labels, backend):
    """Queries without a positive, without a negative, without any key: of both orders.

    The interpreter, which is slow, leaves keys out in every other case.
    """
    place = list(LABELS).index(labels) + critic.kind + critic.decoupled
    for num_excluded in (0, 2)[place % 2 :: 2] if backend.interpreted else (0, 2):
        case = Case((6, 7, [4]), torch.float64, backend.device, num_excluded=num_excluded)
        case.labels, case.key_labels = (
            None if part is None else torch.tensor(part, device=backend.device)
            for part in LABELS[labels]
        )
        check(backend.ops, case, critic)
        if backend.second_order:
            check_second_order(backend.ops, case, critic)


@pytest.mark.parametrize("reduction", [Reduce.MEAN, Reduce.SUM])
def test_only_queries_with_a_positive_count(reduction, backend):
    case = Case((6, 7, [4, 3]), torch.bfloat16, backend.device)
    case.labels, case.key_labels = (
        torch.tensor(part, device=backend.device) for part in LABELS["one member"]
    )
    reduced, count, loss, _, weight, _ = case.call(
        backend.ops.contrastive, Critic(), reduction, [False] * 4
    )
    assert count == 3
    assert (loss[:, 3:] == 0).all()
    torch.testing.assert_close(weight, weight.new_tensor([1, 1 / 6, 1 / 6, 0, 0, 0]))
    torch.testing.assert_close(reduced, loss.sum(1) / (3 if reduction == Reduce.MEAN else 1))


def test_gradients_formed_along_with_a_mean_are_those_of_the_sum_by_its_count(backend):
    case = Case((6, 7, [4, 3]), torch.float32, backend.device)
    case.labels, case.key_labels = (
        torch.tensor(part, device=backend.device) for part in LABELS["one member"]
    )
    wanted = [True, True, True, False]
    of_sum, of_mean = (
        case.call(backend.ops.contrastive, Critic(), how, wanted)[-1]
        for how in (Reduce.SUM, Reduce.MEAN)
    )
    torch.testing.assert_close([3 * each for each in of_mean], of_sum)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_of_results(dtype, backend):
    """Losses are float32 or wider, gradients as their inputs; of a sum they are not rounded yet."""
    case, wide = Case((5, 6, [4]), dtype, backend.device), torch.promote_types(dtype, torch.float32)
    wanted = [True, True, True, False]
    *values, of_sum = case.call(backend.ops.contrastive, Critic(), Reduce.MEAN, wanted)
    assert all(value.dtype == wide for value in (*values, *of_sum))
    _, (query, key, scale) = run(backend.ops, case, Critic())
    assert (query.dtype, key.dtype, scale.dtype) == (dtype, dtype, wide)
    second = run_second_order(backend.ops, case, Critic(), case.leaves(None))
    assert [each.dtype for each in second] == [wide, wide, dtype, dtype, wide]


@with_kind
def test_what_is_ignored_may_hold_anything(critic, backend):
    case = Case((6, 11, [6]), torch.float32, backend.device)
    case.labels[[2, 4]], case.key_labels[[5, 7]] = IGNORE, IGNORE
    tangents = [torch.randn_like(leaf) for leaf in case.leaves(None)]
    critics = critic, critic._replace(normalize=True)

    def everything():
        found = [run(backend.ops, case, each) for each in critics]
        if backend.second_order:
            found.append((run_second_order(backend.ops, case, critic, tangents), []))
        return [part for values, gradients in found for part in (*values, *gradients)]

    clean = everything()
    for query, key, bad in ((2, 5, math.nan), (4, 7, math.inf)):
        case.query[0][query], case.key[0][key] = bad, bad
        tangents[0][query], tangents[1][key] = bad, bad
    assert all(torch.equal(a, b) for a, b in zip(clean, everything(), strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])  # logits of both signs, for queries have
@with_kind
def test_a_bad_key_reaches_every_query_that_meets_it(critic, bad, backend):
    """Its loss, its gradient, its second derivative: nowhere is a finite number instead."""
    case = Case((6, 5, [3]), torch.float32, backend.device)
    case.query[0][:, 1] = case.query[0][:, 1].abs() + 0.1
    case.query[0][::2, 1] *= -1
    case.labels = torch.tensor([1, 1, 2, 2, 0, 9], device=backend.device)  # of 9 no key
    case.key_labels = torch.tensor([0, 1, 2, 3, 1], device=backend.device)
    case.excluded = torch.full((6, 1), IGNORE, device=backend.device)
    case.excluded[2] = 4
    case.key[0][4, 1] = bad
    for each in (critic, critic._replace(normalize=True)):
        (loss, _, _), (grad_query, grad_key, grad_scale) = run(backend.ops, case, each)
        used = torch.arange(6, device=backend.device) != 2
        assert loss[0, used].isnan().all()
        assert loss[0, 2].isfinite()
        has_loss = used & (case.labels != 9)
        assert grad_query[has_loss].isnan().any(1).all()
        assert grad_key[4].isnan().any()
        assert grad_scale.isnan()
    if backend.second_order:
        tangents = [torch.ones_like(leaf) for leaf in case.leaves(None)]
        second = run_second_order(backend.ops, case, critic, tangents)
        assert not second[0][0, has_loss].isfinite().any()
        assert not second[2][has_loss].isfinite().all(1).any()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
@with_kind
def test_a_scale_of_no_temperature_gives_nan(critic, scale, backend):
    case = Case((2, 3, [3]), torch.float32, backend.device, scale=scale)
    case.labels = torch.arange(2, device=backend.device)
    case.key_labels = torch.arange(3, device=backend.device)
    (loss, _, _), (grad_query, *_) = run(backend.ops, case, critic)
    assert loss.isnan().all()
    assert grad_query.isnan().all()
    exact, *_ = case.reference(critic, case.leaves(None))
    assert exact.isnan().all()


def test_rows_too_short_to_normalise(backend):
    """F.normalize divides them by its eps, so they keep the gradient along themselves."""
    case = Case((5, 6, [4]), torch.float64, backend.device)
    case.query[0][3], case.key[0][2] = 0, case.key[0][2] * 1e-13
    check(backend.ops, case, Critic(normalize=True))


def test_squared_norms_may_overflow(backend):
    case, critic = Case((5, 6, [4]), torch.float32, backend.device), Critic(normalize=True)
    (loss, *_), (grad_query, grad_key, _) = run(backend.ops, case, critic)
    case.query[0], case.key[0] = case.query[0] * 2.0**100, case.key[0] * 2.0**-20
    (long_loss, *_), (long_grad_query, long_grad_key, _) = run(backend.ops, case, critic)
    torch.testing.assert_close(long_loss, loss)
    torch.testing.assert_close(long_grad_query * 2.0**100, grad_query)
    torch.testing.assert_close(long_grad_key * 2.0**-20, grad_key)


def test_a_bias_of_each_query(backend):
    """One call with all of them is as many calls, whose gradients of keys add up."""
    critic = Critic(Kind.NCE, hardness=0.3)
    case = Case((7, 5, [3, 4]), torch.float64, backend.device, num_excluded=1)
    biases = torch.randn(7, dtype=torch.float64, device=backend.device)
    wanted = [True, True, True, False]
    labels, case.bias = case.labels, biases
    (loss, *_), gradients = run(backend.ops, case, critic, wanted)
    found = []
    for query, case.bias in enumerate(biases):
        alone = torch.arange(7, device=backend.device) == query
        case.labels = labels.where(alone, IGNORE)
        (of_one, *_), gradients_of_one = run(backend.ops, case, critic, wanted)
        found.append([of_one, *gradients_of_one])
    for together, *each in zip([loss, *gradients], *found, strict=True):
        torch.testing.assert_close(together, sum(each))
