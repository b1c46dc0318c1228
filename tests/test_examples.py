"""examples/: each file runs by itself, and what it shows is so."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
# What the two numbers of each must be.
SHOWN = {
    "learn_labels.py": lambda before, after: before < 0.65 and after > 0.8,
    "learn_step_size.py": lambda before, after: after < before / 2,
    "sup_con_digits.py": lambda before, after: before < 0.8 and after > 0.95,
}


def test_every_example_is_tried():
    assert {each.name for each in EXAMPLES.glob("*.py")} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_shows_what_it_says(name):
    assert SHOWN[name](*runpy.run_path(str(EXAMPLES / name))["main"]())
