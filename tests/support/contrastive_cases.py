"""Cases of the contrastive ops, and what the ops of any backend are held to."""

import torch
from tolerance import TOLERANCE, assert_no_worse

from mim4dd import reference
from mim4dd.reference import Critic, Reduce

PLAIN = Critic()


def name(value):
    if not isinstance(value, Critic):
        return str(value)
    options = [field for field in value._fields[1:] if getattr(value, field)]
    return "-".join([value.kind.name.lower(), *options])


def kernels():
    """The Triton launchers: not imported before conftest has chosen the interpreter."""
    from mim4dd.kernels import contrastive

    return contrastive


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

    def move(self, device):
        """To where the kernels are; for cases that are made of CPU tensors."""
        for field, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, field, value.to(device))
            elif isinstance(value, list):
                setattr(self, field, [each.to(device) for each in value])

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


def run(ops, case, critic, wanted=None, grad_lse=True):
    """(loss, lse, weight) and the gradients wanted, by default all."""
    *_, loss, lse, weight, _ = case.call(ops.contrastive, critic, Reduce.NONE, [False] * 4)
    wanted = wanted or [True, True, True, case.bias is not None]
    upstream = (case.grad_loss, case.grad_lse if grad_lse else None)
    grads = case.call(ops.contrastive_bwd, critic, lse, weight, *upstream, wanted)
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


def rounding_of_logits(case, critic):
    """What a logit may be off by, and so, as it is an exponent, the relative error of a weight."""
    largest = 0.0
    for sides in zip(case.query, case.key, strict=True):
        query, key = (reference.unit_rows(x)[0] if critic.normalize else x for x in sides)
        largest = max(largest, (query.double() @ key.double().T).abs().max().item())
    return torch.finfo(case.scale.dtype).eps * largest * case.scale.item()


def assert_gradient(actual, plain, exact, case, critic, order=1):
    """Within the error budget, by the largest element: an element is a sum of terms that cancel.

    Their weights carry the rounding of the logits: which of two correct computations is closer is
    luck. They are rounded to the type of the rows, too, before the tensor cores take them.
    """
    assert actual.shape == plain.shape
    size = exact.abs().max()
    if not exact.ndim:  # terms of any sign
        size = terms_of(case, critic)
    size = order * size.clamp(min=1)  # each order multiplies the terms once more
    rtol, atol = TOLERANCE[actual.dtype]
    error = (actual.double() - exact).abs()
    rtol += rounding_of_logits(case, critic)
    budget = (plain.double() - exact).abs().max() + atol + rtol * size
    assert actual.dtype == plain.dtype
    assert (error <= budget).all(), f"error {error.max():.3e} over {budget:.3e}"


def check(ops, case, critic, assert_value=assert_value):
    values, gradients = run(ops, case, critic)
    _, exact_values, exact_gradients = first_order(case, critic, torch.float64)
    _, plain_values, plain_gradients = first_order(case, critic, None)
    for a, p, e in zip(values, plain_values, exact_values, strict=True):
        assert_value(a, p, e)
    for a, p, e in zip(gradients, plain_gradients, exact_gradients, strict=True):
        assert_gradient(a, p, e, case, critic)


def along(case, how=Reduce.SUM, wanted=None, critic=PLAIN):
    """(loss, lse, weight) and the gradients formed along with them; how many queries count."""
    wanted = wanted or [True, True, True, case.bias is not None]
    reduced, count, *values, found = case.call(kernels().contrastive, critic, how, wanted)
    assert (how == Reduce.NONE) == (not reduced.numel())
    return values, over_layers(found), count


def exactly(case, critic=PLAIN):
    """The same in float64, and values in the case's own dtype: gradients are those of the sum."""
    case.grad_loss, case.grad_lse = torch.ones_like(case.grad_loss), 0 * case.grad_lse
    _, exact, gradients = first_order(case, critic, torch.float64)
    _, plain, _ = first_order(case, critic, None)
    return exact, plain, gradients


