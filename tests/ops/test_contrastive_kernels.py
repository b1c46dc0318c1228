"""The Triton launchers of the contrastive losses against mim4dd.reference.

What every backend promises is in test_contrastive_promises.py.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from contrastive_cases import (
    Case,
    assert_difference,
    assert_gradient,
    check,
    check_second_order,
    first_order,
    kernels,
    name,
    over_layers,
    run,
    second_order,
)
from torch.utils._python_dispatch import TorchDispatchMode

from mim4dd.reference import Critic, Kind, Reduce

# With the number of keys that each query leaves out.
CRITICS = [
    (Critic(), 0),
    (Critic(decoupled=True), 3),
    (Critic(hardness=0.5), 1),
    (Critic(normalize=True), 0),
    (Critic(Kind.IN), 2),
    (Critic(Kind.IN, decoupled=True, hardness=0.3, normalize=True), 1),
    (Critic(Kind.NCE), 0),
    (Critic(Kind.NCE, hardness=0.4, normalize=True), 4),
]
SECOND_ORDER = [
    (Critic(), 0),
    (Critic(decoupled=True, hardness=0.5), 1),
    (Critic(Kind.IN, hardness=0.3), 3),
    (Critic(Kind.IN, decoupled=True), 0),
    (Critic(Kind.NCE), 2),
    (Critic(Kind.NCE, hardness=0.4), 0),
]


class LoggedOperations(TorchDispatchMode):
    """What PyTorch is asked to do."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.append(func)
        return func(*args, **(kwargs or {}))


# By their place; what the kernels do by dtype does not depend on the critic.
BESIDE_FLOAT32 = {torch.float64: (1, 5), torch.float16: (0, 4), torch.bfloat16: (2, -1)}


def with_critic(critics):
    return pytest.mark.parametrize(("critic", "num_excluded"), critics, ids=name)


def with_critic_and_dtype(critics):
    """All in float32, and two in each other dtype."""
    cases = [(*critic, torch.float32) for critic in critics]
    cases += [(*critics[i], dtype) for dtype, some in BESIDE_FLOAT32.items() for i in some]
    return pytest.mark.parametrize(("critic", "num_excluded", "dtype"), cases, ids=name)


@pytest.fixture(params=["fused", "chunked"])
def backend(request, monkeypatch):
    """Both back-ends, whatever the shape; chunks of a few rows, so that there is more than one."""
    from mim4dd.kernels import _chunked, contrastive

    fused = request.param == "fused"
    monkeypatch.setattr(contrastive, "fuses", lambda query, key: fused)
    monkeypatch.setattr(_chunked, "WORKSPACE", 2**12)


@pytest.fixture
def backend_chunks(monkeypatch):
    """Chunks of a few rows."""
    from mim4dd.kernels import _chunked

    monkeypatch.setattr(_chunked, "WORKSPACE", 2**10)


@with_critic_and_dtype(CRITICS)
def test_values_and_gradients(critic, num_excluded, dtype, backend, kernel_device):
    options = {"num_excluded": num_excluded, "bias": 0.3 if critic == CRITICS[-1][0] else None}
    check(kernels(), Case((18, 35, [19]), dtype, kernel_device, **options), critic)


@with_critic_and_dtype(SECOND_ORDER)
def test_second_order(critic, num_excluded, dtype, kernel_device, backend_chunks):
    options = {"num_excluded": num_excluded, "bias": 0.3 if critic == SECOND_ORDER[-1][0] else None}
    check_second_order(kernels(), Case((9, 21, [7, 12]), dtype, kernel_device, **options), critic)


@pytest.mark.parametrize("critic", [Critic(), Critic(Kind.IN), Critic(Kind.NCE)], ids=name)
def test_chunked_rows_of_several_tiles(critic, kernel_device, backend_chunks, monkeypatch):
    """A program of the row passes takes at most so many keys at a time."""
    from mim4dd.kernels import _chunked

    assert _chunked.row_launch(1100)["BLOCK_M"] < 1100
    monkeypatch.setattr(kernels(), "fuses", lambda query, key: False)
    options = {"num_excluded": 1, "bias": 0.3 if critic.kind == Kind.NCE else None}
    case = Case((3, 1100, [4]), torch.float32, kernel_device, **options)
    check(kernels(), case, critic)
    check_second_order(kernels(), case, critic)


