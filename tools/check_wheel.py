"""Install the wheel of dist/ into fresh environments without a compiler and test its ops there.

    python tools/check_wheel.py 3.10:2.11.0 3.11:2.13.0 3.13:newest

Each word is a Python and a torch; `newest` is what the index serves. Every environment has nothing
on its PATH but itself, and is removed after its tests. pip's own variables choose the index: with
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu torch comes without CUDA.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from find_wheel import fitting_wheels
from wheel_sources import ROOT

# Compilers are found by these too.
COMPILERS = ("CC", "CXX", "CUDA_HOME", "CUDA_PATH")
PROBE = """
import importlib.metadata, pathlib, platform, shutil, sys, torch, mim4dd
from mim4dd._library import LOAD_ERRORS
assert pathlib.Path(mim4dd.__file__).is_relative_to(sys.prefix), mim4dd.__file__
assert LOAD_ERRORS["CPU"] is None, LOAD_ERRORS["CPU"]
assert not any(map(shutil.which, ("c++", "g++", "clang++", "cc", "gcc", "nvcc")))
print(platform.python_version(), torch.__version__)
"""


class Row(NamedTuple):
    """What came out of one environment."""

    asked: str
    found: str
    seconds_torch: float
    seconds_wheel: float
    tests: str
    passed: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", nargs="+", metavar="PYTHON:TORCH")
    pairs = parser.parse_args().pairs
    wheels = fitting_wheels()
    if not wheels:
        sys.exit("dist/ holds no wheel of these sources: make wheel")
    rows = []
    for pair in pairs:
        try:
            rows.append(check(wheels[0], pair))
        except subprocess.CalledProcessError as error:
            rows.append(Row(pair, "", 0, 0, f"{' '.join(error.cmd[1:4])} failed", False))
        except FileNotFoundError as error:
            rows.append(Row(pair, "", 0, 0, str(error), False))
        print(table(rows[-1:]), flush=True)
    print(f"\n{wheels[0].name}, {wheels[0].stat().st_size / 1e6:.1f} MB\n\n{table(rows)}")
    sys.exit(not all(row.passed for row in rows))


class Environment:
    """A virtual environment in a folder of its own, without compilers."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        subprocess.run([find_python(python), "-m", "venv", folder / "env"], check=True)
        self.variables = {key: os.environ[key] for key in os.environ if key not in COMPILERS}
        self.variables |= {"PATH": str(folder / "env" / "bin"), "PYTHONPATH": ""}

    def run(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run its Python; what it prints is kept."""
        command = [str(self.folder / "env" / "bin" / "python"), *map(str, words)]
        return subprocess.run(
            command, cwd=self.folder, env=self.variables, check=check,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def seconds_to_install(self, *words: object) -> float:
        """Install, and say how long it took."""
        start = time.monotonic()
        self.run("-m", "pip", "install", "--quiet", *words)
        return time.monotonic() - start


def check(wheel: Path, pair: str) -> Row:
    """Make the environment, install, test."""
    python, torch = pair.split(":")
    with TemporaryDirectory(prefix="wheel-check-") as name:
        folder = Path(name)
        environment = Environment(folder, python)
        install = environment.seconds_to_install
        wanted = "torch" if torch == "newest" else f"torch=={torch}"
        seconds_torch = install("--no-compile", wanted)
        seconds_wheel = install(wheel)
        install("--no-compile", "numpy", "pytest>=8.2")
        found = environment.run("-c", PROBE).stdout.strip()
        shutil.copytree(ROOT / "tests", folder / "tests")  # away from the sources
        shutil.copy(ROOT / "pyproject.toml", folder)
        tests = environment.run("-m", "pytest", "-q", "@tests/ops.txt", check=False)
        if tests.returncode != 0:
            print(tests.stdout)
        summary = tests.stdout.strip().splitlines()[-1]
        return Row(pair, found, seconds_torch, seconds_wheel, summary, tests.returncode == 0)


def find_python(version: str) -> str:
    """The interpreter of that version, on the PATH or among pyenv's."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for path in (shutil.which(name), *sorted(pyenv.glob(f"versions/{version}.*/bin/{name}"))):
        if path is None:
            continue
        # A shim of pyenv's is there for versions that are switched off, and fails.
        if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return str(path)
    raise FileNotFoundError(f"{name} is neither on the PATH nor in {pyenv}")


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    head = ["| asked | Python, torch | install torch, s | install wheel, s | op tests |"]
    head += ["|---|---|---|---|---|"]
    return "\n".join(
        head
        + [
            f"| {row.asked} | {row.found} | {row.seconds_torch:.0f} | {row.seconds_wheel:.1f} "
            f"| {row.tests.strip('= ')} |"
            for row in rows
        ]
    )


if __name__ == "__main__":
    main()
