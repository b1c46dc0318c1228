"""The arithmetic of a sweep's table, by hand, and its pictures."""

import csv
import itertools
import math

import pytest
import torch
from PIL import Image

from mim4dd.distill.spread import Spread
from mim4dd.distill.sweep.grid import make_grid
from mim4dd.distill.sweep.job import Result
from mim4dd.distill.sweep.plots import draw_sweep
from mim4dd.distill.sweep.scale import Scale
from mim4dd.distill.sweep.table import markdown_table, summarize, write_tables

BASE = [
    Result(0, (0.50, 0.54), 10, 3.0, 6.0, 2**20, {"mi_lower_bound": 1.0, "loss": 0.5}),
    Result(1, (0.60, 0.60), 10, 5.0, 8.0, 3 * 2**20, {"mi_lower_bound": 2.0, "loss": 0.7}),
]
OTHER = [
    Result(0, (0.60, 0.62), 10, 1.0, 1.0, 2**20, {"loss": 0.1}),
    Result(1, (0.63, 0.65), 10, 1.0, 1.0, 2**20, {"loss": 0.1}),
]
REAL = [Result(0, (0.40, 0.42), 10), Result(1, (0.45, 0.47), 10)]
FAILED = Result(1, num_classes=10, failure="the loss is not finite")


@pytest.fixture
def settings():
    return make_grid({}, {"weight": [0.1, 0.0]}, False)


def pixels_of(path):
    image = Image.open(path).convert("RGB")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(
        image.height, image.width, 3
    )


def test_a_distillation_counts_once_and_gains_are_paired(settings):
    row = summarize(settings[1], OTHER, REAL, "base", BASE)
    # Means of the sets: 0.61 and 0.64, of the base 0.52 and 0.60, of real images 0.41 and 0.46.
    assert row.accuracy.mean == pytest.approx(0.625)
    assert row.accuracy.std == pytest.approx(0.03 / math.sqrt(2))
    assert (row.accuracy.count, row.networks) == (2, 4)
    assert row.gain.mean == pytest.approx((0.09 + 0.04) / 2)
    assert row.gain.std == pytest.approx(0.05 / math.sqrt(2))
    assert row.over_real.mean == pytest.approx((0.20 + 0.18) / 2)
    assert row.over_real.std == pytest.approx(0.02 / math.sqrt(2))
    assert row.mi_lower_bound.count == 0
    base = summarize(settings[0], BASE, REAL, "base", BASE)
    assert base.mi_lower_bound == Spread.of([1.0, 2.0])
    assert base.seconds == Spread.of([3.0, 5.0])
    assert base.cpu_seconds == Spread.of([6.0, 8.0])
    assert base.peak_mib == Spread.of([1.0, 3.0])
    assert summarize(settings[1], OTHER, REAL, None, OTHER).gain.count == 0


def test_a_failure_is_told_and_left_out(settings):
    row = summarize(settings[1], [OTHER[0], FAILED], REAL, "base", BASE)
    assert row.accuracy == Spread(OTHER[0].mean, None, 1)
    assert row.gain.count == row.over_real.count == 1
    assert row.gain.mean == pytest.approx(0.09)
    assert row.failures == {1: "the loss is not finite"}
    # The base failing with a seed leaves that pair out as well.
    assert summarize(settings[1], OTHER, REAL, "base", [BASE[0], FAILED]).gain.count == 1
    nothing = summarize(settings[1], [FAILED], REAL[:1], "base", BASE[:1])
    assert nothing.accuracy == Spread(None, None, 0)
    assert nothing.networks == 0


def test_random_real_images_that_diverge_are_told_and_left_out(settings, tmp_path):
    row = summarize(settings[0], BASE, [REAL[0], FAILED], "base", BASE)
    assert row.random_real == Spread(REAL[0].mean, None, 1)
    assert row.over_real.count == 1
    none = [summarize(each, BASE, [FAILED, FAILED], "base", BASE) for each in settings]
    assert none[0].random_real == Spread(None, None, 0)
    assert markdown_table(none).splitlines()[-1].endswith("by the same recipe: none, all diverged.")
    draw_sweep(none, {("base", 0): BASE[0]}, "title", tmp_path, cpu=True)


