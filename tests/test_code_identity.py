"""The fingerprint of a user's code: the same in every process, another where the code is."""

import subprocess
import sys
from pathlib import Path

import pytest

from mim4dd.distill import code_identity as module
from mim4dd.distill.code_identity import code_identity

SOURCE = """
import functools

def traced(function):
    @functools.wraps(function)
    def call(*arguments):
        return function(*arguments)
    return call

class Base:
    scale = 2

    @property
    def twice(self):
        return 2 * self.scale

    @staticmethod
    def kind(name):
        return name in {"a", "b", "c", "d"}

class Method(Base):
    @traced
    def loss(self, x, *, power=2):
        return [helper(part) ** power for part in x]

def helper(part):
    return (lambda value: value + OFFSET)(part)

OFFSET = 1
"""


def identity_of(source):
    names = {"__name__": "program"}
    exec(source, names)
    return code_identity(names["Method"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("** power", "* power"),
        ("power=2", "power=3"),
        ("scale = 2", "scale = 3"),
        ("2 * self", "3 * self"),
        ('"c", "d"', '"c", "e"'),
        ("value + OFFSET", "value - OFFSET"),
        ("OFFSET = 1", "OFFSET = 2"),
        ("return function(*arguments)", "return -function(*arguments)"),
    ],
)
def test_any_edit_of_what_is_computed_shows(old, new):
    assert old in SOURCE
    assert identity_of(SOURCE) != identity_of(SOURCE.replace(old, new))


def test_comments_docstrings_and_places_do_not():
    reworded = SOURCE.replace("def helper(part):", 'def helper(part):\n    "Help."\n    # so')
    assert identity_of("\n\n# Moved\n" + reworded) == identity_of(SOURCE)
    renamed = SOURCE.replace(
        "return (lambda value: value + OFFSET)", "return (lambda v: v + OFFSET)"
    )
    assert identity_of(renamed) == identity_of(SOURCE)


def test_what_a_method_closes_over_shows():
    def make(scale):
        class Method:
            def loss(self, x):
                return scale * x

        return Method

    assert code_identity(make(2)) == code_identity(make(2)) != code_identity(make(3))


def test_what_the_libraries_define_has_none():
    import torch

    from mim4dd.distill.methods.dm import DM

    assert [code_identity(kind) for kind in (DM, torch.nn.Linear, dict, len)] == [None] * 4


def test_every_process_finds_the_same():
    program = (
        f"import importlib.util as u; s = u.spec_from_file_location('m', {module.__file__!r}); "
        "m = u.module_from_spec(s); s.loader.exec_module(m); names = {'__name__': 'program'}; "
        f"exec({SOURCE!r}, names); print(m.code_identity(names['Method']))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            cwd=Path(module.__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2", "3")
    }
    assert found == {identity_of(SOURCE)}
