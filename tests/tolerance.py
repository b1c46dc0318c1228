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
