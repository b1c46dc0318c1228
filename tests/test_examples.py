"""examples/: each file runs by itself, and what it shows is so."""

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
# What the two numbers of each must be.
SHOWN = {
    "learn_labels.py": lambda before, after: before < 0.65 and after > 0.8,
    "learn_step_size.py": lambda before, after: after < before / 2,
    "two_processes.py": lambda before, after: before > 5.5 and after < before - 1,
    "sup_con_digits.py": lambda before, after: before < 0.8 and after > 0.95,
}


def test_every_example_is_tried():
    assert {each.name for each in EXAMPLES.glob("*.py")} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_shows_what_it_says(name, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)  # by name, so that processes which it starts find it
    example = importlib.import_module(name.removesuffix(".py"))
    assert SHOWN[name](*example.main())
