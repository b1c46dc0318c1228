"""Every kind of file that mim4dd reads: a small whole one, and what reading it must come to."""

import gzip
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mim4dd import distill
from mim4dd.distill.commands.cross import load_run
from mim4dd.distill.commands.set_files import load_judged
from mim4dd.distill.config.commands import DistillConfig
from mim4dd.distill.config.file import read_config
from mim4dd.distill.data import ImageData, from_tensors, load_data
from mim4dd.distill.experts import ExpertBuffer
from mim4dd.distill.experts.buffer import (
    describe_task,
    expert_header,
    expert_path,
    parameter_shapes,
    save_expert,
)
from mim4dd.distill.experts.replay_buffer import import_replay_buffers
from mim4dd.distill.identity.data import describe_data
from mim4dd.distill.report.html import summary
from mim4dd.distill.reproduce.table import write_table
from mim4dd.distill.runs import RunDirectory, SyntheticSet, read_sets
from mim4dd.distill.sweep.grid import base_of, make_grid
from mim4dd.distill.sweep.job import Result
from mim4dd.distill.sweep.jobs import claim, claim_sources
from mim4dd.distill.sweep.table import summarize
from mim4dd.distill.training.kept import KeptTraining
from mim4dd.distill.training.network import train_network

__all__ = ["FORMATS", "Format"]

_OPTIONS = {"method": "dm", "weight": 0.0, "width": 4, "depth": 1, "batch_real": 4}
_RUN = {**_OPTIONS, "iterations": 3, "eval_every": 0, "checkpoint_every": 1, "keep_every": 1}


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Args:
        make: Writes whole files into an empty folder.
        read: Reads them as the library's users do, and asserts that what comes is consistent.
        expands: How often larger a file may become by being unpacked.
        cost: How often longer a case takes than that of a small file, roughly.
        memory: Bytes that reading may take beside four times the file. Of an image these are the
            most that Pillow unpacks without a warning, before and after it is converted.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    expands: int = 1
    cost: int = 1
    memory: int = 96 * 2**20


@cache
def _data() -> ImageData:
    torch.manual_seed(0)
    labels = torch.arange(3).repeat(8)
    return from_tensors(torch.rand(24, 1, 6, 6) + labels.view(-1, 1, 1, 1), labels, name="bars")


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def _check_data(data: ImageData) -> None:
    for images, labels in (
        (data.image_train, data.label_train),
        (data.image_test, data.label_test),
    ):
        assert len(images) == len(labels) > 0
        assert 0 <= labels.min() <= labels.max() < data.num_classes
        assert images.dim() in (2, 4)
    assert len(data.class_names) == data.num_classes


def _check_set(synthetic: SyntheticSet) -> None:
    repr(synthetic)
    assert len(synthetic.image_syn) == len(synthetic.label_syn) == len(synthetic.class_syn)
    assert synthetic.pixels.shape == synthetic.image_syn.shape
    assert synthetic.syn_lr.shape == ()
    assert all(isinstance(name, str) for name in synthetic.class_names)
    assert len(synthetic.per_class) == len(synthetic.class_names)
    if synthetic.label_syn.dim() == 2:
        assert synthetic.label_syn.shape[1] == len(synthetic.class_names)
    normalization = synthetic.normalization
    if normalization is not None:
        normalization(synthetic.pixels)
    synthetic.with_accuracy("again", [0.5]).provenance.to_json()


# Sets


def _a_set() -> SyntheticSet:
    torch.manual_seed(1)
    images, labels = torch.rand(6, 1, 6, 6), torch.arange(3).repeat(2)
    data = _data()
    made_of = json.loads(json.dumps(describe_data(data)))
    made = SyntheticSet(
        images,
        labels,
        labels,
        torch.tensor(0.1),
        data.normalization.inverse(images),
        "abc",
        made_of,
    )
    return made.with_accuracy("convnet", [0.5, 0.25])


def _make_set(folder: Path) -> None:
    _a_set().save(folder / "set.safetensors")


def _read_own_set(folder: Path) -> None:
    path = folder / "set.safetensors"
    for synthetic in read_sets(path):
        _check_set(synthetic)
    load_judged(path, None, {"data": "digits"}, {})


def _make_mtt(folder: Path) -> None:
    torch.manual_seed(2)
    torch.save(torch.randn(6, 1, 6, 6), folder / "images_best.pt")
    torch.save(torch.randn(6, 3), folder / "labels_best.pt")
    torch.save(torch.tensor(0.02), folder / "lr_best.pt")


def _make_mtt_before_zip(folder: Path) -> None:
    torch.manual_seed(3)
    for name, value in (("images", torch.randn(6, 1, 6, 6)), ("labels", torch.arange(6) % 3)):
        path = folder / f"{name}_5.pt"
        torch.save(value, path, _use_new_zipfile_serialization=False)


