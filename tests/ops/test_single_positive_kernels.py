"""InfoNCE of one positive by index in half precision, for which Triton has kernels of its own."""

import math

import pytest
import torch
from contrastive_cases import (
    Case,
    along,
    assert_difference,
    assert_value,
    check,
    check_along,
    check_any_gradient_alone,
    check_same_bits,
    check_second_order,
    exactly,
    kernels,
    only_lean_kernels,
    use_lean_tiles,
)

from mim4dd.reference import IGNORE, NO_POSITIVE, Critic, Reduce

HALF = [torch.bfloat16, torch.float16]
ALL = [True, True, True, False]


@pytest.fixture(autouse=True)
def _lean(kernel_device, monkeypatch):
    only_lean_kernels(monkeypatch)


def single(sizes, dtype, device, **options):
    """Positives anywhere, some of them no key, and some queries ignored."""
    case = Case(sizes, dtype, device, by_index=True, **options)
    if len(case.labels) > 3:
        case.labels[[1, 3]] = torch.tensor([IGNORE, NO_POSITIVE], device=device)
    return case


def neighbours(case, first):
    """Positives side by side, as of a batch's other view: most tiles have none."""
    case.labels = torch.arange(len(case.query[0]), device=case.labels.device) + first
    return case


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    ("sizes", "how", "tiles"),
    [
        ((130, 300, [64]), Reduce.SUM, 90),
        ((257, 129, [128]), Reduce.MEAN, 90),
        ((40, 513, [96]), Reduce.NONE, 80),
        ((128, 256, [8]), Reduce.MEAN, 80),
        ((70, 255, [104]), Reduce.SUM, 100),
        ((5, 3, [16, 96, 8]), Reduce.SUM, 90),
        ((130, 300, [200]), Reduce.MEAN, 90),
        ((70, 100, [136]), Reduce.SUM, 80),
        ((66, 130, [8, 256]), Reduce.NONE, 100),
    ],
    ids=str,
)
def test_values_and_gradients(sizes, how, tiles, dtype, kernel_device, monkeypatch):
    """In the interpreter with the tiles of every GPU."""
    if kernel_device == "cpu":
        use_lean_tiles(tiles, monkeypatch)
    check_along(single(sizes, dtype, kernel_device), how=how)


@pytest.mark.parametrize("first", [0, 140, 260])
def test_positives_side_by_side_leave_tiles_without_masks(first, kernel_device, monkeypatch):
    """Before the tiles with positives, behind them, or both."""
    if kernel_device == "cpu":
        use_lean_tiles(90, monkeypatch)
    case = Case((300, 560, [64]), torch.float16, kernel_device, by_index=True)
    check_along(neighbours(case, first))


@pytest.mark.parametrize("columns", [72, 136])
def test_any_gradient_alone_is_the_same(columns, kernel_device):
    case = single((20, 140, [columns, 40]), torch.bfloat16, kernel_device)
    check_any_gradient_alone(case)


@pytest.mark.parametrize("columns", [64, 136])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_digits_near_p_1(dtype, columns, kernel_device):
    """Losses of about 1e-6, and every row of a gradient by its own size."""
    case = Case((140, 140, [columns]), dtype, kernel_device, by_index=True, scale=1.0)
    neighbours(case, 0)
    rows = torch.nn.functional.normalize(torch.randn(140, columns, device=kernel_device), dim=1)
    case.query = case.key = [(rows * 24**0.5).to(dtype)]
    (loss, *_), found, _ = along(case)
    (exact, *_), _, gradients = exactly(case)
    assert exact.median() < 1e-5
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)
    for actual, true in zip(found, gradients, strict=True):
        size = true.norm(dim=-1) if true.ndim else true.abs()
        error = (actual - true).norm(dim=-1) if true.ndim else (actual - true).abs()
        assert (error <= 2 * torch.finfo(dtype).eps * size).all()


@pytest.mark.parametrize("columns", [64, 136])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_logits_of_ten_thousand_and_duplicated_keys(dtype, columns, kernel_device):
    case = single((60, 150, [columns]), dtype, kernel_device, scale=2.0**12)
    # On a grid, so that float32 holds every similarity exactly.
    case.query, case.key = ([(t[0] * 16).round() / 16] for t in (case.query, case.key))
    case.key[0][130:140] = case.key[0][0]
    check_along(case, assert_value=assert_difference)


