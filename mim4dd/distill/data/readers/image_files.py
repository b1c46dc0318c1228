"""Image files."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mim4dd.distill.files.regular import require_regular
from mim4dd.distill.runtime.progress import progress_bar

__all__ = [
    "has_images",
    "image_files",
    "image_names",
    "read_image",
    "read_squares",
    "subfolders",
]

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# What systems and archivers leave beside images; other such names begin with a dot.
_STRAY = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "lost+found"}
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
# What files of these suffixes are, and GIF, which some are in truth. Pillow knows others, one of
# which, PostScript, is a program that it would run.
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_Read = TypeVar("_Read")


def read_image(file: Path, use: Callable[[Any], _Read]) -> _Read:
    """What ``use`` makes of an opened image of 8 bits per channel.

    Raises:
        ValueError: If the file is no image, one of more bits, or of more pixels than Pillow takes
            without a warning, ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    from PIL import Image

    try:
        require_regular(file)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as opened:
                if opened.mode in _MODES:
                    return use(opened)
                mode = opened.mode
    except Exception as error:  # a broken file may raise any, SyntaxError and struct.error included
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
    # Pillow would clip 16 bits to 8 without a word.
    raise ValueError(f"{file} must have 8 bits per channel, mode {', '.join(_MODES)}, got {mode}")


def _is_stray(name: str) -> bool:
    """Whether a file or folder is hidden, or one that systems and archivers leave behind."""
    return name.startswith(".") or name.lower() in _STRAY


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in alphabetical order, without stray ones."""
    with os.scandir(folder) as entries:  # which knows most kinds without asking for every file
        return sorted(
            folder / entry.name for entry in entries if entry.is_dir() and not _is_stray(entry.name)
        )


def image_files(folder: Path) -> list[Path]:
    """The image files in and below a folder, in alphabetical order, without stray ones."""
    return [folder / name for name in image_names(folder)]


def image_names(folder: Path) -> list[str]:
    """As :func:`image_files`, where they are below the folder."""
    return sorted(_image_names(folder), key=lambda name: name.split(os.sep))


def has_images(folder: Path) -> bool:
    """Whether there is an image file in or below a folder."""
    return next(_image_names(folder), None) is not None


def _image_names(folder: Path, below: str = "") -> Iterator[str]:
    try:
        entries = os.scandir(folder / below)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    inner = []
    with entries:
        for entry in entries:
            if _is_stray(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                inner.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in _SUFFIXES and entry.is_file():
                yield os.path.join(below, entry.name)
    for name in inner:
        yield from _image_names(folder, os.path.join(below, name))


def read_squares(files: Sequence[Path], size: int, name: str) -> Tensor:
    """Colour images as bytes (N, 3, size, size): the shorter side resized, the middle cut out.

    With the roundings of torchvision's ``Resize(size)`` and ``CenterCrop(size)``.

    Raises:
        ValueError: If one cannot be read.
    """
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    with progress_bar(total=len(files), desc=f"reading {name}") as progress:
        for image, file in zip(images, files, strict=True):
            square = read_image(file, lambda opened: _square(opened.convert("RGB"), size))
            pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
            image.copy_(pixels.view(size, size, 3).permute(2, 0, 1))
            progress.update()
    return images


def _square(image: Any, size: int) -> Any:
    from PIL import Image

    shorter = min(image.size)
    if shorter != size:
        sides = tuple(int(size * side / shorter) for side in image.size)
        image = image.resize(sides, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))
