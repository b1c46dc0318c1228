"""Pictures and tables for papers: files, sizes, names, and what no reader should have to mend."""

import re
from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mim4dd.distill.methods import METHODS
from mim4dd.distill.pictures import (
    draw_accuracy_by_ipc,
    draw_curves,
    draw_embedding,
    draw_grid,
    draw_rows,
    draw_similarity,
    draw_soft_labels,
    save_evolution,
    save_figure,
)
from mim4dd.distill.pictures.style import PAGE_INCHES
from mim4dd.distill.spread import Spread
from mim4dd.distill.sweep.grid import make_grid
from mim4dd.distill.sweep.job import Result
from mim4dd.distill.sweep.latex import latex_table
from mim4dd.distill.sweep.plots import draw_sweep
from mim4dd.distill.sweep.scale import Scale
from mim4dd.distill.sweep.table import summarize

NAMES = [f"class {label}" for label in range(10)]
LABELS = torch.arange(10)
ROWS = [
    {"iteration": step, "mi_lower_bound": 1.0, "mi_lower_bound/0": 0.4, "mi_lower_bound/1": 1.0,
     "syn_lr": 0.1, "accuracy": 0.3, "contrastive_loss": 2.0}
    for step in range(30)
]  # fmt: skip


def features():
    return {"last": (torch.randn(10, 4), torch.randn(40, 4))}


DRAWN = {
    "grid": lambda paper: draw_grid(
        {"initial": torch.rand(10, 1, 8, 8), "final": torch.rand(10, 1, 8, 8)},
        LABELS, NAMES, "title", paper=paper,
    ),
    "rows": lambda paper: draw_rows({"": torch.randn(10, 5)}, LABELS, NAMES, "title", paper=paper),
    "labels": lambda paper: draw_soft_labels(torch.eye(10), LABELS, NAMES, "title", paper=paper),
    "curves": lambda paper: draw_curves({"title": ROWS}, 10, paper=paper),
    "several": lambda paper: draw_curves({"title": ROWS, "b" * 40: ROWS}, 10, paper=paper),
    "similarity": lambda paper: draw_similarity(
        {"first": torch.rand(10, 10), "last": torch.rand(10, 10)}, NAMES, "title", paper=paper
    ),
    "embedding": lambda paper: draw_embedding(
        features(), LABELS, torch.arange(40) % 10, NAMES, "title", paper=paper
    ),
    "by_ipc": lambda paper: draw_accuracy_by_ipc(
        {"DM": {1: Spread(0.4, 0.01, 3), 10: Spread(0.6, 0.01, 3)}}, "title", paper=paper
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_for_a_paper_fits_its_page(name):
    figure = DRAWN[name](paper=True)
    assert figure.get_figwidth() <= PAGE_INCHES + 1e-6
    assert figure.get_suptitle() == ""


@pytest.mark.parametrize("name", ["grid", "by_ipc"])
def test_files_for_a_paper_have_its_size_and_its_fonts(name, tmp_path):
    figure = DRAWN[name](paper=True)
    paths = save_figure(tmp_path / "figure.png", figure, paper=True)
    assert [path.name for path in paths] == ["figure.png", "figure.pdf", "figure.svg"]
    pdf = (tmp_path / "figure.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/Type3" not in pdf  # fonts that publishers refuse
    (width,) = re.findall(r'<svg [^>]*?width="([\d.]+)pt"', (tmp_path / "figure.svg").read_text())
    assert float(width) == pytest.approx(72 * figure.get_figwidth(), abs=0.01)


def test_without_paper_there_is_a_png_alone(tmp_path):
    figure = DRAWN["by_ipc"](paper=False)
    assert figure.get_suptitle() == "title"
    assert save_figure(tmp_path / "figure.png", figure) == [tmp_path / "figure.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize(
    ("name", "paper"), [("curves", True), ("several", False), ("several", True), ("by_ipc", True)]
)
def test_no_legend_covers_data(name, paper):
    figure = DRAWN[name](paper)
    figure.draw_without_rendering()
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes)]
    legends = [legend.get_window_extent() for legend in legends if legend is not None]
    assert legends
    for axis in figure.axes:
        panel = axis.get_window_extent()
        assert not any(panel.overlaps(legend) for legend in legends)


def sweep_of(varied):
    """Rows and results of a grid, with made-up accuracies."""
    settings = make_grid({}, varied, False)
    results, rows = {}, []
    for number, setting in enumerate(settings):
        of = [
            Result(seed, (0.5 + 0.01 * number + 0.02 * seed,), 10, 1.0, 2.0, 2**28,
                   {"mi_lower_bound": 0.5 + 0.1 * number + 0.01 * seed})
            for seed in (0, 1)
        ]  # fmt: skip
        real = [Result(seed, (0.4,), 10) for seed in (0, 1)]
        results |= {(setting.name, result.seed): result for result in of}
        rows.append(summarize(setting, of, real, "base", of))
    return rows, results


def test_a_users_own_style_changes_no_picture_of_a_sweep(tmp_path):
    rows, results = sweep_of({"ipc": [1, 10]})

    def files(folder):
        paths = draw_sweep(rows, results, "digits", tmp_path / folder, cpu=True)
        path, figure = tmp_path / folder / "paper.png", DRAWN["by_ipc"](paper=True)
        paths += save_figure(path, figure, paper=True)
        return {path.name: path.read_bytes() for path in paths}

    plain = files("plain")
    assert list(plain) == [
        "ipc.png", "accuracy_by_ipc.png", "mi_bound.png", "paper.png", "paper.pdf", "paper.svg"
    ]  # fmt: skip
    own = {"font.size": 30, "figure.facecolor": "black", "lines.linewidth": 9, "axes.grid": True}
    with matplotlib.rc_context(own):
        assert files("styled") == plain


def test_methods_have_the_names_of_the_literature():
    rows, _ = sweep_of({"method": list(METHODS), "ipc": [1, 10]})
    table = latex_table(rows)
    for title in ("MTT", "TESLA", "DC", "DSA", "DM", "CAFE", "DATM", "RaT-BPTT", "SRe2L"):
        assert re.search(rf"^{title} & ", table, re.MULTILINE)
    assert not any(f"{name} &" in table for name in METHODS)
    figure = Figure()
    axis = figure.subplots()
    Scale(["rat_bptt", "sre2l"]).apply(axis, "method")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["RaT-BPTT", "SRe2L"]


def test_a_table_by_images_per_class_is_of_the_accuracies():
    rows, _ = sweep_of({"method": ["dm", "mtt"], "ipc": [1, 10]})
    lines = latex_table(rows).splitlines()
    assert lines[2] == r"\begin{tabular}{lcc}"
    assert r"method & 1 & 10 \\" in lines
    assert r"random real images & $40.0 \pm 0.0$ & $40.0 \pm 0.0$ \\" in lines
    # By number of the setting: 50 + number, and 1 more as the mean of two seeds.
    by_method = {row.options["method"]: [] for row in rows}
    for row in rows:
        by_method[row.options["method"]].append(f"{100 * row.accuracy.mean:.1f}")
    for title, method in (("DM", "dm"), ("MTT", "mtt")):
        (line,) = [line for line in lines if line.startswith(f"{title} & ")]
        assert re.findall(r"\$([\d.]+) \\pm 1\.4\$", line) == by_method[method]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]


