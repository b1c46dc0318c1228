"""PositiveStepSize: its start, its sign, its derivative, and what the outer rate does to it."""

import math

import pytest
import torch
from torch.func import functional_call

from mim4dd import PositiveStepSize

STARTS = [1e-6, 3.3e-4, 0.01, 0.7, 1.0, 25.0, 100.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (1, 4)])
@pytest.mark.parametrize("initial", STARTS)
def test_it_starts_where_it_is_told(initial, shape, dtype, device):
    """To the last bit on a CPU; a GPU's log1p(1) may round the other way."""
    step_size = PositiveStepSize(initial, shape, dtype=dtype, device=device)()
    rtol = 0 if device == "cpu" else torch.finfo(dtype).eps
    expected = torch.full(shape, initial, dtype=dtype, device=device)
    torch.testing.assert_close(step_size, expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("rho", [-80.0, -20.0, -1.0, 0.3, 19.9, 20.1, 39.9, 40.1, 1000.0])
def test_it_is_a_softplus_in_units_of_its_start(rho, device):
    module = PositiveStepSize(0.02, dtype=torch.float64, device=device)
    with torch.no_grad():
        module.rho.fill_(rho)
    exact = 0.02 * (math.log1p(math.exp(-abs(rho))) + max(rho, 0)) / math.log(2)
    assert exact > 0
    assert module().item() == pytest.approx(exact, rel=1e-15)


@pytest.mark.parametrize("initial", STARTS)
def test_its_derivative(initial, device):
    module = PositiveStepSize(initial, (4,), dtype=torch.float64, device=device)
    rho = torch.tensor([-5.0, -0.1, 0.2, 9.0], dtype=torch.float64, device=device)

    def call(rho):
        return functional_call(module, {"rho": rho}, ()) / initial

    assert torch.autograd.gradcheck(call, rho.requires_grad_())
    assert torch.autograd.gradgradcheck(call, rho)


@pytest.mark.parametrize("initial", STARTS)
def test_the_outer_rate_that_begins_as_sgd_on_the_step_size(initial, device):
    module = PositiveStepSize(initial, dtype=torch.float64, device=device)
    rate = 1e-6 * initial
    slope = 2.5
    outer = torch.optim.SGD(module.parameters(), lr=1.92 * rate / initial**2)
    (slope * module()).backward()
    outer.step()
    assert (initial - module().item()) / (rate * slope) == pytest.approx(1, rel=2e-3)


def test_no_step_makes_it_negative(device):
    module = PositiveStepSize(0.01, device=device)
    outer = torch.optim.SGD(module.parameters(), lr=1e5)
    for _ in range(5):
        outer.zero_grad()
        module().backward()
        outer.step()
        assert module() >= 0


def test_it_is_saved_whole(device):
    module = PositiveStepSize(0.01, (2,), device=device)
    with torch.no_grad():
        module.rho += 1
    other = PositiveStepSize(5.0, (2,), device=device)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(), module())


@pytest.mark.parametrize("initial", [0.0, -0.1, math.inf, math.nan, 1e-60, 1e60])
def test_a_start_that_is_none_is_refused(initial):
    with pytest.raises(ValueError, match="initial must be positive and finite"):
        PositiveStepSize(initial, dtype=torch.float32)
