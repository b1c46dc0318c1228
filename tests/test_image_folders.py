"""Folders with one sub-folder of images per class."""

import numpy as np
import pytest
from labelled_images import make_images
from PIL import Image

from mim4dd.distill.data import from_folder, load_data


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
    (tmp_path / ".ipynb_checkpoints").mkdir()  # no class
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


def test_deep_images_are_refused(tmp_path):
    images, labels = make_images()
    write_folder(tmp_path, images, labels)
    Image.new("I;16", (6, 6), 40_000).save(tmp_path / "bee" / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png must have 8 bits per channel.*got I;16"):
        from_folder(tmp_path)


def test_a_folder_with_its_own_split(tmp_path):
    images, labels = make_images()
    write_folder(tmp_path / "train", images, labels)
    write_folder(tmp_path / "val", images[:6], labels[:6])
    data = from_folder(tmp_path)
    assert (len(data.image_train), len(data.image_test)) == (30, 6)


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="one sub-folder of images per class"):
        load_data(str(tmp_path))
    write_folder(tmp_path, *make_images())
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="class 'dog' must have at least one image"):
        load_data(str(tmp_path))
    (tmp_path / "dog" / "0.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"0\.png cannot be read as an image"):
        load_data(str(tmp_path))
    Image.new("L", (9, 9)).save(tmp_path / "dog" / "0.png")
    with pytest.raises(ValueError, match="all images must have one size"):
        load_data(str(tmp_path))
