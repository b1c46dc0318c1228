"""examples/notebooks/: each runs from its first cell to its last, in a small setting."""

import json
import re

import pytest
from places import ROOT

NOTEBOOKS = ROOT / "examples" / "notebooks"
# What is smaller here, and what a notebook must find in the end.
RUNS = {
    "contrastive_loss": ({"STEPS": 30}, lambda names: names["after"] > names["before"] + 0.1),
    "unroll": ({"ROUNDS": 15}, lambda names: names["losses"][-1] < 0.7 * names["losses"][0]),
    "distill": ({"ITERATIONS": 2, "SEEDS": 1}, lambda names: names["gain"].mean > -1),
}


def cells(name):
    """The notebook's cells of code, as Python."""
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # A line that begins with % is Jupyter's.
    return code, [re.sub(r"^%.*$", "", "".join(cell["source"]), flags=re.M) for cell in code]


def test_every_notebook_is_tried():
    assert {path.stem for path in NOTEBOOKS.iterdir()} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_a_notebook_runs(name, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    smaller, holds = RUNS[name]
    names = {}
    _, sources = cells(name)
    for option, value in smaller.items():
        given = re.compile(rf"^{option} = \d+", re.M)
        assert sum(len(given.findall(source)) for source in sources) == 1
        sources = [given.sub(f"{option} = {value}", source) for source in sources]
    if name == "distill":  # a smaller network too
        call = 'method="dm", ipc=1, '
        assert sum(source.count(call) for source in sources) == 1
        small = f"{call}width=8, eval_epochs=5, batch_real=16, num_keys=50, "
        sources = [source.replace(call, small) for source in sources]
    for number, source in enumerate(sources):
        exec(compile(source, f"{name}.ipynb, cell of code {number}", "exec"), names)
    assert holds(names)


@pytest.mark.parametrize("name", RUNS)
def test_a_notebook_is_committed_as_it_ran(name):
    code, _ = cells(name)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(output["output_type"] != "error" for cell in code for output in cell["outputs"])
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 250_000
