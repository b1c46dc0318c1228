"""Files that somebody, or a disk, has changed: refused by their name, at no cost, or read right."""

import gzip
import io
import json
import math
import os
import pickle
import random
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from fuzz.cases import make_templates, run_case
from fuzz.formats import FORMATS
from PIL import Image
from scipy.io import savemat

from mim4dd.distill.data import load_data
from mim4dd.distill.data.readers.mat_file import read_arrays
from mim4dd.distill.experts import ExpertBuffer
from mim4dd.distill.experts.replay_buffer import read_replay_buffer
from mim4dd.distill.files.atomic import load_tensors, read_json, save_tensors
from mim4dd.distill.files.plain_pickle import load_plain_pickle
from mim4dd.distill.files.tensor_files import load_torch_file
from mim4dd.distill.runs import RunDirectory, SyntheticSet
from mim4dd.distill.spread import Spread
from mim4dd.distill.sweep.job import Result

PER_FORMAT = 8


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    return make_templates(tmp_path_factory.mktemp("fuzz").resolve(), list(FORMATS))


@pytest.fixture
def read(templates, tmp_path):
    """A whole copy of the files of a format, and how they are read."""

    def copied(name):
        folder = tmp_path / "copy"
        shutil.copytree(templates[name], folder)
        return folder, FORMATS[name].read

    return copied


@pytest.mark.parametrize("name", FORMATS)
def test_changed_files_are_read_or_refused_by_name(name, templates, tmp_path):
    """A few of what `make fuzz` tries."""
    first = random.Random(torch.initial_seed()).randrange(2**30)
    for number in range(max(1, PER_FORMAT // FORMATS[name].cost)):
        (tmp_path / f"case{number}").mkdir()
        _, fault = run_case(name, first + number, templates[name], tmp_path / f"case{number}")
        assert fault is None, fault


# What the first 20,000 found.


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"a": \\ud800}', '{"a": "\\ud800"}', "[" * 100_000, '{"a": ' + "9" * 5000 + "}",
     '{"a": ' + "9" * 400 + "}", "[]", "null", "\x00\xff"],
)  # fmt: skip
def test_json_that_is_no_object_of_plain_values_is_refused(text, tmp_path):
    path = tmp_path / "values.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"values\.json (is not readable as|must hold a) JSON"):
        read_json(path)
    save_tensors(tmp_path / "t.safetensors", {"a": torch.ones(1)}, {})
    # The same text as the header that safetensors holds as a string.
    header = json.dumps({"__metadata__": {"mim4dd": text}}).encode()
    (tmp_path / "t.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"the header of .*t\.safetensors (is not|must)"):
        load_tensors(tmp_path / "t.safetensors")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["set", "mtt", "experts", "json", "yaml", "mnist", "svhn"])
def test_what_is_no_file_is_refused(name, kind, read):
    """A pipe would block, and a device has no end."""
    folder, reader = read(name)
    for path in [each for each in folder.rglob("*") if each.is_file()]:
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
    with pytest.raises((ValueError, OSError), match=str(folder)):
        reader(folder)


@pytest.mark.parametrize(
    "line",
    ["data: [&a [1, 1], *a]", "ipc: !!int 0b", "ipc: !!float .", "method: !!set {a}", "0: 1",
     "ipc: !!timestamp x", "data: 0000-00-00", "data: !!python/object/apply:os.system ['true']",
     "method: []", "method: {}", "network: [1]", "data: " + "[" * 2000],
)  # fmt: skip
def test_yaml_of_other_kinds_is_refused_by_name(line, read):
    pytest.importorskip("yaml")
    folder, reader = read("yaml")
    (folder / "config.yaml").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        reader(folder)


def repacked(content, compression):
    """A zip file of the same members."""
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as source,
        zipfile.ZipFile(target, "w", compression) as archive,
    ):
        for member in source.infolist():
            archive.writestr(member.filename, source.read(member))
    return target.getvalue()


