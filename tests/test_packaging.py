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

import mim4dd

ROOT = Path(__file__).resolve().parent.parent
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
    heavy = ["triton", "matplotlib", "sklearn", "kornia", "PIL", "typer", "tqdm", "safetensors"]
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
    sources = [*ROOT.glob("mim4dd/**/*.py"), *ROOT.glob("bench/*.py"), *ROOT.glob("tests/*.py")]
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
