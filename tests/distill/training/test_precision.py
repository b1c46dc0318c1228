"""Networks trained in bfloat16: close to float64, and noted where they are kept."""

import pytest
import torch
from command_line import exit_status
from tiny import make_data, make_network

from mim4dd import distill
from mim4dd.distill.config.commands import CompareConfig, SweepConfig
from mim4dd.distill.evaluation.recipe import Evaluation, evaluate
from mim4dd.distill.evaluation.teacher import ByTeacher, evaluate_by_teacher
from mim4dd.distill.experts import ExpertBuffer
from mim4dd.distill.sweep.jobs import _digest
from mim4dd.distill.training.network import accuracy, seeded_network, train_network

RECIPE = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0, "batch_size": 8}


def trained(data, dtype, precision, num_steps):
    network = seeded_network(lambda: make_network(data), 0).to(dtype)
    train_network(network, data.image_train.to(dtype), data.label_train, num_steps=num_steps,
                  generator=torch.Generator().manual_seed(0), precision=precision,
                  **RECIPE)  # fmt: skip
    return network


def test_a_step_is_that_of_float64_but_for_rounding():
    data = make_data()
    start = seeded_network(lambda: make_network(data), 0)
    exact, single, half = (
        torch.cat([
            (after.double() - before.double()).flatten()
            for after, before in zip(
                trained(data, *kind, num_steps=1).parameters(), start.parameters(), strict=True
            )
        ])
        for kind in ((torch.float64, "float32"), (torch.float32, "float32"),
                     (torch.float32, "bfloat16"))
    )  # fmt: skip
    errors = [((step - exact).norm() / exact.norm()).item() for step in (single, half)]
    assert errors[0] < 1e-4 < errors[1] < 0.1  # eight bits
    assert all(step.dtype == torch.float32 for step in
               trained(data, torch.float32, "bfloat16", 1).parameters())  # fmt: skip


def test_a_network_learns_in_it():
    data = make_data()
    network = trained(data, torch.float32, "bfloat16", 60)
    assert accuracy(network, data.image_test, data.label_test) > 0.8


def test_evaluation_trains_in_it():
    data = make_data()
    images, labels = data.sample(4, torch.Generator().manual_seed(0))
    seen = set()

    def spied():
        network = make_network(data)
        network.register_forward_hook(lambda module, _, out: seen.add((module.training, out.dtype)))
        return network

    recipe = Evaluation(num_eval=1, eval_epochs=2, precision="bfloat16", eval_dsa_strategy="none")
    evaluate(spied, images, labels, 0.05, data, recipe)
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    seen.clear()
    teacher = make_network(data).eval()
    evaluate_by_teacher(spied, lambda _: (images, labels), teacher, data, recipe, ByTeacher())
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}


def test_experts_say_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--num-experts", "1", "--train-epochs", "1", "--width", "4", "--depth", "1", "--out"]
    assert exit_status("experts", *words, "half", "--precision", "bfloat16") == 0
    assert exit_status("experts", *words, "single") == 0
    half, single = (ExpertBuffer(name).headers[0]["training"] for name in ("half", "single"))
    assert half["precision"] == "bfloat16"
    assert "precision" not in single  # as in experts from before there was a choice
    options = {"num_experts": 1, "train_epochs": 1, "width": 4, "depth": 1}
    with pytest.raises(ValueError, match=r"experts of another kind: training\.precision"):
        distill.train_experts("digits", "half", **options)


def test_the_choice_is_one_option_of_every_command():
    config = distill.resolve(method="mtt", precision="bfloat16")
    assert config.precision == "bfloat16"
    for kind in (CompareConfig, SweepConfig):
        assert kind.resolve(method="dm", precision="bfloat16").precision == "bfloat16"
    with pytest.raises(ValueError, match=r"precision must be .*float32.*bfloat16.* got 'float16'"):
        distill.resolve(precision="float16")


def test_folders_of_sweeps_are_named_as_before_there_was_a_choice():
    options = distill.resolve(method="dm").options()
    before = {key: each for key, each in options.items() if key not in ("precision", "stream")}
    assert _digest(options) == _digest(before)
    assert _digest(options | {"precision": "bfloat16"}) != _digest(before)
