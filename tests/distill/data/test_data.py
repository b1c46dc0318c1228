"""Data sets: sources, split, normalisation, refusals."""

import math

import numpy as np
import pytest
import torch
from labelled_images import make_images
from PIL import Image
from torch.utils.data import TensorDataset

from mim4dd.distill.data import from_dataset, from_tensors, load_data
from mim4dd.distill.data.normalization import fixed_normalization
from mim4dd.distill.runtime.memory import available_memory


def test_digits_have_a_fixed_stratified_split():
    first, second = load_data("digits"), load_data("digits")
    assert torch.equal(first.image_test, second.image_test)
    assert len(first.image_train) + len(first.image_test) == 1797
    shares = (
        first.label_test.bincount() / torch.cat([first.label_train, first.label_test]).bincount()
    )
    assert ((shares - 0.2).abs() < 0.01).all()
    train = {image.numpy().tobytes() for image in first.image_train}
    assert sum(image.numpy().tobytes() in train for image in first.image_test) == 0


def test_channels_are_standardised_on_the_training_part():
    images, labels = make_images(channels=3)
    data = from_tensors(images * 5 + 2, labels)
    torch.testing.assert_close(data.image_train.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.image_train.std((0, 2, 3)), torch.ones(3))


@pytest.mark.parametrize("zca", [False, True])
def test_normalisation_is_undone_for_pictures(zca):
    images, labels = make_images(per_class=40)
    data = from_tensors(images, labels, (images, labels), zca=zca)
    torch.testing.assert_close(
        data.normalization.inverse(data.image_test), images, atol=1e-4, rtol=1e-4
    )


def test_zca_whitens():
    images, labels = make_images(per_class=300, size=3)
    mixed = images.flatten(1).cumsum(1).view_as(images)  # neighbours move together
    pixels = from_tensors(mixed, labels)
    pixels = pixels.normalization.inverse(pixels.image_train).flatten(1)
    white = from_tensors(mixed, labels, zca=True).image_train.flatten(1)
    covariance = torch.cov(pixels.T)
    expected = torch.linalg.solve(covariance + 0.1 * torch.eye(9), covariance)  # MTT's eps is 0.1
    torch.testing.assert_close(torch.cov(white.T), expected, atol=1e-2, rtol=0)


def test_bytes_become_fractions():
    images, labels = make_images()
    data = from_tensors((images * 255).byte(), labels)
    assert data.normalization.inverse(data.image_train).max() <= 1


def test_any_dataset_of_pairs():
    images, labels = make_images()
    expected = from_tensors(images, labels)
    assert torch.equal(
        from_dataset(TensorDataset(images, labels)).image_train, expected.image_train
    )
    pil = [
        (Image.fromarray((image[0].numpy() * 255).astype(np.uint8)), int(label))
        for image, label in zip(images, labels, strict=True)
    ]
    bytes_data = from_tensors((images * 255).byte(), labels)
    torch.testing.assert_close(from_dataset(pil).image_train, bytes_data.image_train)


def label_as(kind, label):
    return {"array": np.array([label]), "tensor": torch.tensor([label]), "scalar": np.int64(label),
            "float": float(label), "list": [label], "number": label}[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["array", "tensor", "scalar", "float", "list", "number"])
@pytest.mark.parametrize("keys", [None, ("image", "label"), ("img", "fine_label")])
def test_samples_of_other_libraries(kind, keys):
    """Labels as arrays of one, as MedMNIST has them; dictionaries, as Hugging Face has them."""
    images, labels = make_images()
    pairs = [
        (image, label_as(kind, label)) for image, label in zip(images, labels.tolist(), strict=True)
    ]
    samples = (
        pairs if keys is None else [dict(zip(keys, pair, strict=True), id=7) for pair in pairs]
    )
    data, expected = from_dataset(samples), from_tensors(images, labels)
    assert torch.equal(data.image_train, expected.image_train)
    assert torch.equal(data.label_train, expected.label_train)
    given = from_dataset(samples, samples, normalization=fixed_normalization(*torch.ones(2, 1)))
    assert torch.equal(given.image_test, images - 1)


