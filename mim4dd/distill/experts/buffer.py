"""The files that expert trajectories are kept in, and reading them a piece at a time."""

import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mim4dd.distill.data import ImageData
from mim4dd.distill.files.atomic import open_tensors, read_header, save_tensors
from mim4dd.distill.files.fields import require_each, require_fields
from mim4dd.distill.identity.data import describe_data
from mim4dd.distill.identity.describe import describe_network, differences, named_differences

__all__ = [
    "ExpertBuffer",
    "describe_task",
    "expert_header",
    "expert_path",
    "first_mismatch",
    "first_not_finite",
    "parameter_shapes",
    "require_kind",
    "save_expert",
]

_FORMAT = "mim4dd.expert.2"
_SHOWN = 100  # characters of what differs
_READ = 1024  # parameters of every expert by which it is known


def expert_path(folder: Path, index: int) -> Path:
    """The file of one expert."""
    return folder / f"expert_{index:04d}.safetensors"


def describe_task(network: nn.Module, data: ImageData) -> dict[str, Any]:
    """What experts are of: the network's layers, and the data whatever it is called."""
    return {"data": describe_data(data), "network": describe_network(network)}


def expert_header(network_name: str, data_name: str, **more: Any) -> dict[str, Any]:
    """What the files of experts of one kind say alike."""
    return {"format": _FORMAT, "network": network_name, "data": data_name, **more}


def save_expert(
    path: Path,
    trajectory: Tensor,  # (epochs + 1, P), the initial parameters first
    shapes: Sequence[tuple[int, ...]],
    header: Mapping[str, Any],
    accuracy: float | None = None,
    seconds: float | None = None,
) -> None:
    """Write one expert, atomically; ``accuracy`` and ``seconds`` are None where not known."""
    own = {"shapes": shapes, "accuracy": accuracy, "seconds": seconds}
    save_tensors(path, {"trajectory": trajectory}, {**header, **own})


def require_kind(folder: Path, header: Mapping[str, Any]) -> None:
    """Raise ValueError if ``folder`` holds experts whose headers say something else."""
    for path in _expert_paths(folder):
        whole = _read_header(path)
        stored = {key: value for key, value in whole.items() if key in header}
        # The same data may go by another name, and an old file says no more than the name.
        unnamed = () if stored.get("task") is None or header.get("task") is None else ("data",)
        found = [each for each in differences(stored, header) if each.path not in unnamed]
        if found:
            first, *more = found
            if first.path in ("task", "training"):  # of which one side says nothing
                _require_alike_told(folder, whole, header)
            also = f" (also {named_differences(more)})" if more else ""
            raise ValueError(
                f"{folder} holds experts of another kind: {first.path} is "
                f"{str(first.stored)[:_SHOWN]} there and {str(first.asked)[:_SHOWN]} here{also}; "
                "choose another folder"
            )


