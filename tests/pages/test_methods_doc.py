"""docs/methods.md: its example runs, alone and with the add-on, and does what it says."""

import re

import pytest
import torch
from places import ROOT

from mim4dd.distill.methods import METHODS
from mim4dd.distill.runs import RunDirectory, SyntheticSet

PAGE = (ROOT / "docs" / "methods.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
ITERATIONS = 12


def test_every_method_has_a_section():
    sections = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    for kind in METHODS.values():
        assert any(kind.title in section for section in sections), kind.title


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    torch.manual_seed(0)
    for number, block in enumerate(BLOCKS):
        block = block.replace("iterations=50", f"iterations={ITERATIONS}")
        exec(compile(block, f"docs/methods.md, block {number}", "exec"), names)
    runs = [RunDirectory("runs/mean"), RunDirectory("runs/mean+mim4dd")]
    for run, result in zip(runs, (names["alone"], names["both"]), strict=True):
        rows = run.read_metrics()
        losses = [row["loss"] for row in rows[:-1]]
        assert len(losses) == ITERATIONS
        assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
        assert torch.equal(SyntheticSet.load(run.synthetic).image_syn, result.image_syn)
    assert not torch.equal(names["alone"].image_syn, names["both"].image_syn)
    with_addon = runs[1].read_metrics()[0]
    assert with_addon["mi_lower_bound"] == pytest.approx(with_addon["mi_lower_bound/1"])
    assert "mi_lower_bound" not in runs[0].read_metrics()[0]
