"""Autocast leaves features in several dtypes; the losses take what a matrix product takes there."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mim4dd

LABELS, KEY_LABELS = torch.tensor([0, 1, 2, 2, 1, 0]), torch.arange(9) % 3


def on(device):
    return LABELS.to(device), KEY_LABELS.to(device)


OPS = {
    "info_nce": lambda a, b: mim4dd.info_nce(a, b, normalize=True),
    # Of keys that need gradients, autograd would add both in half precision: they may cancel.
    "shared negatives": lambda a, b: mim4dd.info_nce(a, a.detach(), negative_keys=b),
    "own negatives": lambda a, b: mim4dd.info_nce(a, a.detach(), negative_keys=b.expand(6, 9, 4)),
    "sup_con": lambda a, b: mim4dd.sup_con(a, b, *on(a.device)),
    "nce": lambda a, b: mim4dd.nce(a, b, *on(a.device)),
    "log_sum_exp": lambda a, b: mim4dd.log_sum_exp(a, b).sum(),
    "clip_loss": lambda a, b: mim4dd.clip_loss(a, b[:6]),
    "layers": lambda a, b: mim4dd.info_nce([a, a[:, :2]], [b, b[:, :2]]).sum(),
    "MIM4DDLoss": lambda a, b: mim4dd.MIM4DDLoss()([a], [b], *on(a.device)),
    "norm_relu_pool": lambda a, b: (
        mim4dd.norm_relu_pool(a.view(1, 4, 2, 3), b[0], b[1], num_groups=2).float().sum()
    ),
}
PAIRS = list(itertools.permutations((torch.bfloat16, torch.float16, torch.float32), 2))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtypes", PAIRS)
def test_autocast_takes_the_wider(name, dtypes, device):
    """Values and gradients are those of the same numbers in float32, each in its own dtype."""
    first, second = (
        torch.randn(size, 4, device=device).to(dtype).requires_grad_()
        for size, dtype in zip((6, 9), dtypes, strict=True)
    )
    with torch.autocast(device, torch.bfloat16):
        value = OPS[name](first, second)
    gradients = torch.autograd.grad(value, (first, second))
    wide = [each.detach().float().requires_grad_() for each in (first, second)]
    expected = OPS[name](*wide)
    half = name == "norm_relu_pool" and first.dtype != torch.float32  # its output is of that dtype
    close = {"rtol": 1e-2, "atol": 1e-1} if half else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(value, expected, **close)
    for actual, dtype, exact in zip(
        gradients, dtypes, torch.autograd.grad(expected, wide), strict=True
    ):
        assert actual.dtype == dtype
        resolution = torch.finfo(torch.bfloat16 if half else dtype).eps
        least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        atol = 10 * resolution * exact.abs().max().item() + least
        torch.testing.assert_close(actual.float(), exact, rtol=2 * resolution, atol=atol)


def test_layers_of_several_dtypes():
    """As hooks collect them: a norm's output is float32 under autocast, a convolution's is not."""
    features = [torch.randn(6, 4), torch.randn(6, 5).bfloat16(), torch.randn(6, 3).half()]
    loss = mim4dd.MIM4DDLoss()
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss(features, features[::1], LABELS, LABELS)
    wide = [each.float() for each in features]
    torch.testing.assert_close(actual, mim4dd.MIM4DDLoss()(wide, wide, LABELS, LABELS))


@pytest.mark.parametrize("name", OPS)
def test_elsewhere_they_must_agree(name):
    """Outside of autocast, and float64 within: there a matrix product raises too."""
    first, second = torch.randn(6, 4), torch.randn(9, 4)
    for dtype, enabled in ((torch.bfloat16, False), (torch.float64, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            if name not in ("own negatives", "norm_relu_pool"):
                with pytest.raises(RuntimeError, match="dtype"):
                    _ = first @ second.to(dtype).T
            with pytest.raises(TypeError, match=r"must share a dtype|must be torch\.float32 for"):
                OPS[name](first, second.to(dtype))


@pytest.mark.parametrize("op", ["trajectory_loss", "sgd_step"])
def test_ops_on_parameters_say_so(op):
    """They multiply no matrices, so that autocast changes nothing."""
    theta = torch.randn(6)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="share a dtype"):
        getattr(mim4dd, op)(theta, theta.bfloat16(), theta.bfloat16())


def test_training_as_moco_does():
    """Queries in half precision, keys of a momentum encoder, negatives in a float32 queue."""
    encoder, momentum_encoder = nn.Linear(8, 4), nn.Linear(8, 4)
    momentum_encoder.load_state_dict(encoder.state_dict())
    queue = mim4dd.KeyQueue(num_keys=12, dimension=4)
    queue.push(F.normalize(torch.randn(12, 4)))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.3, momentum=0.9)
    for _ in range(4):
        image_q, image_k = torch.randn(2, 6, 8).unbind()
        with torch.autocast("cpu", torch.bfloat16):
            query = F.normalize(encoder(image_q), dim=1).bfloat16()
            with torch.no_grad():
                for slow, fast in zip(
                    momentum_encoder.parameters(), encoder.parameters(), strict=True
                ):
                    slow.lerp_(fast, 0.01)
                key = F.normalize(momentum_encoder(image_k), dim=1).bfloat16()
            loss = mim4dd.info_nce(query, key, negative_keys=queue.keys, temperature=0.07)
        logits = [(query.float() * key.float()).sum(1, keepdim=True), query.float() @ queue.keys.T]
        target = torch.zeros(6, dtype=torch.long)
        torch.testing.assert_close(loss, F.cross_entropy(torch.cat(logits, 1) / 0.07, target))
        optimizer.zero_grad()
        loss.backward()
        assert encoder.weight.grad.dtype == torch.float32
        assert 0 < encoder.weight.grad.norm() < torch.inf
        optimizer.step()
        queue.push(key.float())


def test_training_as_lightly_does():
    """Two views through a backbone and a projection head, whose batch norm stays float32."""
    backbone = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
    head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    criterion = mim4dd.SupConLoss(mim4dd.LearnedTemperature(0.5), normalize=True)
    parameters = [*backbone.parameters(), *head.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    classes = torch.arange(6)
    for _ in range(3):
        views = torch.randn(2, 6, 8)
        with torch.autocast("cpu", torch.bfloat16):
            first, second = (head(backbone(view)) for view in views)
            bank = second.detach().float()
            loss = criterion(first, bank, classes, classes)
        assert (first.dtype, bank.dtype) == (torch.bfloat16, torch.float32)
        cosine = F.normalize(first.float(), dim=1) @ F.normalize(bank, dim=1).T
        expected = F.cross_entropy(cosine / criterion.temperature(), classes)
        torch.testing.assert_close(loss, expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert all(parameter.grad.isfinite().all() for parameter in parameters)
