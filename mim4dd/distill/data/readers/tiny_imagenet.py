"""Tiny-ImageNet, as its archive unpacks."""

import re
from pathlib import Path

import torch
from torch import Tensor

from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.readers.downloaded import missing_file, require_file
from mim4dd.distill.data.readers.image_files import has_images, image_files, read_squares
from mim4dd.distill.data.registry import data_set
from mim4dd.distill.data.standard import from_standard
from mim4dd.distill.files.regular import read_text

__all__ = ["load_tiny_imagenet"]

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_SIZE = 64
_SHOWN = 200  # characters of a line


@data_set("tiny_imagenet")
def load_tiny_imagenet(data_path: Path, zca: bool) -> ImageData:
    """Tiny-ImageNet from ``data_path/tiny-imagenet-200``; its validation images are the test part.

    They may lie as in the archive, in ``val/images`` with ``val_annotations.txt``, or sorted into
    ``val/<wnid>`` or ``val/<wnid>/images``. Classes are in the order of their WordNet ids, as in
    the field.
    """
    root = data_path / "tiny-imagenet-200"

    def path(*parts: str) -> Path:
        return require_file(root.joinpath(*parts), "tiny_imagenet", _URL)

    classes = sorted(read_text(path("wnids.txt")).split())
    for wnid in classes:
        if not re.fullmatch(r"\w{1,50}", wnid):  # a path may lead anywhere
            raise ValueError(f"{path('wnids.txt')} must hold WordNet ids, got {wnid[:_SHOWN]!r}")
    words = dict(
        line.split("\t", 1) for line in read_text(path("words.txt")).splitlines() if "\t" in line
    )
    train = _read_sorted(root / "train", classes)
    if not has_images(root / "val" / "images") and any(map(has_images, (root / "val").glob("n*"))):
        test = _read_sorted(root / "val", classes)
    else:
        test = _read_annotated(path("val", "val_annotations.txt"), classes)
    names = [words.get(wnid, wnid).split(",")[0] for wnid in classes]
    return from_standard("tiny_imagenet", train, test, names, zca)


def _read_sorted(folder: Path, classes: list[str]) -> tuple[Tensor, Tensor]:
    """The images in and below ``folder/<wnid>``."""
    files, labels = [], []
    for label, wnid in enumerate(classes):
        images = image_files(folder / wnid)
        if not images:
            raise missing_file(folder / wnid / "images" / "*.JPEG", "tiny_imagenet", _URL)
        files += images
        labels += [label] * len(images)
    return read_squares(files, _SIZE, f"tiny_imagenet {folder.name}"), torch.tensor(labels)


def _read_annotated(annotations: Path, classes: list[str]) -> tuple[Tensor, Tensor]:
    """The images that the annotations name, one by line: file, class, bounding box."""
    number = {wnid: label for label, wnid in enumerate(classes)}
    files, labels = [], []
    for line in read_text(annotations).splitlines():
        file, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        # A path may lead anywhere, and a name may be longer than any file's.
        if wnid not in number or file != Path(file).name or len(file) > _SHOWN:
            raise ValueError(
                f"{annotations} must hold an image and a class of wnids.txt by line, "
                f"got {line[:_SHOWN]!r}"
            )
        files.append(require_file(annotations.parent / "images" / file, "tiny_imagenet", _URL))
        labels.append(number[wnid])
    if not files:
        raise ValueError(f"{annotations} must name the validation images, it is empty")
    return read_squares(files, _SIZE, "tiny_imagenet val"), torch.tensor(labels)
