"""Commands as a user types them, in the process of a test."""

import io
import sys

import pytest
from PIL import Image

from mim4dd.__main__ import main

# Small ones, in seconds.
EXPERTS = "--width 8 --num-experts 2 --train-epochs 4"
DISTILL = (
    "--experts experts --width 8 --syn-steps 3 --max-start-epoch 3 --num-keys 40 "
    "--num-eval 2 --eval-epochs 10"
)


def _save_blank(figure, file, **_):
    """In place of drawing, which takes a small command most of its time."""
    picture = io.BytesIO()
    Image.new("RGB", (3, 2)).save(picture, "png")
    file.write(picture.getvalue())


def exit_status(*words, draw=False):
    """Run a command; what it exits with. Its pictures are blank unless it is to ``draw``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mim4dd", *map(str, words)])
        if not draw:
            patch.setattr("matplotlib.figure.Figure.savefig", _save_blank)
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
