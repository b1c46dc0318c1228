"""Every contrastive loss on any shape, dtype, strides, labels and temperature, against float64."""

import math
import re
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import DTYPES, LAYOUTS, SIZES, drawn, examples, seeds
from tolerance import TOLERANCE

from mim4dd import (
    InfoNCELoss,
    MIM4DDLoss,
    NCELoss,
    SupConLoss,
    clip_loss,
    info_nce,
    log_sum_exp,
    nce,
    sup_con,
)

# By labels, and all.
LABELLED = {"sup_con out": sup_con, "sup_con in": sup_con, "info_nce": info_nce, "nce": nce}
FUNCTIONS = {"by index": info_nce, "clip": clip_loss, "log_sum_exp": log_sum_exp, **LABELLED}


class Call(NamedTuple):
    """A loss with all of its arguments but features and temperature."""

    function: object
    options: dict
    hardness: float
    normalize: bool
    # Sums of the absolute weights of a query's logits, which are its derivatives by them.
    weights: float

    def __call__(self, query, key, temperature, **more):
        options = {**self.options, "normalize": self.normalize}
        if self.function not in (clip_loss, log_sum_exp):
            options["hardness"] = self.hardness
        return self.function(query, key, temperature=temperature, **options, **more)


@st.composite
def calls(draw):
    """Shapes, layouts and a loss that fits them."""
    n, m, d = draw(SIZES), draw(SIZES), draw(SIZES)
    kind = draw(st.sampled_from([*LABELLED, "by index", "clip", "log_sum_exp"]))
    if kind == "clip":
        m = n
    generator = torch.Generator().manual_seed(draw(seeds))
    options = {"reduction": "none"} if kind != "log_sum_exp" else {}
    if kind in LABELLED:
        classes = draw(st.sampled_from([1, 2, 5, 40]))
        labels = torch.randint(-1, classes, (n,), generator=generator)
        key_labels = torch.randint(-1, classes, (m,), generator=generator)
        labels[0] = key_labels[0] = 0  # that there is a positive
        options |= {"labels": labels, "key_labels": key_labels}
    if kind == "by index":
        options["positive_index"] = torch.randint(m, (n,), generator=generator)
    if kind.startswith("sup_con"):
        options["variant"] = kind.split()[1]
    if kind in ("sup_con out", "sup_con in", "info_nce", "by index"):
        options["decoupled"] = draw(st.booleans()) and m > 1
    if kind in (*LABELLED, "by index") and draw(st.booleans()) and m > 3:
        excluded = torch.randint(-1, m, (n, draw(st.sampled_from([1, 3]))), generator=generator)
        excluded[excluded == 0] = -1
        if kind == "by index":  # not the positive itself
            excluded[excluded == options["positive_index"][:, None]] = -1
        options["exclude_index"] = excluded
    call = Call(
        FUNCTIONS[kind],
        options,
        draw(st.sampled_from([0.0, 0.0, 0.5])),
        draw(st.booleans()),
        m / 4 + 1 if kind == "nce" else 2.0,
    )
    dtype, spread = draw(DTYPES), draw(st.sampled_from([1e-3, 1.0, 1.0, 30.0]))
    temperature = draw(st.sampled_from([1e-4, 0.07, 1.0, 1.0, 1e4]))
    sides = [drawn((rows, d), dtype, draw(LAYOUTS), generator, spread) for rows in (n, m)]
    return call, *sides, temperature, generator


def evaluate(call, query, key, temperature, upstream, dtype, backend=None):
    """Losses, and gradients of their sum by ``upstream``."""
    wide = torch.promote_types(dtype, torch.float32)
    leaves = [x.to(dtype).detach().requires_grad_() for x in (query, key)]
    leaves.append(torch.tensor(temperature, dtype=wide, requires_grad=True))
    losses = call(*leaves, backend=backend)
    finite = losses.where(losses.isfinite(), 0)  # of no key at all it is −∞
    return losses, *torch.autograd.grad((finite * upstream.to(wide)).sum(), leaves)


@given(calls())
@examples(50)
def test_values_and_gradients_of_losses(case):
    call, query, key, temperature, generator = case
    dtype = query.dtype
    wide = torch.promote_types(dtype, torch.float32)
    temperature = torch.tensor(temperature, dtype=wide).item()  # of which all are to be
    upstream = torch.randn(len(query), generator=generator, dtype=torch.float64)
    try:
        found = evaluate(call, query, key, temperature, upstream, dtype)
    except ValueError as error:
        # Of no query with a positive, or a negative: the reference refuses it likewise.
        with pytest.raises(ValueError, match=re.escape(str(error))):
            evaluate(call, query, key, temperature, upstream, torch.float64, "reference")
        return
    plain = evaluate(call, query, key, temperature, upstream, dtype, "reference")
    exact = evaluate(call, query, key, temperature, upstream, torch.float64, "reference")
    sizes = Sizes.of(query, key, temperature, call, torch.finfo(wide).eps)
    assert found[0].dtype == wide
    assert torch.equal(found[0].isfinite(), exact[0].isfinite())
    # A loss is a difference of logits and of logarithms, or a sum of such: it carries their
    # rounding.
    eps = torch.finfo(wide).eps
    budgets = [call.weights * (sizes.rounding + eps * (1 + math.log(len(key))))]
    # The weights are exponentials of logits, whose rounding is a relative error of theirs, divided
    # by a sum: some ε more.
    of_weight = call.weights * (sizes.rounding + 4 * eps)
    budgets += [of_weight * upstream.abs().max() * sizes.of_query]
    budgets += [of_weight * upstream.abs().sum() * sizes.of_key]
    budgets += [of_weight * upstream.abs().sum() * sizes.logit / temperature]
    if sizes.rounding > 0.1:  # nothing is known of the weights
        budgets = budgets[:1]
    rtol, atol = TOLERANCE[dtype]
    for name, actual, near, true, budget in zip(
        ("loss", "query", "key", "temperature"), found, plain, exact, budgets, strict=False
    ):
        # A gradient in half precision may be more than that holds.
        held = true.abs() < 0.9 * torch.finfo(actual.dtype).max
        if not held.any():
            continue
        errors = [(part.double() - true)[held].abs() for part in (actual, near)]
        # Plain torch rounds the parts of a sum to half precision, of which inf − inf is NaN.
        plain_error = errors[1].nan_to_num(0, 0, 0).amax()
        allowed = plain_error + atol + rtol * true[held].abs().amax() + budget
        assert (errors[0] <= allowed).all(), f"{name}: {errors[0].max():.3e} over {allowed:.3e}"


