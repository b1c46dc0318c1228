"""Error budgets: how far an op may be from a float64 reference."""

import torch
from torch import Tensor

# (rtol, atol) on top of the error that plain PyTorch makes in the same dtype.
TOLERANCE = {
    torch.float64: (1e-12, 1e-13),
    torch.float32: (1e-6, 1e-6),
    torch.float16: (1e-3, 1e-4),
    torch.bfloat16: (1e-2, 1e-3),
}


def assert_no_worse(
    actual: Tensor, plain: Tensor, exact: Tensor, rounding: Tensor | float = 0.0
) -> None:
    """Assert |actual − exact| ≤ |plain − exact| + tolerance + rounding, elementwise.

    ``exact`` is the float64 result, ``plain`` the one of ordinary PyTorch in the dtype under test,
    ``rounding`` what long sums of both signs may be off by (see ``sum_rounding``).
    """
    assert actual.shape == exact.shape
    assert actual.dtype == plain.dtype
    rtol, atol = TOLERANCE[plain.dtype]
    budget = (plain.double() - exact).abs().amax() + atol + rtol * exact.abs() + rounding
    error = (actual.double() - exact).abs()
    # Not `error > budget`: a NaN must fail.
    assert (error <= budget).all(), (
        f"error {error.max():.3e} over budget, exact up to {exact.abs().max():.3e}, "
        f"plain torch errs by {(plain.double() - exact).abs().max():.3e}"
    )


def assert_norm_no_worse(
    actual: Tensor, plain: Tensor, exact: Tensor, rounding: Tensor | float = 0.0
) -> None:
    """Assert ‖actual − exact‖ ≤ 1.25 ‖plain − exact‖ + tolerance + rounding.

    For values that carry the rounding of large logits: which of two correct computations is closer
    in one element is luck, by the norm they differ by a few per cent where many elements share it.
    """
    assert actual.shape == exact.shape
    assert actual.dtype == plain.dtype
    rtol, atol = TOLERANCE[plain.dtype]
    tolerance = rtol * exact.norm() + atol * exact.numel() ** 0.5
    budget = 1.25 * (plain.double() - exact).norm() + tolerance + rounding
    error = (actual.double() - exact).norm()
    assert error <= budget, f"error {error:.3e} over budget {budget:.3e}"


def assert_sum_no_worse(actual: Tensor, plain: Tensor, terms: Tensor) -> None:
    """``assert_no_worse`` for a sum in double of rounded terms of both signs: () against the terms.

    Each term is rounded before it is added, by chance up or down, so the error has the size of the
    terms' norm, not of what is left of them: which of two correct sums is closer is luck.
    """
    wide = torch.promote_types(plain.dtype, torch.float32)
    assert_no_worse(actual, plain, terms.sum(), torch.finfo(wide).eps * terms.norm())


def sum_rounding(terms: Tensor, dim: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What a sum over ``dim`` of terms of both signs may be off by if ``dtype`` holds its parts.

    Every addition rounds a part of the sum, so the error has the size of ε Σ|terms|, however little
    of them is left. A term that is left out still shows among fewer than 1/ε.
    """
    wide = torch.promote_types(dtype, torch.float32)
    return torch.finfo(wide).eps * terms.abs().sum(dim)
