"""docs/rows.md: its program runs, and distils rows that are worth more than random ones."""

import re
from pathlib import Path

from places import ROOT

from mim4dd.distill.runs import SyntheticSet

PAGE = (ROOT / "docs" / "rows.md").read_text()
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_program_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(PROGRAM, "docs/rows.md", "exec"), names)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    distilled, random_rows = names["distilled"], names["random_rows"]
    assert [line[0] for line in printed] == ["distilled", "random"]
    assert float(printed[0][1]) == round(distilled.mean, 3)
    assert distilled.mean > 0.85
    assert distilled.mean > random_rows.mean + 0.05
    data, synthetic = names["data"], names["synthetic"]
    stored = SyntheticSet.load(Path("runs/rows/mtt+mim4dd/synthetic.safetensors"))
    assert stored.image_syn.equal(synthetic.image_syn)
    assert stored.pixels.equal(data.normalization.inverse(synthetic.image_syn))
    assert synthetic.image_syn.shape == (2, 30)