def test_positives_alone_pull_nothing(kernel_device):
    case = Case((9, 1, [64]), torch.bfloat16, kernel_device, by_index=True, scale=50.0)
    case.labels.zero_()
    (loss, *_), found, _ = along(case)
    assert not loss.any()
    assert not any(part.any() for part in found)


def test_no_query_that_counts(kernel_device):
    case = Case((5, 20, [64]), torch.float16, kernel_device, by_index=True)
    case.labels = torch.tensor([NO_POSITIVE, 20, IGNORE, 2**32, NO_POSITIVE], device=kernel_device)
    (loss, lse, _), found, count = along(case, Reduce.MEAN)
    (_, exact, _), plain, _ = exactly(case)
    assert_value(lse, plain[1], exact)
    assert count == 0
    assert not loss.any()
    assert not any(part.any() for part in found)


@pytest.mark.parametrize("wanted", [ALL, [False] * 4], ids=["gradients", "loss"])
@pytest.mark.parametrize(
    ("bad", "columns"), [(math.nan, 64), (math.inf, 64), (-math.inf, 64), (math.inf, 136)]
)
def test_what_is_bad_reaches_all_that_meet_it(bad, wanted, columns, kernel_device):
    case = single((9, 140, [columns]), torch.bfloat16, kernel_device)
    case.labels[5] = 7  # one that takes part
    used = case.labels != IGNORE
    good, (*_, lse, _) = case.query[0].clone(), along(case, wanted=wanted)[0]
    case.query[0][~used] = bad  # ignored
    assert torch.equal(along(case, wanted=wanted)[0][1], lse)
    case.query[0][5] = bad  # logits of both signs
    (loss, *_), found, _ = along(case, wanted=wanted)
    assert loss[0, 5].isnan()
    assert loss[0, [0, 6]].isfinite().all()
    assert not found or (found[0][5].isnan().all() and found[1].isnan().any())
    case.query[0], case.key[0][139, 3] = good, bad
    (loss, *_), found, _ = along(case, wanted=wanted)
    assert loss[0, used].isnan().all()
    assert (loss[0, ~used] == 0).all()
    counted = (case.labels >= 0) & (case.labels < 140)
    assert not found or (found[0][counted].isnan().any(1).all() and found[1].isnan().any())
    assert not found or (found[0][~used] == 0).all()


def test_a_scale_of_no_temperature_gives_nan(kernel_device):
    for scale in (0.0, -1.0, math.inf, math.nan):
        case = Case((2, 3, [8]), torch.float16, kernel_device, by_index=True, scale=scale)
        (loss, *_), (query, *_), _ = along(neighbours(case, 1))
        assert loss.isnan().all()
        assert query.isnan().all()


def test_the_same_bits_every_time(kernel_device):
    case = single((130, 140, [64]), torch.float16, kernel_device)
    check_same_bits(case)


def test_rows_apart_and_rows_too_far_apart(kernel_device):
    """Slices are read as they lie; what 32-bit addresses of a tile do not reach is not served."""
    from mim4dd.kernels._inputs import packed, prepare
    from mim4dd.kernels._single_positive import serves

    case = single((20, 30, [64]), torch.bfloat16, kernel_device)
    case.query, case.key = ([torch.cat([t[0], t[0]], 1)[:, 64:]] for t in (case.query, case.key))
    check_along(case)
    shared = (case.labels, None, None, case.scale, None)
    for stride, served in ((64, True), (2**24 - 64, True), (2**24, False), (68, False)):
        key = case.key[0].as_strided((1, 64), (stride, 1))
        queries = prepare(key, *shared, Critic())
        assert serves(packed(case.query, [key], Critic()), queries, Critic()) == served
    for critic in (Critic(decoupled=True), Critic(hardness=0.5), Critic(normalize=True)):
        queries = prepare(case.key[0], *shared, critic)
        assert not serves(packed(case.query, case.key, critic), queries, critic)


def test_gradients_of_differing_losses_and_second_order_use_the_lse(kernel_device, monkeypatch):
    """What is not formed along with the losses: the general kernels, after these."""
    case = single((40, 130, [64]), torch.bfloat16, kernel_device)
    check(kernels(), case, Critic())
    small = single((9, 21, [16]), torch.bfloat16, kernel_device)
    check_second_order(kernels(), small, Critic())
