"""The data sets by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.registry import Entry, Registry

__all__ = ["DATA_SETS", "data_set"]

Load = TypeVar("Load", bound=Callable[..., ImageData])


@dataclass(frozen=True)
class DataEntry(Entry):
    """A data set; ``sized`` says that its images can be had in any size."""

    make: Callable[..., ImageData]
    sized: bool = False


DATA_SETS: Registry[DataEntry] = Registry("data", "mim4dd.distill.data.readers", "mim4dd.data_sets")


def data_set(name: str, *, sized: bool = False) -> Callable[[Load], Load]:
    """Name a function that loads a data set, for ``--data`` and configurations.

    It gets the :class:`~pathlib.Path` where downloaded data lie, and whether to whiten by ZCA;
    where it is ``sized`` also the height and width of the images, None for its own.

    Raises:
        ValueError: If another module has registered the name.

    Example:
        >>> from pathlib import Path
        >>> from mim4dd.distill.data import DATA_SETS
        >>> DATA_SETS["digits"].make(Path("data"), zca=False).num_classes
        10
    """

    def register(load: Load) -> Load:
        DATA_SETS.add(DataEntry(name, name, load, sized=sized))
        return load

    return register
