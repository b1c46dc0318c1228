"""docs/python.md: its programs run one after another, and do what the page says."""

import re
from pathlib import Path

import torch
from places import ROOT

from mim4dd import distill

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_programs_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    assert BLOCKS[0].count('out="runs/a"') == 1
    fewer = 'width=8, eval_epochs=5, out="runs/a"'
    for number, block in enumerate(BLOCKS):
        block = block.replace('out="runs/a"', fewer)
        exec(compile(block, f"docs/python.md, block {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("<Run of DM + MIM4DD on digits: 2 images per class, finished")
    assert "torch.Size([20, 1, 8, 8])" in printed
    assert "25 True" in printed
    assert "mi_lower_bound" in names["mtt"].metrics[0]
    losses = [row["loss"] for row in names["bars"].metrics[:-1]]
    assert [(iteration, loss) for iteration, loss, _ in names["seen"]] == [
        (2, losses[1]),
        (4, losses[3]),
    ]
    assert list(names["table"]) == [
        "distilled",
        "1 random real images per class",
        "whole training set",
    ]
    pictures = sorted(Path("folder/images").glob("*/*.png"))
    assert len(pictures) == len(names["run"].images)
    assert torch.equal(distill.open_run("runs/a").images, names["run"].images)
