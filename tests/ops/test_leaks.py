"""No call of an op leaves memory behind: what the C++ half allocates, by the allocator's count."""

import ctypes

import pytest
import torch

import mim4dd  # noqa: F401  registers the ops
from mim4dd.reference import Critic, Kind, Reduce

CALLS, ROUNDS = 250, 4
SMALLEST = 24  # bytes that glibc hands out for one byte, on any 64-bit machine


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


_LIBC = ctypes.CDLL(None)
needs_glibc = pytest.mark.skipif(not hasattr(_LIBC, "mallinfo2"), reason="needs glibc >= 2.33")


def bytes_in_use():
    _LIBC.mallinfo2.restype = _Mallinfo2
    info = _LIBC.mallinfo2()
    return info.uordblks + info.hblkhd


def growth(call):
    """Bytes that each call leaves allocated: the least of several rounds, for caches fill."""
    for _ in range(CALLS):
        call()
    rounds = []
    for _ in range(ROUNDS):
        before = bytes_in_use()
        for _ in range(CALLS):
            call()
        rounds.append((bytes_in_use() - before) / CALLS)
    return min(rounds)


def contrastive_cases():
    query, key, labels = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2])
    key_labels, excluded = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([[0], [-1], [4]])
    scale, bias, ones = torch.tensor(2.0), torch.tensor(0.5), torch.ones(1, 3)
    critic = Critic(Kind.NCE)
    pairs = ([query], [key], labels, key_labels, excluded, scale, bias, *critic)
    every = [True] * 4
    saved = (ones, ones[0], ones, ones)
    tangents = ([query], [key], torch.ones(1), torch.ones(1))
    return {
        "contrastive": (*pairs, Reduce.MEAN, every),
        "contrastive_bwd": (*pairs, *saved, every),
        "contrastive_bwd_bwd": (*pairs, *saved, *tangents, every),
        "clip_loss": (query, query, scale, True),
        "clip_loss_bwd": (query, query, scale, True, *[ones[0]] * 8),
    }


def layer_cases():
    images, weight = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3)
    gamma, pooled, per_group = torch.ones(4), torch.ones(2, 4, 3, 3), torch.ones(2, 4)
    saved = (pooled, images, gamma, gamma, per_group, per_group, 4, 2)
    every = (True, True, True)
    return {
        "conv3x3": (images, weight, gamma),
        "conv3x3_bwd": (images, images, weight, [True, True]),
        "conv3x3_bwd_bwd": (images, weight, images, images, weight, [*every]),
        "conv3x3_narrow": (images, weight, gamma),
        "conv3x3_narrow_bwd": (images, images, weight, [True, True]),
        "norm_relu_pool": (images, gamma, gamma, 4, 2, 1e-5),
        "norm_relu_pool_bwd": (*saved, *every),
        "norm_relu_pool_bwd_bwd": (images, gamma, gamma, *saved, *every),
    }


def flat_cases():
    theta, lr = torch.ones(7), torch.tensor(0.1)
    sums = torch.ones(2, dtype=torch.float64).unbind()
    return {
        "sgd_step": (theta, theta, lr, theta, 0.9, 0.1, True),
        "sgd_adjoint": (theta, theta, theta, theta, theta, theta, lr, 0.9, 0.1, True),
        "adam_step": (theta, theta, theta, theta, lr, 1),
        "adam_adjoint": (theta, theta, theta, theta, theta, theta, theta, theta, lr, 1),
        "trajectory_loss": (theta, 2 * theta, 3 * theta),
        "trajectory_loss_bwd": (theta, 2 * theta, 3 * theta, *sums, lr, 3),
        "scatter_add_rows": (torch.zeros(5, 2), torch.tensor([1, 3]), torch.ones(2, 2)),
    }


CASES = {**contrastive_cases(), **layer_cases(), **flat_cases()}


def test_every_op_has_a_case():
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("mim4dd::")}
    assert names == {f"mim4dd::{name}" for name in CASES}


@needs_glibc
@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_left_behind(name):
    op, arguments = getattr(torch.ops.mim4dd, name).default, CASES[name]
    assert growth(lambda: op(*arguments)) < SMALLEST / 2


@needs_glibc
def test_a_lost_byte_per_call_is_seen():
    assert growth(lambda: _LIBC.malloc(1)) >= SMALLEST / 2