def _make_dc(folder: Path) -> None:
    torch.manual_seed(4)
    pairs = [[torch.randn(3, 1, 6, 6), torch.arange(3)] for _ in range(2)]
    content = {"data": pairs, "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}
    torch.save(content, folder / "res_DC_bars_ConvNet_1ipc.pt")


def _read_foreign(folder: Path) -> None:
    path = next(iter(folder.glob("res_*")), folder)
    for synthetic in read_sets(path, _data()):
        _check_set(synthetic)


# Experts


def _make_experts(folder: Path) -> None:
    network, data = _network(), _data()
    for index in range(2):
        torch.manual_seed(index)
        header = expert_header(
            "linear", data.name, training=None, task=describe_task(network, data)
        )
        trajectory = torch.randn(4, 36 * 3 + 3)
        save_expert(
            expert_path(folder, index), trajectory, parameter_shapes(network), header, 0.5, 1.5
        )


def _train(folder: Path) -> None:
    """Train and keep it, or go on from where it is."""
    network, data = _network(), _data()
    kept = KeptTraining(folder / "training.safetensors", {"data": data.name})
    train_network(
        network,
        data.image_train,
        data.label_train,
        num_steps=4,
        lr=0.01,
        momentum=0.9,
        weight_decay=0.0,
        batch_size=5,
        generator=torch.Generator().manual_seed(0),
        kept=kept,
    )
    assert kept.seconds > 0


def _read_experts(folder: Path) -> None:
    experts = ExpertBuffer(folder)
    assert len(experts) == len(list(folder.glob("expert_*.safetensors")))
    experts.identity()
    assert experts.seconds is None or experts.seconds >= 0
    for expert in range(len(experts)):
        start, target = experts.segment(expert, 0, experts.num_epochs)
        assert start.shape == target.shape == (experts.num_parameters,)
        assert experts.trajectory(expert).shape == (experts.num_epochs + 1, experts.num_parameters)
    experts.require_task(_network(), _data())


def _make_replay(folder: Path) -> None:
    torch.manual_seed(5)
    shapes = parameter_shapes(_network())
    trajectories = [[[torch.randn(s) for s in shapes] for _ in range(3)] for _ in range(2)]
    torch.save(trajectories, folder / "replay_buffer_0.pt")
    torch.save(
        trajectories[:1], folder / "replay_buffer_1.pt", _use_new_zipfile_serialization=False
    )


def _read_replay(folder: Path) -> None:
    experts = import_replay_buffers(folder, folder / "out", _network(), "linear", "bars")
    assert all(experts.trajectory(index).isfinite().all() for index in range(len(experts)))


# Configurations


def _make_json(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(DistillConfig.resolve(**_OPTIONS).options()))


def _make_yaml(folder: Path) -> None:
    lines = {"method": "mtt", "weight": "1e-1", "ipc": 2, "depth": 1}
    text = "".join(f"{name}: {value}\n" for name, value in lines.items())
    (folder / "config.yaml").write_text("# a comment\n" + text)


def _read_json(folder: Path) -> None:
    _check_configuration(folder / "config.json")


def _read_yaml(folder: Path) -> None:
    _check_configuration(folder / "config.yaml")


def _check_configuration(path: Path) -> None:
    config = read_config(path, DistillConfig)
    assert DistillConfig.of(**config.options()) == config


# Runs


def _make_run(folder: Path) -> None:
    distill.run(_data(), out=folder, **_RUN)


def _read_run(folder: Path) -> None:
    run = distill.open_run(folder, _data())
    repr(run)
    _check_set(run.synthetic)
    assert all(isinstance(row, dict) for row in run.metrics)
    judged = load_run(folder)
    _check_set(judged.synthetic)
    directory = RunDirectory(folder)
    summary(directory)
    for iteration in {*directory.iterations(), *directory.kept_sets()}:
        synthetic, reached = directory.load_set(iteration)
        _check_set(synthetic)
        assert reached == iteration


def _resume_run(folder: Path) -> None:
    run = distill.open_run(folder, _data())
    run.train(iterations=4)
    _check_set(run.synthetic)


# Archives of data sets


def _bytes(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def _idx(values: np.ndarray) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim)
    return header + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def _write_mnist(folder: Path, end: str, pack: Callable[[bytes], bytes]) -> None:
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, values in (("images-idx3", _bytes(count, 8, 8)), ("labels-idx1", labels)):
            (raw / f"{part}-{kind}-ubyte{end}").write_bytes(pack(_idx(values)))


def _make_mnist(folder: Path) -> None:
    _write_mnist(folder, "", bytes)


def _make_mnist_packed(folder: Path) -> None:
    _write_mnist(folder, ".gz", gzip.compress)


def _make_cifar10(folder: Path) -> None:
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        content = {"data": _bytes(10, 3072), "labels": list(range(10)), "filenames": ["a"] * 10}
        (batches / name).write_bytes(pickle.dumps(content, protocol=2))
    names = {"label_names": list("abcdefghij"), "num_vis": 3072}
    (batches / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))


def _make_cifar10_binary(folder: Path) -> None:
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir()
    records = b"".join(bytes([label]) + _bytes(3072).tobytes() for label in range(10))
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (batches / f"{name}.bin").write_bytes(records)
    (batches / "batches.meta.txt").write_text("\n".join("abcdefghij"))


