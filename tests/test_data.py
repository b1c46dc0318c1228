"""Data sets: sources, split, normalisation, refusals."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from mim4dd.distill.data import from_dataset, from_folder, from_tensors, load_data


def make_images(per_class=10, num_classes=3, size=6, channels=1):
    labels = torch.arange(num_classes).repeat(per_class)
    return torch.rand(len(labels), channels, size, size), labels


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
    if zca:
        pytest.importorskip("kornia")
    images, labels = make_images(per_class=40)
    data = from_tensors(images, labels, (images, labels), zca=zca)
    torch.testing.assert_close(
        data.normalization.inverse(data.image_test), images, atol=1e-4, rtol=1e-4
    )


def test_zca_whitens():
    pytest.importorskip("kornia")
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


def write_folder(root, images, labels, names=("ant", "bee", "cat")):
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (image.permute(1, 2, 0).squeeze(2).numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_class_folders(channels, tmp_path):
    images, labels = make_images(channels=channels)
    write_folder(tmp_path, images, labels)
    data = load_data(str(tmp_path))
    assert data.class_names == ("ant", "bee", "cat")
    assert data.name == tmp_path.name
    assert data.image_train.shape == (24, channels, 6, 6)
    assert load_data(str(tmp_path), image_size=4).image_train.shape == (24, channels, 4, 4)


def test_grey_and_coloured_images_share_a_folder(tmp_path):
    grey, labels = make_images()
    write_folder(tmp_path, grey, labels)
    Image.new("RGB", (6, 6), (255, 0, 0)).save(tmp_path / "ant" / "red.png")
    data = from_folder(tmp_path)
    assert data.channels == 3
    assert len(data.image_train) + len(data.image_test) == 31


def test_deep_images_are_refused_and_palettes_resolved(tmp_path):
    images, labels = make_images()
    write_folder(tmp_path, images, labels)
    Image.new("I;16", (6, 6), 40_000).save(tmp_path / "bee" / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png must have 8 bits per channel.*got I;16"):
        from_folder(tmp_path)
    red = Image.new("RGB", (6, 6), (255, 0, 0)).convert("P")
    blue = Image.new("RGB", (6, 6), (0, 128, 255)).convert("P")
    data = from_dataset([(red, 0), (blue, 1)] * 5)
    assert data.channels == 3


def test_every_class_has_held_out_images_or_is_refused():
    images = torch.rand(104, 1, 4, 4)
    labels = torch.tensor([0] * 100 + [1] * 2 + [2] * 2)
    with pytest.raises(ValueError, match="gets none; pass test explicitly"):
        from_tensors(images, labels)


def test_a_folder_with_its_own_split(tmp_path):
    images, labels = make_images()
    write_folder(tmp_path / "train", images, labels)
    write_folder(tmp_path / "val", images[:6], labels[:6])
    data = from_folder(tmp_path)
    assert (len(data.image_train), len(data.image_test)) == (30, 6)


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
        (IMAGES[0], LABELS, ValueError, "images must be 4-d"),
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


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="data must be 'digits' or an existing folder"):
        load_data("cifar11")
    with pytest.raises(ValueError, match="one sub-folder of images per class"):
        load_data(str(tmp_path))
    write_folder(tmp_path, IMAGES, LABELS)
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="class 'dog' must have at least one image"):
        load_data(str(tmp_path))
    (tmp_path / "dog" / "0.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"0\.png cannot be read as an image"):
        load_data(str(tmp_path))
    Image.new("L", (9, 9)).save(tmp_path / "dog" / "0.png")
    with pytest.raises(ValueError, match="all images must have one size"):
        load_data(str(tmp_path))
    with pytest.raises(ValueError, match="image_size does not apply to digits"):
        load_data("digits", image_size=16)