@with_critic([(Critic(), 1), (Critic(Kind.IN, decoupled=True), 5), (Critic(Kind.NCE), 5)])
def test_positives_by_index(critic, num_excluded, backend, kernel_device):
    options = {"num_excluded": num_excluded, "by_index": True}
    check(kernels(), Case((18, 7, [5]), torch.float32, kernel_device, **options), critic)


@pytest.mark.parametrize(
    ("critic", "dtype"),
    [(Critic(Kind.IN), torch.bfloat16), (Critic(normalize=True), torch.float32)],
    ids=name,
)
def test_layers_of_any_width_in_one_call(critic, dtype, kernel_device):
    # A unit row of one column has no gradient but what rounding leaves.
    narrowest = 2 if critic.normalize else 1
    check(kernels(), Case((13, 9, [64, narrowest, 100, 3, 257, 17]), dtype, kernel_device), critic)


@pytest.mark.parametrize("width", [64, 128, 256, 270])
@pytest.mark.parametrize("tiles", [80, 90, 100])
def test_widest_rows_of_every_tile(tiles, width, kernel_device, monkeypatch):
    """All columns count: by label with a bias, which no other kernels than these answer."""
    from mim4dd.kernels import _inputs

    if kernel_device == "cpu":
        monkeypatch.setattr(_inputs, "capability", lambda device: tiles)
    case = Case((9, 20, [width]), torch.float16, kernel_device, bias=0.3)
    check(kernels(), case, Critic(Kind.NCE))


def test_wide_layers_are_chunked_beside_narrow_ones(kernel_device, monkeypatch):
    monkeypatch.setattr(kernels(), "fuses", lambda query, key: query.shape[1] <= 8)
    check(kernels(), Case((9, 13, [8, 20, 4]), torch.float32, kernel_device), Critic())


@pytest.mark.parametrize("critic", [Critic(Kind.IN), Critic(Kind.NCE)], ids=name)
def test_the_reduced_loss_and_its_gradients_come_along(critic, backend, kernel_device):
    case = Case((9, 13, [8, 20]), torch.float64, kernel_device)
    case.labels[0] = case.key_labels[0] = 0  # else some draws have no positive
    wanted = [True, True, True, False]
    mean, count, loss, _, weight, actual = case.call(
        kernels().contrastive, critic, Reduce.MEAN, wanted
    )
    assert count == weight.count_nonzero()
    torch.testing.assert_close(mean, loss.sum(1) / count)
    total, *_ = case.call(kernels().contrastive, critic, Reduce.SUM, [False] * 4)
    torch.testing.assert_close(total, loss.sum(1))
    case.grad_loss, case.grad_lse = torch.ones_like(case.grad_loss) / count, 0 * case.grad_lse
    _, _, exact = first_order(case, critic, torch.float64)
    for a, e in zip(over_layers(actual), exact, strict=True):
        assert_gradient(a, e, e, case, critic)


@with_critic([CRITICS[1], CRITICS[4], CRITICS[5], CRITICS[7]])
def test_few_rows_are_split_among_programs(critic, num_excluded, kernel_device, monkeypatch):
    from mim4dd.kernels import _inputs

    monkeypatch.setattr(_inputs, "num_multiprocessors", lambda device: 8)
    for shape in ((5, 400, [6]), (300, 5, [6])):
        check(
            kernels(), Case(shape, torch.float32, kernel_device, num_excluded=num_excluded), critic
        )


@pytest.mark.parametrize(
    "layout",
    [
        lambda rows: rows.T.contiguous().T,
        lambda rows: torch.stack([rows, rows], 2)[:, :, 0],
        lambda rows: torch.cat([rows, rows], 1)[:, : rows.shape[1]],
        lambda rows: rows[:1].expand(rows.shape),
        lambda rows: rows[:, :1].expand(rows.shape),
    ],
    ids=["transposed", "every other column", "slice", "one row", "one column"],
)
def test_strides(layout, backend, kernel_device):
    case = Case((7, 11, [6]), torch.float32, kernel_device)
    case.query, case.key = [layout(case.query[0])], [layout(case.key[0])]
    case.grad_loss = case.grad_loss[:, :1].expand(case.grad_loss.shape)
    case.grad_lse = case.grad_lse.T.contiguous().T
    check(kernels(), case, Critic())


