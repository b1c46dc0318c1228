"""What a user gets by installing and importing: names, silence, examples that run."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT
from setuptools.command.egg_info import FileList
from typer.testing import CliRunner

import mim4dd
from mim4dd.cli import app

MODULES = [
    module.name
    for module in pkgutil.walk_packages(mim4dd.__path__, "mim4dd.")
    if not module.name.startswith(("mim4dd._C", "mim4dd.__main__"))
]


def test_every_public_name_is_there_and_documented():
    assert sorted(mim4dd.__all__) == mim4dd.__all__
    for name in mim4dd.__all__:
        documentation = inspect.getdoc(getattr(mim4dd, name))
        assert ">>>" in documentation, f"{name} has no example"


def test_importing_is_quiet_and_light():
    """It prints nothing, starts no CUDA, and imports neither Triton nor what the loop needs."""
    heavy = ["triton", "matplotlib", "sklearn", "PIL", "typer", "tqdm", "safetensors"]
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import mim4dd\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        f"assert not new & set({heavy}), new\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error:::mim4dd", "-c", code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    if name.startswith("mim4dd.kernels"):
        pytest.importorskip("triton")
    module = importlib.import_module(name)
    torch.use_deterministic_algorithms(False)  # examples show what a user sees
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_kernels_have_one_identity():
    """`import kernels` would make a second copy of every kernel, with caches of its own."""
    assert "kernels" not in sys.modules
    imports = re.compile(r"^\s*(import|from) kernels\b", re.MULTILINE)
    sources = [*ROOT.glob("mim4dd/**/*.py"), *ROOT.glob("bench/*.py"), *ROOT.glob("tests/**/*.py")]
    assert [path for path in sources if imports.search(path.read_text())] == []


def test_a_missing_extension_names_the_cure(tmp_path):
    """Never a silent slow path: without its kernel an op raises, and doctor says why."""
    code = (
        "import sys\n"
        "sys.modules['mim4dd._C'] = None\n"  # what an absent extension looks like to an import
        "import torch, mim4dd\n"
        "from mim4dd.doctor import report\n"
        "text, healthy = report()\n"
        "assert not healthy and 'CPU extension: NOT loaded' in text, text\n"
        "try:\n"
        "    mim4dd.sgd_step(torch.ones(3), torch.ones(3), torch.tensor(0.1))\n"
        "except RuntimeError as error:\n"
        "    assert 'has no CPU kernel' in str(error) and 'pip install' in str(error), error\n"
        "else:\n"
        "    raise AssertionError('it ran without its kernel')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_the_version_is_one():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [mim4dd.__version__]
    assert CliRunner().invoke(app, ["--version"]).output == f"mim4dd {mim4dd.__version__}\n"


def test_an_sdist_holds_all_that_builds_tests_and_documents(monkeypatch):
    """Headers, for one, setuptools does not find by itself."""
    monkeypatch.chdir(ROOT)
    folders = (".github", "bench", "csrc", "docs", "kernels", "mim4dd", "tests", "tools")
    there = {str(path) for each in folders for path in Path(each).rglob("*") if path.is_file()}
    made = {path for path in there if path.endswith((".so", ".pyc"))}
    there |= {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md"}
    own = FileList()
    for line in Path("MANIFEST.in").read_text().splitlines():
        if not line.startswith("#"):
            own.process_template_line(line)
    assert there - made - set(own.files) == set()
    assert made & set(own.files) == set()


def test_the_op_tests_are_of_every_op_and_need_torch_alone():
    """They run where no more is installed, in `make wheel-check` and on other processors."""
    listed = (ROOT / "tests" / "ops.txt").read_text().split()
    assert sorted(set(listed)) == listed
    ops = {path.stem for path in (ROOT / "mim4dd" / "ops").glob("[a-z]*.py")}
    # Tested with the loss whose value it gives.
    assert {f"tests/ops/test_{op}.py" for op in ops - {"mi_lower_bound"}} <= set(listed)
    more = r"^\s*(?:from|import) (mim4dd\.(?:distill|cli|adapters|kernels)|triton|peers)"
    found = {name: re.findall(more, (ROOT / name).read_text(), re.MULTILINE) for name in listed}
    assert {name: modules for name, modules in found.items() if modules} == {}
