"""examples/: each file runs by itself, and what it shows is so."""

import importlib

import pytest
from places import ROOT

from mim4dd.distill.methods import METHODS

EXAMPLES = ROOT / "examples"
# What the two numbers of each must be.
SHOWN = {
    "learn_labels.py": lambda before, after: before < 0.65 and after > 0.8,
    "learn_step_size.py": lambda before, after: after < before / 2,
    "two_processes.py": lambda before, after: before > 5.5 and after < before - 1,
    "sup_con_digits.py": lambda before, after: before < 0.8 and after > 0.95,
}


# One program for all methods, which the last test runs.
METHODS_EXAMPLE = "distill_digits.py"
TINY = {"width": 8, "depth": 1, "iterations": 20, "eval_epochs": 30, "eval_every": 0, "weight": 0.0}
UNROLLED = {"syn_steps": 3, "max_start_epoch": 1, "expert_epochs": 1}


def test_every_example_is_tried():
    assert {each.name for each in EXAMPLES.glob("*.py")} == {*SHOWN, METHODS_EXAMPLE}


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_shows_what_it_says(name, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)  # by name, so that processes which it starts find it
    example = importlib.import_module(name.removesuffix(".py"))
    assert SHOWN[name](*example.main())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_distils_digits(method, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module(METHODS_EXAMPLE.removesuffix(".py"))
    assert f" {method}" in example.__doc__.replace(",", "").replace(".", "")
    options, training = {**TINY, "iterations": 20 if method == "dm" else 2}, {}
    if METHODS[method].needs_experts:
        options |= UNROLLED
        training = {"num_experts": 1, "train_epochs": 3, "width": 8, "depth": 1}
    random_real, distilled = example.main(method, options, training, seeds=1)
    assert "whole training set" in capsys.readouterr().out
    assert 0.2 < random_real < 1
    assert 0.2 < distilled < 1  # two iterations of most methods: chance is 0.1
    if method == "dm":
        assert distilled > random_real + 0.1
