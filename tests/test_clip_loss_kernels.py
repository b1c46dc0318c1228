"""The Triton launchers of clip_loss against its definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from paired import both_directions, make_inputs, moved_by_rounding
from tolerance import assert_no_worse, assert_norm_no_worse

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture(params=["one chunk", "chunks", "splits"])
def way(request, monkeypatch):
    """All pairs at once, a few queries at a time, and the keys split among programs.

    And fewer of a loss' parts at once than there are.
    """
    from mim4dd.kernels import _inputs, clip_loss

    if request.param == "chunks":  # of a tile and a part of one
        monkeypatch.setattr(clip_loss, "rows_per_chunk", lambda N, *_: min(N, 40))
    elif request.param == "splits":
        monkeypatch.setitem(clip_loss.MERGE, "BLOCK_PARTS", 2)
        monkeypatch.setattr(_inputs, "num_multiprocessors", lambda device: 16)


def run(query, key, scale, upstreams, normalize=False):
    """Both losses, then the gradients of query, key and logit_scale."""
    from mim4dd.kernels import clip_loss as kernels

    inputs = query, key, scale, normalize
    outputs = kernels.clip_loss(*inputs)
    return *outputs[:2], *kernels.clip_loss_bwd(*inputs, *outputs, *upstreams)


def define(query, key, scale, upstreams, dtype, normalize=False):
    """The same by PyTorch in ``dtype``; gradients in the types of the inputs."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (query, key, scale)]
    sides = [leaf.to(dtype) for leaf in leaves[:2]]
    if normalize:
        sides = [F.normalize(side, dim=1) for side in sides]
    losses = both_directions(*sides, leaves[2])
    total = sum((loss * each).sum() for loss, each in zip(losses, upstreams, strict=True))
    return *losses, *torch.autograd.grad(total, leaves)


def weights_of(similarity, scale, upstreams):
    """Derivative of both losses by each logit."""
    logits = (scale * similarity).requires_grad_()
    index = torch.arange(len(logits), device=logits.device)
    losses = [F.cross_entropy(each, index, reduction="none") for each in (logits, logits.T)]
    total = sum((loss * each).sum() for loss, each in zip(losses, upstreams, strict=True))
    return torch.autograd.grad(total, logits)[0]


def lost_by_weights(weights, dtype, upstreams):
    """What rounding them to half takes; float16 holds those of upstream gradients up to 2**14."""
    if dtype not in (torch.float16, torch.bfloat16):
        return 0 * weights
    finfo = torch.finfo(dtype)
    least = finfo.smallest_normal * finfo.eps * max(u.abs().max() for u in upstreams) / 2**14
    return (weights.abs() * finfo.eps + least) / 2


def check(query, key, scale, upstreams, normalize=False):
    sides = [side.double() for side in (query, key)]
    wide = scale.double()
    exact = define(*sides, wide, upstreams, torch.float64, normalize)
    plain = define(query, key, scale, upstreams, scale.dtype, normalize)
    actual = run(query, key, scale, upstreams, normalize)
    lengths = [1.0, 1.0]
    if normalize:
        lengths = [side.norm(dim=1, keepdim=True) for side in sides]
        sides = [side / length for side, length in zip(sides, lengths, strict=True)]
    sizes = [upstream.abs() for upstream in upstreams]
    *moved, of_scale = moved_by_rounding(*sides, wide, sizes, scale.dtype, lengths)
    similarity = sides[0] @ sides[1].T
    weights = weights_of(similarity, wide, upstreams)
    lost = wide * lost_by_weights(weights, query.dtype, upstreams)
    moved[0] += (lost @ sides[1].abs() / lengths[0]).norm()
    moved[1] += (lost.T @ sides[0].abs() / lengths[1]).norm()
    for a, p, e, rounding in zip(actual[:4], plain[:4], exact[:4], (0, 0, *moved), strict=True):
        assert_norm_no_worse(a, p, e, rounding)
    terms = weights * similarity
    rounding = torch.finfo(scale.dtype).eps * terms.norm() + of_scale
    assert_no_worse(actual[4], plain[4], terms.sum(), rounding)


