"""docs/extend.md: its files work on the command line, in Python and in workers, by themselves."""

import json
import os
import re
import subprocess
import sys

import pytest
from places import ROOT

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
(SHELL,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
HELP, DISTIL = [line.split()[1:] for line in SHELL.replace("\\\n", " ").strip().splitlines()]
SEARCH_PATH = os.pathsep.join(sys.path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    for name, content in FILES.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def python(folder, *words, **variables):
    environment = {**os.environ, "PYTHONPATH": SEARCH_PATH, "COLUMNS": "100", **variables}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_file_is_a_method_with_options_of_its_own(folder):
    told = python(folder, "-m", "mim4dd", *HELP)
    assert re.search(
        r"^Method mean outputs:\n  --batch-real <?int>? +Real images of each class",
        told,
        re.M | re.I,
    )
    assert "--syn-steps" not in told


def test_files_are_method_network_and_data_set_in_workers_too(folder):
    words = [word for word in DISTIL[1:] if word != "runs/mine"][:-1]
    python(
        folder,
        "-m",
        "mim4dd",
        "sweep",
        *words,
        "--vary=batch_real=4,16",
        "--seeds=1",
        "--out=sweep",
    )
    for name in ("base", "batch_real=4"):
        options = json.loads((folder / "sweep/runs" / name / "seed0/config.json").read_text())
        chosen = {"method": "mean_outputs", "network": "one_layer", "data": "stripes", "units": 32}
        assert options.items() >= chosen.items()
        assert not {"syn_steps", "width", "experts"} & options.keys()
        assert json.loads((folder / "sweep/runs" / name / "seed0/result.json").read_text())[
            "accuracy"
        ]


def test_in_python_and_by_entry_points(folder):
    """What a package lists is there by name; what cannot be imported is warned of, and no more."""
    package = folder / "installed-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: installed\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[mim4dd.methods]\nmean_outputs = mean_outputs\n"
        "[mim4dd.networks]\none_layer = one_layer\nlost = nowhere_to_be_found\n"
    )
    program = """
import warnings
from mim4dd import distill
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    config = distill.resolve(method="mean_outputs", network="one_layer", units=5, batch_real=7)
print(config.method, config.network, [str(each.message) for each in caught])
"""
    told = python(folder, "-c", program)
    assert "MeanOutputsSettings(batch_real=7) OneLayerSettings(units=5)" in told
    assert "entry point lost of mim4dd.networks, nowhere_to_be_found, cannot be loaded" in told