def _make_cifar100(folder: Path) -> None:
    batches = folder / "cifar-100-python"
    batches.mkdir()
    for name in ("train", "test"):
        content = {"data": _bytes(100, 3072), "fine_labels": list(range(100))}
        (batches / name).write_bytes(pickle.dumps(content, protocol=4))
    names = {"fine_label_names": [f"class {index}" for index in range(100)]}
    (batches / "meta").write_bytes(pickle.dumps(names, protocol=5))


def _make_svhn(folder: Path) -> None:
    from scipy.io import savemat

    for name, packed in (("train", True), ("test", False)):
        labels = (np.arange(10) % 10 + 1).astype(np.uint8)[:, None]
        content = {"X": _bytes(32, 32, 3, 10), "y": labels}
        savemat(folder / f"{name}_32x32.mat", content, do_compression=packed)


def _make_tiny_imagenet(folder: Path) -> None:
    from PIL import Image

    root = folder / "tiny-imagenet-200"
    classes = ("n01", "n02")
    (root / "val/images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(classes))
    (root / "words.txt").write_text("n01\ta, b\nn02\tc\n")
    for wnid in classes:
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        Image.fromarray(_bytes(64, 64, 3)).save(images / f"{wnid}_0.JPEG")
    lines = []
    for index, wnid in enumerate(classes):
        Image.fromarray(_bytes(64, 64, 3)).save(root / f"val/images/val_{index}.JPEG")
        lines.append(f"val_{index}.JPEG\t{wnid}\t0\t0\t9\t9")
    (root / "val/val_annotations.txt").write_text("\n".join(lines))


def _make_images(folder: Path) -> None:
    from PIL import Image

    endings = ("png", "jpg", "bmp", "ppm", "tif", "webp", "gif")
    for name in ("a", "b"):
        (folder / name).mkdir()
        for index, ending in enumerate(endings):
            image = Image.fromarray(_bytes(8, 8, 3))
            if ending == "gif":  # which some name otherwise
                image.save(folder / name / f"{index}.png", "GIF")
                continue
            packed = {"compression": "tiff_lzw"} if ending == "tif" and name == "a" else {}
            image.save(folder / name / f"{index}.{ending}", **packed)


def _reader(name: str) -> Callable[[Path], object]:
    return lambda folder: _check_data(load_data(name, data_path=folder))


def _read_images(folder: Path) -> None:
    _check_data(load_data(str(folder), image_size=8))


# Sweeps and rows of tables


_ROW = Path(__file__).resolve().parents[2] / "docs/reproduce/mnist-dm-ipc1-0.json"


@cache
def _settings() -> list[Any]:
    return make_grid({**_OPTIONS, "data": "digits"}, {"weight": [0.0, 0.1]}, False)


def _make_sweep(folder: Path) -> None:
    claim(folder, base_of(_settings()))
    claim_sources(folder, _settings()[:1])
    result = {"seed": 0, "accuracy": [0.5, 0.25], "num_classes": 10, "seconds": 1.5}
    result |= {"cpu_seconds": 1.5, "peak_bytes": 2**20, "metrics": {"loss": 0.5}}
    (folder / "result.json").write_text(json.dumps(result))


def _read_sweep(folder: Path) -> None:
    claim(folder, base_of(_settings()))
    claim_sources(folder, _settings()[:1])
    result = Result.read(folder / "result.json")
    real = Result(seed=0, accuracy=(0.5,))
    summarize(_settings()[0], [result], [real], None, [result])


def _make_rows(folder: Path) -> None:
    shutil.copy(_ROW, folder)


def _read_rows(folder: Path) -> None:
    write_table(folder)


_OF_IMAGES = 2 * 4 * 89_478_485

FORMATS = {
    "set": Format(_make_set, _read_own_set),
    "mtt": Format(_make_mtt, _read_foreign),
    "mtt before zip": Format(_make_mtt_before_zip, _read_foreign),
    "dc": Format(_make_dc, _read_foreign),
    "experts": Format(_make_experts, _read_experts),
    "training": Format(_train, _train),
    "replay buffers": Format(_make_replay, _read_replay),
    "json": Format(_make_json, _read_json),
    "yaml": Format(_make_yaml, _read_yaml),
    "run": Format(_make_run, _read_run),
    "resumed run": Format(_make_run, _resume_run, cost=20),
    "mnist": Format(_make_mnist, _reader("mnist")),
    "mnist packed": Format(_make_mnist_packed, _reader("mnist"), expands=4),
    "cifar10": Format(_make_cifar10, _reader("cifar10")),
    "cifar10 binary": Format(_make_cifar10_binary, _reader("cifar10")),
    "cifar100": Format(_make_cifar100, _reader("cifar100")),
    "svhn": Format(_make_svhn, _reader("svhn")),
    "tiny imagenet": Format(_make_tiny_imagenet, _reader("tiny_imagenet"), memory=_OF_IMAGES),
    "images": Format(_make_images, _read_images, memory=_OF_IMAGES),
    "sweep": Format(_make_sweep, _read_sweep),
    "rows": Format(_make_rows, _read_rows),
}