def test_a_torch_file_may_not_hold_more_than_it_is(tmp_path):
    path = tmp_path / "images.pt"
    torch.save(torch.zeros(1000, 1000), path)
    packed = repacked(path.read_bytes(), zipfile.ZIP_DEFLATED)
    assert len(packed) < 20_000
    path.write_bytes(packed)
    with pytest.raises(ValueError, match=r"images\.pt is truncated.*compressed"):
        load_torch_file(path)
    torch.save(torch.zeros(1).expand(2**33), path)
    with pytest.raises(ValueError, match=r"images\.pt .*a tensor \(8589934592,\) of 4 bytes"):
        load_torch_file(path)
    endless = torch.zeros(3)
    for _ in range(40):
        endless = [endless, endless]
    torch.save(endless, path)
    with pytest.raises(ValueError, match=r"images\.pt .*lists in more places than it has bytes"):
        load_torch_file(path)
    torch.save(torch.eye(3).to_sparse(), path)
    with pytest.raises(ValueError, match=r"images\.pt .*not dense"):
        load_torch_file(path)
    tensors = [torch.zeros(3), torch.ones(2)]
    torch.save({"a": tensors, "b": (tensors[0],)}, path)
    assert torch.equal(load_torch_file(path)["a"][1], torch.ones(2))


def test_a_parameter_has_one_place_among_experts(tmp_path):
    path, tensors = tmp_path / "replay_buffer_0.pt", [torch.zeros(1000), torch.ones(1000)]
    torch.save([[[tensors[epoch % 2]] for epoch in range(100)]], path)
    assert path.stat().st_size < 40_000
    with pytest.raises(ValueError, match=r"replay_buffer_0\.pt must hold every parameter once"):
        read_replay_buffer(path)


def test_a_text_without_end_in_a_torch_file_is_refused_at_once(tmp_path):
    """torch searches what it says of a name by an expression that is quadratic in its length."""
    path = tmp_path / "labels.pt"
    for zipped in (True, False):
        torch.save({"a" * 10_001: 1}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"labels\.pt .*a text of 10001 characters"):
            load_torch_file(path)


@pytest.mark.parametrize(
    "content", [b"\x00" * 2000, b"", b"ustar" * 200, b"PK\x05\x06" + bytes(18)]
)
def test_no_folder_is_made_for_what_is_no_torch_file(content, tmp_path, monkeypatch):
    """torch takes zeros for an empty archive of its first format, and unpacks it."""
    monkeypatch.setattr("tempfile.mkdtemp", lambda *_: pytest.fail("a temporary folder"))
    (tmp_path / "labels.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"labels\.pt is truncated"):
        load_torch_file(tmp_path / "labels.pt")


def tuple_of_tuples(depth):
    """A key whose hash takes 2^depth steps."""
    inner = b"K\x01\x85"
    for number in range(depth):
        inner += b"q" + bytes([number]) + b"h" + bytes([number]) + b"\x86"
    return b"\x80\x02}" + inner + b"K\x01s."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02}r\xff\xff\xff\x7f.", "notes a value by the number 2147483647"),
        (b"\x80\x02}p999999999\n.", "notes a value by the number 999999999"),
        (tuple_of_tuples(60), "one tuple in two places"),
        (b"\x80\x02}K\x01\x85" + b"2\x86" * 60 + b"K\x01s.", "one tuple in two places"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"a.", "truncated or not a plain pickle"),
    ],
)
def test_a_pickle_that_would_take_memory_or_time_is_refused(content, message, tmp_path):
    (tmp_path / "meta").write_bytes(content)
    with pytest.raises(ValueError, match=f"meta is truncated.*{message}|meta is {message}"):
        load_plain_pickle(tmp_path / "meta")


def test_an_array_has_one_place_in_a_pickle(tmp_path):
    content = {str(number): np.zeros(5000, np.uint8) for number in range(3)}
    (tmp_path / "batch").write_bytes(pickle.dumps(content, protocol=2))
    assert len(load_plain_pickle(tmp_path / "batch")) == 3
    array = np.zeros(5000, np.uint8)
    (tmp_path / "batch").write_bytes(pickle.dumps(dict.fromkeys("abc", array), protocol=2))
    with pytest.raises(ValueError, match="batch must hold an array in one place"):
        load_plain_pickle(tmp_path / "batch")