def test_strides_beyond_32_bits(kernel_device):
    """Rows that lie 4 GiB apart; of the zeros between them no page is touched on a CPU."""
    storage = torch.from_numpy(np.zeros(2**31 + 8, np.float16)).to(kernel_device)
    case = Case((3, 2, [8]), torch.float16, kernel_device)
    case.key = [storage.as_strided((2, 8), (2**31, 1)).copy_(case.key[0])]
    check(kernels(), case, Critic())


@pytest.mark.parametrize("critic", [Critic(), Critic(Kind.IN), Critic(Kind.NCE)], ids=name)
def test_large_logits_and_duplicated_keys(critic, backend, kernel_device):
    case = Case((9, 12, [8]), torch.float32, kernel_device, scale=2.0**12)
    # On a grid, so that float32 holds every logit exactly: else the gradients carry the rounding of
    # logits of 1e4, and who adds up a product in the luckier order is the more exact.
    case.query, case.key = ([(t[0] * 64).round() / 64] for t in (case.query, case.key))
    case.key[0][3:6] = case.key[0][0]
    check(kernels(), case, critic, assert_difference)


def test_small_upstream_gradients_survive_float16(backend, kernel_device):
    """A mean over many queries: g·p lies below what float16 can hold, their sums do not."""
    case = Case((4, 300, [4]), torch.float16, kernel_device, scale=0.5)
    case.key[0] = case.key[0] / 8 + 1
    case.grad_loss, case.grad_lse = case.grad_loss * 1e-6, case.grad_lse * 1e-6
    _, (actual, *_) = run(kernels(), case, Critic())
    _, _, (exact, *_) = first_order(case, Critic(), torch.float64)
    torch.testing.assert_close(actual.double(), exact, rtol=1e-2, atol=6e-8)  # its least step


@pytest.mark.parametrize(
    ("critic", "dtype"),
    [
        (Critic(), torch.float16),
        (Critic(), torch.bfloat16),
        (Critic(Kind.IN, normalize=True), torch.float16),
        (Critic(Kind.NCE), torch.float16),
    ],
    ids=name,
)
def test_gradients_of_a_sum_are_not_rounded_yet(critic, dtype, backend, kernel_device):
    """Beyond float16, and of keys far from all queries: a mean's, scaled, is neither."""
    case = Case((40, 30, [8]), dtype, kernel_device, scale=30.0)
    case.query[0], case.key[0] = 2048 * case.query[0], case.key[0] / 2048
    wanted = [True, True, True, False]
    *_, found = case.call(kernels().contrastive, critic, Reduce.SUM, wanted)
    case.grad_loss, case.grad_lse = torch.ones_like(case.grad_loss), 0 * case.grad_lse
    *_, exact = first_order(case, critic, torch.float64)
    assert critic.normalize or exact[1].abs().max() > torch.finfo(torch.float16).max
    for actual, true in zip(over_layers(found), exact, strict=True):
        assert actual.dtype == torch.float32
        error = (actual.double() - true).abs().max()
        assert error <= 2 * torch.finfo(dtype).eps * true.abs().max().clamp(min=1)
        factor = 65536 / 2**18
        # What is left where p comes near y may be less than float32 holds of p.
        held = true.abs() > torch.finfo(torch.float32).eps * true.abs().max()
        shown = held & ((true * factor).to(dtype) != 0)
        assert ((actual[shown] * factor).to(dtype) != 0).all()


def test_weights_below_float16_reach_their_keys(backend, kernel_device):
    """A key that is far from a large query has such a weight, and a gradient that float16 has."""
    case = Case((1, 3000, [8]), torch.float16, kernel_device, scale=10.0)
    case.labels.zero_()
    case.query[0], case.key[0] = 2048 * case.query[0], case.key[0] / 2048
    wanted = [True, True, False, False]
    *_, (_, found) = case.call(kernels().contrastive, Critic(), Reduce.SUM, wanted)
    case.grad_loss, case.grad_lse = torch.ones_like(case.grad_loss), 0 * case.grad_lse
    _, _, (_, exact, _) = first_order(case, Critic(), torch.float64)
    shown = exact.abs() > 1e-5
    weights = exact.abs() / case.query[0].abs().double().amax()
    assert (shown & (weights < 2.0**-25)).any()  # which float16 has not
    torch.testing.assert_close(found[shown].double(), exact[shown], rtol=1e-2, atol=0)


