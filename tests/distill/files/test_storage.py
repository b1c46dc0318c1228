"""Files are whole or not there, whatever happens while they are written."""

import os
import resource
import signal
import subprocess
import sys

import pytest
import torch

from mim4dd.distill.files.atomic import (
    load_tensors,
    read_json,
    replacing,
    save_tensors,
    write_atomically,
    write_json,
)
from mim4dd.distill.files.tensor_files import save_torch
from mim4dd.distill.runs import SyntheticSet


@pytest.fixture
def disk_limit():
    """Make writes beyond some bytes fail in the kernel, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_keeps_the_earlier_file(tmp_path, disk_limit):
    path = tmp_path / "result.safetensors"
    save_tensors(path, {"x": torch.arange(4)}, {"version": 1})
    disk_limit(4096)
    with pytest.raises(OSError, match=r"result\.safetensors could not be written .* is kept"):
        save_tensors(path, {"x": torch.zeros(10_000)}, {"version": 2})
    disk_limit(resource.RLIM_INFINITY)
    tensors, header = load_tensors(path)
    assert torch.equal(tensors["x"], torch.arange(4))
    assert header == {"version": 1}
    assert os.listdir(tmp_path) == ["result.safetensors"]


@pytest.mark.parametrize("size", [600, 1500, 30_000])
def test_a_full_disk_keeps_the_earlier_export(size, tmp_path, disk_limit):
    """torch's own errors say how far its buffer was."""
    half = torch.arange(2).repeat_interleave(20)
    sets = [
        SyntheticSet(images, half, half, torch.tensor(0.1), images, ("a", "b"))
        for images in (torch.zeros(40, 1, 2, 2), torch.rand(40, 1, 32, 32))
    ]
    sets[0].export(tmp_path / "set")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    disk_limit(size)
    with pytest.raises(OSError, match=rf"{tmp_path}/set could not be written .*; what it held is"):
        sets[1].export(tmp_path / "set")
    disk_limit(resource.RLIM_INFINITY)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    experts = [[[torch.rand(500, 100)]]]
    disk_limit(size)
    with (tmp_path / "file").open("wb", buffering=0) as file, pytest.raises(OSError, match="large"):
        save_torch(experts, file)


def test_a_crash_before_the_rename_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"version": 1})

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"version": 2})
    assert read_json(path) == {"version": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_content_is_on_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    order = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *args: (order.append("replace"), replace(*args)))
    write_atomically(tmp_path / "folder" / "file", b"content")
    assert order == ["fsync", "replace", "fsync"]
    assert (tmp_path / "folder" / "file").read_bytes() == b"content"


def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(tmp_path):
    path = tmp_path / "a.json"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from mim4dd.distill.files.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    assert not path.exists()
    with replacing(path) as file:  # at work while another process writes the same name
        assert len(os.listdir(tmp_path)) == 1
        write_json(path, {"version": 1})
        assert len(os.listdir(tmp_path)) == 2
        file.write(b'{"version": 2}')
    assert read_json(path) == {"version": 2}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("keep", [0, 5, 40, -3])
def test_a_truncated_tensor_file_is_named(keep, tmp_path):
    path = tmp_path / "buffer.safetensors"
    save_tensors(path, {"x": torch.arange(100)}, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"buffer\.safetensors is truncated or not a safetensors"):
        load_tensors(path)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_tensors(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="does not exist"):
        read_json(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="not readable as JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        read_json(tmp_path / "a.json")


def test_one_tensor_may_have_two_names(tmp_path):
    tensor = torch.arange(6)
    save_tensors(tmp_path / "file", {"whole": tensor, "again": tensor, "part": tensor[2:5]}, {})
    stored, _ = load_tensors(tmp_path / "file")
    assert {name: each.tolist() for name, each in stored.items()} == {
        "whole": [0, 1, 2, 3, 4, 5], "again": [0, 1, 2, 3, 4, 5], "part": [2, 3, 4]
    }  # fmt: skip
