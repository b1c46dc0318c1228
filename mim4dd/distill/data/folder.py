"""Data sets from a folder with one sub-folder of images per class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from mim4dd.distill.data.datasets import stack, to_tensor
from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.pictures import image_files, read_image
from mim4dd.distill.data.tensors import from_tensors

__all__ = ["from_folder"]


def from_folder(path: str | Path, image_size: int | None = None, zca: bool = False) -> ImageData:
    """Make a data set of a folder with one sub-folder of images per class.

    The layout of torchvision's ``ImageFolder``: ``path/<class>/<image>``, classes in alphabetical
    order. Where ``path`` holds ``train`` and ``test`` (or ``val``) folders of that layout, they are
    the two parts.

    Args:
        path: The folder.
        image_size: Resize the images to this height and width.
        zca: Whiten by ZCA instead of standardising every channel.

    Raises:
        ValueError: If there are no classes, a class is empty, an image cannot be read, or the
            images differ in size and ``image_size`` is not given.
    """
    root = Path(path)
    parts = [root / part for part in ("train", "test", "val") if (root / part).is_dir()]
    if not (root / "train").is_dir() or len(parts) < 2:
        parts = [root]
    class_names = _class_folders(parts[0])
    mode = _common_mode(parts[:2])
    tensors = [stack(_folder_items(part, class_names, image_size, mode)) for part in parts[:2]]
    return from_tensors(
        *tensors[0],
        tensors[1] if len(tensors) > 1 else None,
        class_names=class_names,
        name=root.resolve().name,
        zca=zca,
    )


def _class_folders(root: Path) -> list[str]:
    # Hidden folders, such as notebooks' checkpoints, are no classes.
    names = sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."
    )
    if len(names) < 2:
        raise ValueError(
            f"{root} must hold one sub-folder of images per class, at least 2, got {names}"
        )
    return names


def _common_mode(parts: Sequence[Path]) -> str:
    """Grey where every image is, else RGB, as the field's readers take all of them."""
    grey = all(
        read_image(file, lambda image: image.mode in ("1", "L"))
        for part in parts
        for file in image_files(part)
    )
    return "L" if grey else "RGB"


def _folder_items(
    root: Path, class_names: Sequence[str], image_size: int | None, mode: str
) -> Iterator[tuple[Tensor, int]]:

    for label, class_name in enumerate(class_names):
        folder = root / class_name
        files = image_files(folder)
        if not files:
            raise ValueError(f"class {class_name!r} must have at least one image, none in {folder}")
        for file in files:
            image = read_image(file, lambda opened: opened.convert(mode))
            if image_size is not None:
                image = image.resize((image_size, image_size))
            yield to_tensor(image), label
