"""Commands as a user types them, in the process of a test."""

import sys

import pytest

from mim4dd.__main__ import main


def exit_status(*words):
    """Run a command; what it exits with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mim4dd", *map(str, words)])
        try:
            main()
        except SystemExit as stopped:
            return stopped.code
    return 0


def outcome(capfd, *words):
    """Run a command; its exit status, stdout and stderr."""
    status = exit_status(*words)
    out, err = capfd.readouterr()
    if isinstance(status, str):  # the interpreter prints it and exits with 1
        status, err = 1, err + status
    return status, out, err
