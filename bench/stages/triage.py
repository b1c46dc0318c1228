"""The contrastive kernels on large, aligned inputs, the fast paths, against float64.

Their memory holds NaN before, so that what is left unwritten shows.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from contrastive_cases import Case, check, check_along, kernels

from mim4dd.reference import Critic, Kind
from stages.arguments import parse
from stages.records import run_cases

CRITICS = {
    "info_nce": Critic(),
    "sup_con": Critic(),
    "sup_con in": Critic(Kind.IN),
    "nce": Critic(Kind.NCE),
    "normalized": Critic(normalize=True),
}
LOSSES = (*CRITICS, "clip_loss")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32}
# N = M, D. With 8464 rows the kernels of few instructions are chosen on 132 multiprocessors.
SIZES = (
    *product((1000, 4096), (64, 96, 128, 256, 300, 768)),
    *product((8464,), (64, 128, 256)),
)
TF32_EPS = 2.0**-10


@contextmanager
def poisoned(dtype: torch.dtype) -> Iterator[None]:
    """torch.empty is NaN; products of float32 are in TF32."""
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("medium" if dtype == torch.float32 else before[0])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.use_deterministic_algorithms(before[1])


def compare(loss: str, rows: int, columns: int, dtype: torch.dtype, device: str) -> dict:
    """Raise where values or gradients are not what float64 gives."""
    with poisoned(dtype):
        if loss == "clip_loss":
            compare_clip(rows, columns, dtype, device)
            return {}
        options = {"bias": 0.3} if loss == "nce" else {}
        by_index = loss in ("info_nce", "normalized")
        case = Case((rows, rows, [columns]), dtype, device, by_index=by_index, **options)
        check_along(case, CRITICS[loss], eps=eps_of(dtype))
        check(kernels(), case, CRITICS[loss])
    return {}


def eps_of(dtype: torch.dtype) -> float:
    """Of what is multiplied."""
    return TF32_EPS if dtype == torch.float32 else torch.finfo(dtype).eps


def compare_clip(rows: int, columns: int, dtype: torch.dtype, device: str) -> None:
    """The mean over pairs of both directions."""
    from mim4dd.kernels import clip_loss as launchers

    query, key = (
        (torch.randn(rows, columns, device=device) / columns**0.25).to(dtype) for _ in range(2)
    )
    scale, upstream = torch.tensor(1.7, device=device), torch.rand(2, rows, device=device)
    inputs = query, key, scale, False
    outputs = launchers.clip_loss(*inputs)
    found = [*outputs[:2], *launchers.clip_loss_bwd(*inputs, *outputs, *upstream)]
    leaves = [each.double().requires_grad_() for each in (query, key, scale)]
    logits = leaves[2] * (leaves[0] @ leaves[1].T)
    pairs = torch.arange(rows, device=device)
    losses = [F.cross_entropy(each, pairs, reduction="none") for each in (logits, logits.T)]
    total = sum((each * on).sum() for each, on in zip(losses, upstream.double(), strict=True))
    exact = [*losses, *torch.autograd.grad(total, leaves)]
    for actual, true in zip(found, exact, strict=True):
        error = (actual - true).norm() / true.norm()
        assert error <= 4 * eps_of(dtype), f"relative error {error:.1e}"


def cases(
    loss: str, dtype: str, device: str, sizes: Iterable[tuple[int, int]]
) -> Iterator[tuple[str, Callable[[], dict]]]:
    """The small ones first."""
    for N, D in sizes:
        yield f"N=M={N} D={D}", partial(compare, loss, N, D, DTYPES[dtype], device)


def main() -> None:
    """Of one loss in one dtype, and of the named cases alone where some are named."""
    args = parse(__doc__)
    loss, dtype, *only = args.only
    if args.rehearsal:
        from quick_interpreter import interpret_quickly

        interpret_quickly()
    sizes = ((136, 64), (136, 300)) if args.rehearsal else SIZES
    wanted = cases(loss, dtype, args.device, sizes)
    run_cases(args.results, args.stage, (each for each in wanted if not only or each[0] in only))


if __name__ == "__main__":
    main()
