"""Data that are not images: rows of features."""

import math

import pytest
import torch

from mim4dd.distill.data import from_dataset, from_tensors, load_data
from mim4dd.distill.report.show import draw_run
from mim4dd.distill.runs import RunDirectory, SyntheticSet
from mim4dd.distill.training.augment import Augmentation


def make_rows(per_class=20, num_classes=2, features=5):
    labels = torch.arange(num_classes).repeat(per_class)
    return torch.randn(len(labels), features, dtype=torch.float64), labels


def test_columns_are_standardised_on_the_training_part_and_restored():
    rows, labels = make_rows()
    rows = rows * torch.tensor([1, 1e-6, 1e6, 3, 7]).double() + torch.tensor([0, 1, 1e6, -5, 0])
    train, test = rows[:30], rows[30:]
    data = from_tensors(train, labels[:30], (test, labels[30:]))
    mean, std = train.mean(0), train.std(0)
    expected = (test - mean) / std
    torch.testing.assert_close(data.image_test.double(), expected, atol=1e-5, rtol=1e-5)
    assert data.image_test.dtype == torch.float32
    restored = data.normalization.inverse(data.image_test)
    rounding = torch.finfo(torch.float32).eps * (mean.abs() + 5 * std)
    assert ((restored.double() - test).abs() <= 2 * rounding).all()


@pytest.mark.parametrize(
    ("name", "shape", "class_names"),
    [
        ("wine", (178, 13), ("class_0", "class_1", "class_2")),
        ("breast_cancer", (569, 30), ("malignant", "benign")),
    ],
)
def test_embedded_rows(name, shape, class_names):
    data = load_data(name)
    assert (len(data.label_train) + len(data.label_test), *data.image_train.shape[1:]) == shape
    assert data.class_names == class_names
    assert not data.has_images
    rows, labels = data.sample(3, torch.Generator().manual_seed(0))
    assert rows.shape == (3 * len(class_names), shape[1])
    assert labels.bincount().tolist() == [3] * len(class_names)
    assert len(data.hold_out(0.2, 0).image_test) > 0.19 * len(data.image_train)
    assert data.to("cpu").image_train.dim() == 2


def test_any_dataset_of_rows():
    rows, labels = make_rows()
    pairs = [(row.numpy(), int(label)) for row, label in zip(rows, labels, strict=True)]
    assert torch.equal(from_dataset(pairs).image_train, from_tensors(rows, labels).image_train)


def test_rows_have_no_image_size():
    data = from_tensors(*make_rows(), name="five")
    for name in ("channels", "image_size"):
        with pytest.raises(
            ValueError, match=f"five holds rows of 5 features, which have no {name}"
        ):
            getattr(data, name)
    with pytest.raises(ValueError, match=r"takes images \(B, C, H, W\), got \(4, 5\).*\"none\""):
        Augmentation("crop")(data.image_train[:4], torch.Generator())


ROWS, LABELS = make_rows()
CONSTANT = ROWS.clone()
CONSTANT[:, 3] = 0.1  # which float32 cannot hold: its deviation is not quite 0
NOT_FINITE = ROWS.clone()
NOT_FINITE[7, 1] = math.inf


@pytest.mark.parametrize(
    ("rows", "zca", "error", "message"),
    [
        (CONSTANT, False, ValueError, r"vary in every column to be standardised, column \[3\]"),
        (CONSTANT.float(), False, ValueError, r"column \[3\] does not"),
        (NOT_FINITE, False, ValueError, "images must be finite"),
        (ROWS.byte(), False, TypeError, "images must be floating point to be rows"),
        (ROWS, True, ValueError, "zca must be False for rows"),
        (ROWS[:, :, None], False, ValueError, r"must have shape .* got \(40, 5, 1\)"),
    ],
)
def test_bad_rows(rows, zca, error, message):
    with pytest.raises(error, match=message):
        from_tensors(rows, LABELS, zca=zca)


def test_a_run_on_rows_draws_heat_maps_of_them(tmp_path):
    run = RunDirectory(tmp_path)
    synthetic = SyntheticSet(
        ROWS[:2],
        LABELS[:2].clone(),
        LABELS[:2].clone(),
        torch.tensor(0.1),
        ROWS[2:4].clone(),
        ["a", "b"],
    )
    for path in (run.initial, run.synthetic):
        synthetic.save(path)
    run.append_metrics({"iteration": 0, "syn_lr": 0.1, "trajectory_loss": 1.0})
    names = ["synthetic.png", "before_after.png", "curves.png"]
    assert draw_run(run, "wine").lines == [str(run.pictures / name) for name in names]
    assert sorted(path.name for path in run.pictures.iterdir()) == sorted(names)
