"""Data sets by the readers of torchvision and of Hugging Face, where these are installed."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from mim4dd._extras import import_extra
from mim4dd.distill.data.datasets import from_dataset, label_column, pair_of
from mim4dd.distill.data.image_data import ImageData

__all__ = ["ELSEWHERE", "load_elsewhere"]

_TRAIN = ("train", "trainval")
_TEST = ("test", "val", "validation", "valid")


def load_elsewhere(
    source: str, image_size: int | None, data_path: Path, *, download: bool, **options: Any
) -> ImageData:
    """A data set that another library reads.

    Args:
        source: ``"torchvision:NAME"``, a class of ``torchvision.datasets``; or ``"hf:NAME"``, a
            data set of the Hugging Face Hub, or ``"hf:FOLDER"``, one of ``save_to_disk``.
        image_size: Height and width to resize images to.
        data_path: Where torchvision's files lie.
        download: Whether the library may fetch what is missing.
        options: Of :func:`~mim4dd.distill.data.from_dataset`.

    Raises:
        ModuleNotFoundError: If the library is missing.
        ValueError: If there is no such data set, or its files are missing.
    """
    library, _, name = source.partition(":")
    parts, class_names = ELSEWHERE[library](name, data_path, download)
    train, *test = (part if image_size is None else _Resized(part, image_size) for part in parts)
    return from_dataset(
        train, test[0] if test else None, class_names=class_names, name=source, **options
    )


class _Resized(Dataset[Any]):
    """Images of a data set in colour and in one size; labels can be had without them."""

    def __init__(self, dataset: Any, size: int) -> None:
        self.dataset, self.size = dataset, size
        targets = getattr(dataset, "targets", None)
        column = label_column(dataset)
        if targets is not None or column is not None:
            self.targets = dataset[column] if targets is None else targets

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = pair_of(self.dataset[index], index)
        from PIL import Image

        if not isinstance(image, Image.Image):
            raise ValueError(
                f"image_size needs PIL images, image {index} is a {type(image).__name__}"
            )
        return image.convert("RGB").resize((self.size, self.size)), label


Parts = tuple[list[Any], Sequence[str] | None]


def _from_torchvision(name: str, data_path: Path, download: bool) -> Parts:
    datasets = import_extra("torchvision").datasets
    kind = getattr(datasets, name, None) if name in datasets.__all__ else None
    parameters = inspect.signature(kind).parameters if kind is not None else {}
    if kind is None or not {"train", "split"} & parameters.keys():
        raise ValueError(
            "data must name a class of torchvision.datasets with a part to train on, as in "
            f"torchvision:FashionMNIST, got {name!r}"
        )
    # torchvision refuses to be asked where there is nothing to download.
    asked = {"download": True} if download and "download" in parameters else {}

    def part(**which: Any) -> Any:
        try:
            return kind(str(data_path), **which, **asked)
        except RuntimeError as error:
            raise ValueError(
                f"torchvision finds no {name} below {data_path}: {error}; download=True "
                "(--download) has it fetched where that is possible"
            ) from error

    if "train" in parameters:
        parts = [part(train=True), part(train=False)]
    else:
        parts = [_first(part, names) for names in (_TRAIN, _TEST)]
    return parts, getattr(parts[0], "classes", None)


def _first(part: Callable[..., Any], names: Sequence[str]) -> Any:
    """The part by the first name that the data set knows."""
    for name in names[:-1]:
        try:
            return part(split=name)
        except ValueError as error:
            if error.__cause__ is not None:  # files that are missing, which no other name has
                raise
    return part(split=names[-1])


def _from_hugging_face(name: str, data_path: Path, download: bool) -> Parts:
    datasets = import_extra("datasets")
    if Path(name).is_dir():
        found = datasets.load_from_disk(name)
    elif download:
        found = datasets.load_dataset(name)
    else:
        raise ValueError(
            f"data 'hf:{name}' is no folder of save_to_disk. To load it from the Hub, give "
            f"download=True (--download), even if it was fetched before"
        )
    by_name = found if isinstance(found, Mapping) else {"train": found}
    train = [by_name[each] for each in _TRAIN if each in by_name][:1]
    test = [by_name[each] for each in _TEST if each in by_name][:1]
    if not train:
        raise ValueError(
            f"data 'hf:{name}' must have a part to train on, it has {', '.join(by_name)}"
        )
    column = label_column(train[0])
    feature = train[0].features.get(column) if column is not None else None
    return train + test, getattr(feature, "names", None)


ELSEWHERE: Mapping[str, Callable[[str, Path, bool], Parts]] = {
    "torchvision": _from_torchvision,
    "hf": _from_hugging_face,
}
