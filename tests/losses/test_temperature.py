"""Temperatures that are learned: in CLIP's form, in either usual shape, on any device."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, hessian, jvp, vmap

from mim4dd import (
    InfoNCELoss,
    LearnedTemperature,
    MIM4DDLoss,
    NCELoss,
    SupConLoss,
    clip_loss,
    info_nce,
    nce,
)


def test_as_clip_computes_it():
    image, text = (F.normalize(torch.randn(6, 4, dtype=torch.float64)) for _ in range(2))
    temperature = LearnedTemperature(0.2, dtype=torch.float64)
    log_scale = torch.tensor(math.log(1 / 0.2), dtype=torch.float64, requires_grad=True)
    logits = log_scale.exp() * image @ text.T
    index = torch.arange(6)
    expected = (F.cross_entropy(logits, index) + F.cross_entropy(logits.T, index)) / 2
    actual = clip_loss(image, text, temperature=temperature())
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, temperature.logit_scale),
        torch.autograd.grad(expected, log_scale),
    )


def test_as_siglip_computes_it():
    image, text = (F.normalize(torch.randn(6, 4, dtype=torch.float64)) for _ in range(2))
    bias = nn.Parameter(torch.tensor([-10.0], dtype=torch.float64))  # open_clip's other shape
    temperature = LearnedTemperature(0.1, math.inf, dtype=torch.float64)
    loss = NCELoss(temperature, normalize=True, bias=bias)
    with torch.no_grad():
        temperature.logit_scale += 3  # 1/τ is about 200: SigLIP has no bound
    classes = torch.arange(6)
    actual = loss(image, text, classes, classes)
    logits = temperature.logit_scale.exp() * image @ text.T + bias
    expected = -F.logsigmoid((2 * torch.eye(6) - 1) * logits).sum() / 6
    torch.testing.assert_close(actual, expected)
    parameters = temperature.logit_scale, bias
    torch.testing.assert_close(
        torch.autograd.grad(actual, parameters), torch.autograd.grad(expected, parameters)
    )


@pytest.mark.parametrize("module", [InfoNCELoss, SupConLoss, NCELoss, MIM4DDLoss])
def test_no_optimiser_drives_it_through_zero(module):
    """Unit vectors that are their own positives: the smaller τ, the smaller the loss."""
    features, classes = torch.eye(4), torch.arange(4)
    loss = module(LearnedTemperature(0.07))
    inputs = ([features], [features]) if module is MIM4DDLoss else (features, features)
    labels = dict(zip(("labels", "key_labels"), (classes, classes), strict=True))
    if module is MIM4DDLoss:
        labels = {"labels_syn": classes, "labels_real": classes}
    optimizer = torch.optim.Adam(loss.parameters(), lr=1.0)
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(*inputs, **labels)
        value.sum().backward()
        optimizer.step()
        assert value.isfinite().all()
    critic = loss.critic if module is MIM4DDLoss else loss
    assert 0.0099 < critic.temperature().item() < 0.07


def test_at_the_bound_only_the_way_back_is_open():
    temperature = LearnedTemperature(0.1, max_logit_scale=10)
    for start in (0.0, 0.5):
        with torch.no_grad():
            temperature.logit_scale.fill_(math.log(10) + start)
        assert temperature().item() == pytest.approx(0.1)
        (out,) = torch.autograd.grad(temperature(), temperature.logit_scale)  # wants a smaller τ
        (back,) = torch.autograd.grad(-temperature(), temperature.logit_scale)
        assert out.item() == pytest.approx(-0.0)  # descent of τ would raise the scale
        assert back.item() == pytest.approx(0.1)


def test_under_transforms():
    query, key = torch.randn(6, 4), torch.randn(9, 4)
    loss = InfoNCELoss(LearnedTemperature(0.5))

    def value(log_scale):
        return functional_call(loss, {"temperature.logit_scale": log_scale}, (query, key))

    def plain(log_scale):
        return F.cross_entropy(log_scale.exp() * query @ key.T, torch.arange(6))

    log_scale = torch.tensor(0.3)
    for transform in (grad, hessian, lambda f: lambda x: jvp(f, (x,), (x,))):
        torch.testing.assert_close(transform(value)(log_scale), transform(plain)(log_scale))
    scales = torch.tensor([0.1, 0.7, 2.0])
    torch.testing.assert_close(vmap(grad(value))(scales), vmap(grad(plain))(scales))


def test_state_and_options():
    loss = InfoNCELoss(LearnedTemperature(0.25))
    assert list(loss.state_dict()) == ["temperature.logit_scale"]
    assert loss.state_dict()["temperature.logit_scale"].item() == pytest.approx(math.log(4))
    other = InfoNCELoss(LearnedTemperature())
    other.load_state_dict(loss.state_dict())
    assert other.temperature().item() == pytest.approx(0.25)
    assert "temperature=0.25" in repr(other)
    assert "max_logit_scale=100" in repr(other.temperature)
    with pytest.raises(ValueError, match="initial must be positive"):
        LearnedTemperature(0.0)
    with pytest.raises(ValueError, match="max_logit_scale must be at least 1/initial = 1000"):
        LearnedTemperature(0.001)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_number_of_either_shape(shape):
    query, key, classes = torch.randn(6, 4), torch.randn(9, 4), torch.arange(6)
    number = torch.full(shape, 0.5, requires_grad=True)
    for value in (
        info_nce(query, key, temperature=number),
        info_nce(query, key, logit_scale=number),
        InfoNCELoss(nn.Parameter(number.detach()))(query, key),
        nce(query, query, classes, classes, bias=number, temperature=number),
    ):
        assert value.shape == ()
    (gradient,) = torch.autograd.grad(info_nce(query, key, temperature=number), number)
    (expected,) = torch.autograd.grad(
        F.cross_entropy(query @ key.T / number, torch.arange(6)), number
    )
    torch.testing.assert_close(gradient, expected)
    for name in ("temperature", "logit_scale"):
        with pytest.raises(ValueError, match=rf"{name} must be 0-d, or of shape \(1,\)"):
            info_nce(query, key, **{name: torch.ones(2)})


def test_a_criterion_that_was_not_moved(device):
    """A 0-d tensor of the CPU goes with tensors anywhere, in PyTorch and here."""
    where = "meta" if device == "cpu" else device
    query, classes = torch.randn(6, 4, device=where), torch.arange(6, device=where)
    bias = nn.Parameter(torch.tensor(-1.0))
    for temperature in (nn.Parameter(torch.tensor(0.5)), LearnedTemperature(0.5)):
        loss = NCELoss(temperature, bias=bias)
        value = loss(query, query.flip(0), classes, classes)
        assert value.device.type == torch.device(where).type
        if where != "meta":
            value.backward()
            assert all(each.grad.device.type == "cpu" for each in loss.parameters())