@pytest.mark.parametrize(
    ("sample", "error", "message"),
    [
        ((0, 1.5), TypeError, "labels must be integers, label 1 is 1.5"),
        ((0, np.array([1, 0])), ValueError, "arrays of one, label 1 has 2 values"),
        ((0, np.array([])), ValueError, "arrays of one, label 1 has 0 values"),
        ((0, "cat"), TypeError, "labels must be integers, label 1 is 'cat'"),
        ((0, 1, 2), ValueError, "pairs or dictionaries, sample 1 is a tuple of 3"),
        (7, ValueError, "pairs or dictionaries, sample 1 is a int"),
        ({"image": 0, "y": 1}, ValueError, "must have one of image, .*, sample 1 has image, y"),
        ({"img": 0, "image": 0, "label": 1}, ValueError, "sample 1 has img, image, label"),
    ],
)
def test_samples_that_are_neither(sample, error, message):
    image = torch.rand(1, 4, 4)
    if isinstance(sample, tuple):
        sample = (image, *sample[1:])
    with pytest.raises(error, match=message):
        from_dataset([(image, 0), sample])


def test_zca_that_does_not_fit_is_refused_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr("mim4dd.distill.data.normalization.available_memory", lambda device: 2**30)
    images, labels = torch.rand(1, 3, 1, 1).expand(6, 3, 128, 128), torch.arange(6) % 2
    message = (
        r"of 49152 pixels and channels here: its matrix of 49152 × 49152 takes 9\.0 GiB, fitting "
        r"it 108\.0 GiB, and 1\.0 GiB are available"
    )
    with pytest.raises(ValueError, match=message):
        from_tensors(images, labels, (images, labels), zca=True)


def test_available_memory(monkeypatch, tmp_path):
    kernel, group = tmp_path / "meminfo", tmp_path / "cgroup"
    monkeypatch.setattr("mim4dd.distill.runtime.memory._MEMINFO", kernel)
    monkeypatch.setattr("mim4dd.distill.runtime.memory._CGROUP", group)
    assert available_memory(torch.device("cpu")) is None
    kernel.write_text("MemTotal:       2000 kB\nMemAvailable:   1000 kB\n")
    assert available_memory(torch.device("cpu")) == 1_024_000
    group.mkdir()
    for limit, left in (("500000", 250_000), ("max", 1_024_000), ("9000000", 1_024_000), ("10", 0)):
        (group / "memory.max").write_text(limit + "\n")
        (group / "memory.current").write_text("300000\n")
        (group / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
        assert available_memory(torch.device("cpu")) == left


def test_palettes_are_resolved():
    red = Image.new("RGB", (6, 6), (255, 0, 0)).convert("P")
    blue = Image.new("RGB", (6, 6), (0, 128, 255)).convert("P")
    data = from_dataset([(red, 0), (blue, 1)] * 5)
    assert data.channels == 3


def test_every_class_has_held_out_images_or_is_refused():
    images = torch.rand(104, 1, 4, 4)
    labels = torch.tensor([0] * 100 + [1] * 2 + [2] * 2)
    with pytest.raises(ValueError, match="gets none; pass test explicitly"):
        from_tensors(images, labels)


def test_sampling_is_balanced_without_replacement_and_seeded():
    images, labels = make_images(per_class=10)
    data = from_tensors(images, labels)

    def draw(seed):
        return data.sample(8, torch.Generator().manual_seed(seed))

    chosen, chosen_labels = draw(0)
    assert chosen_labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert len(chosen.flatten(1).unique(dim=0)) == 24
    assert torch.equal(chosen, draw(0)[0])
    with pytest.raises(ValueError, match=r"ipc must be at most .* 9 images .* class '0' has 8"):
        data.sample(9, torch.Generator())
    with pytest.raises(ValueError, match="ipc must be at least 1"):
        data.sample(0, torch.Generator())


IMAGES, LABELS = make_images()
BAD_IMAGES = IMAGES.clone()
BAD_IMAGES[3, 0, 2, 2] = math.nan


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (
            IMAGES[0],
            LABELS,
            ValueError,
            r"images must have shape \(N, channels, H, W\), or \(N, D\)",
        ),
        (IMAGES, LABELS[:-1], ValueError, "equally many"),
        (IMAGES[:0], LABELS[:0], ValueError, "equally many and not none"),
        (IMAGES.long(), LABELS, TypeError, "images must be floating point or uint8"),
        (IMAGES, LABELS.float(), TypeError, "labels must have an integer dtype"),
        (IMAGES[..., :-1], LABELS, ValueError, "images must be square"),
        (BAD_IMAGES, LABELS, ValueError, "images must be finite"),
        (IMAGES, LABELS - 1, ValueError, "labels must be at least 0"),
        (IMAGES, LABELS * 2, ValueError, r"labels must use every class .* none has \[1, 3\]"),
        (IMAGES[:4], LABELS[:4], ValueError, "at least 2 images of every class"),
        (torch.ones_like(IMAGES), LABELS, ValueError, "images must vary"),
    ],
)
def test_bad_tensors(images, labels, error, message):
    with pytest.raises(error, match=message):
        from_tensors(images, labels)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ((IMAGES[..., :4, :4], LABELS), "test images must have the shape"),
        ((IMAGES, LABELS + 1), "test labels must be classes of the training part"),
    ],
)
def test_bad_test_parts(test, message):
    with pytest.raises(ValueError, match=message):
        from_tensors(IMAGES, LABELS, test)


