"""Runs as TensorBoard event files."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from mim4dd.distill.loggers import TensorBoard, numbers
from mim4dd.distill.report.show import Picture
from mim4dd.distill.runs import RunDirectory

__all__ = ["export_tensorboard"]


def export_tensorboard(run: RunDirectory, pictures: Sequence[Picture], folder: Path) -> Path:
    """Write the metrics of a run as scalars and its pictures as images; return the event file.

    Args:
        run: The run.
        pictures: What was drawn of it.
        folder: Where the event file goes; TensorBoard names the run by it.

    Raises:
        ValueError: If ``folder`` holds events already, which TensorBoard would mix with these.
        ModuleNotFoundError: If tensorboardX is not installed.
    """
    if any(folder.glob("events.*")):
        raise ValueError(f"{folder} holds TensorBoard events already; choose another folder")
    last = 0
    try:
        with closing(TensorBoard(folder)) as board:
            for row in run.read_metrics():
                last = row["iteration"]
                board.log(last, numbers(row))
            for picture in pictures:
                board.add_image(picture.path.stem, _read_pixels(picture.path), last)
    except BaseException:  # half of it would be in the way of the next try
        for path in folder.glob("events.*"):
            path.unlink()
        raise
    (path,) = folder.glob("events.*")
    return path


def _read_pixels(path: Path) -> Any:
    """(H, W, 3) uint8"""
    from PIL import Image

    with Image.open(path) as image:
        pixels = bytearray(image.convert("RGB").tobytes())
        return (
            torch.frombuffer(pixels, dtype=torch.uint8).view(image.height, image.width, 3).numpy()
        )