def check_along(case, critic=PLAIN, how=Reduce.SUM, eps=None, assert_value=assert_value):
    """Losses, and gradients that come along; ``eps`` is that of what is multiplied."""
    values, found, count = along(case, how, critic=critic)
    exact, plain, gradients = exactly(case, critic)
    for actual, *others in zip(values, plain, exact, strict=True):
        assert_value(actual, *others)
    if how == Reduce.MEAN:
        found = [part * count for part in found]
    assert_gradients_along(found, gradients, case, eps)


def assert_gradients_along(found, exact, case, eps=None):
    """Within two roundings of the largest element, by default to the dtype of the rows."""
    dtype = case.query[0].dtype
    eps = eps or torch.finfo(dtype).eps
    for actual, true in zip(found, exact, strict=True):
        assert actual.dtype == torch.promote_types(dtype, torch.float32)
        error = (actual.double() - true).abs().max()
        allowed = 2 * eps * true.abs().max().clamp(min=1)
        assert error <= allowed, f"error {error:.1e} over {allowed:.1e}"


def second_order(case, critic, tangents, dtype):
    leaves, _, gradients = first_order(case, critic, dtype, create_graph=True)
    psi = sum((g * t.to(g.dtype)).sum() for g, t in zip(gradients, tangents, strict=True))
    *inputs, loss, lse = torch.autograd.grad(psi, leaves, materialize_grads=True)
    return loss, lse, *inputs


def run_second_order(ops, case, critic, tangents):
    """Derivatives of ⟨gradients, tangents⟩ by the upstream gradients, and by the inputs."""
    L = len(case.query)
    *_, lse, weight, _ = case.call(ops.contrastive, critic, Reduce.NONE, [False] * 4)
    loss, grad_lse, grads = case.call(
        ops.contrastive_bwd_bwd,
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
    return [loss, grad_lse, *over_layers(grads)]


def check_second_order(ops, case, critic):
    tangents = [torch.randn_like(leaf) for leaf in case.leaves(None)]
    actual = run_second_order(ops, case, critic, tangents)
    exact = second_order(case, critic, tangents, torch.float64)
    plain = second_order(case, critic, tangents, None)
    for a, p, e in zip(actual, plain, exact, strict=True):
        assert_gradient(a, p, e, case, critic, order=2)


def only_lean_kernels(monkeypatch):
    """No other kernel may answer where those that are asked first are meant to."""
    from mim4dd.kernels import contrastive

    let_lean_kernels_serve_few_rows(monkeypatch)
    monkeypatch.setattr(contrastive, "fuses", lambda query, key: True)
    monkeypatch.setattr(contrastive, "fused_forward", None)


def let_lean_kernels_serve_few_rows(monkeypatch):
    """A large GPU leaves those to kernels that divide the other side among programs."""
    from mim4dd.kernels import _single_positive

    monkeypatch.setattr(_single_positive, "num_multiprocessors", lambda device: 1)


def use_lean_tiles(capability, monkeypatch):
    """The tiles that they have on such a GPU."""
    from mim4dd.kernels import _single_positive

    monkeypatch.setattr(_single_positive, "capability", lambda device: capability)


def check_any_gradient_alone(case):
    """Of two layers: what is wanted beside a gradient leaves the losses, and makes it no worse.

    Its digits may differ, for other tiles round other weights.
    """
    values, *_ = along(case)
    *_, (q0, q1, k0, k1, scale) = exactly(case)
    for wanted, exact in (
        ([True, False, False, False], [q0, q1]),
        ([False, True, False, False], [k0, k1]),
        ([False, False, True, False], [scale]),
        ([False, False, False, False], []),
    ):
        losses, some, _ = along(case, wanted=wanted)
        torch.testing.assert_close(losses, values, rtol=1e-5, atol=1e-5)
        assert_gradients_along(some, exact, case)
        assert all(part.is_contiguous() for part in some)


def check_same_bits(case):
    """A second call gives what the first one gave."""
    first, again = along(case), along(case)
    for a, b in zip([*first[0], *first[1]], [*again[0], *again[1]], strict=True):
        assert torch.equal(a, b)
