"""The Triton launchers of the contrastive losses against mim4dd.reference."""

import numpy as np
import pytest
import torch
from tolerance import TOLERANCE, assert_no_worse

from mim4dd import reference
from mim4dd.reference import Critic, Kind, Reduce

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# With the number of keys that each query leaves out.
CRITICS = [
    (Critic(), 0),
    (Critic(decoupled=True), 3),
    (Critic(hardness=0.5), 1),
    (Critic(normalize=True), 0),
    (Critic(Kind.IN), 2),
    (Critic(Kind.IN, decoupled=True, hardness=0.3, normalize=True), 1),
    (Critic(Kind.NCE), 0),
    (Critic(Kind.NCE, hardness=0.4, normalize=True), 4),
]
SECOND_ORDER = [
    (Critic(), 0),
    (Critic(decoupled=True, hardness=0.5), 1),
    (Critic(Kind.IN, hardness=0.3), 3),
    (Critic(Kind.IN, decoupled=True), 0),
    (Critic(Kind.NCE), 2),
    (Critic(Kind.NCE, hardness=0.4), 0),
]


def name(value):
    if not isinstance(value, Critic):
        return str(value)
    options = [field for field in value._fields[1:] if getattr(value, field)]
    return "-".join([value.kind.name.lower(), *options])


def with_critic(critics):
    return pytest.mark.parametrize(("critic", "num_excluded"), critics, ids=name)


@pytest.fixture(params=["fused", "chunked"])
def backend(request, monkeypatch):
    """Both back-ends, whatever the shape; chunks of a few rows, so that there is more than one."""
    from mim4dd.kernels import _chunked, contrastive

    fused = request.param == "fused"
    monkeypatch.setattr(contrastive, "fuses", lambda query, key: fused)
    monkeypatch.setattr(_chunked, "WORKSPACE", 2**12)


@pytest.fixture
def backend_chunks(monkeypatch):
    """Chunks of a few rows."""
    from mim4dd.kernels import _chunked

    monkeypatch.setattr(_chunked, "WORKSPACE", 2**10)


class Case:
    """Inputs of one call, with upstream gradients that differ from row to row."""

    def __init__(
        self, sizes, dtype, device, *, num_excluded=0, by_index=False, bias=None, scale=1.7
    ):
        n, m, dims = sizes
        wide = torch.promote_types(dtype, torch.float32)
        rows = {"device": device, "dtype": wide}
        self.query = [(torch.randn(n, d, **rows) / d**0.25).to(dtype) for d in dims]
        self.key = [(torch.randn(m, d, **rows) / d**0.25).to(dtype) for d in dims]
        # Class 4 has no key, and some take no part.
        self.labels = torch.randint(-1, 5, (n,), device=device)
        self.key_labels = torch.randint(-1, 4, (m,), device=device)
        if by_index:
            self.labels, self.key_labels = torch.randint(-1, m + 1, (n,), device=device), None
        self.excluded = None
        if num_excluded:  # itself, where there is such a key, and others, some of them twice
            self.excluded = torch.randint(-1, m, (n, num_excluded), device=device)
            self.excluded[:, 0] = torch.arange(n).where(torch.arange(n) < m, -1)
        self.scale = torch.tensor(scale, **rows)
        self.bias = None if bias is None else torch.tensor(bias, **rows)
        self.grad_loss = torch.randn(len(dims), n, **rows)
        self.grad_lse = torch.randn(len(dims), n, **rows)

    def call(self, function, critic, *others):
        shared = (self.labels, self.key_labels, self.excluded, self.scale, self.bias)
        return function(self.query, self.key, *shared, *critic, *others)

    def leaves(self, dtype):
        """query…, key…, scale[, bias], to differentiate by."""
        tensors = [*self.query, *self.key, self.scale] + [self.bias] * (self.bias is not None)
        return [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in tensors]

    def reference(self, critic, leaves):
        """loss, lse, weight; differentiable."""
        L = len(self.query)
        query, key, scale = leaves[:L], leaves[L : 2 * L], leaves[2 * L]
        bias = leaves[-1] if self.bias is not None else None
        shared = (self.labels, self.key_labels, self.excluded, scale, bias, critic)
        layers = [reference.contrastive(q, k, *shared) for q, k in zip(query, key, strict=True)]
        loss, lse = (torch.stack([getattr(layer, f) for layer in layers]) for f in ("loss", "lse"))
        return loss, lse, layers[0].positive_weight


