"""Sets of other projects, in files written as their programs write them."""

import os

import numpy as np
import pytest
import torch

from mim4dd.distill.data import from_tensors
from mim4dd.distill.data.normalization import fixed_normalization
from mim4dd.distill.runs import SyntheticSet, is_set, read_set, read_sets

CLASSES = torch.arange(3).repeat_interleave(2)
# What get_dataset of DC's utils.py says of CIFAR-100, and MTT's, which CAFE's is.
OF_DC = torch.tensor([[0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762]])
OF_MTT = torch.tensor([[0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]])


def make_data(name="blobs", classes=3, zca=False, statistics=None):
    images = torch.rand(20 * classes, 3, 4, 4)
    normalization = None if statistics is None else fixed_normalization(*statistics)
    return from_tensors(
        images, torch.arange(len(images)) % classes, name=name, zca=zca, normalization=normalization
    )


def write_mtt(folder, labels=CLASSES, tag="_best", lr=None, images=None):
    """As distill.py saves them: labels of DATM still require gradients."""
    folder.mkdir(exist_ok=True)
    images = torch.randn(6, 3, 4, 4) if images is None else images
    torch.save(images.cpu(), folder / f"images{tag}.pt")
    torch.save(labels.cpu(), folder / f"labels{tag}.pt")
    if lr is not None:
        torch.save(torch.tensor(lr).detach().cpu(), folder / f"lr{tag}.pt")
    return images


def write_dc(folder, name="res_DC_CIFAR10_ConvNet_2ipc.pt", experiments=2, classes=CLASSES):
    """As main.py saves it: accuracies are NumPy's, of correct predictions over a count."""
    folder.mkdir(exist_ok=True)
    sets = [[torch.randn(len(classes), 3, 4, 4), classes.clone()] for _ in range(experiments)]
    accuracy = np.sum(np.equal(np.arange(4), 1)) / 4
    assert isinstance(accuracy, np.generic)
    accuracies = {"ConvNet": [accuracy] * experiments, "mean": np.array([0.5, 0.25])}
    torch.save({"data": sets, "accs_all_exps": accuracies}, folder / name)
    return sets


def test_mtt(tmp_path):
    data = make_data()
    images = write_mtt(tmp_path)
    for path in (tmp_path, str(tmp_path / "images_best.pt")):
        synthetic = read_set(path, data)
        assert torch.equal(synthetic.image_syn, images)
        assert torch.equal(synthetic.label_syn, CLASSES)
        assert torch.equal(synthetic.class_syn, CLASSES)
        torch.testing.assert_close(synthetic.pixels, data.normalization.inverse(images))
        assert synthetic.syn_lr.item() == pytest.approx(0.01)
        synthetic.require_data(data)
        assert repr(synthetic).splitlines()[-1] == (
            "  read from images_best.pt, taken for a set of blobs: normalised by its mean and "
            "deviation, step size 0.01, as no file holds it"
        )
    assert read_set(tmp_path, data, lr=0.3).syn_lr.item() == pytest.approx(0.3)
    assert "step size" not in read_set(tmp_path, data, lr=0.3).provenance.source


def test_the_best_set_of_a_folder_is_taken_or_else_the_last(tmp_path):
    data = make_data()
    by_tag = {tag: write_mtt(tmp_path, tag=f"_{tag}") for tag in ("900", "1000")}
    assert torch.equal(read_set(tmp_path, data).image_syn, by_tag["1000"])
    assert torch.equal(read_set(tmp_path / "images_900.pt", data).image_syn, by_tag["900"])
    best = write_mtt(tmp_path)
    assert torch.equal(read_set(tmp_path, data).image_syn, best)


def test_whitened_images_of_mtt(tmp_path):
    images = write_mtt(tmp_path, tag="_500")
    torch.save(images, tmp_path / "images_zca_500.pt")  # which MTT leaves with --zca alone
    data = make_data(zca=True)
    synthetic = read_set(tmp_path, data)
    assert torch.equal(synthetic.image_syn, images)
    torch.testing.assert_close(synthetic.pixels, data.normalization.inverse(images))
    assert "normalised by ZCA" in synthetic.provenance.source
    with pytest.raises(ValueError, match="data must be loaded with zca=True, by which"):
        read_set(tmp_path, make_data())
    with pytest.raises(ValueError, match=r"images_zca_500.pt must hold a dictionary"):
        read_set(tmp_path / "images_zca_500.pt", data)  # pixels, which no network was trained on