def test_no_more_is_unpacked_than_the_header_of_an_idx_file_says(read):
    folder, reader = read("mnist packed")
    path = folder / "MNIST/raw/train-labels-idx1-ubyte.gz"
    header = struct.pack(">BBBBI", 0, 0, 8, 1, 20)
    path.write_bytes(gzip.compress(header + bytes(2**24)))
    with pytest.raises(
        ValueError, match=r"idx1-ubyte\.gz .*header says \[20\] values, it holds 21"
    ):
        reader(folder)
    path.write_bytes(gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 2**32 - 1)))
    with pytest.raises(ValueError, match=r"idx1-ubyte\.gz .*header says \[4294967295\] values"):
        reader(folder)


def test_images_that_pillow_would_run_or_warn_of_are_refused(read):
    folder, reader = read("images")
    path = folder / "a/0.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match=r"a/0\.png cannot be read as an image"):
        reader(folder)
    Image.new("1", (10_000, 9_000)).save(path)
    assert path.stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"a/0\.png cannot be read .*90000000 pixels"):
        reader(folder)


@pytest.mark.parametrize("file", ["../../../secret.JPEG", "/etc/hostname", "images/x.JPEG"])
def test_annotations_may_name_files_beside_them_alone(file, read):
    folder, reader = read("tiny imagenet")
    annotations = folder / "tiny-imagenet-200/val/val_annotations.txt"
    annotations.write_text(f"{file}\tn01\t0\t0\t9\t9\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt must hold an image and a class"):
        reader(folder)


def test_text_that_is_not_utf8_is_refused_by_name(read):
    folder, reader = read("tiny imagenet")
    (folder / "tiny-imagenet-200/words.txt").write_bytes(b"n01\t\xff\n")
    with pytest.raises(ValueError, match=r"words\.txt is not UTF-8"):
        reader(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, header: tensors.pop("pixels"), "it lacks pixels"),
        (lambda tensors, header: tensors.update(x=torch.ones(1)), "it has x"),
        (lambda tensors, header: tensors.update(syn_lr=torch.ones(2)), r"syn_lr must be \(\)"),
        (lambda tensors, header: tensors.update(class_syn=torch.full((6,), 3)), "from 0 to 2"),
        (lambda tensors, header: tensors.update(label_syn=torch.rand(6, 2)), r"must be \(6, 3\)"),
        (lambda tensors, header: tensors.update(image_syn=torch.ones(6)), "image_syn must be"),
        (lambda tensors, header: header.pop("class_names"), "class_names must be of type list"),
        (lambda tensors, header: header.update(class_names=[1, 2, 3]), "must be of type str"),
        (lambda tensors, header: header["made_of"].update(normalization=[1]), "normalization"),
        (lambda tensors, header: header.update(tiles=7), "divide the sides of images, got 7"),
        (lambda tensors, header: header.update(tiles="2"), "tiles must be of type"),
        (lambda tensors, header: header["provenance"].update(extra=1), "must not hold extra"),
        (lambda tensors, header: header["provenance"].update(accuracies=[{}]), "network"),
        (
            lambda tensors, header: header["provenance"]["accuracies"][0].update(
                values=[2.0, 1e308]
            ),
            "must be from 0 to 1, got 2.0",
        ),
    ],
)
def test_a_set_whose_parts_do_not_fit_is_refused(change, message, read):
    folder, _ = read("set")
    path = folder / "set.safetensors"
    tensors, header = load_tensors(path)
    change(tensors, header)
    save_tensors(path, tensors, header)
    with pytest.raises(ValueError, match=rf"set\.safetensors: .*{message}"):
        SyntheticSet.load(path)