def first_order(case, critic, dtype, create_graph=False):
    """Leaves with the upstream gradients last, values, and gradients of all but those."""
    leaves = case.leaves(dtype)
    values = case.reference(critic, leaves)
    upstream = [
        u.detach().clone().to(dtype or u.dtype).requires_grad_(create_graph)
        for u in (case.grad_loss, case.grad_lse)
    ]
    loss, lse = values[0], values[1].where(values[1].isfinite(), 0)
    total = (loss * upstream[0]).sum() + (lse * upstream[1]).sum()
    options = {"create_graph": create_graph, "materialize_grads": True}
    return [*leaves, *upstream], values, torch.autograd.grad(total, leaves, **options)


def run(case, critic, wanted=None, grad_lse=True):
    """(loss, lse, weight) and the gradients wanted, by default all."""
    from mim4dd.kernels import contrastive as kernels

    *_, loss, lse, weight, _ = case.call(kernels.contrastive, critic, Reduce.NONE, [False] * 4)
    wanted = wanted or [True, True, True, case.bias is not None]
    upstream = (case.grad_loss, case.grad_lse if grad_lse else None)
    grads = case.call(kernels.contrastive_bwd, critic, lse, weight, *upstream, wanted)
    return (loss, lse, weight), over_layers(grads)


def over_layers(gradients):
    """What layers share comes by layer, (L,): sum it."""
    return [part.sum() if part.dim() == 1 else part for part in gradients]


def assert_value(actual, plain, exact):
    assert torch.equal(actual.isinf(), exact.isinf())
    assert_no_worse(*(part.masked_fill(exact.isinf(), 0) for part in (actual, plain, exact)))


def assert_difference(actual, plain, exact):
    """A loss is a difference of logits: however small it is, it carries their rounding."""
    assert torch.equal(actual.isinf(), exact.isinf())
    finite = exact.isfinite()
    rtol, atol = TOLERANCE[actual.dtype]
    error = (actual.double() - exact)[finite].abs()
    budget = (plain.double() - exact)[finite].abs().max() + atol + rtol * exact[finite].abs().max()
    assert (error <= budget).all(), f"error {error.max():.3e} over {budget:.3e}"


def terms_of(case, critic):
    """Size of the terms of a scalar's gradient, by that of the losses."""
    loss, *_ = case.reference(critic, case.leaves(torch.float64))
    return ((1 + loss.detach().abs()) * case.grad_loss.abs()).sum() + case.grad_lse.abs().sum()


def assert_gradient(actual, plain, exact, case, critic, order=1):
    """Within the error budget, by the largest element: an element is a sum of terms that cancel.

    Their weights are rounded to the type of the rows before the tensor cores take them.
    """
    assert actual.shape == plain.shape
    size = exact.abs().max()
    if not exact.ndim:  # terms of any sign
        size = terms_of(case, critic)
    size = order * size.clamp(min=1)  # each order multiplies the terms once more
    rtol, atol = TOLERANCE[actual.dtype]
    error = (actual.double() - exact).abs()
    budget = (plain.double() - exact).abs().max() + atol + rtol * size
    assert actual.dtype == plain.dtype
    assert (error <= budget).all(), f"error {error.max():.3e} over {budget:.3e}"


