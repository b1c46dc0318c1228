"""The files that expert trajectories are kept in, and reading them a piece at a time."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mim4dd.distill.storage import open_tensors, read_header, save_tensors

__all__ = [
    "ExpertBuffer",
    "expert_header",
    "expert_path",
    "first_mismatch",
    "first_not_finite",
    "parameter_shapes",
    "require_kind",
    "save_expert",
]

_FORMAT = "mim4dd.expert.2"


def expert_path(folder: Path, index: int) -> Path:
    """The file of one expert."""
    return folder / f"expert_{index:04d}.safetensors"


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
        stored = _read_header(path)
        for key, value in header.items():
            if stored.get(key) != value:
                raise ValueError(
                    f"{folder} holds experts of another kind: {key} is {stored.get(key)} there and "
                    f"{value} here; choose another folder"
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
        folder: What :func:`train_experts` or :func:`import_replay_buffers` wrote.
        num_experts: Use only the first so many.

    Raises:
        ValueError: If there are none, or a file is truncated or of another format.

    Example:
        >>> from mim4dd.distill.experts import ExpertBuffer
        >>> buffer = ExpertBuffer("runs/demo/experts")  # doctest: +SKIP
        >>> start, target = buffer.segment(0, start_epoch=3, epochs=2)  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, num_experts: int | None = None) -> None:
        paths = _expert_paths(Path(folder))[:num_experts]
        if not paths:
            raise ValueError(
                f"experts must be a folder of expert_*.safetensors files, {folder} holds none; "
                "`mim4dd experts` trains them, `mim4dd buffer` makes them of replay_buffer_*.pt"
            )
        self.headers = [_read_header(path) for path in paths]
        self._slices = [open_tensors(path).get_slice("trajectory") for path in paths]
        shapes = {tuple(part.get_shape()) for part in self._slices}
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
        """Raise ValueError unless every expert was trained on this network and data."""
        for header in self.headers:
            for key, value in expected.items():
                if header[key] != value:
                    raise ValueError(
                        f"experts must be of the {key} {value!r}, these are of {header[key]!r}"
                    )

    def require_parameters_of(self, network: nn.Module) -> None:
        """Raise ValueError unless the experts' parameters have the shapes of ``network``'s."""
        mismatch = first_mismatch(self.parameter_shapes, network)
        if mismatch is not None:
            raise ValueError(f"experts must be of the network to distil for: {mismatch}")

    @property
    def seconds(self) -> float | None:
        """Seconds that training the experts took, added up over workers; None if not known."""
        seconds = [header["seconds"] for header in self.headers]
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
        header = read_header(file)
        names = file.keys()  # a file of safetensors is no mapping
        if header.get("format") != _FORMAT or "trajectory" not in names:
            raise ValueError(f"{path} does not hold an expert trajectory of mim4dd")
        return header
