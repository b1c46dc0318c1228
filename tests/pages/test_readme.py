"""README.md: its programs run and its commands exist; no page links to one that is not there."""

import re

import pytest
import torch
import typer
from places import ROOT

from mim4dd.cli import app

PAGE = (ROOT / "README.md").read_text()
*PROGRAMS, RUN = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line.partition("#")[0].split()[1:]
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.startswith("mim4dd ")
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_run_by_themselves(program):
    names = {}
    torch.manual_seed(0)
    exec(compile(program, "README.md", "exec"), names)
    leaves = [each for each in names.values() if isinstance(each, torch.Tensor) and each.is_leaf]
    assert any(each.grad is not None and each.grad.abs().sum() > 0 for each in leaves)


def test_the_run_is_one_that_is_tried():
    """By tests/pages/test_python_page.py."""
    tried = (ROOT / "docs" / "python.md").read_text().splitlines()
    assert "distill.run(" in RUN
    assert [line for line in RUN.splitlines() if line not in tried] == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_and_their_options_exist(command):
    group = typer.main.get_command(app)
    name, *arguments = command
    # Which options there are follows from those that are typed, as of methods.
    context = group.commands[name].make_context(name, [], resilient_parsing=True)
    known = {option for each in context.command.params for option in each.opts}
    assert {each for each in arguments if each.startswith("--")} <= known


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_pages_that_are_linked_to_exist(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