class Sizes(NamedTuple):
    """What bounds the rounding of a case."""

    rounding: float  # of a logit, absolute
    logit: float  # the largest
    of_query: float  # how fast a query's loss changes by it, for weights of 1
    of_key: float

    @staticmethod
    def of(query, key, temperature, call, eps):
        q, k = query.double(), key.double()
        lengths = [1.0, 1.0]
        if call.normalize:
            lengths = [x.norm(dim=1).min().clamp(min=1e-12).item() for x in (q, k)]
            q, k = (torch.nn.functional.normalize(x) for x in (q, k))
        scale = 1 / temperature + call.hardness
        # A product of rows is off by ε for each of its terms, by chance in either direction, and by
        # as much again where rows were divided by their lengths.
        terms = (q.abs() @ k.abs().T).max().item() * scale
        rounding = eps * terms * (4 + math.sqrt(q.shape[1]))
        return Sizes(
            rounding,
            terms,
            scale * k.abs().max().item() / lengths[0],
            scale * q.abs().max().item() / lengths[1],
        )


@given(
    st.sampled_from([(0, 3, 2), (3, 0, 2), (3, 3, 0), (0, 0, 0), (1, 1, 1)]),
    st.sampled_from([*LABELLED, "by index", "clip", "log_sum_exp"]),
)
@examples(40)
def test_nothing_is_as_the_reference_has_it(sizes, kind):
    n, m, d = sizes
    query, key = torch.ones(n, d), torch.ones(m, d)
    options = {"reduction": "none"} if kind != "log_sum_exp" else {}
    if kind in LABELLED:
        options |= {"labels": torch.zeros(n).long(), "key_labels": torch.zeros(m).long()}
    if kind.startswith("sup_con"):
        options["variant"] = kind.split()[1]
    function = {"by index": info_nce, "clip": clip_loss, "log_sum_exp": log_sum_exp, **LABELLED}[
        kind
    ]
    outcomes = []
    for backend in (None, "reference"):
        try:
            outcomes.append(function(query, key, backend=backend, **options))
        except (ValueError, TypeError) as error:
            outcomes.append(str(error))
    if isinstance(outcomes[1], str):
        assert outcomes[0] == outcomes[1]
    else:
        torch.testing.assert_close(*outcomes, rtol=1e-5, atol=1e-6)


@given(SIZES, SIZES, DTYPES, seeds)
@examples(10)
def test_modules_are_their_functions(n, d, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key = (drawn((n, d), dtype, "contiguous", generator) for _ in range(2))
    labels = torch.randint(3, (n,), generator=generator)
    pairs = [
        (InfoNCELoss(0.5)(query, key), info_nce(query, key, temperature=0.5)),
        (
            SupConLoss(0.5)(query, key, labels, labels),
            sup_con(query, key, labels, labels, temperature=0.5),
        ),
        (
            NCELoss(0.5)(query, key, labels, labels),
            nce(query, key, labels, labels, temperature=0.5),
        ),
    ]
    for actual, expected in pairs:
        assert torch.equal(actual, expected)


@given(SIZES, st.sampled_from([(1,), (7,), (3, 1, 1), (2, 5, 3)]), LAYOUTS, seeds)
@examples(10)
def test_the_loss_over_layers_is_that_of_float64(n, shape, layout, seed):
    generator = torch.Generator().manual_seed(seed)
    layers = [drawn((rows, *shape), torch.float32, layout, generator) for rows in (n, n + 2)]
    labels = [torch.arange(len(x)) % 3 for x in layers]
    values = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).detach().requires_grad_() for x in layers]
        loss = MIM4DDLoss(0.5)([leaves[0]], [leaves[1]], *labels)
        values.append([loss, *torch.autograd.grad(loss, leaves)])
    # Unit rows: logits of at most 2, and gradients by the length of the shortest row.
    shortest = min(
        x.double().flatten(2).mean(2).norm(dim=1).min() if x.dim() == 4 else x.norm(dim=1).min()
        for x in layers
    )
    for actual, expected in zip(*values, strict=True):
        torch.testing.assert_close(
            actual.double(), expected, rtol=1e-5, atol=4e-6 * max(1.0, 1 / shortest.item())
        )