def test_datm(tmp_path):
    data = make_data()
    logits = (3 * torch.randn(6, 3)).requires_grad_()
    write_mtt(tmp_path, labels=logits, lr=0.02)
    synthetic = read_set(tmp_path, data)
    torch.testing.assert_close(synthetic.label_syn, logits.detach().softmax(1))
    assert not synthetic.label_syn.requires_grad
    assert torch.equal(synthetic.class_syn, CLASSES)
    assert synthetic.syn_lr.item() == pytest.approx(0.02)
    assert "labels as logits" in synthetic.provenance.source


def test_probabilities_of_tesla_stay_what_they_are(tmp_path):
    data = make_data()
    probabilities = torch.randn(6, 3).softmax(1).half()
    write_mtt(tmp_path, labels=probabilities, tag="")
    synthetic = read_set(tmp_path, data)
    torch.testing.assert_close(synthetic.label_syn, probabilities.float(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(synthetic.label_syn.sum(1), torch.ones(6))
    assert "logits" not in synthetic.provenance.source


def test_dc_holds_a_set_of_each_experiment(tmp_path):
    data = make_data("cifar10")
    pairs = write_dc(tmp_path)
    path = tmp_path / "res_DC_CIFAR10_ConvNet_2ipc.pt"
    found = read_sets(path, data)
    for synthetic, (images, labels) in zip(found, pairs, strict=True):
        assert torch.equal(synthetic.image_syn, images)
        assert torch.equal(synthetic.label_syn, labels)
    assert found[1].provenance.method == "dc"
    assert "ipc.pt, experiment 1, taken for a set of cifar10" in repr(found[1])
    assert torch.equal(read_set(path, data, experiment=1).image_syn, pairs[1][0])
    with pytest.raises(ValueError, match="experiment must be from 0 to 1, got 2"):
        read_set(path, data, experiment=2)
    for other, message in (
        (make_data("svhn"), "is of cifar10 by its name, data are svhn"),
        (make_data("cifar10", zca=True), "data must be loaded with zca=False"),
        (make_data("cifar10", classes=4), "labels of every class of cifar10, 4, got labels of 3"),
    ):
        with pytest.raises(ValueError, match=message):
            read_set(path, other)


def test_cifar100_of_dc_is_normalised_otherwise(tmp_path):
    data = make_data("cifar100", statistics=OF_MTT)
    ((images, _),) = write_dc(tmp_path, "res_DM_CIFAR100_ConvNet_2ipc.pt", experiments=1)
    path = tmp_path / "res_DM_CIFAR100_ConvNet_2ipc.pt"
    mean, deviation = OF_DC.view(2, 3, 1, 1)
    pixels = images * deviation + mean
    synthetic = read_set(path, data)
    torch.testing.assert_close(synthetic.pixels, pixels)
    mean, deviation = OF_MTT.view(2, 3, 1, 1)
    torch.testing.assert_close(synthetic.image_syn, (pixels - mean) / deviation)
    assert "normalised by another mean and deviation" in synthetic.provenance.source
    # Where the name misleads, as of CAFE's file, the caller says what is so.
    same = read_set(path, data, normalization=data.normalization)
    torch.testing.assert_close(same.image_syn, images)


def test_an_own_set_is_read_too(tmp_path):
    data = make_data()
    write_mtt(tmp_path / "mtt")
    read_set(tmp_path / "mtt", data).save(tmp_path / "set.safetensors")
    stored = read_set(tmp_path / "set.safetensors")
    assert isinstance(stored, SyntheticSet)
    assert "read from images_best.pt" in stored.provenance.source
    read_set(tmp_path / "set.safetensors", data)
    with pytest.raises(ValueError, match="data must be what the set was made of"):
        read_set(tmp_path / "set.safetensors", make_data(zca=True))
    with pytest.raises(ValueError, match="lr and normalization must be None for"):
        read_set(tmp_path / "set.safetensors", data, lr=0.1)


def test_which_paths_are_sets(tmp_path):
    assert not is_set(tmp_path)
    assert not is_set(tmp_path / "nothing")
    write_mtt(tmp_path)
    assert is_set(tmp_path)
    assert is_set(tmp_path / "images_best.pt")
    (tmp_path / "config.json").write_text("{}")
    assert not is_set(tmp_path)  # a run, whatever else lies there
    (tmp_path / "synthetic.safetensors").touch()
    assert not is_set(tmp_path)
    (tmp_path / "config.json").unlink()
    assert is_set(tmp_path)


class Touch:
    """A pickle that would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_is_not_run(tmp_path):
    trap = tmp_path / "made"
    for name, content in (
        ("res_DC_CIFAR10_ConvNet_1ipc.pt", {"data": [[torch.rand(3, 3, 4, 4), Touch(trap)]]}),
        ("images_best.pt", Touch(trap)),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(
            ValueError, match="holds something else than tensors, which is not read"
        ):
            read_set(tmp_path / name, make_data())
    assert not trap.exists()


SOFT = torch.rand(6, 3)
BAD = [
    ({"images": torch.ones(6, 3, 4, 4, dtype=torch.uint8)}, "images .* in floating point, got"),
    ({"images": torch.rand(6, 3, 5, 4)}, r"images of \(3, 4, 4\) to be of blobs, got \(3, 5, 4\)"),
    ({"images": torch.full((6, 3, 4, 4), torch.nan)}, "must hold finite images and not none"),
    ({"images": torch.rand(0, 3, 4, 4)}, "must hold finite images and not none"),
    ({"images": [1, 2]}, "in floating point, got a list of 2"),
    ({"labels": CLASSES[:5]}, r"classes \(6,\), or probabilities or logits \(6, C\), got \(5,\)"),
    ({"labels": CLASSES - 1}, "must hold classes from 0 on, got -1"),
    ({"labels": CLASSES % 2}, "labels of every class of blobs, 3, got labels of 2"),
    ({"labels": CLASSES + (CLASSES == 2)}, "labels of every class of blobs, 3, got labels of 3"),
    ({"labels": CLASSES.float()}, r"got \(6,\) of torch.float32"),
    ({"labels": SOFT * torch.nan}, "got NaN or infinity"),
    ({"labels": torch.rand(6, 2)}, "labels of every class of blobs, 3, got labels of 2"),
    ({"labels": torch.rand(6, 4)}, "as many images for each class, .* got 6 for 4 classes"),
    ({"lr": torch.tensor(-0.1)}, "lr_best.pt must hold a positive step size, got -0.1"),
    ({"lr": torch.rand(2)}, "lr_best.pt must hold a positive step size"),
    ({"lr": "fast"}, "lr_best.pt must hold a positive step size, got a str"),
]


@pytest.mark.parametrize(("parts", "message"), BAD)
def test_bad_files_of_mtt(parts, message, tmp_path):
    write_mtt(tmp_path, lr=0.1)
    for name, content in parts.items():
        torch.save(content, tmp_path / f"{name}_best.pt")
    with pytest.raises(ValueError, match=message):
        read_set(tmp_path, make_data())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.rand(3), r"must hold a dictionary .*, got \(3,\) of torch.float32"),
        ({"net": torch.rand(3)}, "must hold a dictionary with the sets"),
        ({"data": [[np.zeros((3, 3, 4, 4)), CLASSES]]}, "in floating point, got a NumPy"),
        ({"data": []}, "must hold a dictionary with the sets"),
        ({"data": [torch.rand(3)]}, "must be a list of images and labels, got"),
        ({"data": [[torch.rand(3, 3, 4, 4)]]}, "a list of images and labels, got a list of 1"),
    ],
)
def test_bad_files_of_dc(content, message, tmp_path):
    torch.save(content, tmp_path / "res.pt")
    with pytest.raises(ValueError, match=message):
        read_set(tmp_path / "res.pt", make_data())


def test_what_is_missing(tmp_path):
    write_mtt(tmp_path)
    with pytest.raises(ValueError, match=r"does not record the classes .* data must be given"):
        read_set(tmp_path)
    with pytest.raises(ValueError, match="lr must be positive and finite, got 0"):
        read_set(tmp_path, make_data(), lr=0.0)
    content = (tmp_path / "images_best.pt").read_bytes()
    (tmp_path / "images_best.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"images_best.pt is truncated, or holds something else"):
        read_set(tmp_path, make_data())
    (tmp_path / "labels_best.pt").unlink()
    write_mtt(tmp_path, tag="_7")
    (tmp_path / "labels_7.pt").unlink()
    for path, what in (
        (tmp_path / "images_7.pt", "labels_7.pt does not exist"),
        (tmp_path / "res.pt", "res.pt does not exist"),
        (tmp_path.parent, "must hold images_best.pt and labels_best.pt, got neither"),
    ):
        with pytest.raises(ValueError, match=what):
            read_set(path, make_data())
