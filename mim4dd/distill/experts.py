"""Expert trajectories: networks trained on real data, their parameters stored after every epoch."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim4dd._checks import check_positive
from mim4dd.distill.augment import augmentation
from mim4dd.distill.data import ImageData
from mim4dd.distill.progress import progress_bar
from mim4dd.distill.settings import Settings
from mim4dd.distill.storage import open_tensors, read_header, save_tensors
from mim4dd.distill.training import accuracy, seeded_network, train_network
from mim4dd.unroll import flatten_parameters

__all__ = ["ExpertBuffer", "ExpertTraining", "train_experts"]

_FORMAT = "mim4dd.expert.1"


@dataclass(frozen=True)
class ExpertTraining(Settings):
    """How experts are trained: plain SGD, so that a student's plain SGD can follow them.

    Args:
        num_experts: Number of expert trajectories.
        train_epochs: Epochs of each; a distillation uses max_start_epoch + expert_epochs of them.
        lr_expert: Step size of the experts.
        batch_train: Real images per step of an expert.
        dsa_strategy: Augmentation in training: families joined by "_", or "none".
        seed: Seed of the first expert; the others follow.
    """

    num_experts: int = 10
    train_epochs: int = 10
    lr_expert: float = 0.03
    batch_train: int = 64
    dsa_strategy: str = "none"
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(num_experts=1, train_epochs=1, batch_train=1, seed=0)
        check_positive("lr_expert", self.lr_expert)
        augmentation(self.dsa_strategy)


def train_experts(
    make_network: Callable[[], nn.Module],
    network_name: str,
    data: ImageData,
    training: ExpertTraining,
    folder: str | Path,
) -> "ExpertBuffer":
    """Train the experts that ``folder`` does not hold yet, one file each, and open them.

    A file is written when its expert is done, so an interrupted call continues with the next.

    Args:
        make_network: Makes a freshly initialised network.
        network_name: Says what ``make_network`` makes; a distillation must name the same.
        data: What the experts are trained on.
        training: How.
        folder: Where the files go.

    Raises:
        ValueError: If ``folder`` holds experts that were trained otherwise.
        FloatingPointError: If an expert diverges.
    """
    folder = Path(folder)
    settings = {
        field.name: getattr(training, field.name)
        for field in fields(ExpertTraining)
        if field.name != "num_experts"
    }
    header = {"format": _FORMAT, "network": network_name, "data": data.name, "training": settings}
    for path in sorted(folder.glob("expert_*.safetensors")):
        stored = _read_header(path)
        for key, value in header.items():
            if stored.get(key) != value:
                raise ValueError(
                    f"{folder} holds experts of another kind: {key} is {stored.get(key)} there and "
                    f"{value} here; choose another folder"
                )
    with progress_bar(total=training.num_experts, desc="experts") as progress:
        for index in range(training.num_experts):
            path = folder / f"expert_{index:04d}.safetensors"
            if not path.exists():
                _train_expert(make_network, data, training, index, path, header)
            progress.update()
    return ExpertBuffer(folder, training.num_experts)


def _train_expert(
    make_network: Callable[[], nn.Module],
    data: ImageData,
    training: ExpertTraining,
    index: int,
    path: Path,
    header: dict[str, Any],
) -> None:
    started = time.perf_counter()
    seed, device = training.seed + index, data.image_train.device
    network = seeded_network(make_network, seed).to(device)
    # flatten_parameters copies: MTT stores p.detach().cpu(), on a CPU a view of live weights.
    trajectory = [flatten_parameters(network).cpu()]
    steps_per_epoch = -(-len(data.image_train) // training.batch_train)
    train_network(
        network,
        data.image_train,
        data.label_train,
        num_steps=training.train_epochs * steps_per_epoch,
        lr=training.lr_expert,
        momentum=0.0,
        weight_decay=0.0,
        batch_size=training.batch_train,
        generator=torch.Generator(device).manual_seed(seed),
        augment=augmentation(training.dsa_strategy),
        after_epoch=lambda: trajectory.append(flatten_parameters(network).cpu()),
    )
    stacked = torch.stack(trajectory)
    if not stacked.isfinite().all():
        epoch = int((~stacked.isfinite().all(1)).int().argmax())
        raise FloatingPointError(
            f"expert {index} diverged in epoch {epoch}: lower lr_expert {training.lr_expert}"
        )
    save_tensors(
        path,
        {"trajectory": stacked},
        header
        | {
            "accuracy": accuracy(network, data.image_test, data.label_test),
            "seconds": time.perf_counter() - started,
        },
    )


class ExpertBuffer:
    """The trajectories of a folder, read a piece at a time from memory-mapped files.

    Args:
        folder: What :func:`train_experts` wrote.
        num_experts: Use only the first so many.

    Raises:
        ValueError: If there are none, or a file is truncated or of another format.

    Example:
        >>> from mim4dd.distill.experts import ExpertBuffer
        >>> buffer = ExpertBuffer("runs/demo/experts")  # doctest: +SKIP
        >>> start, target = buffer.segment(0, start_epoch=3, epochs=2)  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, num_experts: int | None = None) -> None:
        paths = sorted(Path(folder).glob("expert_*.safetensors"))[:num_experts]
        if not paths:
            raise ValueError(
                f"experts must be a folder of expert_*.safetensors files, {folder} holds none; "
                "`mim4dd experts` trains them"
            )
        self.headers = [_read_header(path) for path in paths]
        self._slices = [open_tensors(path).get_slice("trajectory") for path in paths]
        shapes = {tuple(part.get_shape()) for part in self._slices}
        if len(shapes) > 1:
            raise ValueError(f"experts in {folder} must be alike, got shapes {sorted(shapes)}")
        num_stored, self.num_parameters = shapes.pop()
        self.num_epochs = num_stored - 1

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

    @property
    def seconds(self) -> float:
        """Seconds that training the experts took."""
        return sum(header["seconds"] for header in self.headers)

    def segment(self, expert: int, start_epoch: int, epochs: int) -> tuple[Tensor, Tensor]:
        """Parameters after ``start_epoch`` epochs and ``epochs`` later, each (P,)."""
        part = self._slices[expert]
        return part[start_epoch], part[start_epoch + epochs]


def _read_header(path: Path) -> dict[str, Any]:
    with open_tensors(path) as file:
        header = read_header(file)
        names = file.keys()  # a file of safetensors is no mapping
        if header.get("format") != _FORMAT or "trajectory" not in names:
            raise ValueError(f"{path} does not hold an expert trajectory of mim4dd")
        return header
