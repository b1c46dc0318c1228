"""Data as Python programs have them, and what that means for the options beside them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, cast

from torch import Tensor
from torch.utils.data import Dataset

from mim4dd.distill.config.commands import TaskSettings
from mim4dd.distill.data import DATA_SETS, ImageData, from_dataset, from_tensors

__all__ = ["Data", "loader", "options_beside"]

Data: TypeAlias = str | Path | ImageData | tuple[Tensor, Tensor] | Dataset[Any]


def options_beside(data: Data, options: Mapping[str, Any]) -> dict[str, Any]:
    """Flat options with the data's: its name, and of :class:`ImageData` how it was made.

    Raises:
        TypeError: If ``data`` is nothing that data can be made of.
        ValueError: If an option says how to load data that are there already.
    """
    if isinstance(data, (str, Path)):
        return {**options, "data": str(data)}
    _require_data(data)
    for name in ("data_path", "download", "image_size"):
        if name in options:
            raise ValueError(
                f"{name} is for data by name or folder, got {options[name]!r} beside "
                f"{type(data).__name__}"
            )
    if _is_pair(data) and options.get("stream"):
        raise ValueError("stream must be False for tensors, which are in memory, got True")
    if not isinstance(data, ImageData):
        return {**options, "data": "tensors" if _is_pair(data) else "dataset"}
    for name in ("keep_bytes", "stream"):
        if name in options:
            raise ValueError(
                f"{name} must be left out beside ImageData, which is made with it or without, got "
                f"{options[name]!r}"
            )
    if options.get("zca", data.zca) != data.zca:
        raise ValueError(
            f"zca must be {data.zca}, as {data.name} was made, or left out, got {options['zca']!r}"
        )
    made = {"data": data.name, "zca": data.zca}
    if data.has_images and data.name in DATA_SETS and DATA_SETS[data.name].sized:
        made["image_size"] = data.image_size  # by which commands load the same
    return {**options, **made}


def loader(data: Data) -> Callable[[TaskSettings], ImageData]:
    """What makes the data that a configuration is of, on its device.

    Raises:
        TypeError: If ``data`` is nothing that data can be made of.
    """
    if not isinstance(data, (str, Path)):
        _require_data(data)

    def load(config: TaskSettings) -> ImageData:
        if isinstance(data, (str, Path)):
            return replace(config, data=str(data)).load_data()
        if isinstance(data, ImageData):
            made = data
        elif _is_pair(data):
            made = from_tensors(*data, zca=config.zca, keep_bytes=config.keep_bytes)
        else:
            made = from_dataset(
                cast("Dataset[Any]", data),
                zca=config.zca,
                keep_bytes=config.keep_bytes,
                stream=config.stream,
            )
        return made.to(config.device)

    return load


def _is_pair(data: Any) -> TypeGuard[tuple[Tensor, Tensor]]:
    return (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and all(isinstance(part, Tensor) for part in data)
    )


def _require_data(data: Any) -> None:
    map_style = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if not isinstance(data, ImageData) and (isinstance(data, Mapping) or not map_style):
        raise TypeError(
            "data must be a name, a folder, an ImageData, a pair of tensors (images, labels) or a "
            f"map-style torch.utils.data.Dataset, got {type(data).__name__}"
        )
