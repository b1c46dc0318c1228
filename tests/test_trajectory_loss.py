"""trajectory_loss: values, gradients, errors."""

import pytest
import torch

from mim4dd import trajectory_loss


def test_values(device):
    theta_T, theta_0, target = torch.randn(3, 50, dtype=torch.float64, device=device)
    expected = torch.dist(theta_T, target) ** 2 / torch.dist(theta_0, target) ** 2
    torch.testing.assert_close(trajectory_loss(theta_T, theta_0, target), expected)


def test_no_progress_is_one_and_a_match_is_zero(device):
    theta_0, target = torch.randn(2, 50, device=device)
    assert trajectory_loss(theta_0, theta_0, target) == 1
    assert trajectory_loss(target, theta_0, target) == 0


def test_derivatives(device):
    inputs = torch.randn(3, 5, dtype=torch.float64, device=device).requires_grad_().unbind()
    assert torch.autograd.gradcheck(trajectory_loss, inputs)
    assert torch.autograd.gradgradcheck(trajectory_loss, inputs)


def test_a_diverged_student_is_not_hidden():
    assert trajectory_loss(torch.full((3,), torch.nan), torch.zeros(3), torch.ones(3)).isnan()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"theta_T": torch.zeros(2, 2)}, ValueError, "theta_T must be 1-d"),
        ({"theta_T": torch.zeros(4).long()}, TypeError, "floating-point"),
        ({"theta_0": torch.zeros(3)}, ValueError, "theta_0 must have the shape of theta_T"),
        ({"theta_target": torch.zeros(4).double()}, TypeError, "share a dtype"),
        ({"theta_target": torch.zeros(4)}, ValueError, "the expert did not move"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {
        "theta_T": torch.ones(4),
        "theta_0": torch.zeros(4),
        "theta_target": torch.ones(4),
    }
    with pytest.raises(error, match=message):
        trajectory_loss(**(arguments | change))
