"""The fingerprint of a user's code: the same in every process, another where the code is."""

import dataclasses
import functools
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from mim4dd import KeyQueue, MIM4DDLoss
from mim4dd.distill.identity import code as module
from mim4dd.distill.identity.describe import describe

SOURCE = """
import functools

def traced(function):
    @functools.wraps(function)
    def call(*arguments):
        return function(*arguments)
    return call

class Base:
    scale = 2
    sizes = (3, 4)
    steps = [[5], {"six": 6}]

    @property
    def twice(self):
        return 2 * self.scale

    @staticmethod
    def kind(name):
        return name in {"a", "b", "c", "d"}

    @functools.cached_property
    def cached(self):
        return "cached"

class Method(Base):
    @traced
    def loss(self, x, *, power=2):
        return [helper(part) ** power for part in x]

def helper(part):
    return (lambda value: value + OFFSET + sum(_WEIGHTS) + TABLE["c"][0](part))(part)

def first(part, powers=[7]):
    return part + len(KINDS)

def second(part):
    return part + call_it(1)

call_it = functools.lru_cache(lambda part: part + 8)
OFFSET = 1
KINDS = {"x", "y", "z"}
_WEIGHTS = (0.1, 0.2)
TABLE = {"c": [first, second]}
TABLE["itself"] = TABLE
"""


def code_identity(value):
    return describe(value)["code"]


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
        ("(0.1, 0.2)", "(0.1, 0.3)"),
        ("sizes = (3, 4)", "sizes = (3, 5)"),
        ("[[5], ", "[[6], "),
        ('{"six": 6}', '{"six": 7}'),
        ("[first, second]", "[second, first]"),
        ("powers=[7]", "powers=[8]"),
        ('"x", "y"', '"x", "w"'),
        ("part + 8", "part + 9"),
        ('return "cached"', 'return "kept"'),
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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (2, 3),
        ([2], [3]),
        (torch.tensor([2.0, 1.0]), torch.tensor([3.0, 1.0])),
        (torch.relu, torch.tanh),
        (functools.partial(pow, 2), functools.partial(pow, 3)),
        (types.SimpleNamespace(a=2), types.SimpleNamespace(a=3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_method_closes_over_shows(one, other):
    def make(scale):
        class Method:
            def loss(self, x):
                return scale * x

        return Method

    assert code_identity(make(one)) == code_identity(make(one)) != code_identity(make(other))


@dataclasses.dataclass(slots=True)
class Slotted:
    power: int
    weights: torch.Tensor

    def call(self, x):
        return x**self.power

    def other(self, x):
        return x


class Layer(nn.Module):
    def __init__(self, **held):
        super().__init__()
        for name, value in held.items():
            setattr(self, name, value)
        self.itself = [self]
        self.hook = self.forward


def buffered(value):
    return nn.CrossEntropyLoss(weight=torch.tensor([1.0, value]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (buffered(1.0), buffered(2.0)),
        (MIM4DDLoss(temperature=torch.tensor(0.1)), MIM4DDLoss(temperature=torch.tensor(0.5))),
        (Layer(held=torch.arange(3)), Layer(held=torch.arange(1, 4))),
        (Layer(held=[1, (2,)]), Layer(held=[1, (3,)])),
        (Layer(held={"a": 1}), Layer(held={"a": 2})),
        (Layer(held=nn.functional.relu), Layer(held=torch.tanh)),
        (Layer(held=lambda x: x), Layer(held=lambda x: 2 * x)),
        (Slotted(2, torch.ones(2)), Slotted(3, torch.ones(2))),
        (Slotted(2, torch.ones(2)), Slotted(2, torch.zeros(2))),
        (Slotted(2, torch.ones(2)).call, Slotted(3, torch.ones(2)).call),
        (Slotted(2, torch.ones(2)).call, Slotted(2, torch.ones(2)).other),
    ],
)
def test_what_an_object_holds_shows(one, other):
    assert describe(one) == describe(one) != describe(other)


def test_what_changes_from_step_to_step_does_not():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(2)
    criterion, queue = MIM4DDLoss(temperature=torch.tensor(0.1)), KeyQueue(4, 2)
    objects = [norm, criterion, queue, nn.Linear(2, 2), MIM4DDLoss]
    before = list(map(describe, objects))
    norm(torch.randn(3, 2, 4, 4))
    features = [torch.randn(4, 3)]
    criterion(features, features, torch.arange(4) % 2, torch.arange(4) % 2)
    queue.push(torch.randn(3, 2))
    with torch.no_grad():
        objects[3].weight.zero_()
    norm.eval()
    assert list(map(describe, objects)) == before


def test_what_the_libraries_define_has_none():
    from mim4dd.distill.methods.dm import DM

    assert [code_identity(kind) for kind in (DM, torch.nn.Linear, dict, len)] == [None] * 4


def test_every_process_finds_the_same():
    program = (
        f"import importlib.util as u; s = u.spec_from_file_location('m', {module.__file__!r}); "
        "m = u.module_from_spec(s); s.loader.exec_module(m); names = {'__name__': 'program'}; "
        f"exec({SOURCE!r}, names); print(m.code_identity(names['Method'], repr))"
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