def make_case(n, d, dtype, device, spread=1.0, scale=7.0):
    query, key = (side.detach() for side in make_inputs(n, d, dtype, device, spread))
    wide = torch.promote_types(dtype, torch.float32)
    upstreams = torch.randn(2, n, dtype=wide, device=device).unbind()
    return query, key, torch.tensor(scale, dtype=wide, device=device), upstreams


@pytest.mark.parametrize("spread", [1.0, 100.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (33, 17), (150, 8)], ids=str)
def test_values_and_gradients(shape, dtype, spread, way, kernel_device):
    check(*make_case(*shape, dtype, kernel_device, spread))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normalised(dtype, way, kernel_device):
    query, key, scale, upstreams = make_case(70, 17, dtype, kernel_device, spread=5.0)
    check(query, key / 8, scale, upstreams, normalize=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_bad_feature_reaches_every_loss(normalize, side, bad, way, kernel_device):
    case = make_case(70, 4, torch.float32, kernel_device)
    case[side][20, 1] = bad
    query_loss, key_loss, *gradients = run(*case, normalize)
    # Every logit of a bad query is bad: its own loss, and that of every key, so every weight.
    assert (query_loss, key_loss)[1 - side].isnan().all()
    own = torch.arange(70, device=kernel_device) == 20
    assert torch.equal((query_loss, key_loss)[side].isnan(), own)
    assert all(gradient.isnan().all() for gradient in gradients)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_of_no_temperature_gives_nan(scale, kernel_device):
    case = make_case(6, 3, torch.float32, kernel_device, scale=scale)
    assert all(result.isnan().all() for result in run(*case))


def test_certain_pairs_keep_their_digits(way, kernel_device):
    """At p = 1 to the last digit of float32 the losses and gradients are small, not 0."""
    query, key, _, upstreams = make_case(70, 70, torch.float32, kernel_device)
    query[:], key[:] = torch.eye(70), torch.eye(70)
    upstreams = [upstream.abs() for upstream in upstreams]  # what cancels has no digits to keep
    case = query, key, torch.tensor(25.0, device=kernel_device), upstreams
    exact = define(query.double(), key.double(), case[2].double(), upstreams, torch.float64)
    for actual, expected in zip(run(*case)[:4], exact[:4], strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-17)


@pytest.mark.parametrize(
    "layout",
    [
        lambda rows: rows.T.contiguous().T,
        lambda rows: torch.cat([rows, rows], 1)[:, : rows.shape[1]],
        lambda rows: rows[:1].expand(rows.shape),
    ],
    ids=["transposed", "slice", "one row"],
)
def test_strides(layout, kernel_device):
    query, key, scale, upstreams = make_case(40, 6, torch.float32, kernel_device)
    upstreams = upstreams[0], upstreams[1][:1].expand(40)
    check(layout(query), layout(key), scale, upstreams)


def test_small_upstream_gradients_survive_float16(kernel_device):
    """A mean over many pairs: g·p lies below what float16 can hold, their sums do not."""
    query, key, scale, upstreams = make_case(300, 4, torch.float16, kernel_device, scale=0.5)
    key = key / 8 + 1
    small = [upstream * 1e-6 for upstream in upstreams]
    _, _, actual, *_ = run(query, key, scale, small)
    sides = query.double(), key.double()
    _, _, exact, *_ = define(*sides, scale.double(), small, torch.float64)
    torch.testing.assert_close(actual.double(), exact, rtol=1e-2, atol=6e-8)  # its least step


def test_the_same_bits_every_time(way, kernel_device):
    case = make_case(90, 16, torch.float32, kernel_device)
    for first, second in zip(run(*case), run(*case), strict=True):
        assert torch.equal(first, second)