def test_a_broken_line_of_metrics_is_refused_and_one_cut_off_left_out(read):
    folder, _ = read("run")
    run = RunDirectory(folder)
    rows = run.read_metrics()
    whole = run.metrics.read_bytes()
    run.metrics.write_bytes(whole + b'{"iteration": 4')
    assert run.read_metrics() == rows
    run.metrics.write_bytes(b'{"iteration"\n' + whole)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 is not readable as JSON"):
        run.read_metrics()
    run.metrics.write_bytes(whole + b'{"iteration": 4, "loss": "low"}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line \d+: \['loss'\] must be of type"):
        run.read_metrics()


def test_a_data_set_names_where_it_lies(read):
    folder, _ = read("cifar10 binary")
    (folder / "cifar-10-batches-bin/batches.meta.txt").write_text("a b c")
    with pytest.raises(ValueError, match=f"{folder}: class_names must name 10 classes, got 3"):
        load_data("cifar10", data_path=folder)


def mat_files(folder):
    return folder / "train_32x32.mat", folder / "test_32x32.mat"


def test_an_element_of_a_matlab_file_is_no_longer_than_the_file(read):
    """Such a file ended the process within SciPy."""
    folder, reader = read("svhn")
    packed, plain = mat_files(folder)
    content = bytearray(plain.read_bytes())
    whole = bytes(content)
    content[132:136] = struct.pack("<I", 2**31)
    plain.write_bytes(content)
    with pytest.raises(ValueError, match=r"test_32x32\.mat .*2147483648 bytes ends after the file"):
        reader(folder)
    plain.write_bytes(whole)
    element = zlib.compress(struct.pack("<II", 14, 2**20) + bytes(2**24))
    packed.write_bytes(packed.read_bytes()[:128] + struct.pack("<II", 15, len(element)) + element)
    with pytest.raises(ValueError, match=r"train_32x32\.mat is truncated"):
        reader(folder)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("packed", [False, True])
def test_arrays_of_matlab_files_are_those_that_scipy_wrote(kind, packed, tmp_path):
    values = {"X": np.arange(24).reshape(2, 3, 4).astype(kind), "y": np.ones((1, 1), kind)}
    others = {"text": "abc", "cells": np.array([1, "a"], object), "z": np.ones(2) * 1j}
    savemat(tmp_path / "a.mat", others | values, do_compression=packed)
    found = read_arrays(tmp_path / "a.mat")
    assert found.keys() == values.keys()
    for name, array in values.items():
        np.testing.assert_array_equal(found[name].numpy(), array)


def test_the_spread_of_what_is_infinite_is_not_a_number():
    assert Spread.of([math.inf, 0.5]).std != Spread.of([math.inf, 0.5]).std


@pytest.mark.parametrize("name", ["seconds", "accuracy", "task"])
def test_experts_need_not_say_what_they_took(name, read):
    folder, _ = read("experts")
    for path in folder.glob("*.safetensors"):
        tensors, header = load_tensors(path)
        del header[name]
        save_tensors(path, tensors, header)
    assert ExpertBuffer(folder).seconds == (None if name == "seconds" else 3.0)


@pytest.mark.parametrize("identity", [None, {}, {"settings": []}])
def test_a_checkpoint_that_does_not_say_what_it_is_of_is_not_continued(identity, read):
    folder, resume = read("resumed run")
    path = RunDirectory(folder).checkpoint
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, header | {"identity": identity})
    with pytest.raises(ValueError, match=str(folder)):
        resume(folder)


@pytest.mark.parametrize("wnid", ["../../n01", "/tmp", "n" * 300])
def test_classes_are_names_and_no_paths(wnid, read):
    folder, reader = read("tiny imagenet")
    (folder / "tiny-imagenet-200/wnids.txt").write_text(f"n01\n{wnid}\n")
    with pytest.raises(ValueError, match=r"wnids\.txt must hold WordNet ids, got"):
        reader(folder)


def test_a_result_without_metrics_has_none(read):
    folder, _ = read("sweep")
    (folder / "result.json").write_text('{"seed": 0, "accuracy": [0.5], "metrics": null}')
    result = Result.read(folder / "result.json")
    assert (result.metrics, result.mi_lower_bound, result.num_classes) == ({}, None, 0)
