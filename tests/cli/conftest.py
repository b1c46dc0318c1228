"""Commands in a folder of their own, and experts for them."""

import shutil

import pytest
from command_line import EXPERTS, exit_status, outcome


@pytest.fixture
def mim4dd(tmp_path, monkeypatch, capfd):
    """Run a command in a folder of its own; return exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    return lambda command: outcome(capfd, *command.split())


@pytest.fixture(scope="session")
def experts(tmp_path_factory):
    """Made once."""
    folder = tmp_path_factory.mktemp("made") / "experts"
    assert exit_status("experts", *EXPERTS.split(), "--out", folder) == 0
    return folder


@pytest.fixture
def with_experts(mim4dd, experts, tmp_path):
    """With experts that a test may change."""
    shutil.copytree(experts, tmp_path / "experts")
    return mim4dd
