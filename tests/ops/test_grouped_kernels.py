"""SupCon's loss by label in half precision, whose rows Triton sorts by label first."""

import math

import pytest
import torch
from contrastive_cases import (
    Case,
    along,
    assert_difference,
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

from mim4dd.reference import IGNORE, Critic, Reduce

HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _grouped(kernel_device, monkeypatch):
    only_lean_kernels(monkeypatch)


def classes(case, count):
    """Class ``count`` has no key, one has a single one, and some rows take no part."""
    device = case.labels.device
    case.labels = torch.randint(-1, count + 1, case.labels.shape, device=device)
    case.key_labels = torch.randint(-1, count - 1, case.key_labels.shape, device=device)
    case.key_labels[len(case.key_labels) // 2] = count - 1
    return case


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    ("sizes", "count", "how", "tiles"),
    [
        ((130, 270, [64]), 40, Reduce.SUM, 90),
        ((40, 210, [96]), 60, Reduce.NONE, 80),
        ((70, 150, [104]), 20, Reduce.MEAN, 100),
        ((5, 3, [16, 96, 8]), 3, Reduce.SUM, 90),
        ((140, 300, [200]), 40, Reduce.MEAN, 90),
        ((70, 210, [256, 16]), 40, Reduce.NONE, 80),
    ],
    ids=str,
)
def test_values_and_gradients(sizes, count, how, tiles, dtype, kernel_device, monkeypatch):
    """In the interpreter with the tiles of every GPU."""
    if kernel_device == "cpu":
        use_lean_tiles(tiles, monkeypatch)
    check_along(classes(Case(sizes, dtype, kernel_device), count), how=how)


def test_many_classes_leave_tiles_without_masks(kernel_device, monkeypatch):
    """A program's queries are of few classes: most tiles of keys have none of theirs."""
    if kernel_device == "cpu":
        use_lean_tiles(90, monkeypatch)
    check_along(classes(Case((300, 560, [64]), torch.float16, kernel_device), 50))


@pytest.mark.parametrize("columns", [72, 136])
def test_any_gradient_alone_is_the_same(columns, kernel_device):
    case = classes(Case((20, 140, [columns, 40]), torch.bfloat16, kernel_device), 6)
    check_any_gradient_alone(case)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("copies", "columns"), [(1, 64), (2, 64), (1, 136)])
