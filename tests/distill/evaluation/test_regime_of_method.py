"""The regime of a teacher's labels is that of the set's method, with the run's own teachers."""

import pytest
import torch

from mim4dd.distill.commands.cross import cross_gains, load_run
from mim4dd.distill.config.commands import DistillConfig
from mim4dd.distill.evaluation import ByTeacher, fairness
from mim4dd.distill.job import run_distillation
from mim4dd.distill.methods import METHODS
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.training.network import soft_labels

FEW = {
    "data": "digits", "ipc": 1, "width": 4, "depth": 1, "iterations": 2, "num_eval": 1,
    "eval_epochs": 2, "eval_every": 0, "weight": 0.0,
}  # fmt: skip
TAUGHT = {"norm": "batch", "squeeze_epochs": 1}


def distilled(path, **options):
    config = DistillConfig.resolve(**FEW | options)
    run_distillation(config, config.load_data(), RunDirectory(path))
    return load_run(path)


@pytest.fixture
def judged(monkeypatch):
    """Who judged by a teacher's labels, and how."""
    seen = []

    def spy(make_network, draw, teacher, data, evaluation, settings, **options):
        seen.append((teacher, settings))
        return original(make_network, draw, teacher, data, evaluation, settings, **options)

    original = fairness.evaluate_by_teacher
    monkeypatch.setattr(fairness, "evaluate_by_teacher", spy)
    return seen


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"method": "dwa"}, ByTeacher(temperature=30, mix="mixup", smoothing=1)),
        (
            {"method": "edc", "other_teachers": "convnet:width=4:depth=1", "weight": 0.1},
            ByTeacher(loss="mse", hard_weight=0.025, least_area=0.08, ema_decay=0.99),
        ),
    ],
)
def test_the_teachers_of_the_checkpoint_judge(options, settings, tmp_path, judged, monkeypatch):
    run = distilled(tmp_path / "run", **TAUGHT | options)
    monkeypatch.setattr(  # they are there: none is trained again
        "mim4dd.distill.methods.teachers.train_network", lambda *_, **__: pytest.fail("trained")
    )
    gains = cross_gains([run], [None], regimes=True)
    (by_recipe,) = gains.values()
    assert [each.recipe.labels for each in by_recipe][-1] == "teacher"
    (teacher, used), again = judged
    assert again == (teacher, used)
    assert used == settings == METHODS[options["method"]].judged_by
    images = run.synthetic.image_syn
    torch.testing.assert_close(soft_labels(teacher, images), run.synthetic.label_syn)


def test_without_a_checkpoint_the_same_teachers_are_trained_again(tmp_path):
    run = distilled(tmp_path / "run", method="sre2l", **TAUGHT)
    data = run.load(run.config)
    kept = run.teacher(data)
    (tmp_path / "run/checkpoint.safetensors").unlink()
    again = run.teacher(data)
    assert kept is not again
    for mine, theirs in zip(kept.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_method_without_teachers_has_those_of_the_recipe(tmp_path, judged):
    run = distilled(tmp_path / "run", method="dm")
    assert run.teacher(run.load(run.config)) is None
    cross_gains([run], [None], regimes=True)
    assert [settings for _, settings in judged] == [ByTeacher(), ByTeacher()]