def test_a_table_of_other_options_has_gains_and_is_escaped():
    rows, _ = sweep_of({"critic": ["info_nce", "nce"]})
    lines = latex_table(rows).splitlines()
    assert r"critic & accuracy [\%] & gain [points] \\" in lines
    assert sum(line.startswith(r"info\_nce & $") for line in lines) == 1
    assert not re.search(r"(?<!\\)[%_]", "\n".join(lines[2:]))


def test_an_animation_has_a_frame_for_each_iteration(tmp_path):
    sets = {
        10: torch.ones(3, 1, 4, 4),
        0: torch.zeros(3, 1, 4, 4),
        20: torch.full((3, 1, 4, 4), 7.0),
    }
    save_evolution(tmp_path / "set.gif", sets, torch.arange(3), NAMES, "three")
    with Image.open(tmp_path / "set.gif") as gif:
        assert (gif.n_frames, gif.info["loop"]) == (3, 0)
        dark = []
        for frame in range(3):
            gif.seek(frame)
            dark.append(sum(gif.convert("L").histogram()[:60]))
    assert dark[0] > 5 * dark[1] > 0  # black images, then white ones: the first iteration is first
    with pytest.raises(ValueError, match="at least two iterations, got 1"):
        save_evolution(tmp_path / "one.gif", {0: sets[0]}, torch.arange(3), NAMES, "three")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["set.gif"]


def test_accuracies_by_ipc_are_drawn_where_they_are():
    curves = {"DM": {50: Spread(0.7, 0.02, 3), 1: Spread(0.4, None, 1), 10: Spread(None, None, 0)}}
    figure = draw_accuracy_by_ipc(curves, "title", random_real={1: Spread(0.3, 0.0, 2)})
    (axis,) = figure.axes
    line = axis.lines[0]
    assert list(line.get_xdata()) == [1, 50]
    assert list(line.get_ydata()) == pytest.approx([40, 70])
    assert axis.get_xscale() == "log"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "DM", "random real images"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="at least one accuracy, got none in DM"):
        draw_accuracy_by_ipc({"DM": {10: Spread(None, None, 0)}}, "title")
