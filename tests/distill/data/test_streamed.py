"""Images that are read as they are taken: the same samples, of which few are read beforehand."""

import os
import pickle

import pytest
import torch
from command_line import exit_status
from labelled_images import random_bytes
from PIL import Image
from torch.utils.data import Dataset

from mim4dd import distill
from mim4dd.distill.data import from_dataset, from_folder, load_data
from mim4dd.distill.data.byte_images import standardize_bytes
from mim4dd.distill.data.per_class import rows_of_classes
from mim4dd.distill.data.streamed import FileNames, StreamedPixels
from mim4dd.distill.experts import ExpertBuffer
from mim4dd.distill.identity.data import describe_data

SMALL = {"width": 4, "depth": 1, "eval_every": 0, "num_eval": 1, "eval_epochs": 2, "iterations": 2}


def write(root, count=60, channels=3, size=8):
    for index in range(count):
        image = random_bytes(1, channels, size, size)[0] // 2
        image[index % channels, index % 3 : index % 3 + 3] += 90
        pixels = image.permute(1, 2, 0).squeeze(2).contiguous().numpy()
        path = root / f"class {index % 3}" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return write(tmp_path_factory.mktemp("photos"))


class Counting:
    """Reads as another does, and notes what."""

    def __init__(self, read):
        self.read, self.rows = read, []

    def __call__(self, row):
        self.rows.append(row)
        return self.read(row)


def test_samples_are_those_in_memory(folder):
    kept, streamed = from_folder(folder, keep_bytes=True), from_folder(folder, stream=True)
    for one, other in (
        (kept.image_train, streamed.image_train),
        (kept.image_test, streamed.image_test),
    ):
        assert isinstance(other.pixels, StreamedPixels)
        assert (other.shape, other.dtype, other.device) == (one.shape, one.dtype, one.device)
        assert (len(other), other.dim(), other.numel()) == (len(one), 4, one.numel())
        for index in (0, -1, slice(2, 9, 3), slice(0, 0), torch.randperm(len(one))[:5]):
            assert torch.equal(other[index], one[index])
        assert all(map(torch.equal, other.split(7), one.split(7)))
        assert torch.equal(other.to("cpu")[:], one[:])
    half, expected = (data.hold_out(0.5, seed=1) for data in (streamed, kept))
    assert torch.equal(half.image_test[:], expected.image_test[:])
    assert describe_data(streamed) == describe_data(kept)  # which of few images is of all


def test_expected_images_are_read_once_and_others_all_the_same(folder):
    pixels = from_folder(folder, stream=True).image_train.pixels
    pixels.read = counted = Counting(pixels.read)
    rows = torch.tensor([3, 1, 40])
    pixels.expect(rows)
    assert torch.equal(pixels[rows], from_folder(folder, keep_bytes=True).image_train.pixels[rows])
    assert sorted(counted.rows) == [1, 3, 40]
    pixels.expect(torch.arange(20))
    assert torch.equal(pixels[rows[:1]], pixels[rows[0]][None])


def test_a_few_images_stand_for_all(folder, monkeypatch):
    for module in ("data.tensors", "data.readers.folder", "identity.data"):
        monkeypatch.setattr(f"mim4dd.distill.{module}.SAMPLED", 6)
    monkeypatch.setattr("mim4dd.distill.data.readers.folder._Reader", read := Reads())
    data = from_folder(folder, stream=True)
    assert describe_data(data)["train"]["at_most_of_a_class"] == 2
    train = data.image_train
    chosen = torch.cat([rows[[0, 8]] for rows in rows_of_classes(data.label_train, 3)])  # of 16
    assert set(read.rows) == {*train.rows[chosen].tolist(), *read.tested(data)}
    expected = standardize_bytes(from_folder(folder, keep_bytes=True).image_train.pixels,
                                 train.rows[chosen])  # fmt: skip
    assert torch.equal(data.normalization.mean, expected.mean)
    assert torch.equal(data.normalization.whiten, expected.whiten)


class Reads:
    """Makes readers, as _Reader does, that note what is read."""

    def __init__(self):
        from mim4dd.distill.data.readers.folder import _Reader

        self.kind, self.rows = _Reader, []

    def __call__(self, *parts):
        counting = Counting(self.kind(*parts))
        counting.rows = self.rows
        return counting

    def tested(self, data):
        rows = torch.cat([rows[::2] for rows in rows_of_classes(data.label_test, 3)])  # of 4
        return data.image_test.rows[rows].tolist()


@pytest.mark.parametrize("method", ["dm", "datm"])
def test_methods_learn_the_same_bits(method, folder, tmp_path):
    options = SMALL | {"method": method, "ipc": 2, "num_keys": 12}
    options |= {"syn_steps": 2} if method != "dm" else {"batch_real": 4}
    images, tables = [], []
    for name in ("keep_bytes", "stream"):
        data = from_folder(folder, **{name: True})
        if method == "datm":
            options |= {"experts": str(tmp_path / name), "max_start_epoch": 2}
            distill.train_experts(data, tmp_path / name, train_epochs=3, num_experts=2,
                                  width=4, depth=1, workers=1 + (name == "stream"))  # fmt: skip
        run = distill.run(data, **options)
        images.append(run.images)
        tables.append(run.evaluate())
    assert torch.equal(*images)
    assert tables[0] == tables[1]


