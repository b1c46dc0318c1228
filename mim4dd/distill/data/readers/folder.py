"""Data sets from a folder with one sub-folder of images per class."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim4dd.distill.data.datasets import stack, to_tensor
from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.per_class import evenly_over_classes
from mim4dd.distill.data.readers.folder_layout import find_parts
from mim4dd.distill.data.readers.image_files import image_names, read_image
from mim4dd.distill.data.streamed import SAMPLED, FileNames, StreamedPixels, num_readers
from mim4dd.distill.data.tensors import from_stream, from_tensors
from mim4dd.distill.files.atomic import readable

__all__ = ["from_folder"]

_GREY = ("1", "L")


def from_folder(
    path: str | Path,
    image_size: int | None = None,
    zca: bool = False,
    *,
    keep_bytes: bool = False,
    stream: bool = False,
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
        stream: Keep the names of the files alone, and read images as they are taken, by a thread
            for each core. Mean and deviation are those of 5000 images, evenly over the classes,
            of which it is also seen whether all are grey, and their size.

    Raises:
        ValueError: If there are no classes, it cannot be told which folders are classes and which
            are parts, the parts differ in their classes, a class is empty, an image cannot be read,
            or images are not square or differ in size and ``image_size`` is not given. Where they
            are streamed, an image is refused as it is read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from mim4dd.distill.data import from_folder
        >>> root = Path(tempfile.mkdtemp())
        >>> for number in range(6):
        ...     path = root / "ab"[number % 2] / f"{number}.png"
        ...     path.parent.mkdir(exist_ok=True)
        ...     Image.new("RGB", (40, 30), (40 * number, 9 * number, 7 * number)).save(path)
        >>> data = from_folder(root, image_size=16)
        >>> data.image_train.shape, data.class_names
        (torch.Size([4, 3, 16, 16]), ('a', 'b'))
    """
    root = Path(path)
    class_names, parts = find_parts(root)
    found = [_Files.of(part, class_names) for part in parts]
    names: dict[str, Any] = {
        "class_names": [readable(name) for name in class_names],
        "name": readable(root.resolve().name),
    }
    if stream:
        return _streamed(found, image_size, zca, names)
    mode = _common_mode(file for files in found for file in map(files.path, range(len(files))))
    tensors = [stack(_items(files, _Look(mode, image_size)), len(files)) for files in found]
    test = tensors[1] if len(tensors) > 1 else None
    return from_tensors(*tensors[0], test, zca=zca, keep_bytes=keep_bytes, **names)


@dataclass(frozen=True)
class _Files:
    """All image files of the class folders of a part."""

    root: Path
    names: FileNames  # below the root
    labels: Tensor  # (N,)

    @staticmethod
    def of(root: Path, class_names: Sequence[str]) -> "_Files":
        counts = []

        def names() -> Iterator[str]:
            for class_name in class_names:
                inner = image_names(root / class_name)
                if not inner:
                    raise ValueError(
                        f"class {class_name!r} must have at least one image, "
                        f"none in {root / class_name}"
                    )
                counts.append(len(inner))
                yield from (f"{class_name}/{name}" for name in inner)

        found = FileNames(names())
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        return _Files(root, found, labels)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> Path:
        return self.root / self.names[row]

    def sample(self) -> list[Path]:
        """Some files of every class."""
        rows = evenly_over_classes(self.labels, int(self.labels[-1]) + 1, SAMPLED)
        return [self.path(row) for row in rows.tolist()]


@dataclass(frozen=True)
class _Look:
    """What becomes of every image: its mode, and its height and width where they are given."""

    mode: str
    size: int | None

    def __call__(self, file: Path) -> Tensor:
        image = read_image(file, self._converted)
        if self.size is not None:
            image = image.resize((self.size, self.size))
        elif image.width != image.height:
            raise ValueError(
                f"images must be square, {file} has {image.width} × {image.height} pixels: "
                "image_size (--image-size) resizes both sides"
            )
        return to_tensor(image)

    def _converted(self, opened: Any) -> Any:
        if self.mode == "L" and opened.mode not in _GREY:
            raise ValueError("all images must be grey, like those that were read before")
        return opened.convert(self.mode)


@dataclass(frozen=True)
class _Reader:
    """Reads the image of a number, which must be of the size that others have."""

    files: _Files
    look: _Look
    side: int

    def __call__(self, row: int) -> Tensor:
        image = self.look(self.files.path(row))
        if image.shape[1] != self.side:
            raise ValueError(
                f"all images must have one size, {self.files.path(row)} has {image.shape[1]} × "
                f"{image.shape[1]} pixels and others {self.side} × {self.side}; image_size "
                "(--image-size) resizes a folder's"
            )
        return image


def _streamed(
    parts: Sequence[_Files], image_size: int | None, zca: bool, names: dict[str, Any]
) -> ImageData:
    look = _Look(_common_mode(file for part in parts for file in part.sample()), image_size)
    channels, side, _ = look(parts[0].path(0)).shape
    if zca:
        gibibytes = 4 * len(parts[0]) * channels * side**2 / 2**30
        raise ValueError(
            "zca must be False for images that are streamed: it is fitted to all at once, which "
            f"take {gibibytes:.1f} GiB here, and needs a matrix of all pixels by all pixels"
        )
    size = (channels, side, side)
    pixels = [
        StreamedPixels(_Reader(part, look, side), len(part), size, num_readers()) for part in parts
    ]
    test = (pixels[1], parts[1].labels) if len(parts) > 1 else None
    return from_stream(pixels[0], parts[0].labels, test, **names)


def _common_mode(files: Iterable[Path]) -> str:
    """Grey where every image is, else RGB, as the field's readers take all of them."""
    return "L" if all(read_image(file, _is_grey) for file in files) else "RGB"


def _is_grey(opened: Any) -> bool:
    return opened.mode in _GREY


def _items(files: _Files, look: _Look) -> Iterator[tuple[Tensor, int]]:
    for row, label in enumerate(files.labels.tolist()):
        yield look(files.path(row)), label
