"""Images that stay bytes: the same samples, bit for bit, and a quarter of the memory."""

import dataclasses

import pytest
import torch
from command_line import exit_status
from labelled_images import random_bytes
from PIL import Image

from mim4dd import distill
from mim4dd.distill.data import from_dataset, from_folder, from_tensors, load_data
from mim4dd.distill.data.byte_images import ByteImages, standardize_bytes
from mim4dd.distill.data.normalization import fixed_normalization, standardize
from mim4dd.distill.experts import ExpertBuffer
from mim4dd.distill.identity.data import describe_data
from mim4dd.distill.identity.describe import differences
from mim4dd.distill.training.passes import in_passes

SMALL = {"width": 4, "depth": 1, "eval_every": 0, "num_eval": 1, "eval_epochs": 2, "iterations": 2}
FIXED = fixed_normalization(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4]))


def photographs(count=60, size=8):
    labels = torch.arange(count) % 3
    images = random_bytes(count, 3, size, size) // 2
    for index, label in enumerate(labels):
        images[index, int(label)] += 90
    return images, labels


@pytest.fixture(scope="module")
def given():
    torch.manual_seed(0)
    return photographs()


def both(given, **options):
    return [from_tensors(*given, keep_bytes=keep, **options) for keep in (False, True)]


def test_samples_are_those_of_a_tensor(given):
    tensors, kept = both(given, normalization=FIXED)
    for one, other in (
        (tensors.image_train, kept.image_train),
        (tensors.image_test, kept.image_test),
    ):
        assert isinstance(other, ByteImages)
        assert other.pixels is given[0]  # both parts share it
        assert (other.shape, other.dtype, other.device) == (one.shape, one.dtype, one.device)
        assert (len(other), other.dim(), other.numel()) == (len(one), 4, one.numel())
        rows = torch.randperm(len(one))[:5]
        for index in (0, -1, slice(2, 9, 3), rows, torch.arange(len(one)) % 2 == 0):
            assert torch.equal(other[index], one[index])
        parts = other.split(7)
        assert all(map(torch.equal, parts, one.split(7)))
        assert len(parts) == len(one.split(7))
        assert torch.equal(parts[-1], one.split(7)[-1])
        assert all(map(torch.equal, parts[1:], one.split(7)[1:]))
        with pytest.raises(IndexError):
            parts[len(parts)]
        assert [len(part) for part in in_passes(other)] == [len(part) for part in in_passes(one)]
    half, expected = (data.hold_out(0.5, seed=1) for data in (kept, tensors))
    assert isinstance(half.image_test, ByteImages)
    assert torch.equal(half.image_train[:], expected.image_train)
    assert torch.equal(half.image_test[:], expected.image_test)
    assert describe_data(kept) == describe_data(tensors)
    draws = [data.sample((3, 1, 2), torch.Generator().manual_seed(0)) for data in (kept, tensors)]
    assert all(map(torch.equal, *draws))


def test_the_fitted_normalisation_is_that_of_all_pixels(given):
    tensors, kept = both(given)
    for name in ("mean", "whiten", "restore"):
        found, expected = (getattr(data.normalization, name) for data in (kept, tensors))
        torch.testing.assert_close(found, expected)
    assert differences(describe_data(kept), describe_data(tensors)) == []
    rows = torch.arange(0, 60, 2)
    exact = standardize(given[0][rows].double() / 255)
    torch.testing.assert_close(standardize_bytes(given[0], rows).mean, exact.mean.float())
    with pytest.raises(ValueError, match=r"must vary in every channel .* channel \[1\] does not"):
        standardize_bytes(
            torch.stack([given[0][:, 0], torch.full_like(given[0][:, 0], 3)], 1), rows
        )


@pytest.mark.parametrize("method", ["dm", "dc", "rat_bptt", "mtt", "datm"])
def test_methods_learn_the_same_bits(method, given, tmp_path):
    options = SMALL | {"method": method, "ipc": 2, "num_keys": 12}
    options |= {"syn_steps": 2} if method not in ("dm", "dc") else {"batch_real": 4}
    images, tables = [], []
    for data in both(given, normalization=FIXED):
        if method in ("mtt", "datm"):
            options |= {"experts": str(tmp_path / "experts"), "max_start_epoch": 2}
            distill.train_experts(data, tmp_path / "experts", train_epochs=3, num_experts=1,
                                  width=4, depth=1)  # fmt: skip
        run = distill.run(data, **options)
        images.append(run.images)
        tables.append(run.evaluate())
    assert torch.equal(*images)
    assert tables[0] == tables[1]


def test_experts_are_the_same_bits(given, tmp_path):
    for data, name in zip(both(given, normalization=FIXED), ("floats", "bytes"), strict=True):
        distill.train_experts(data, tmp_path / name, train_epochs=2, num_experts=2, width=4,
                              depth=1, workers=2)  # fmt: skip
    buffers = [ExpertBuffer(tmp_path / name) for name in ("floats", "bytes")]
    for expert in range(2):
        assert all(map(torch.equal, *(buffer.segment(expert, 0, 2) for buffer in buffers)))


def test_folders_data_sets_and_the_command(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index, (image, label) in enumerate(zip(*given, strict=True)):
        path = tmp_path / "photos" / f"class {int(label)}" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path)
    folder = from_folder("photos", keep_bytes=True)
    floats = from_folder("photos")
    torch.testing.assert_close(folder.image_train[:], floats.image_train)
    pairs = list(zip(*given, strict=True))
    assert isinstance(from_dataset(pairs, keep_bytes=True).image_train, ByteImages)
    words = "--method dm --batch-real 4 --width 4 --depth 1 --iterations 2 --num-eval 1"
    words += " --eval-epochs 1 --num-keys 12 --data photos --keep-bytes --out run"
    assert exit_status("distill", *words.split()) == 0
    assert exit_status("evaluate", "run") == 0
    run = distill.run((given[0], given[1]), method="dm", keep_bytes=True, batch_real=4, **SMALL)
    assert isinstance(run.data.image_test, ByteImages)


def test_what_cannot_stay_bytes_is_refused(given):
    images, labels = given
    with pytest.raises(ValueError, match=r"keep_bytes must be False .*, got torch.float32"):
        from_tensors(images.float(), labels, keep_bytes=True)
    with pytest.raises(ValueError, match=r"keep_bytes must be False .* with zca"):
        from_tensors(images, labels, keep_bytes=True, zca=True)
    with pytest.raises(ValueError, match="test images must be uint8"):
        from_tensors(images, labels, (images.float(), labels), keep_bytes=True)
    with pytest.raises(ValueError, match=r"keep_bytes is for folders, .* digits is read into"):
        load_data("digits", keep_bytes=True)
    with pytest.raises(ValueError, match="keep_bytes must be left out beside ImageData"):
        distill.run(dataclasses.replace(load_data("digits")), method="dm", keep_bytes=True)
    with pytest.raises(ValueError, match="must have one dtype"):
        from_dataset([(images[0], 0), (images[1].float(), 1)])
