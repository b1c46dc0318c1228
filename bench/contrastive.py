"""What the contrastive suites share: cases, inputs, exact answers, the GEMM floor, the budget."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from providers import Provider
from tolerance import assert_no_worse
from torch import Tensor

GPU = torch.cuda.is_available()
MEMORY_BUDGET = (40 if GPU else 8) * 2**30
THREADS = (0,) if GPU else tuple(sorted({1, torch.get_num_threads()}))
HALF_ERROR = 5e-2  # a peer's logits in bfloat16: 2⁻⁸ of 1/τ = 10
_PAIRS_AT_ONCE = 2**24  # of the exact answer


class Case(NamedTuple):
    num_queries: int
    num_keys: int
    dimension: int
    dtype: str = "float32"
    backward: bool = True
    num_classes: int = 0  # 0: the positive of query i is key i
    threads: int = THREADS[-1]  # 0: on a GPU

    def __str__(self) -> str:
        square = self.num_queries == self.num_keys
        parts = [f"N=M={self.num_queries}" if square else f"N={self.num_queries} M={self.num_keys}"]
        parts += [f"D={self.dimension} {self.dtype}"]
        parts += [f"{self.num_classes} classes"] if self.num_classes else []
        parts += ["forward+backward" if self.backward else "forward"]
        return " ".join(parts + threads_of(self))


def square(
    num_queries: int, dimension: int, dtype: str = "float32", backward: bool = True, **options
) -> Case:
    """As many keys as queries."""
    return Case(num_queries, num_queries, dimension, dtype, backward, **options)


def threads_of(case) -> list[str]:
    return [f"{case.threads} thread{'s' * (case.threads > 1)}"] if case.threads else []


class Inputs(NamedTuple):
    query: Tensor
    key: Tensor
    labels: tuple[Tensor, ...]  # index of the positive, (N,); or classes of queries and keys


# The sum over the queries in `rows`, by plain PyTorch: (query, key, *labels, rows, normalize).
RowsLoss = Callable[..., Tensor]


def inputs_of(case: Case, device: str) -> Inputs:
    """The same in every repeat."""
    draws = torch.Generator(device).manual_seed(0)
    query, key = (
        F.normalize(torch.randn(count, case.dimension, device=device, generator=draws), dim=-1)
        .to(getattr(torch, case.dtype))
        .requires_grad_()
        for count in (case.num_queries, case.num_keys)
    )
    if not case.num_classes:
        return Inputs(query, key, (torch.arange(case.num_queries, device=device),))
    labels = (torch.arange(len(side), device=device) % case.num_classes for side in (query, key))
    return Inputs(query, key, tuple(labels))


@lru_cache(maxsize=2)  # with and without normalize
def _answers(rows_loss: RowsLoss, case: Case, device: str, normalize: bool) -> list[tuple]:
    """Loss and gradients of the mean by plain PyTorch: in the dtype of the case, and in float64."""
    inputs = inputs_of(case, device)
    answers = []
    for dtype in (inputs.query.dtype, torch.float64):
        query, key = (side.detach().to(dtype).requires_grad_() for side in inputs[:2])
        step = max(1, _PAIRS_AT_ONCE // case.num_keys)
        totals: list = []
        for start in range(0, case.num_queries, step):
            rows = slice(start, start + step)
            value = rows_loss(query, key, *inputs.labels, rows=rows, normalize=normalize)
            part = values(value, query, key, case.backward)
            totals = [a + b.double() for a, b in zip(totals or [0] * len(part), part, strict=True)]
        means = [total / case.num_queries for total in totals]
        value_dtype = torch.promote_types(dtype, torch.float32)
        answers.append((means[0].to(value_dtype), *(mean.to(dtype) for mean in means[1:])))
    return answers


def values(value: Tensor, query: Tensor, key: Tensor, backward: bool) -> tuple[Tensor, ...]:
    """The loss, and with it both gradients."""
    gradients = torch.autograd.grad(value, (query, key)) if backward else ()
    return (value.detach(), *gradients)


def over_budget(case: Case, provider: Provider) -> str | None:
    """Why this is left out, if so: what it stores would pass the budget."""
    scalars = provider.pair_values * case.num_queries * case.num_keys
    needed = scalars * getattr(torch, case.dtype).itemsize
    if needed <= MEMORY_BUDGET:
        return None
    return f"needs about {needed / 2**30:.0f} GiB, the budget is {MEMORY_BUDGET / 2**30:.0f} GiB"


def run(
    provider: Provider,
    case: Case,
    rows_loss: RowsLoss,
    device: str,
    measure: Callable,
    both_in_one: bool = False,  # queries and keys are one set, against itself
) -> None:
    """Measure one provider; the floor has no answer to check."""
    inputs = inputs_of(case, device)
    sides = [torch.cat(inputs[:2]).detach()] * 2 if both_in_one else inputs[:2]
    num_gemms = 3 if case.backward else 1
    flop = 2 * num_gemms * len(sides[0]) * len(sides[1]) * case.dimension
    info = {**case._asdict(), "flop": flop}
    if provider.loss is gemms:
        measure(gemms([sides[0]], [sides[1]], num_gemms), lambda _: None, **info)
        return

    def call():
        with torch.set_grad_enabled(case.backward):
            value = provider.loss(inputs.query, inputs.key, *inputs.labels)
        return values(value, inputs.query, inputs.key, case.backward)

    def check(actual):
        anywhere = case._replace(threads=0)
        plain, exact = _answers(rows_loss, anywhere, device, provider.normalizes)
        check_answer(actual, plain, exact, provider, case.num_queries, inputs.query.dtype)

    measure(call, check, **info)


def check_answer(actual, plain, exact, provider, num_queries, dtype=torch.float32) -> None:
    """Refuse a wrong loss, or gradients of a mean that are wrong once scaled to those of a sum."""
    allowed = provider.error
    if allowed is None and provider.package != "mim4dd" and dtype.itemsize == 2:
        allowed = HALF_ERROR
    for place, (value, in_dtype, truth) in enumerate(zip(actual, plain, exact, strict=True)):
        if allowed is None:
            scale = num_queries if place else 1
            assert_no_worse(value * scale, in_dtype * scale, truth * scale)
        else:
            error = float((value.double() - truth).norm() / truth.norm())
            assert error <= allowed, f"relative error {error:.1e} over the {allowed:.0e} allowed"


def gemms(query: list[Tensor], key: list[Tensor], count: int) -> Callable[[], tuple]:
    """The floor: S = QKᵀ, then PK, then PᵀQ, repeated up to ``count``, into buffers made before.

    S stands in for P, and nothing else is done.
    """
    layers = [(q.detach(), k.detach()) for q, k in zip(query, key, strict=True)]
    buffers = [(q @ k.T, torch.empty_like(q), torch.empty_like(k)) for q, k in layers]

    def call():
        for (q, k), (scores, by_key, by_query) in zip(layers, buffers, strict=True):
            for place in range(count):
                if place % 3 == 0:
                    torch.mm(q, k.T, out=scores)
                elif place % 3 == 1:
                    torch.mm(scores, k, out=by_key)
                else:
                    torch.mm(scores.T, q, out=by_query)
        return ()

    return call


FLOOR = {"gemms": Provider(gemms, 1)}