def test_files(settings, tmp_path):
    rows = [
        summarize(settings[0], BASE, REAL, "base", BASE),
        summarize(settings[1], [OTHER[0], FAILED], REAL, "base", BASE),
    ]
    results = dict(
        zip(itertools.product(("base", "weight=0"), (0, 1)), [*BASE, OTHER[0], FAILED], strict=True)
    )
    table, markdown, runs = write_tables(rows, settings, results, tmp_path)
    with table.open() as file:
        first, second = csv.DictReader(file)
    assert first["weight"] == "0.1"
    assert float(first["accuracy"]) == pytest.approx(0.56)
    assert float(first["accuracy_std"]) == pytest.approx(0.08 / math.sqrt(2))
    assert (second["distillations"], second["networks"], second["failed"]) == ("1", "2", "1")
    assert second["accuracy_std"] == second["mi_lower_bound"] == ""
    assert second["failure"] == "seed 1: the loss is not finite"
    with runs.open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["setting"], line["seed"]) for line in lines] == list(
        itertools.product(("base", "weight=0"), "01")
    )
    assert lines[0]["networks"] == "0.5 0.54"
    assert lines[0]["loss"] == "0.5"
    assert lines[3]["accuracy"] == ""
    assert lines[3]["failure"] == "the loss is not finite"
    text = markdown.read_text()
    assert text == markdown_table(rows) + "\n"
    shown = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in shown}) == 1  # aligned
    assert len({line.count("|") for line in shown}) == 1
    assert "56.0 ± 5.7" in shown[2]
    assert "reference" in shown[2]
    assert "+9.0" in shown[3]
    # One pair is left, which has no interval; of two, 9 and 4 points, it is wide.
    assert second["gain_low"] == second["gain_p"] == ""
    both = [rows[0], summarize(settings[1], OTHER, REAL, "base", BASE)]
    assert "+6.5 ± 3.5 | -25.3 … +38.3" in " ".join(markdown_table(both).split())
    _, line = csv.DictReader(write_tables(both, settings, results, tmp_path)[0].open())
    assert float(line["gain_low"]) == pytest.approx(0.065 - 12.7062 * 0.025, abs=1e-5)
    assert float(line["gain_p"]) == pytest.approx(0.23375, abs=1e-4)
    assert "- weight=0, seed 1: the loss is not finite" in text
    assert "Random real images by the same recipe: 43.5 ± 3.5 % (n = 2)." in text


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.1, 0.2, 0.5], "linear"),
        ([0.1, 1.0], "log"),
        ([0.0, 0.1, 1.0], "symlog"),
        ([-1, 10, 100], "linear"),
        ([1], "linear"),
        (["nce", "info_nce"], "category"),
        ([None, 32], "category"),
        ([True, False], "category"),
    ],
)
def test_values_that_span_decades_have_a_logarithmic_axis(values, kind):
    scale = Scale(values)
    assert scale.kind == kind
    assert len({scale.position(value) for value in values}) == len(values)


def colours(path):
    """Pixels that are coloured, above the middle: no frame, text or grid is."""
    return (pixels_of(path).float().std(2) > 40).sum().item()


@pytest.mark.parametrize("one_at_a_time", [True, False])
def test_pictures_show_every_option_that_varies(one_at_a_time, tmp_path):
    varied = {"weight": [0.0, 0.1, 1.0], "critic": ["info_nce", "nce"], "ipc": [1]}
    settings = make_grid({}, varied, one_at_a_time)
    results, rows = {}, []
    for number, setting in enumerate(settings):
        of = [
            Result(seed, (0.5 + 0.05 * number + 0.01 * seed,), 10, 1.0, 2.0, 2**28,
                   {"mi_lower_bound": 0.5 + number / 10})
            for seed in (0, 1)
        ]  # fmt: skip
        results |= {(setting.name, result.seed): result for result in of}
        rows.append(summarize(setting, of, REAL, "base", of))
    paths = draw_sweep(rows, results, "digits", tmp_path, cpu=True)
    assert [path.name for path in paths] == ["weight.png", "critic.png", "mi_bound.png"]
    assert all(colours(path) > 300 for path in paths)
    # Colours are of settings: a picture without results of one has fewer.
    without = [summarize(settings[0], [FAILED], REAL[:1], "base", [FAILED]), *rows[1:]]
    draw_sweep(without, results, "digits", tmp_path / "without", cpu=True)
    assert not torch.equal(
        pixels_of(tmp_path / "without" / "weight.png"), pixels_of(tmp_path / "weight.png")
    )
