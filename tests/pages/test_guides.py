"""The guides of docs/: their programs run, and the reference has every public name."""

import importlib
import re

import pytest
import torch
from places import ROOT

DOCS = ROOT / "docs"
GUIDES = ["choose-a-loss", "unroll-memory", "faq", "paper"]
PUBLIC = [
    "mim4dd",
    "mim4dd.adapters",
    "mim4dd.distill",
    "mim4dd.distill.add_ons",
    "mim4dd.distill.data",
    "mim4dd.distill.evaluation",
    "mim4dd.distill.experts",
    "mim4dd.distill.loop",
    "mim4dd.distill.methods",
    "mim4dd.distill.networks",
    "mim4dd.distill.pictures",
    "mim4dd.distill.runs",
]
# Registries, and what they hold: docs/extend.md and docs/methods.md tell of them.
ELSEWHERE = {
    "ADD_ONS", "DATA_SETS", "METHODS", "NETWORKS", "MethodEntry", "MIM4DD", "Norm", "Pooling",
    "AlexNet", "ConvNet", "LeNet", "MLP", "ResNet18", "VGG11",
}  # fmt: skip


@pytest.mark.parametrize("guide", GUIDES)
def test_the_programs_of_a_page_run_in_their_order(guide):
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / f"{guide}.md").read_text(), re.S | re.M)
    names = {}
    torch.manual_seed(0)
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/{guide}.md, block {number}", "exec"), names)
        if isinstance(loss := names.get("loss"), torch.Tensor):
            assert loss.isfinite(), number
    assert blocks


def entries():
    """What autodoc is asked for, by module: names, or all that is public."""
    found = {}
    for page in sorted((DOCS / "api").glob("*.md")):
        module = ""
        for line in page.read_text().splitlines():
            directive, _, name = line.removeprefix(".. ").partition(":: ")
            if directive in ("currentmodule", "automodule"):
                module = name
            elif directive in ("autofunction", "autoclass"):
                found.setdefault(module, set()).add(name)
            elif line.strip() == ":members:":
                found.setdefault(module, set()).add("*")
            elif line.startswith("   :members: "):
                found.setdefault(module, set()).update(line[13:].split(", "))
    return found


@pytest.mark.parametrize("module", PUBLIC)
def test_the_reference_has_every_public_name(module):
    asked = entries()
    here = asked.get(module, set())
    missing = set(importlib.import_module(module).__all__) - here - ELSEWHERE
    assert "*" in here or {f"{module}.{name}" for name in missing} <= asked.keys()


def test_every_page_is_in_the_contents():
    contents = (DOCS / "index.md").read_text()
    pages = {str(page.relative_to(DOCS))[:-3] for page in DOCS.rglob("*.md")} - {"index"}
    tables = {page for page in pages if page.endswith("/table")}  # of the study, which has them
    assert pages - tables == set(re.findall(r"^([\w/-]+)$", contents, re.MULTILINE))
