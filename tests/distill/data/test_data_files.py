"""Data sets in the layouts of their archives, written here byte by byte as the formats say."""

import gzip
import struct

import numpy as np
import pytest
import torch
from labelled_images import IMAGENET, assert_holds, random_bytes
from PIL import Image
from scipy.io import savemat

from mim4dd.distill.data import load_data
from mim4dd.distill.data.readers.imagenet import IMAGENET_SUBSETS


def idx(values):
    """An idx file of bytes: 0, 0, type 8, rank, big-endian sizes, values."""
    header = struct.pack(">BBBB", 0, 0, 8, values.dim())
    return header + struct.pack(f">{values.dim()}I", *values.shape) + values.numpy().tobytes()


def write_mnist(folder, packed=False, size=28):
    """Training and test part, and where they lie."""
    folder.mkdir(parents=True)
    parts = []
    for part, count in (("train", 30), ("t10k", 11)):
        images = random_bytes(count, size, size)
        labels = (torch.arange(count) % 10).byte()
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{part}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(values)) if packed else idx(values))
        parts.append((images.unsqueeze(1), labels.tolist()))
    return parts


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "folder", "mean", "std"),
    [("mnist", "MNIST", 0.1307, 0.3081), ("fashion_mnist", "FashionMNIST", 0.2861, 0.3530)],
)
def test_mnist_and_fashion_mnist(name, folder, mean, std, packed, tmp_path):
    train, test = write_mnist(tmp_path / folder / "raw", packed)
    data = load_data(name, data_path=tmp_path)
    assert_holds(data, train, test, [mean], [std])
    assert data.class_names[9] == {"mnist": "9", "fashion_mnist": "Ankle boot"}[name]
    assert data.name == name


def test_zca_is_fitted_to_the_pixels_and_not_to_normalised_images(tmp_path):
    train, test = write_mnist(tmp_path / "MNIST" / "raw", size=5)
    data = load_data("mnist", zca=True, data_path=tmp_path)
    pixels = data.normalization.inverse(data.image_test)
    torch.testing.assert_close(pixels, test[0] / 255, atol=1e-4, rtol=0)
    mean = data.normalization.mean
    torch.testing.assert_close(mean, (train[0] / 255).mean(0).flatten(), atol=1e-5, rtol=0)