@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_second_derivatives_of_float16_along_tangents_of_any_size(size, kernel_device):
    case = Case((9, 21, [7]), torch.float16, kernel_device)
    tangents = [(size * torch.randn_like(leaf.float())).to(leaf) for leaf in case.leaves(None)]
    *_, lse, weight, _ = case.call(kernels().contrastive, Critic(), Reduce.NONE, [False] * 4)
    grad_loss = case.grad_loss / size  # so that what comes out has a place in float16
    _, _, found = case.call(
        *(kernels().contrastive_bwd_bwd, Critic(), lse, weight, grad_loss, None),
        *([tangents[0]], [tangents[1]], tangents[2][None], 0 * tangents[2][None]),
        [True, True, False, False],
    )
    case.grad_loss, case.grad_lse = grad_loss, 0 * case.grad_lse
    _, _, *exact = second_order(case, Critic(), tangents, torch.float64)
    for actual, true in zip(found, exact[:2], strict=True):
        assert (actual.double() - true).abs().max() <= 2e-3 * true.abs().max()


def test_only_what_is_wanted(backend, kernel_device):
    case = Case((6, 5, [3, 4]), torch.float32, kernel_device, bias=0.1)
    critic = Critic(Kind.NCE)
    _, (q0, q1, k0, k1, scale, bias) = run(kernels(), case, critic, [True] * 4)
    every = {0: [q0, q1], 1: [k0, k1], 2: [scale], 3: [bias]}
    for wanted in (
        [True, False, False, False],
        [False, True, False, True],
        [False, False, True, True],
    ):
        _, some = run(kernels(), case, critic, wanted)
        expected = [part for i in range(4) if wanted[i] for part in every[i]]
        assert all(torch.equal(a, b) for a, b in zip(some, expected, strict=True))
        assert all(part.is_contiguous() for part in some)


def test_without_a_gradient_of_lse(backend, kernel_device):
    case = Case((6, 5, [3]), torch.float32, kernel_device)
    _, without = run(kernels(), case, Critic(), grad_lse=False)
    case.grad_lse.zero_()
    _, zero = run(kernels(), case, Critic())
    assert all(torch.equal(a, b) for a, b in zip(without, zero, strict=True))


def test_the_same_bits_every_time(backend, kernel_device):
    case = Case((33, 40, [16]), torch.float32, kernel_device)
    first, second = run(kernels(), case, Critic(Kind.IN)), run(kernels(), case, Critic(Kind.IN))
    for a, b in zip([*first[0], *first[1]], [*second[0], *second[1]], strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("width", [64, 512])
def test_the_logits_are_never_stored(width):
    case = Case((16384, 16384, [width]), torch.bfloat16, "cuda")
    run(kernels(), case, Critic())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(kernels(), case, Critic())
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 2**28  # the logits alone are 1 GiB


@pytest.mark.parametrize(
    ("N", "fitting", "rows"),
    [(500, 600, 500), (500, 500, 500), (500, 499, 384), (500, 127, 127), (500, 0, 1)],
)
def test_chunks_are_whole_tiles_of_cublas_or_all_there_is(N, fitting, rows, monkeypatch):
    from mim4dd.kernels import _chunked

    monkeypatch.setattr(_chunked, "WORKSPACE", fitting * 70 * 6)
    assert _chunked.rows_per_chunk(N, 70, 6) == rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_gpu_adds_half_products_to_a_float32_sum_in_one_operation(dtype, monkeypatch):
    """Of shapes and dtypes alone, as PyTorch checks them, without a GPU."""
    from mim4dd.kernels._chunked import accumulate, multiply

    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has none
    a, b = (torch.empty(shape, dtype=dtype, device="meta") for shape in ((5, 7), (7, 3)))
    total = torch.empty(5, 3, device="meta")
    with LoggedOperations() as logged:
        accumulate(total, a, b)
        assert multiply(a, b, total) is total
    assert logged.found == [torch.ops.aten.addmm.dtype_out, torch.ops.aten.mm.dtype_out]
