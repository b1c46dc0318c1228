"""The Triton launchers of clip_loss against its definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from contrastive_cases import let_lean_kernels_serve_few_rows
from paired import both_directions, make_inputs, moved_by_rounding
from tolerance import assert_no_worse, assert_norm_no_worse

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
HALF = DTYPES[2:]


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


@pytest.fixture
def no_logits_in_memory(monkeypatch):
    """The kernels that read them may not answer where those without are meant to."""
    from mim4dd.kernels import clip_loss

    let_lean_kernels_serve_few_rows(monkeypatch)
    monkeypatch.setattr(clip_loss, "sums_kernel", None)
    monkeypatch.setattr(clip_loss, "weights_kernel", None)


@pytest.mark.usefixtures("no_logits_in_memory")
@pytest.mark.parametrize("spread", [1.0, 100.0])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("shape", [(257, 64, 90), (130, 128, 90), (150, 104, 80), (3, 8, 100)])
def test_tiles_of_every_gpu(shape, dtype, spread, kernel_device, monkeypatch):
    from mim4dd.kernels import _paired

    *shape, on = shape
    if kernel_device == "cpu":
        monkeypatch.setattr(_paired, "capability", lambda device: on)
    check(*make_case(*shape, dtype, kernel_device, spread))


@pytest.mark.usefixtures("no_logits_in_memory")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_bad_feature_reaches_every_loss_of_half(side, bad, kernel_device):
    case = make_case(140, 8, torch.bfloat16, kernel_device)
    case[side][20, 1] = bad
    *losses, query_gradient, key_gradient, scale_gradient = run(*case)
    assert losses[1 - side].isnan().all()
    assert torch.equal(losses[side].isnan(), torch.arange(140, device=kernel_device) == 20)
    assert query_gradient.isnan().all()
    assert key_gradient.isnan().all()
    assert scale_gradient.isnan()


@pytest.mark.usefixtures("no_logits_in_memory")
@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_of_no_temperature_gives_nan_of_half(scale, kernel_device):
    case = make_case(6, 8, torch.float16, kernel_device, scale=scale)
    assert all(result.isnan().all() for result in run(*case))


@pytest.mark.usefixtures("no_logits_in_memory")
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_certain_pairs_of_half_keep_their_digits(dtype, kernel_device):
    query, _, _, upstreams = make_case(120, 120, dtype, kernel_device)
    query[:] = torch.eye(120)
    upstreams = [upstream.abs() for upstream in upstreams]  # what cancels has no digits to keep
    case = query, query.clone(), torch.tensor(25.0, device=kernel_device), upstreams
    wide = query.double(), query.double(), case[2].double()
    exact = define(*wide, upstreams, torch.float64)
    for actual, expected in zip(run(*case)[:2], exact[:2], strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-17)
    for actual, expected in zip(run(*case)[2:4], exact[2:4], strict=True):
        least = torch.finfo(dtype).smallest_normal
        torch.testing.assert_close(
            actual.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=least
        )


@pytest.mark.usefixtures("no_logits_in_memory")
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_logits_of_ten_thousand(dtype, kernel_device):
    """On a grid, so that float32 holds every similarity exactly; two keys are the same."""
    query, key, _, upstreams = make_case(140, 64, dtype, kernel_device, spread=8.0)
    query, key = ((side * 16).round() / 16 for side in (query, key * 8))
    key[1], query[1] = key[0], query[0]
    check(query, key, torch.tensor(2.0**8, device=kernel_device), upstreams)


def fma_rounds_once():
    """As a GPU's does; the interpreter of Triton 3.6 rounds the product as well."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    import triton.language as tl

    x, y = (
        interpreter.TensorHandle(torch.tensor([value]).numpy(), tl.float32)
        for value in (1 + 2.0**-12, -1.0)
    )
    return interpreter.interpreter_builder.create_fma(x, x, y).data[0] != 2.0**-11


@pytest.mark.usefixtures("no_logits_in_memory")
def test_shares_of_large_logits_sum_to_one(kernel_device):
    """As the gradients' kernel makes them, of a shift that was rounded to base e and back."""
    from mim4dd.kernels import clip_loss as kernels
    from mim4dd.kernels._single_positive_passes import LOG2_E

    query, key, _, _ = make_case(140, 64, torch.float16, kernel_device, spread=8.0)
    query, key = ((side * 16).round() / 16 for side in (query, key * 8))
    scale = torch.tensor(2.0**12, device=kernel_device)
    _, _, shift, _, total, _ = kernels.clip_loss(query, key, scale, False)
    similarity = query.double() @ key.double().T  # as float32 has it
    exponent, offset = (scale * LOG2_E.value).double(), (shift * -LOG2_E.value).double()
    shares = torch.exp2(similarity * exponent + offset[:, None]) / total.double()[:, None]
    rtol = 1e-5
    if kernel_device == "cpu" and not fma_rounds_once():
        rtol = 2 * torch.finfo(torch.float32).eps * float(offset.abs().max())
    torch.testing.assert_close(shares.sum(1), torch.ones_like(shares[0]), rtol=rtol, atol=0)


@pytest.mark.usefixtures("no_logits_in_memory")
def test_what_needs_no_logits_in_memory(kernel_device):
    """Slices are read as they lie; the same bits every time."""
    from mim4dd.kernels import _paired
    from mim4dd.kernels.clip_loss import compared

    query, key, scale, upstreams = make_case(140, 128, torch.float16, kernel_device)
    case = query[:, 8:72], key[:, :64], scale, (upstreams[0], upstreams[1][:1].expand(140))
    check(*case)
    for first, second in zip(run(*case), run(*case), strict=True):
        assert torch.equal(first, second)
    for sides, normalize, served in (
        ((query, key), False, True),
        ((query, key), True, False),
        ((query[:, :60], key[:, :60]), False, False),
        ((query.float(), key.float()), False, False),
        ((query.repeat(1, 2), key.repeat(1, 2)), False, False),
    ):
        assert _paired.serves(compared(*sides, normalize)[2], normalize) == served
