"""Data sets from a folder with one sub-folder of images per class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from mim4dd.distill.data.datasets import stack, to_tensor
from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.readers.folder_layout import find_parts
from mim4dd.distill.data.readers.image_files import image_files, read_image
from mim4dd.distill.data.tensors import from_tensors
from mim4dd.distill.files.atomic import readable

__all__ = ["from_folder"]


def from_folder(
    path: str | Path,
    image_size: int | None = None,
    zca: bool = False,
    *,
    keep_bytes: bool = False,
) -> ImageData:
    """Make a data set of a folder with one sub-folder of images per class.

    The layout of torchvision's ``ImageFolder``: ``path/<class>/<image>``, classes in alphabetical
    order. Where ``path`` holds ``train`` and ``test`` (or ``val``) folders of that layout, under
    any usual name such as ``Training`` or ``valid_set``, they are the two parts; a part that is not
    sorted into classes is left out with a warning. Hidden files and folders, and what systems leave
    beside images (``__MACOSX``), count nowhere.

    Args:
        path: The folder.
        image_size: Resize the images to this height and width.
        zca: Whiten by ZCA instead of standardising every channel.
        keep_bytes: Keep images as bytes, and normalise samples as they are taken.

    Raises:
        ValueError: If there are no classes, it cannot be told which folders are classes and which
            are parts, the parts differ in their classes, a class is empty, an image cannot be read,
            or images are not square or differ in size and ``image_size`` is not given.
    """
    root = Path(path)
    class_names, parts = find_parts(root)
    files = [_files_of_classes(part, class_names) for part in parts]
    mode = _common_mode([file for part in files for file, _ in part])
    tensors = [stack(_items(part, image_size, mode), len(part)) for part in files]
    return from_tensors(
        *tensors[0],
        tensors[1] if len(tensors) > 1 else None,
        class_names=[readable(name) for name in class_names],
        name=readable(root.resolve().name),
        zca=zca,
        keep_bytes=keep_bytes,
    )


def _files_of_classes(root: Path, class_names: Sequence[str]) -> list[tuple[Path, int]]:
    """All image files of the class folders, and the number of their class."""
    found = []
    for label, class_name in enumerate(class_names):
        files = image_files(root / class_name)
        if not files:
            raise ValueError(
                f"class {class_name!r} must have at least one image, none in {root / class_name}"
            )
        found += [(file, label) for file in files]
    return found


def _common_mode(files: Sequence[Path]) -> str:
    """Grey where every image is, else RGB, as the field's readers take all of them."""
    grey = all(read_image(file, lambda image: image.mode in ("1", "L")) for file in files)
    return "L" if grey else "RGB"


def _items(
    files: Sequence[tuple[Path, int]], image_size: int | None, mode: str
) -> Iterator[tuple[Tensor, int]]:
    for file, label in files:
        image = read_image(file, lambda opened: opened.convert(mode))
        if image_size is not None:
            image = image.resize((image_size, image_size))
        elif image.width != image.height:
            raise ValueError(
                f"images must be square, {file} has {image.width} × {image.height} pixels: "
                "image_size (--image-size) resizes both sides"
            )
        yield to_tensor(image), label
