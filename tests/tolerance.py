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


def assert_no_worse(actual: Tensor, plain: Tensor, exact: Tensor) -> None:
    """Assert |actual − exact| ≤ |plain − exact| + tolerance, elementwise.

    ``exact`` is the float64 result, ``plain`` the one of ordinary PyTorch in the dtype under test.
    """
    assert actual.shape == exact.shape
    assert actual.dtype == plain.dtype
    rtol, atol = TOLERANCE[plain.dtype]
    budget = (plain.double() - exact).abs().amax() + atol + rtol * exact.abs()
    error = (actual.double() - exact).abs()
    # Not `error > budget`: a NaN must fail.
    assert (error <= budget).all(), (
        f"error {error.max():.3e} over budget, exact up to {exact.abs().max():.3e}, "
        f"plain torch errs by {(plain.double() - exact).abs().max():.3e}"
    )


def assert_norm_no_worse(actual: Tensor, plain: Tensor, exact: Tensor) -> None:
    """Assert ‖actual − exact‖ ≤ 1.25 ‖plain − exact‖ + tolerance.

    For values that carry the rounding of large logits: which of two correct computations is closer
    in one element is luck, by the norm they differ by a few per cent.
    """
    assert actual.shape == exact.shape
    assert actual.dtype == plain.dtype
    rtol, atol = TOLERANCE[plain.dtype]
    rounding = rtol * exact.norm() + atol * exact.numel() ** 0.5
    budget = 1.25 * (plain.double() - exact).norm() + rounding
    error = (actual.double() - exact).norm()
    assert error <= budget, f"error {error:.3e} over budget {budget:.3e}"


def assert_sum_no_worse(actual: Tensor, plain: Tensor, terms: Tensor) -> None:
    """The same for a sum of terms of both signs, () against the exact terms.

    Each term is rounded before it is added, by chance up or down, so the error has the size of the
    terms' norm, not of what is left of them: which of two correct sums is closer is luck.
    """
    exact = terms.sum()
    wide = torch.promote_types(plain.dtype, torch.float32)
    rtol, atol = TOLERANCE[plain.dtype]
    rounding = torch.finfo(wide).eps * terms.norm()
    budget = (plain.double() - exact).abs() + rounding + atol + rtol * exact.abs()
    error = (actual.double() - exact).abs()
    assert error <= budget, f"error {error:.3e} over budget {budget:.3e}, exact {exact:.3e}"
