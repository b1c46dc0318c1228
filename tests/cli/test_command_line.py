"""What is of no one command: help, warnings, `mim4dd doctor`."""

import re
from pathlib import Path

import pytest

from mim4dd import __main__ as program
from mim4dd import distill
from mim4dd.distill.methods import METHODS


def test_only_warnings_of_our_own_files_are_shortened(capsys):
    shown = []
    show = program._one_line(lambda *arguments: shown.append(arguments[0]))
    show("ours", UserWarning, str(Path(program.__file__).parent / "distill" / "loop.py"), 1)
    show("a user's", UserWarning, "/home/user/mim4dd/program.py", 1)
    show("a checkout's", UserWarning, str(Path(program.__file__).parents[1] / "program.py"), 1)
    assert capsys.readouterr().err == "mim4dd: warning: ours\n"
    assert shown == ["a user's", "a checkout's"]


def test_doctor_and_help(mim4dd):
    status, out, _ = mim4dd("doctor")
    assert status == 0
    assert "CPU extension: loaded" in out


@pytest.mark.parametrize("method", METHODS)
def test_help_is_of_one_method_with_the_defaults_that_are_used(method, mim4dd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = mim4dd(f"distill --method {method} --data cifar10 --ipc 10 --help")
    assert status == 0
    assert len(out.splitlines()) <= 100  # two screens
    blocks = [" ".join(block.split()) for block in re.split(r"\n  (?=--)", out)[1:]]
    shown = {block.split()[0].removeprefix("--").replace("-", "_"): block for block in blocks}
    assert next(iter(shown)) == "method"
    resolved = distill.resolve(method=method, data="cifar10", ipc=10).options()
    of_command = {"config", "plugin", "out", "resume", "from_iteration", "log", "help"}
    assert set(shown) == resolved.keys() | of_command
    for name, value in resolved.items():
        if value is not None and not isinstance(value, bool):
            # Where a line ends, there may be a space in the middle of a word.
            assert f"[{value}]".replace(" ", "") in shown[name].replace(" ", "")