def _require_alike_told(folder: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if stored.get("task") is None and asked.get("task") is not None:
        raise ValueError(
            f"the experts in {folder}, of an earlier version or imported, do not say what they "
            f"were trained on: train them again, or choose another folder"
        )
    if stored.get("task") is not None and asked.get("task") is None:
        raise ValueError(
            f"the experts in {folder} say what they were trained on, and imported ones do not: "
            "choose another folder"
        )


def parameter_shapes(network: nn.Module) -> list[tuple[int, ...]]:
    """The shapes that the entries of a trajectory's rows have in ``network``, in order."""
    return [tuple(parameter.shape) for parameter in network.parameters()]


def first_mismatch(shapes: Iterable[Sequence[int]], network: nn.Module) -> str | None:
    """What first differs between ``shapes`` and those of ``network``'s parameters, if anything."""
    named, shapes = list(network.named_parameters()), [tuple(shape) for shape in shapes]
    for index, ((name, parameter), shape) in enumerate(zip(named, shapes, strict=False)):
        if tuple(parameter.shape) != shape:
            return (
                f"parameter {index} is {shape}, and {tuple(parameter.shape)} in the network, "
                f"which calls it {name}"
            )
    if len(named) != len(shapes):
        return f"there are {len(shapes)} parameters, and {len(named)} in the network"
    return None


def first_not_finite(trajectory: Tensor) -> int | None:
    """The first epoch whose parameters are not finite; None if all are."""
    finite = trajectory.isfinite().all(1)
    return None if finite.all() else int((~finite).int().argmax())


class ExpertBuffer:
    """The trajectories of a folder, read a piece at a time from memory-mapped files.

    Args:
        folder: What :func:`train_experts` or ``mim4dd buffer`` wrote.
        num_experts: Use only the first so many.

    Raises:
        ValueError: If there are none, or a file is truncated or of another format.

    Example:
        >>> from mim4dd.distill.experts.train import ExpertBuffer
        >>> buffer = ExpertBuffer("runs/demo/experts")  # doctest: +SKIP
        >>> start, target = buffer.segment(0, start_epoch=3, epochs=2)  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, num_experts: int | None = None) -> None:
        self.folder = Path(folder)
        paths = _expert_paths(self.folder)[:num_experts]
        if not paths:
            raise ValueError(
                f"experts must be a folder of expert_*.safetensors files, {folder} holds none; "
                "`mim4dd experts` trains them, in Python mim4dd.distill.train_experts(data, out); "
                "`mim4dd buffer` makes them of replay_buffer_*.pt"
            )
        self.headers = [_read_header(path) for path in paths]
        self._slices = [open_tensors(path).get_slice("trajectory") for path in paths]
        shapes = {tuple(part.get_shape()) for part in self._slices}
        for path, part in zip(paths, self._slices, strict=True):
            if len(part.get_shape()) != 2 or not part.get_shape()[0]:
                raise ValueError(
                    f"{path} must hold a trajectory (epochs + 1, P), got {part.get_shape()}"
                )
        if len(shapes) > 1:
            raise ValueError(f"experts in {folder} must be alike, got shapes {sorted(shapes)}")
        of_parameters = {tuple(map(tuple, header["shapes"])) for header in self.headers}
        if len(of_parameters) > 1:
            raise ValueError(f"experts in {folder} must be of networks with equal parameters")
        num_stored, self.num_parameters = shapes.pop()
        self.num_epochs = num_stored - 1
        self.parameter_shapes: list[tuple[int, ...]] = list(of_parameters.pop())
        if sum(map(math.prod, self.parameter_shapes)) != self.num_parameters:
            raise ValueError(f"experts in {folder} do not have the parameters that they list")

    def __len__(self) -> int:
        return len(self._slices)

    def require(self, **expected: str) -> None:
        """Raise ValueError unless every expert says that it is of this network, or data."""
        for header in self.headers:
            for key, value in expected.items():
                if header[key] != value:
                    raise ValueError(
                        f"experts must be of the {key} {value!r}, these are of {header[key]!r}"
                    )

    def require_task(self, network: nn.Module, data: ImageData) -> None:
        """Raise ValueError unless every expert is of this network and was trained on this data.

        Experts that do not say it, such as those of ``replay_buffer_*.pt``, are accepted with a
        warning where their parameters and the name of the data fit.
        """
        self.require_parameters_of(network)
        asked = describe_task(network, data)
        for header in self.headers:
            stored = header.get("task")
            if stored is None:
                self.require(data=data.name)
                continue
            found = differences(stored, asked)
            if found:
                raise ValueError(
                    f"experts in {self.folder} must be of the network and the data to distil for, "
                    f"they differ in (theirs → here) {named_differences(found)}"
                )
        if any(header.get("task") is None for header in self.headers):
            warnings.warn(
                f"experts in {self.folder} do not say what they were trained on, as those that "
                "are imported or were trained before mim4dd noted it: only names and shapes are "
                "checked, not the pictures nor the order of the classes",
                stacklevel=2,
            )

    def identity(self) -> dict[str, Any]:
        """What tells these trajectories from others: how many, how long, and where they end."""
        digest = hashlib.sha256()
        for part in self._slices:
            digest.update(part[-1, :_READ].numpy().tobytes())
        return {"count": len(self), "epochs": self.num_epochs, "ends": digest.hexdigest()[:12]}

    def require_parameters_of(self, network: nn.Module) -> None:
        """Raise ValueError unless the experts' parameters have the shapes of ``network``'s."""
        mismatch = first_mismatch(self.parameter_shapes, network)
        if mismatch is not None:
            raise ValueError(f"experts must be of the network to distil for: {mismatch}")

    @property
    def seconds(self) -> float | None:
        """Seconds that training the experts took, added up over workers; None if not known."""
        seconds: list[Any] = [header.get("seconds") for header in self.headers]
        return None if None in seconds else sum(seconds)

    def segment(self, expert: int, start_epoch: int, epochs: int) -> tuple[Tensor, Tensor]:
        """Parameters after ``start_epoch`` epochs and ``epochs`` later, each (P,)."""
        part = self._slices[expert]
        return part[start_epoch], part[start_epoch + epochs]

    def trajectory(self, expert: int) -> Tensor:
        """All stored parameters of an expert. (epochs + 1, P)"""
        return self._slices[expert][:]


def _expert_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("expert_*.safetensors"))


def _read_header(path: Path) -> dict[str, Any]:
    with open_tensors(path) as file:
        header = read_header(file, path)
        names = file.keys()  # a file of safetensors is no mapping
        if header.get("format") != _FORMAT or "trajectory" not in names:
            raise ValueError(f"{path} does not hold an expert trajectory of mim4dd")
        hints = {"seconds": float | None, "accuracy": float | None, "task": dict | None}
        source = f"the header of {path}"
        require_fields(header, source, network=str, data=str, shapes=list, **hints)
        require_each(header["shapes"], source, list)
        for shape in header["shapes"]:
            require_each(shape, source, int)
        return header