def test_names_and_what_does_not_apply_to_them():
    with pytest.raises(
        ValueError, match=r"data must be one of breast_cancer, cifar10, .*, wine, or an exist"
    ):
        load_data("cifar11")
    for name in ("digits", "wine", "cifar10"):
        with pytest.raises(ValueError, match=f"image_size does not apply to {name}, got 16"):
            load_data(name, image_size=16)


def test_a_given_normalisation_is_taken():
    images, labels = make_images(channels=2)
    mean, std = torch.tensor([0.3, 0.6]), torch.tensor([0.5, 0.25])
    data = from_tensors(
        images, labels, (images, labels), normalization=fixed_normalization(mean, std)
    )
    expected = (images - mean.view(1, 2, 1, 1)) / std.view(1, 2, 1, 1)
    torch.testing.assert_close(data.image_train, expected)
    torch.testing.assert_close(data.image_test, expected)
    with pytest.raises(ValueError, match="zca fits a normalization of its own, got both"):
        from_tensors(images, labels, zca=True, normalization=data.normalization)


def test_a_part_held_out_for_choosing_is_stratified_and_of_training_images_alone():
    images, labels = make_images(per_class=10)
    images = torch.cat([images, torch.rand(5, 1, 6, 6)])
    labels = torch.cat([labels, torch.zeros(5, dtype=torch.int64)])  # 15, 10, 10
    test = (images[:3] + 7, labels[:3])
    data = from_tensors(images, labels, test, name="few")
    held = data.hold_out(0.3, seed=4)
    assert held.label_test.bincount().tolist() == [4, 3, 3]
    assert held.label_train.bincount().tolist() == [11, 7, 7]
    both = torch.cat([held.image_train, held.image_test]).flatten(1)
    assert sorted(both.tolist()) == sorted(data.image_train.flatten(1).tolist())
    for image, label in zip(held.image_test, held.label_test, strict=True):
        same = (data.image_train == image).flatten(1).all(1)
        assert data.label_train[same].unique().tolist() == [int(label)]
    assert torch.equal(held.image_test, data.hold_out(0.3, seed=4).image_test)
    assert not torch.equal(held.image_test, data.hold_out(0.3, seed=5).image_test)
    assert held.name == "few hold_out=0.3 seed=4"
    assert sorted(data.hold_out(0.01, 0).label_test.tolist()) == [0, 1, 2]
    assert sorted(data.hold_out(0.99, 0).label_train.tolist()) == [0, 1, 2]


def test_what_cannot_be_held_out():
    data = from_tensors(*make_images())
    for fraction in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="fraction must be between 0 and 1"):
            data.hold_out(fraction, 0)
    images, labels = make_images(per_class=1)
    with pytest.raises(ValueError, match="smallest class: 2 images were asked for"):
        from_tensors(images, labels, (images, labels)).hold_out(0.5, 0)
