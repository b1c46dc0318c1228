"""docs/data.md: its program runs, and its tables name every data set and no other."""

import re

from places import ROOT

from mim4dd.distill.data import DATA_SETS
from mim4dd.distill.data.standard import STATISTICS

PAGE = (ROOT / "docs" / "data.md").read_text()


def table_rows():
    return [line.split("|") for line in PAGE.splitlines() if line.startswith("| `")]


def test_every_name_is_in_a_table():
    named = [name for row in table_rows() for name in re.findall(r"`(\w+)`", row[1])]
    assert sorted(named) == sorted(DATA_SETS)


def test_the_normalisations_are_the_ones_applied():
    stated = {
        row[1].strip(" `"): row[4] for row in table_rows() if row[1].strip(" `") in STATISTICS
    }
    for name, (mean, std) in STATISTICS.items():
        if "as CIFAR-10" in stated[name]:
            assert STATISTICS[name] == STATISTICS["cifar10"]
        else:
            assert [float(value) for value in re.findall(r"0\.\d+", stated[name])] == [*mean, *std]


def test_the_program_of_the_page():
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    names = {}
    exec(compile(program, "docs/data.md", "exec"), names)
    data, chosen_on = names["data"], names["chosen_on"]
    assert (len(data.image_train), len(data.image_test)) == (5000, 1000)
    assert (len(chosen_on.image_train), len(chosen_on.image_test)) == (4000, 1000)
