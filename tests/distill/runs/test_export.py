"""The folder that a distilled set is exported to, as others read it."""

import fcntl
import os

import numpy as np
import pytest
import torch
from PIL import Image

from mim4dd.distill.data import from_folder, from_tensors
from mim4dd.distill.identity.data import describe_data
from mim4dd.distill.runs import SyntheticSet, read_set

CLASSES = torch.tensor([0, 0, 1, 1, 2, 2])


def make_set(labels=CLASSES, channels=3, names=("cat", "T-shirt/top", ".50 %")):
    data = from_tensors(torch.rand(30, channels, 4, 4), torch.arange(30) % 3, class_names=names)
    images = 2 * torch.randn(6, channels, 4, 4)
    pixels = data.normalization.inverse(images)
    lr = torch.tensor(0.125)
    return data, SyntheticSet(images, labels, CLASSES, lr, pixels, names, describe_data(data))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_by_class(channels, tmp_path):
    _, synthetic = make_set(channels=channels)
    synthetic.export(str(tmp_path / "a/b"))
    folder = tmp_path / "a/b"
    assert files(folder) == sorted([
        "images/%2E50 %25/4.png", "images/%2E50 %25/5.png", "images/T-shirt%2Ftop/2.png",
        "images/T-shirt%2Ftop/3.png", "images/cat/0.png", "images/cat/1.png",
        "ddranking/images.pt", "ddranking/labels.pt", "ddranking/lr.pt",
        "set.pt", "set.safetensors",
    ])  # fmt: skip
    assert not any(path.name.startswith(".b") for path in (tmp_path / "a").iterdir())
    path = folder / "images/T-shirt%2Ftop/3.png"
    with Image.open(path) as picture:
        assert picture.mode == {1: "L", 3: "RGB"}[channels]
        shown = torch.from_numpy(np.array(picture)).float().view(4, 4, channels) / 255
    expected = synthetic.pixels[3].clamp(0, 1).permute(1, 2, 0)
    torch.testing.assert_close(shown, expected, atol=0.5 / 255 + 1e-6, rtol=0)


def test_our_own_reader_takes_the_pictures_in_the_order_of_their_names(tmp_path):
    _, synthetic = make_set(names=("b", "c", "a"))
    synthetic.export(tmp_path / "set")
    data = from_folder(tmp_path / "set/images")
    assert data.class_names == ("a", "b", "c")
    assert data.image_train.shape[1:] == (3, 4, 4)


def test_tensors_are_plain_and_their_own(tmp_path):
    _, synthetic = make_set()
    large = torch.randn(10_000, 3, 4, 4)
    synthetic.image_syn = large[:6].requires_grad_()
    synthetic.export(tmp_path / "set")
    assert (tmp_path / "set/set.pt").stat().st_size < 10_000
    parts = torch.load(tmp_path / "set/set.pt", weights_only=True)
    assert list(parts) == ["images", "labels", "syn_lr"]
    assert torch.equal(parts["images"], large[:6].detach())
    assert not parts["images"].requires_grad
    assert (parts["labels"].tolist(), parts["syn_lr"].item()) == (CLASSES.tolist(), 0.125)
    stored = read_set(tmp_path / "set")
    assert torch.equal(stored.pixels, synthetic.pixels)
    assert repr(stored) == repr(synthetic)


@pytest.mark.parametrize("soft", [False, True])
def test_what_dd_ranking_takes_is_the_set(soft, tmp_path):
    """Its loss takes the softmax of soft labels at temperature 1, and classes as they are."""
    probabilities = torch.eye(3)[CLASSES]
    probabilities[2:] = torch.rand(4, 3).softmax(1)
    data, synthetic = make_set(probabilities if soft else CLASSES)
    synthetic.export(tmp_path / "set")
    images, labels, lr = (
        torch.load(tmp_path / f"set/ddranking/{name}.pt", weights_only=True)
        for name in ("images", "labels", "lr")
    )
    assert torch.equal(images, synthetic.image_syn)
    assert lr.item() == 0.125
    if soft:
        assert labels.isfinite().all()
        torch.testing.assert_close(labels.softmax(1), probabilities)
    else:
        assert torch.equal(labels, CLASSES)
    back = read_set(tmp_path / "set/ddranking", data)
    for name in ("image_syn", "label_syn", "class_syn", "syn_lr", "pixels"):
        torch.testing.assert_close(getattr(back, name), getattr(synthetic, name))


def test_rows_and_many_channels_have_no_pictures(tmp_path):
    rows = torch.randn(6, 5)
    lr = torch.tensor(0.1)
    SyntheticSet(rows, CLASSES, CLASSES, lr, rows, "abc").export(tmp_path / "rows")
    assert files(tmp_path / "rows") == ["set.pt", "set.safetensors"]
    make_set(channels=4)[1].export(tmp_path / "many")
    assert not (tmp_path / "many/images").exists()
    assert (tmp_path / "many/ddranking/images.pt").exists()


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path):
    folder = tmp_path / "set"
    make_set()[1].export(folder)
    _, other = make_set(names=("x", "y", "z"))
    other.export(folder)
    assert sorted(os.listdir(folder / "images")) == ["x", "y", "z"]
    assert os.listdir(tmp_path) == ["set"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"new or an earlier export, .*set holds notes.txt"):
        other.export(folder)
    for name, message in (
        ("images", r"new or an earlier export, .*images holds no set.safetensors"),
        ("set.safetensors", r"folder must be a folder, .*set.safetensors is a file"),
    ):
        if name == "images":
            (tmp_path / "images/ddranking").mkdir(parents=True)
        else:
            (tmp_path / name).touch()
        with pytest.raises(ValueError, match=message):
            other.export(tmp_path / name)
    (tmp_path / "empty").mkdir()
    other.export(tmp_path / "empty")
    with pytest.raises(ValueError, match="class_names must differ to name folders, got 'x' twice"):
        make_set(names=("x", "y", "x"))[1].export(tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_an_export_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    _, synthetic = make_set()
    synthetic.export(folder)
    kept = {name: (folder / name).read_bytes() for name in files(folder)}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        make_set()[1].export(folder)
    assert {name: (folder / name).read_bytes() for name in files(folder)} == kept
    assert os.listdir(tmp_path) == ["set"]


def test_what_a_killed_export_left_is_removed_and_what_another_writes_is_not(tmp_path):
    killed, written = (tmp_path / f".set.{letter * 32}" for letter in "ab")
    for temporary in (killed, written):
        temporary.mkdir()
        (temporary / "set.pt").touch()
    lock = os.open(written, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        make_set()[1].export(tmp_path / "set")
        assert sorted(os.listdir(tmp_path)) == [written.name, "set"]
    finally:
        os.close(lock)
