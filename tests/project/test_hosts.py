"""Containers and plain machines: no home, no UTF-8, no /proc, no room, paths of any kind."""

import csv
import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import hostile_host
import pytest
import torch
from PIL import Image

from mim4dd.cli.signs import print_any_sign
from mim4dd.distill.data import from_folder
from mim4dd.distill.files.atomic import readable, require_writable, write_text
from mim4dd.distill.pictures import draw_grid, save_figure
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.runtime import cost
from mim4dd.distill.runtime.memory import available_memory
from mim4dd.distill.runtime.processes import run_parallel

CPU = torch.device("cpu")


def test_the_command_line_without_a_home_utf8_tmp_or_proc(tmp_path):
    folder = tmp_path / "aus gabe ä"
    folder.mkdir()
    bare = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", hostile_host.__file__, os.fsencode(folder)],
        env=bare
        | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        | {"PYTHONIOENCODING": "latin-1:strict", "OMP_NUM_THREADS": "1"}
        | {"HOME": f"{os.devnull}/home", "TMPDIR": str(tmp_path / "absent")},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=180,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    statuses = json.loads((folder / "statuses.json").read_bytes())
    refusals = {name: statuses.pop(name) for name in list(statuses) if name.endswith("nowhere")}
    assert statuses == dict.fromkeys(statuses, 0), done.stderr.decode(errors="replace")
    for refusal in refusals.values():
        assert "cannot be written (Not a directory); choose another place" in refusal
    table = (folder / "table.csv").read_text("utf-8")
    assert next(csv.DictReader(io.StringIO(table)))["set"] == str(folder / "run")
    assert RunDirectory(folder / "run").read_config()["data_path"] == "größe"
    # The name as its bytes are; a dash in the place of one that Latin-1 does not have.
    assert f"{folder}/run/synthetic.safetensors".encode() in done.stdout
    assert b" (-) % of 1 networks" in done.stdout
    assert (folder / "page.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8", "é ± – → … ≤ × θ ‖ 字 ".encode() + b"\xff"),
        ("latin-1", b"\xe9 \xb1 - -> ... <= \xd7 theta | ? \xff"),
        ("ascii", b"? +- - -> ... <= x theta | ? \xff"),
    ],
)
def test_signs_that_an_encoding_lacks_are_printed_in_ascii(encoding, printed):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    print_any_sign([stream, io.StringIO(), None])
    stream.write("é ± – → … ≤ × θ ‖ 字 " + os.fsdecode(b"\xff"))
    stream.flush()
    assert stream.buffer.getvalue() == printed


@pytest.mark.parametrize("content", [None, b"Name:\tpython\nVmRSS:\t  100 kB\n", b"\xff\n"])
def test_the_peak_where_the_kernel_does_not_say(content, tmp_path, monkeypatch):
    status = tmp_path / "status"
    if content is not None:
        status.write_bytes(content)
    monkeypatch.setattr(cost, "_STATUS", status)
    assert cost.peak_bytes(CPU) > 2**20


def test_memory_where_the_kernel_does_not_say(tmp_path, monkeypatch):
    for place in (tmp_path / "absent", tmp_path):  # a folder cannot be read as a file
        monkeypatch.setattr("mim4dd.distill.runtime.memory._MEMINFO", place)
        assert available_memory(CPU) is None


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(
        OSError, match=r"file/a\.csv cannot be written \(.*\); choose another place"
    ):
        require_writable(file / "a.csv")
    require_writable(tmp_path / "new" / "a.csv")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_failed_write_says_which_file_where_nothing_can_be_removed(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), ".a.txt.0")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match=r"/a\.txt could not be written \(Read-only file system\)"):
        write_text(path, "text")


def test_text_keeps_the_bytes_of_file_names(tmp_path):
    write_text(tmp_path / "a.txt", "größe " + os.fsdecode(b"\xff"))
    assert (tmp_path / "a.txt").read_bytes() == "größe ".encode() + b"\xff"


@pytest.mark.parametrize("name", ["größe", "größe".encode().decode("ascii", "surrogateescape")])
def test_a_name_is_the_same_text_in_every_locale(name):
    assert readable(name) == "größe"


def test_folders_whose_names_are_no_text_are_distilled_and_drawn(tmp_path):
    root = tmp_path / os.fsdecode(b"b\xf6s")
    for name in (os.fsdecode(b"\xfc"), "ä".encode().decode("ascii", "surrogateescape")):
        for number in range(2):
            file = root / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 100 * number).save(file)
    data = from_folder(root)
    assert (data.name, data.class_names) == ("b\ufffds", ("ä", "\ufffd"))
    figure = draw_grid(
        {"": data.image_train[:2]}, data.label_train[:2], data.class_names, data.name
    )
    save_figure(tmp_path / "grid.png", figure)


class Full:
    """What torch raises on pickling a tensor where /dev/shm has no room for it."""

    def __call__(self, worker):
        raise AssertionError("not reached")

    def __reduce__(self):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left"
        )


def test_shared_memory_without_room_is_said_in_one_sentence():
    with pytest.raises(OSError, match=r"workers get their data .* --shm-size=2g does, or take one"):
        list(run_parallel(Full(), [1, 2], workers=2))