def test_digits_where_positives_win(copies, columns, dtype, kernel_device):
    """Alone, a positive has p near 1; of two the same, each has a half, which is their y."""
    case = Case((140, 140, [columns]), dtype, kernel_device, scale=1.0)
    rows = torch.nn.functional.normalize(torch.randn(140, columns, device=kernel_device), dim=1)
    rows = rows[: 140 // copies].repeat(copies, 1)
    label = torch.randperm(140 // copies, device=kernel_device)
    case.labels = case.key_labels = label.repeat(copies)
    rows = rows * 24**0.5
    if copies > 1:  # on a grid, so that float32 holds every similarity exactly: p - y is judged
        rows = (rows * 16).round() / 16
    case.query = case.key = [rows.to(dtype)]
    (loss, *_), found, _ = along(case)
    (exact, *_), plain, gradients = exactly(case)
    if copies == 1:
        assert exact.median() < 1e-5
        torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)
    else:
        assert_difference(loss, plain[0], exact)
    # Of two, p - y is as exact as p, whose logits of base 2 are 35, and its key's length is 5.
    left = 5 * copies * 35 * torch.finfo(torch.float32).eps if copies > 1 else 0.0
    for actual, true in zip(found[:2], gradients[:2], strict=True):
        error = (actual - true).norm(dim=-1)
        assert (error <= 4 * torch.finfo(dtype).eps * true.norm(dim=-1) + left).all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_logits_of_ten_thousand(dtype, kernel_device):
    case = classes(Case((60, 150, [64]), dtype, kernel_device, scale=2.0**12), 9)
    # On a grid, so that float32 holds every similarity exactly.
    case.query, case.key = ([(t[0] * 16).round() / 16] for t in (case.query, case.key))
    check_along(case, assert_value=assert_difference)


def test_one_class_pulls_all_together(kernel_device):
    """Every tile holds positives."""
    case = Case((70, 130, [64]), torch.bfloat16, kernel_device)
    case.labels, case.key_labels = torch.zeros_like(case.labels), torch.zeros_like(case.key_labels)
    check_along(case)


def test_labels_are_any_numbers(kernel_device):
    largest, least = torch.iinfo(torch.int64).max, torch.iinfo(torch.int64).min
    some = torch.tensor([largest, least, 0, IGNORE, 2**32, 2**40, -2], device=kernel_device)
    case = Case((35, 42, [16]), torch.float16, kernel_device)
    case.labels, case.key_labels = some.repeat(5), some.repeat(6)
    check_along(case)


def test_nothing_takes_part(kernel_device):
    case = Case((5, 20, [64]), torch.float16, kernel_device)
    for labels, key_labels in ((IGNORE, 1), (1, IGNORE), (1, 2), (IGNORE, IGNORE)):
        case.labels = torch.full_like(case.labels, labels)
        case.key_labels = torch.full_like(case.key_labels, key_labels)
        (loss, lse, _), found, count = along(case, Reduce.MEAN)
        (_, exact, _), _, _ = exactly(case)
        torch.testing.assert_close(lse.double(), exact, rtol=1e-3, atol=1e-3)
        assert count == 0
        assert not loss.any()
        assert not any(part.any() for part in found)


@pytest.mark.parametrize("wanted", [None, [False] * 4], ids=["gradients", "loss"])
@pytest.mark.parametrize("columns", [64, 136])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_bad_reaches_all_that_meet_it(bad, columns, wanted, kernel_device):
    case = Case((9, 140, [columns]), torch.bfloat16, kernel_device)
    case.labels = torch.tensor([0, IGNORE, 1, 2, 3, 0, 1, IGNORE, 2], device=kernel_device)
    case.key_labels = torch.arange(140, device=kernel_device) % 5 - 1
    used = case.labels != IGNORE
    good, key = case.query[0].clone(), case.key[0].clone()
    (_, lse, _), _, _ = along(case, wanted=wanted)
    case.query[0][~used] = bad
    case.key[0][case.key_labels == IGNORE] = bad
    assert torch.equal(along(case, wanted=wanted)[0][1], lse)
    case.query[0][5] = bad  # logits of both signs
    (loss, *_), found, _ = along(case, wanted=wanted)
    assert loss[0, 5].isnan()
    assert loss[0, [0, 6]].isfinite().all()
    assert not found or (found[0][5].isnan().all() and found[1].isnan().any())
    case.query[0], case.key[0] = good, key.clone()
    case.key[0][139, 3] = bad
    (loss, *_), found, _ = along(case, wanted=wanted)
    assert loss[0, used].isnan().all()
    assert (loss[0, ~used] == 0).all()
    assert not found or (found[0][used].isnan().any(1).all() and found[1].isnan().any())
    assert not found or (found[0][~used] == 0).all()


def test_a_scale_of_no_temperature_gives_nan(kernel_device):
    for scale in (0.0, -1.0, math.inf, math.nan):
        case = Case((4, 6, [8]), torch.float16, kernel_device, scale=scale)
        case.labels, case.key_labels = (torch.arange(n, device=kernel_device) % 2 for n in (4, 6))
        (loss, *_), (query, *_), _ = along(case)
        assert loss.isnan().all()
        assert query.isnan().all()


@pytest.mark.parametrize("columns", [64, 136])
def test_the_same_bits_every_time(columns, kernel_device):
    case = classes(Case((70, 130, [columns]), torch.float16, kernel_device), 11)
    check_same_bits(case)


def test_what_is_served(kernel_device):
    """Slices are gathered as they lie; options have kernels that know them."""
    from mim4dd.kernels._grouped import serves
    from mim4dd.kernels._inputs import packed, prepare

    case = classes(Case((20, 30, [64]), torch.bfloat16, kernel_device), 5)
    case.query, case.key = ([torch.cat([t[0], t[0]], 1)[:, 64:]] for t in (case.query, case.key))
    check_along(case)
    shared = (case.labels, case.key_labels, None, case.scale, None)
    for critic, served in (
        (Critic(), True),
        (Critic(decoupled=True), False),
        (Critic(hardness=0.5), False),
        (Critic(normalize=True), False),
    ):
        queries = prepare(case.key[0], *shared, critic)
        assert serves(packed(case.query, case.key, critic), queries, critic) == served


def test_gradients_of_differing_losses_and_second_order_use_the_lse(kernel_device):
    """What is not formed along with the losses: the general kernels, after these."""
    check(kernels(), classes(Case((20, 30, [24]), torch.bfloat16, kernel_device), 7), Critic())
    small = classes(Case((9, 21, [16]), torch.bfloat16, kernel_device), 3)
    check_second_order(kernels(), small, Critic())
