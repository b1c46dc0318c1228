"""docs/sets.md: its programs and commands run, on digits in the place of CIFAR-10."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT

from mim4dd.__main__ import main
from mim4dd.distill.runs import SyntheticSet

PAGE = (ROOT / "docs" / "sets.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
QUICK = "--eval-every 0 --width 8 --depth 2 --batch-real 16 --weight 0 --num-eval 2"
FEW = "--num-eval 1 --eval-epochs 1 --no-baselines"


def write_sets_of_others():
    """What the page's commands look at; digits are its CIFAR-10."""
    folder = Path("logged_files/CIFAR10/run")
    folder.mkdir(parents=True)
    torch.save(torch.randn(10, 1, 8, 8), folder / "images_best.pt")
    torch.save(torch.arange(10), folder / "labels_best.pt")
    Path("result").mkdir()
    sets = [[torch.randn(100, 1, 8, 8), torch.arange(100) // 10]]
    torch.save({"data": sets}, "result/res_DSA_CIFAR10_ConvNet_10ipc.pt")


def test_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mim4dd.distill.runs.foreign_files.NAMES_OF_DATA", {"CIFAR10": "digits"})
    write_sets_of_others()
    names, printed = {}, []
    for number, (kind, block) in enumerate(BLOCKS):
        if kind == "sh":
            for line in block.splitlines():
                run_command(monkeypatch, line)
        elif kind == "python":
            block = block.replace('"cifar10"', '"digits"').replace("epochs=100", "epochs=30")
            exec(compile(block, f"docs/sets.md, block {number}", "exec"), names)
        printed.append(capsys.readouterr().out)
    check_what_was_printed(names, printed)
    check_tables(names)


def run_command(monkeypatch, line):
    line = line.replace("--data cifar10", "--data digits").replace("--iterations 200", QUICK)
    words = shlex.split(line)
    words += shlex.split("--iterations 2 --eval-epochs 5" if words[1] == "distill" else FEW)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, None), line


def check_what_was_printed(names, printed):
    told = dict(zip([block for _, block in BLOCKS], printed, strict=True))
    (accuracy,) = [float(out.split()[0]) for out in printed if re.fullmatch(r"[\d.]+ %\n", out)]
    assert accuracy > 60  # a tenth by chance
    sample = next(block for kind, block in BLOCKS if kind == "text")
    without_figures = re.compile(r"\d+(\.\d+)*( \(\d+\.\d\))?")
    expected = without_figures.sub("#", sample.replace(" + mim4dd", ""))
    assert without_figures.sub("#", told["print(synthetic)\n"]) == expected
    assert "res_DSA_CIFAR10_ConvNet_10ipc.pt" in printed[-2]
    assert "taken for a set of digits: normalised by ZCA, step size 0.01" in printed[-1]
    assert SyntheticSet.load("theirs.safetensors").provenance == names["theirs"].provenance


def check_tables(names):
    rows = re.findall(r"^\| `([^|]*) \|", PAGE, re.MULTILINE)
    attributes = [name for row in rows for name in re.findall(r"[\w.]+", row) if "." not in name]
    for name in ("image_syn", "made_of", "class_names"):
        assert name in attributes
    for row in rows:
        if "provenance." in row:
            for name in re.findall(r"\.(\w+)", row):
                assert hasattr(names["synthetic"].provenance, name)
    exported = {str(path.relative_to("exported")) for path in Path("exported").rglob("*.*")}
    assert {"set.safetensors", "set.pt", "ddranking/lr.pt", "images/7/70.png"} <= exported
