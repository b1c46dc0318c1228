"""Random inputs of the contrastive op for every critic, and all derivatives to compare."""

import copy

import torch

from mim4dd import reference
from mim4dd.ops.contrastive import contrastive
from mim4dd.reference import Contrast, Critic, Kind

SOFTMAX = [Critic(kind, decoupled) for kind in (Kind.OUT, Kind.IN) for decoupled in (False, True)]
CRITICS = [*SOFTMAX, Critic(Kind.NCE)]


class Problem:
    """Random inputs in float64 for one call, with two layers of different size."""

    def __init__(
        self, critic, by_index, ignoring, spread, device, n=13, m=19, sizes=(5, 3), num_excluded=0
    ):
        self.critic = critic
        new = {"dtype": torch.float64, "device": device}
        self.query = [(spread * torch.randn(n, d, **new)).requires_grad_() for d in sizes]
        self.key = [torch.randn(m, d, **new).requires_grad_() for d in sizes]
        self.labels = torch.randint(m if by_index else 5, (n,), device=device)
        self.key_labels = None if by_index else torch.randint(4, (m,), device=device)
        if ignoring:
            self.labels[torch.rand(n, device=device) < 0.2] = reference.IGNORE
            if not by_index:
                self.key_labels[torch.rand(m, device=device) < 0.2] = reference.IGNORE
        self.excluded = None
        if num_excluded:  # itself, where there is such a key, and others, some of them twice
            self.excluded = torch.randint(-1, m, (n, num_excluded), device=device)
            own = torch.arange(n, device=device)
            self.excluded[:, 0] = own.where(own < m, -1)
        self.logit_scale = torch.tensor(1.5, **new, requires_grad=True)
        self.bias = None
        if critic.kind == Kind.NCE and by_index:
            self.bias = torch.tensor(-0.7, **new, requires_grad=True)
        self.upstream = [torch.randn(len(sizes), n, **new).requires_grad_() for _ in range(2)]
        self.tangents = [torch.randn_like(tensor) for tensor in self.inputs]

    def to(self, dtype):
        """The same problem of rounded numbers."""

        def rounded(tensors):
            return [each.detach().to(dtype).requires_grad_() for each in tensors]

        other = copy.copy(self)
        other.query, other.key, other.upstream, other.tangents = map(
            rounded, (self.query, self.key, self.upstream, self.tangents)
        )
        (other.logit_scale,) = rounded([self.logit_scale])
        other.bias = None if self.bias is None else rounded([self.bias])[0]
        return other

    @property
    def inputs(self):
        shared = [self.logit_scale, *([] if self.bias is None else [self.bias])]
        return [*self.query, *self.key, *shared]

    @property
    def shared(self):
        return self.labels, self.key_labels, self.excluded, self.logit_scale, self.bias

    def reference(self, _uniform=False):
        of_layers = [
            reference.contrastive(q, k, *self.shared, self.critic)
            for q, k in zip(self.query, self.key, strict=True)
        ]
        loss, lse = (torch.stack(parts) for parts in list(zip(*of_layers, strict=True))[:2])
        return Contrast(loss, lse, of_layers[0].positive_weight)

    def op(self, uniform=False):
        return contrastive(self.query, self.key, *self.shared, self.critic, uniform=uniform)

    def derivatives(self, contrast):
        """Gradients for both outputs and any upstream, and those of their sum along tangents."""
        loss, lse, _ = contrast
        on_loss, on_lse = self.upstream
        total = (loss * on_loss).sum()
        if lse.requires_grad and self.critic.kind != Kind.NCE:
            total = total + lse.where(lse.isfinite(), 0).mul(on_lse).sum()
        first = torch.autograd.grad(total, self.inputs, create_graph=True)
        along = sum((g * t).sum() for g, t in zip(first, self.tangents, strict=True))
        second = torch.autograd.grad(
            along, [*self.inputs, *self.upstream], allow_unused=True, materialize_grads=True
        )
        return [*first, *second]


def size_of(tensor):
    return tensor.detach().nan_to_num(posinf=0, neginf=0).abs().amax().item()


def assert_same(actual, expected):
    """Equal to rounding, on the scale of the tensor: sums of terms of both signs cancel.

    A number's terms are not its own size: what belongs to logit_scale s is Σ q·(∂/∂q) / s. It is
    held to the largest element beside it.
    """
    largest = max(size_of(e) for e in expected)
    for a, e in zip(actual, expected, strict=True):
        scale = largest if e.ndim == 0 else size_of(e)
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9 * (1 + scale))