MISSING_IDX = r"MNIST/raw/train-labels-idx1-ubyte \(or train-labels-idx1-ubyte\.gz\) is missing: "


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, MISSING_IDX + r"mnist expects it there.*ossci.*/mnist/train-labels-idx1-ubyte\.gz$"),
        (b"", "must be an idx file of 1-d bytes, beginning 00000801, got nothing"),
        (b"\x00\x00\x08\x01\x00\x00", "must be an idx file"),
        (idx(torch.zeros(30, 1, dtype=torch.uint8)), "beginning 00000801, got 00000802"),
        (idx(torch.zeros(30, dtype=torch.uint8))[:-1], r"truncated .* says \[30\] values.* 29"),
        (idx(torch.zeros(30, dtype=torch.uint8)) + b"\x00", r"truncated or foreign.* holds 31"),
        (idx(torch.zeros(29, dtype=torch.uint8)), "equally many"),
    ],
)
def test_bad_idx_files(content, message, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write_mnist(folder)
    (folder / "train-labels-idx1-ubyte").unlink()
    if content is not None:
        (folder / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_data("mnist", data_path=tmp_path)


@pytest.mark.parametrize(
    ("name", "place", "missing"),
    [
        ("mnist", "train-images-idx3-ubyte.gz", "train-images-idx3-ubyte"),
        ("mnist", "MNIST/train-images-idx3-ubyte", "train-images-idx3-ubyte"),
        ("tiny_imagenet", "tiny-imagenet-200.zip", "wnids.txt"),
    ],
)
def test_an_archive_that_lies_beside_is_named(name, place, missing, tmp_path):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name} expects it there") as error:
        load_data(name, data_path=tmp_path)
    hint = f"; {path} is there: unpack or move it, so that {missing} exists"
    assert str(error.value).endswith(hint)


@pytest.mark.parametrize("cut", [4, -5])
def test_a_truncated_gzip_file(cut, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write_mnist(folder, packed=True)
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is truncated or not a gzip"):
        load_data("mnist", data_path=tmp_path)


def write_svhn(folder):
    parts = []
    for part, count in (("train", 25), ("test", 10)):
        images, digits = random_bytes(count, 3, 32, 32), torch.arange(count) % 10
        labels = torch.where(digits == 0, 10, digits).byte()  # as SVHN writes the digit 0
        matrix = images.permute(2, 3, 1, 0).numpy()  # (32, 32, 3, N)
        savemat(folder / f"{part}_32x32.mat", {"X": matrix, "y": labels[:, None].numpy()})
        parts.append((images, digits.tolist()))
    return parts


def test_svhn(tmp_path):
    train, test = write_svhn(tmp_path)
    data = load_data("svhn", data_path=tmp_path)
    assert_holds(data, train, test, [0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970])
    assert data.class_names[0] == "0"


def test_bad_svhn_files(tmp_path):
    def refuses(message):
        with pytest.raises(ValueError, match=message):
            load_data("svhn", data_path=tmp_path)

    refuses(r"train_32x32\.mat is missing: svhn .*http://ufldl.*/train_32x32\.mat$")
    write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    images, labels = np.zeros((32, 32, 3, 4), np.uint8), np.ones((4, 1), np.uint8)
    for content, message in (
        ({"X": images}, "not a MATLAB file of images X and labels y"),
        ({"X": images.astype(float), "y": labels}, r"must hold X, bytes \(32, 32, 3, N\), got tor"),
        ({"X": images[:16], "y": labels}, r"must hold X, bytes .* \(16, 32, 3, 4\)"),
        ({"X": images[..., 0], "y": labels}, "must hold y, the labels 1 to 10 of the N images"),
        ({"X": images, "y": labels[:3]}, "must hold y, the labels 1 to 10"),
        ({"X": images, "y": 0 * labels}, "must hold y, the labels 1 to 10"),
        ({"X": images, "y": 11 * labels}, "must hold y, the labels 1 to 10"),
    ):
        savemat(path, content)
        refuses(message)
    write_svhn(tmp_path)
    path.write_bytes(path.read_bytes()[:-400])
    refuses(r"test_32x32\.mat is truncated or not a MATLAB file")
    path.write_bytes(b"no MATLAB file")
    refuses("truncated or not a MATLAB file")


def save_png(path, pixels):
    """Lossless whatever the name says: readers go by the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path, format="png")


WNIDS = ["n02", "n01", "n03"]  # the archive's list is in no order


def write_tiny_imagenet(root, sort=None):
    """As in the archive, or with ``val`` sorted into folders, as ``sort`` names them."""
    root.mkdir()
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (root / "words.txt").write_text("n01\tgoldfish, Carassius\nn02\tbull frog\nn99\tnothing\n")
    train, test = random_bytes(6, 3, 64, 64), random_bytes(4, 3, 64, 64)
    for index, image in enumerate(train):
        wnid = sorted(WNIDS)[index // 2]
        save_png(root / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", image)
    lines = []
    for index, image in enumerate(test):
        folder = "images" if sort is None else sort.format(wnid=WNIDS[index % 3])
        save_png(root / "val" / folder / f"val_{index}.JPEG", image)
        (root / "val" / folder / "._val_0.JPEG").write_text("not an image")
        lines.append(f"val_{index}.JPEG\t{WNIDS[index % 3]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    if sort is not None:  # class after class, in the order of the ids
        return (train, [0, 0, 1, 1, 2, 2]), (test[[1, 0, 3, 2]], [0, 1, 1, 2])
    return (train, [0, 0, 1, 1, 2, 2]), (test, [1, 0, 2, 1])


def test_tiny_imagenet(tmp_path):
    train, test = write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    data = load_data("tiny_imagenet", data_path=tmp_path)
    assert_holds(data, train, test, *IMAGENET)
    assert data.class_names == ("goldfish", "bull frog", "n03")


@pytest.mark.parametrize("sort", ["{wnid}", "{wnid}/images"])
@pytest.mark.parametrize("left", [[], ["val_annotations.txt"], ["val_annotations.txt", "images"]])
def test_tiny_imagenet_with_sorted_validation_images(sort, left, tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    train, test = write_tiny_imagenet(root, sort)
    if "val_annotations.txt" not in left:
        (root / "val" / "val_annotations.txt").unlink()
    if "images" in left:  # as a script that moved the files leaves it
        (root / "val" / "images").mkdir()
    assert_holds(load_data("tiny_imagenet", data_path=tmp_path), train, test, *IMAGENET)
    for image in (root / "val" / "n02").rglob("val*"):
        image.unlink()
    with pytest.raises(ValueError, match=r"val/n02/images/\*\.JPEG is missing"):
        load_data("tiny_imagenet", data_path=tmp_path)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("wnids.txt", r"wnids\.txt is missing: tiny_imagenet .*cs231n.*tiny-imagenet-200\.zip$"),
        ("words.txt", r"words\.txt is missing"),
        ("val/val_annotations.txt", r"val/val_annotations\.txt is missing"),
        ("val/images/val_2.JPEG", r"val/images/val_2\.JPEG is missing"),
    ],
)
def test_missing_files_of_tiny_imagenet(missing, message, tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(root)
    (root / missing).unlink()
    with pytest.raises(ValueError, match=message):
        load_data("tiny_imagenet", data_path=tmp_path)


def test_bad_files_of_tiny_imagenet(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(root)
    annotations = root / "val" / "val_annotations.txt"
    for content, message in (
        ("", "must name the validation images, it is empty"),
        ("val_0.JPEG\tn77\t0\t0\t1\t1\n", "must hold an image and a class of wnids.txt by line"),
    ):
        annotations.write_text(content)
        with pytest.raises(ValueError, match=message):
            load_data("tiny_imagenet", data_path=tmp_path)
    for image in (root / "train" / "n03" / "images").iterdir():
        image.unlink()
    with pytest.raises(ValueError, match=r"train/n03/images/\*\.JPEG is missing"):
        load_data("tiny_imagenet", data_path=tmp_path)


def write_imagenet(root, wnids, shapes):
    """One training and one test image of each class, beside classes of no subset."""
    images = {}
    for part in ("train", "val"):
        for wnid, (height, width) in zip(wnids, shapes, strict=True):
            images[part, wnid] = random_bytes(3, height, width)
            save_png(root / part / wnid / "image.JPEG", images[part, wnid])
        save_png(root / part / "n00000000" / "image.JPEG", random_bytes(3, 8, 8))
    return images


@pytest.mark.parametrize("name", sorted(IMAGENET_SUBSETS))
def test_imagenet_subsets_take_the_middle(name, tmp_path):
    wnids = list(IMAGENET_SUBSETS[name])
    shapes = [(8, 8), (8, 11), (13, 8), (8, 20), (9, 8)] * 2  # the shorter side fits already
    images = write_imagenet(tmp_path, wnids, shapes)

    def middle(image):
        top, left = round((image.shape[1] - 8) / 2), round((image.shape[2] - 8) / 2)
        return image[:, top : top + 8, left : left + 8]

    parts = [
        (torch.stack([middle(images[part, wnid]) for wnid in wnids]), range(10))
        for part in ("train", "val")
    ]
    assert_holds(load_data(name, image_size=8, data_path=tmp_path), *parts, *IMAGENET)


def test_imagenet_subsets_resize_the_shorter_side(tmp_path):
    wnids = list(IMAGENET_SUBSETS["imagenette"])
    for part in ("train", "val"):
        for wnid in wnids:
            image = torch.zeros(3, 24, 48, dtype=torch.uint8)
            image[0, :, :12], image[1, :, 12:24], image[2, :, 24:36] = 240, 240, 240
            save_png(tmp_path / part / wnid / "a.JPEG", image)
    data = load_data("imagenette", image_size=12, data_path=tmp_path)
    pixels = data.normalization.inverse(data.image_test)[0]  # halved; the middle is green, blue
    expected = torch.zeros(3, 12, 12)
    expected[1, :, :6], expected[2, :, 6:] = 240 / 255, 240 / 255
    inner = [1, 2, 3, 4, 7, 8, 9, 10]  # the columns that no edge is mixed into
    torch.testing.assert_close(pixels[:, :, inner], expected[:, :, inner], atol=1e-3, rtol=0)
    assert load_data("imagenette", data_path=tmp_path).image_size == 128
    assert data.class_names[0] == "tench"


def test_missing_classes_of_imagenet(tmp_path):
    message = r"train/n07753275/\*\.JPEG is missing: imagefruit .*image-net\.org/download\.php"
    with pytest.raises(ValueError, match=message):
        load_data("imagefruit", data_path=tmp_path)
    wnids = list(IMAGENET_SUBSETS["imagefruit"])
    write_imagenet(tmp_path, wnids, [(8, 8)] * 10)
    (tmp_path / "val" / wnids[4] / "image.JPEG").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image\.JPEG cannot be read as an image"):
        load_data("imagefruit", image_size=8, data_path=tmp_path)
    (tmp_path / "val" / wnids[4] / "image.JPEG").unlink()
    with pytest.raises(ValueError, match=rf"val/{wnids[4]}/\*\.JPEG is missing"):
        load_data("imagefruit", image_size=8, data_path=tmp_path)
