"""Data by the readers of torchvision and Hugging Face, of which stand-ins are here."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from command_line import exit_status
from labelled_images import random_bytes
from PIL import Image
from torch.utils.data import Dataset

from mim4dd import distill
from mim4dd.distill.config.file import names_data
from mim4dd.distill.data import load_data

IMAGES = random_bytes(40, 3, 8, 8)


def picture(row):
    return Image.fromarray(IMAGES[row].permute(1, 2, 0).contiguous().numpy())


class Pairs(Dataset):
    """As torchvision has them."""

    classes = ("ant", "bee")

    def __init__(self, rows):
        self.rows, self.targets = rows, [row % 2 for row in rows]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return picture(self.rows[index]), self.targets[index]


class ByTrain(Pairs):
    asked = []  # noqa: RUF012

    def __init__(self, root, train=True, transform=None, download=False):
        self.asked.append((root, train, download))
        if not download and "there" not in root:
            raise RuntimeError("Dataset not found")
        super().__init__(range(30) if train else range(30, 40))


class BySplit(Pairs):
    def __init__(self, root, split="trainval"):
        if split not in ("trainval", "val"):
            raise ValueError(f"Unknown value {split!r}")
        super().__init__(range(30) if split == "trainval" else range(30, 40))


class Unsplit(Pairs):
    def __init__(self, root):
        super().__init__(range(40))


@pytest.fixture
def torchvision(monkeypatch):
    datasets = ModuleType("torchvision.datasets")
    kinds = {"ByTrain": ByTrain, "BySplit": BySplit, "Unsplit": Unsplit}
    vars(datasets).update(kinds, __all__=tuple(kinds), Hidden=ByTrain)
    package = ModuleType("torchvision")
    package.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    ByTrain.asked.clear()


@pytest.mark.parametrize("name", ["ByTrain", "BySplit"])
def test_torchvision_reads(name, torchvision):
    source = f"torchvision:{name}"
    data = load_data(source, data_path="there", keep_bytes=True)
    assert (data.name, data.class_names) == (source, ("ant", "bee"))
    assert torch.equal(data.image_train.pixels, IMAGES[:30])
    assert torch.equal(data.image_test.pixels, IMAGES[30:])
    assert data.label_test.tolist() == [0, 1] * 5
    streamed = load_data(source, image_size=4, data_path="there", stream=True).image_train
    assert streamed.shape == (30, 3, 4, 4)
    assert torch.equal(
        streamed.pixels[torch.tensor(7)],
        torch.tensor(list(picture(7).resize((4, 4)).tobytes())).view(4, 4, 3).permute(2, 0, 1),
    )
    assert names_data(source)


def test_nothing_is_downloaded_unless_it_is_asked_for(torchvision):
    with pytest.raises(ValueError, match=r"no ByTrain below nowhere: Dataset not found; download="):
        load_data("torchvision:ByTrain", data_path="nowhere")
    assert ByTrain.asked == [("nowhere", True, False)]
    assert len(load_data("torchvision:ByTrain", data_path="nowhere", download=True).label_train)
    assert ByTrain.asked[1:] == [("nowhere", True, True), ("nowhere", False, True)]
    with pytest.raises(ValueError, match="download must be False for digits"):
        load_data("digits", download=True)


@pytest.mark.parametrize("name", ["Unsplit", "Hidden", "Absent", "", "__all__"])
def test_what_is_no_data_set_of_torchvision_is_refused(name, torchvision):
    with pytest.raises(ValueError, match=r"must name a class of torchvision\.datasets"):
        load_data(f"torchvision:{name}", data_path="there")


def test_commands_take_them(torchvision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--data torchvision:ByTrain --data-path there --method dm --batch-real 4 --width 4 "
    words += "--depth 1 --iterations 1 --num-eval 1 --eval-epochs 1 --num-keys 8 --out run"
    assert exit_status("distill", *words.split()) == 0
    assert exit_status("evaluate", "run") == 0
    assert "download" not in distill.open_run("run").synthetic.provenance.options


class Columns(Dataset):
    """As Hugging Face has them."""

    column_names = ["image", "label"]  # noqa: RUF012
    features = {"label": SimpleNamespace(names=["ant", "bee"])}  # noqa: RUF012

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        if key == "label":
            return [row % 2 for row in self.rows]
        return {"image": picture(self.rows[key]), "label": self.rows[key] % 2}


@pytest.fixture
def hugging_face(monkeypatch, tmp_path):
    parts = {"train": Columns(range(30)), "validation": Columns(range(30, 40))}
    found = {str(tmp_path): parts, "one": Columns(range(40)), "odd": {"all": parts["train"]}}
    asked = []

    def load(name):
        asked.append(name)
        return found[name]

    package = ModuleType("datasets")
    package.load_dataset, package.load_from_disk = load, found.__getitem__
    monkeypatch.setitem(sys.modules, "datasets", package)
    return tmp_path, asked


def test_hugging_face_reads(hugging_face):
    folder, asked = hugging_face
    for options in ({"keep_bytes": True}, {"stream": True}):
        data = load_data(f"hf:{folder}", **options)
        assert data.class_names == ("ant", "bee")
        rows = torch.arange(10)
        assert torch.equal(data.image_test.pixels[rows], IMAGES[30:])
    assert load_data(f"hf:{folder}", image_size=4, stream=True).image_size == 4
    assert asked == []
    with pytest.raises(ValueError, match=r"from the Hub, give download=True"):
        load_data("hf:one")
    assert asked == []
    assert len(load_data("hf:one", download=True).label_test) == 8
    assert asked == ["one"]
    with pytest.raises(ValueError, match="must have a part to train on, it has all"):
        load_data("hf:odd", download=True)


def test_a_library_that_is_missing_is_named(monkeypatch):
    for name, module, cure in (
        ("torchvision:MNIST", "torchvision", "install its release for the torch that is here"),
        ("hf:mnist", "datasets", r"pip install 'mim4dd\[hf\]'"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ModuleNotFoundError, match=f"{module} is missing; {cure}"):
            load_data(name)


def test_size_needs_pictures(torchvision, monkeypatch):
    monkeypatch.setattr(Pairs, "__getitem__", lambda self, index: (IMAGES[index], index % 2))
    with pytest.raises(ValueError, match="image_size needs PIL images, image 0 is a Tensor"):
        load_data("torchvision:ByTrain", image_size=4, data_path="there")