def check(case, critic, assert_value=assert_value):
    values, gradients = run(case, critic)
    _, exact_values, exact_gradients = first_order(case, critic, torch.float64)
    _, plain_values, plain_gradients = first_order(case, critic, None)
    for a, p, e in zip(values, plain_values, exact_values, strict=True):
        assert_value(a, p, e)
    for a, p, e in zip(gradients, plain_gradients, exact_gradients, strict=True):
        assert_gradient(a, p, e, case, critic)


def second_order(case, critic, tangents, dtype):
    leaves, _, gradients = first_order(case, critic, dtype, create_graph=True)
    psi = sum((g * t.to(g.dtype)).sum() for g, t in zip(gradients, tangents, strict=True))
    *inputs, loss, lse = torch.autograd.grad(psi, leaves, materialize_grads=True)
    return loss, lse, *inputs


def check_second_order(case, critic):
    from mim4dd.kernels import contrastive as kernels

    L = len(case.query)
    tangents = [torch.randn_like(leaf) for leaf in case.leaves(None)]
    *_, lse, weight, _ = case.call(kernels.contrastive, critic, Reduce.NONE, [False] * 4)
    loss, grad_lse, grads = case.call(
        kernels.contrastive_bwd_bwd,
        critic,
        lse,
        weight,
        case.grad_loss,
        case.grad_lse,
        tangents[:L],
        tangents[L : 2 * L],
        tangents[2 * L].expand(L),
        (0 * case.scale if case.bias is None else tangents[-1]).expand(L),
        [True, True, True, case.bias is not None],
    )
    exact = second_order(case, critic, tangents, torch.float64)
    plain = second_order(case, critic, tangents, None)
    for a, p, e in zip([loss, grad_lse, *over_layers(grads)], plain, exact, strict=True):
        assert_gradient(a, p, e, case, critic, order=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@with_critic(CRITICS)
def test_values_and_gradients(critic, num_excluded, dtype, backend, kernel_device):
    options = {"num_excluded": num_excluded, "bias": 0.3 if critic == CRITICS[-1][0] else None}
    check(Case((18, 35, [19]), dtype, kernel_device, **options), critic)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@with_critic(SECOND_ORDER)
def test_second_order(critic, num_excluded, dtype, kernel_device, backend_chunks):
    options = {"num_excluded": num_excluded, "bias": 0.3 if critic == SECOND_ORDER[-1][0] else None}
    check_second_order(Case((9, 21, [7, 12]), dtype, kernel_device, **options), critic)


@pytest.mark.parametrize("num_excluded", [1, 5])
@pytest.mark.parametrize(
    "critic", [Critic(), Critic(Kind.IN, decoupled=True), Critic(Kind.NCE)], ids=name
)
def test_positives_by_index(critic, num_excluded, backend, kernel_device):
    options = {"num_excluded": num_excluded, "by_index": True}
    check(Case((18, 7, [5]), torch.float32, kernel_device, **options), critic)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("critic", [Critic(Kind.IN), Critic(normalize=True)], ids=name)
def test_layers_of_any_width_in_one_call(critic, dtype, kernel_device):
    # A unit row of one column has no gradient but what rounding leaves.
    narrowest = 2 if critic.normalize else 1
    check(Case((13, 9, [64, narrowest, 100, 3, 257, 17]), dtype, kernel_device), critic)


def test_wide_layers_are_chunked_beside_narrow_ones(kernel_device, monkeypatch):
    from mim4dd.kernels import contrastive as kernels

    monkeypatch.setattr(kernels, "fuses", lambda query, key: query.shape[1] <= 8)
    check(Case((9, 13, [8, 20, 4]), torch.float32, kernel_device), Critic())


@pytest.mark.parametrize("critic", [Critic(Kind.IN), Critic(Kind.NCE)], ids=name)
def test_the_reduced_loss_and_the_gradients_of_the_sum_come_along(critic, backend, kernel_device):
    from mim4dd.kernels import contrastive as kernels

    case = Case((9, 13, [8, 20]), torch.float64, kernel_device)
    wanted = [True, True, True, False]
    mean, count, loss, _, weight, actual = case.call(
        kernels.contrastive, critic, Reduce.MEAN, wanted
    )
    assert count == weight.count_nonzero()
    torch.testing.assert_close(mean, loss.sum(1) / count)
    total, *_ = case.call(kernels.contrastive, critic, Reduce.SUM, [False] * 4)
    torch.testing.assert_close(total, loss.sum(1))
    case.grad_loss, case.grad_lse = torch.ones_like(case.grad_loss), 0 * case.grad_lse
    _, _, exact = first_order(case, critic, torch.float64)
    for a, e in zip(over_layers(actual), exact, strict=True):
        assert_no_worse(a, e, e)


@with_critic(CRITICS)
def test_few_rows_are_split_among_programs(critic, num_excluded, kernel_device, monkeypatch):
    from mim4dd.kernels import _inputs

    monkeypatch.setattr(_inputs, "num_multiprocessors", lambda device: 8)
    for shape in ((5, 400, [6]), (300, 5, [6])):
        check(Case(shape, torch.float32, kernel_device, num_excluded=num_excluded), critic)


@pytest.mark.parametrize(
    "layout",
    [
        lambda rows: rows.T.contiguous().T,
        lambda rows: torch.stack([rows, rows], 2)[:, :, 0],
        lambda rows: torch.cat([rows, rows], 1)[:, : rows.shape[1]],
        lambda rows: rows[:1].expand(rows.shape),
        lambda rows: rows[:, :1].expand(rows.shape),
    ],
    ids=["transposed", "every other column", "slice", "one row", "one column"],
)
def test_strides(layout, backend, kernel_device):
    case = Case((7, 11, [6]), torch.float32, kernel_device)
    case.query, case.key = [layout(case.query[0])], [layout(case.key[0])]
    case.grad_loss = case.grad_loss[:, :1].expand(case.grad_loss.shape)
    case.grad_lse = case.grad_lse.T.contiguous().T
    check(case, Critic())


def test_strides_beyond_32_bits(kernel_device):
    """Rows that lie 4 GiB apart; of the zeros between them no page is touched on a CPU."""
    storage = torch.from_numpy(np.zeros(2**31 + 8, np.float16)).to(kernel_device)
    case = Case((3, 2, [8]), torch.float16, kernel_device)
    case.key = [storage.as_strided((2, 8), (2**31, 1)).copy_(case.key[0])]
    check(case, Critic())


@with_critic(CRITICS)
@pytest.mark.parametrize(
    "labels",
    [
        ([0] * 6, [0] * 7),  # no negative
        ([0] * 6, [1] * 7),  # no positive
        ([0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1]),  # one key of class 0
        ([0, 0, -1, -1, 5, 2**40], [-1] * 6 + [2**40]),
        ([0] * 6, [-1] * 7),  # no key
    ],
    ids=["one class", "two classes", "one member", "mostly ignored", "nothing"],
)
def test_labels(labels, critic, num_excluded, kernel_device):
    case = Case((6, 7, [4]), torch.float64, kernel_device, num_excluded=num_excluded)
    case.labels, case.key_labels = (torch.tensor(part, device=kernel_device) for part in labels)
    check(case, critic)


@pytest.mark.parametrize(
    "critic", [Critic(), Critic(Kind.IN, decoupled=True), Critic(Kind.NCE)], ids=name
)
def test_what_is_ignored_may_hold_anything(critic, backend, kernel_device):
    case = Case((7, 11, [6]), torch.float32, kernel_device)
    case.labels[2], case.key_labels[5] = -1, -1
    for normalize in (False, True):
        clean = run(case, critic._replace(normalize=normalize))
        for bad in (float("nan"), float("inf")):
            case.query[0][2], case.key[0][5] = bad, bad
            dirty = run(case, critic._replace(normalize=normalize))
            for a, b in zip([*clean[0], *clean[1]], [*dirty[0], *dirty[1]], strict=True):
                assert torch.equal(a, b)
        case.query[0][2], case.key[0][5] = 1.0, 1.0


@with_critic([CRITICS[i] for i in (1, 3, 4, 7)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_key_reaches_every_row(bad, critic, num_excluded, backend, kernel_device):
    case = Case((8, 5, [3]), torch.float32, kernel_device, num_excluded=num_excluded)
    case.labels = torch.tensor([1, 1, 2, 2, 0, 0, 3, 3], device=kernel_device)
    case.key_labels = torch.tensor([0, 1, 2, 3, 1], device=kernel_device)
    case.key[0][4, 1] = bad
    (loss, _, _), (grad_query, grad_key, grad_scale) = run(case, critic)
    used = torch.ones(8, dtype=torch.bool, device=kernel_device)
    if case.excluded is not None:
        used &= (case.excluded != 4).all(1)
    assert loss[0, used].isnan().all()
    assert grad_query[used].isnan().any(1).all()
    assert grad_key[4].isnan().any()
    assert grad_scale.isnan()
    assert loss[0, ~used].isfinite().all()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_of_no_temperature_gives_nan(scale, kernel_device):
    case = Case((6, 5, [3]), torch.float32, kernel_device, scale=scale)
    case.labels, case.key_labels = case.labels.abs(), case.key_labels.abs()
    (loss, _, _), (grad_query, *_) = run(case, Critic())
    assert loss.isnan().all()
    assert grad_query.isnan().all()


@pytest.mark.parametrize("critic", [Critic(), Critic(Kind.IN), Critic(Kind.NCE)], ids=name)
def test_large_logits_and_duplicated_keys(critic, backend, kernel_device):
    case = Case((9, 12, [8]), torch.float32, kernel_device, scale=2.0**12)
    # On a grid, so that float32 holds every logit exactly: else the gradients carry the rounding of
    # logits of 1e4, and who adds up a product in the luckier order is the more exact.
    case.query, case.key = ([(t[0] * 64).round() / 64] for t in (case.query, case.key))
    case.key[0][3:6] = case.key[0][0]
    check(case, critic, assert_difference)


def test_small_upstream_gradients_survive_float16(backend, kernel_device):
    """A mean over many queries: g·p lies below what float16 can hold, their sums do not."""
    case = Case((4, 300, [4]), torch.float16, kernel_device, scale=0.5)
    case.key[0] = case.key[0] / 8 + 1
    case.grad_loss, case.grad_lse = case.grad_loss * 1e-6, case.grad_lse * 1e-6
    _, (actual, *_) = run(case, Critic())
    _, _, (exact, *_) = first_order(case, Critic(), torch.float64)
    torch.testing.assert_close(actual.double(), exact, rtol=1e-2, atol=6e-8)  # its least step


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "critic", [Critic(), Critic(Kind.IN, normalize=True), Critic(Kind.NCE)], ids=name
)
def test_gradients_of_a_sum_are_not_rounded_yet(critic, dtype, backend, kernel_device):
    """Beyond float16, and of keys far from all queries: a mean's, scaled, is neither."""
    from mim4dd.kernels import contrastive as kernels

    case = Case((40, 30, [8]), dtype, kernel_device, scale=30.0)
    case.query[0], case.key[0] = 2048 * case.query[0], case.key[0] / 2048
    wanted = [True, True, True, False]
    *_, found = case.call(kernels.contrastive, critic, Reduce.MEAN, wanted)
    case.grad_loss, case.grad_lse = torch.ones_like(case.grad_loss), 0 * case.grad_lse
    *_, exact = first_order(case, critic, torch.float64)
    assert critic.normalize or exact[1].abs().max() > torch.finfo(torch.float16).max
    for actual, true in zip(over_layers(found), exact, strict=True):
        assert actual.dtype == torch.float32
        error = (actual.double() - true).abs().max()
        assert error <= 2 * torch.finfo(dtype).eps * true.abs().max().clamp(min=1)
        factor = 65536 / 2**18
        flushed = (true * factor).to(dtype) == 0
        assert (flushed | ((actual * factor).to(dtype) != 0)).all()


@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_second_derivatives_of_float16_along_tangents_of_any_size(size, kernel_device):
    from mim4dd.kernels import contrastive as kernels

    case = Case((9, 21, [7]), torch.float16, kernel_device)
    tangents = [(size * torch.randn_like(leaf.float())).to(leaf) for leaf in case.leaves(None)]
    *_, lse, weight, _ = case.call(kernels.contrastive, Critic(), Reduce.NONE, [False] * 4)
    grad_loss = case.grad_loss / size  # so that what comes out has a place in float16
    _, _, found = case.call(
        *(kernels.contrastive_bwd_bwd, Critic(), lse, weight, grad_loss, None),
        *([tangents[0]], [tangents[1]], tangents[2][None], 0 * tangents[2][None]),
        [True, True, False, False],
    )
    case.grad_loss, case.grad_lse = grad_loss, 0 * case.grad_lse
    _, _, *exact = second_order(case, Critic(), tangents, torch.float64)
    for actual, true in zip(found, exact[:2], strict=True):
        assert (actual.double() - true).abs().max() <= 2e-3 * true.abs().max()


def test_rows_too_short_to_normalise(backend, kernel_device):
    """F.normalize divides them by its eps, so they keep the gradient along themselves."""
    case = Case((5, 6, [4]), torch.float64, kernel_device)
    case.query[0][3], case.key[0][2] = 0, case.key[0][2] * 1e-13
    check(case, Critic(normalize=True))


def test_squared_norms_may_overflow(backend, kernel_device):
    case = Case((5, 6, [4]), torch.float32, kernel_device)
    (loss, *_), (grad_query, grad_key, _) = run(case, Critic(normalize=True))
    case.query[0], case.key[0] = case.query[0] * 2.0**100, case.key[0] * 2.0**-20
    (long_loss, *_), (long_grad_query, long_grad_key, _) = run(case, Critic(normalize=True))
    assert torch.equal(long_loss, loss)
    torch.testing.assert_close(long_grad_query * 2.0**100, grad_query)
    torch.testing.assert_close(long_grad_key * 2.0**-20, grad_key)


def test_only_what_is_wanted(backend, kernel_device):
    case = Case((6, 5, [3, 4]), torch.float32, kernel_device, bias=0.1)
    critic = Critic(Kind.NCE)
    _, (q0, q1, k0, k1, scale, bias) = run(case, critic, [True] * 4)
    every = {0: [q0, q1], 1: [k0, k1], 2: [scale], 3: [bias]}
    for wanted in (
        [True, False, False, False],
        [False, True, False, True],
        [False, False, True, True],
    ):
        _, some = run(case, critic, wanted)
        expected = [part for i in range(4) if wanted[i] for part in every[i]]
        assert all(torch.equal(a, b) for a, b in zip(some, expected, strict=True))
        assert all(part.is_contiguous() for part in some)


def test_without_a_gradient_of_lse(backend, kernel_device):
    case = Case((6, 5, [3]), torch.float32, kernel_device)
    _, without = run(case, Critic(), grad_lse=False)
    case.grad_lse.zero_()
    _, zero = run(case, Critic())
    assert all(torch.equal(a, b) for a, b in zip(without, zero, strict=True))


def test_the_same_bits_every_time(backend, kernel_device):
    case = Case((33, 40, [16]), torch.float32, kernel_device)
    first, second = run(case, Critic(Kind.IN)), run(case, Critic(Kind.IN))
    for a, b in zip([*first[0], *first[1]], [*second[0], *second[1]], strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("width", [64, 512])
def test_the_logits_are_never_stored(width):
    case = Case((16384, 16384, [width]), torch.bfloat16, "cuda")
    run(case, Critic())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(case, Critic())
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 2**28  # the logits alone are 1 GiB