def test_the_command_streams(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--method dm --batch-real 4 --width 4 --depth 1 --iterations 2 --num-eval 1 "
    words += f"--eval-epochs 1 --num-keys 12 --data {folder} --stream"
    assert exit_status("distill", *words.split(), "--out", "run") == 0
    assert exit_status("evaluate", "run") == 0
    experts = f"--num-experts 1 --train-epochs 1 --width 4 --depth 1 --data {folder} --stream"
    assert exit_status("experts", *experts.split(), "--out", "experts") == 0
    assert ExpertBuffer("experts").num_epochs == 1


class Samples(Dataset):
    """PIL images, asked for which is noted."""

    def __init__(self, images, labels):
        self.images, self.labels, self.asked = images, labels, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.asked.append(index)
        image = self.images[index].permute(1, 2, 0).contiguous().numpy()
        return {"image": Image.fromarray(image), "label": self.labels[index]}


def test_a_data_set_streams(monkeypatch):
    images, labels = random_bytes(30, 3, 8, 8), [index % 3 for index in range(30)]
    kept = from_dataset(Samples(images, labels), keep_bytes=True)
    whole, lists, columns = (Samples(images, labels) for _ in range(3))
    lists.targets = labels
    columns.column_names = ["image", "label"]
    monkeypatch.setattr(Samples, "__getitem__", by_name(Samples.__getitem__))
    monkeypatch.setattr("mim4dd.distill.data.tensors.SAMPLED", 3)
    for samples, most in ((whole, 34), (lists, 4), (columns, 4)):
        data = from_dataset(samples, stream=True, readers=2)
        assert len(samples.asked) <= most
        assert torch.equal(data.label_test, kept.label_test)
        pixels, rows = data.image_train.pixels, data.image_train.rows
        assert torch.equal(pixels[rows], kept.image_train.pixels[rows])
    two = from_dataset(whole, lists, stream=True)
    assert (len(two.image_train), len(two.image_test)) == (30, 30)
    run = distill.run(lists, method="dm", stream=True, batch_real=4, num_keys=12, **SMALL)
    assert run.data.image_train.streamed


def by_name(get):
    """Columns of names beside samples of numbers, as a data set of Hugging Face has them."""

    def getitem(self, key):
        return self.labels if key == "label" else get(self, key)

    return getitem


def test_names_are_those_given():
    given = ["a/1.png", "ü/ß.png", os.fsdecode(b"\xff.png"), "", "z" * 300]
    for names in (FileNames(iter(given)), pickle.loads(pickle.dumps(FileNames(given)))):
        assert list(names) == given
        assert names[-1] == given[-1]
        assert names[1:4] == given[1:4]
        with pytest.raises(IndexError):
            names[len(given)]
    assert list(FileNames([])) == []


def test_what_cannot_be_streamed_is_refused(tmp_path):
    root = write(tmp_path / "photos")
    with pytest.raises(ValueError, match=r"zca must be False .* which take 0.0 GiB here"):
        from_folder(root, stream=True, zca=True)
    with pytest.raises(ValueError, match=r"stream is for folders, .* digits is read into float32"):
        load_data("digits", stream=True)
    with pytest.raises(ValueError, match="stream must be left out beside ImageData"):
        distill.run(load_data("digits"), method="dm", stream=True)
    tensors = random_bytes(6, 3, 8, 8), torch.arange(6) % 2
    with pytest.raises(ValueError, match="stream must be False for tensors"):
        distill.run(tensors, method="dm", stream=True)
    pairs = [(torch.rand(1, 4, 4), index % 2) for index in range(9)]
    with pytest.raises(ValueError, match=r"uint8 .* to be streamed, .* got torch.float32"):
        from_dataset(pairs, stream=True)
    with pytest.raises(ValueError, match="zca must be False with stream"):
        from_dataset(pairs, stream=True, zca=True)
    with pytest.raises(ValueError, match="must not be empty"):
        from_dataset([], stream=True)
    sizes = [(random_bytes(1, 1, 4 + index, 4 + index)[0], index % 2) for index in range(9)]
    with pytest.raises(ValueError, match=r"must all be uint8 \(1, 4, 4\), image \d is"):
        from_dataset(sizes, stream=True)
    below = [(random_bytes(1, 1, 4, 4)[0], -1)] * 4
    with pytest.raises(ValueError, match="labels must be 4, of at least 0, got 4 from -1 on"):
        from_dataset(below, stream=True)
    for bad, message in (
        (b"no image", "cannot be read as an image"),
        ((9, 9), "must have one size, .* has 9 × 9 pixels and others 8 × 8"),
        ((9, 8), "must be square"),
    ):
        data = from_folder(root, stream=True)
        path = root / "class 1" / "01.png"
        if isinstance(bad, bytes):
            path.write_bytes(bad)
        else:
            Image.new("RGB", bad).save(path)
        with pytest.raises(ValueError, match=rf"01\.png.*{message}|{message}"):
            data.image_train[:], data.image_test[:]
        Image.new("RGB", (8, 8)).save(path)


def test_a_coloured_image_among_grey_ones_is_refused_as_it_is_read(tmp_path):
    root = write(tmp_path / "grey", channels=1)
    data = from_folder(root, stream=True)
    assert data.channels == 1
    Image.new("RGB", (8, 8), (255, 0, 0)).save(root / "class 2" / "02.png")
    with pytest.raises(ValueError, match=r"02\.png .* all images must be grey"):
        data.image_train[:], data.image_test[:]
