"""Expert trajectories: networks trained on real data, their parameters stored after every epoch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from mim4dd._checks import check_positive
from mim4dd.distill.data import ImageData
from mim4dd.distill.experts.buffer import (
    ExpertBuffer,
    describe_task,
    expert_header,
    expert_path,
    first_not_finite,
    parameter_shapes,
    require_kind,
    save_expert,
)
from mim4dd.distill.files.atomic import require_writable
from mim4dd.distill.files.hold import gone, hold
from mim4dd.distill.runtime.processes import run_parallel
from mim4dd.distill.runtime.progress import progress_bar
from mim4dd.distill.runtime.ranks import from_first, leads
from mim4dd.distill.training.augment import augmentation
from mim4dd.distill.training.kept import KeptTraining
from mim4dd.distill.training.network import accuracy, seeded_network, train_network
from mim4dd.distill.training.precision import PrecisionSettings
from mim4dd.unroll import flatten_parameters

__all__ = ["ExpertBuffer", "ExpertTraining", "train_experts"]


@dataclass(frozen=True)
class ExpertTraining(PrecisionSettings):
    """How experts are trained: plain SGD by default, which a student's plain SGD can follow.

    Args:
        num_experts: Number of expert trajectories.
        train_epochs: Epochs of each expert; a distillation needs max_start_epoch + expert_epochs.
        lr_expert: Step size of the experts.
        batch_train: Real images in each step of an expert.
        dsa_strategy: Augmentation during training: families joined by "_", or "none".
        momentum: Momentum of the experts' SGD.
        weight_decay: Weight decay of the experts' SGD.
        decay: Divide lr_expert by 10 after train_epochs / 2 + 2 epochs, as MTT does.
        seed: Seed of the first expert; the others have the next seeds.

    Example:
        >>> from mim4dd.distill.experts import ExpertTraining
        >>> ExpertTraining(num_experts=3, train_epochs=20).lr_expert
        0.03
    """

    GROUP: ClassVar[str] = "Experts"

    num_experts: int = 10
    train_epochs: int = 10
    lr_expert: float = 0.03
    batch_train: int = 64
    dsa_strategy: str = "none"
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay: bool = False
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(
            num_experts=1, train_epochs=1, batch_train=1, momentum=0, weight_decay=0, seed=0
        )
        check_positive("lr_expert", self.lr_expert)
        if self.momentum >= 1:
            raise ValueError(f"momentum must be below 1, got {self.momentum}")
        augmentation(self.dsa_strategy)

    @property
    def decay_epoch(self) -> int | None:
        """Epochs after which the step size falls, if it does."""
        return self.train_epochs // 2 + 2 if self.decay else None


def train_experts(
    make_network: Callable[[ImageData], nn.Module],
    network_name: str,
    data: ImageData,
    training: ExpertTraining,
    folder: str | Path,
    *,
    workers: int = 1,
    devices: Sequence[str] = (),
) -> "ExpertBuffer":
    """Train the experts that ``folder`` does not hold yet, one file each, and open them.

    The same call continues after an interruption or a kill, which costs a minute of an expert's
    training at most. An expert's bits depend on its seed, the device and the threads of torch, but
    not on which worker trains it: by default workers share the threads, and with one thread in all,
    as with OMP_NUM_THREADS=1, any number of workers gives the same experts.

    Args:
        make_network: Makes a freshly initialised network; with more than one worker it is
            pickled, as :func:`~mim4dd.distill.runtime.processes.run_parallel` says.
        network_name: Says what ``make_network`` makes; a distillation must name the same.
        data: What the experts are trained on.
        training: How.
        folder: Where the files go.
        workers: Processes that train an expert each, at the same time.
        devices: Where; the workers take turns over them. By default where ``data`` is.

    Raises:
        ValueError: If ``folder`` holds experts that were trained otherwise or on other data.
        FloatingPointError: If an expert diverges.
        BlockingIOError: If another process is at work in ``folder``.
        OSError: If ``folder`` cannot be written, or shared memory has no room for what workers get.
        WorkerError: If a worker dies.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from mim4dd.distill.data import load_data
        >>> from mim4dd.distill.experts import ExpertTraining, train_experts
        >>> def make_network(data):
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, data.num_classes))
        >>> data, training = load_data("digits"), ExpertTraining(num_experts=1, train_epochs=2)
        >>> experts = train_experts(make_network, "linear", data, training, tempfile.mkdtemp())
        >>> experts.num_epochs
        2
    """
    folder = Path(folder)
    settings = {
        field.name: getattr(training, field.name)
        for field in fields(ExpertTraining)
        if field.name != "num_experts"
    }
    if training.precision == "float32":  # of which experts said nothing before there was a choice
        del settings["precision"]
    network = seeded_network(lambda: make_network(data), training.seed)
    task = describe_task(network, data)
    header = expert_header(network_name, data.name, training=settings, task=task)
    require_kind(folder, header)
    if _missing(folder, training.num_experts):  # else it is read alone
        with hold(folder, lock=leads()) as held:
            missing = _missing(folder, training.num_experts)
            require_writable(expert_path(folder, missing[0] if missing else 0))
            devices = devices or [str(data.image_train.device)]
            if workers > 1:
                data = data.to("cpu")  # into memory that all workers share
            start = partial(_Trainer, make_network, data, training, folder, header, devices)
            done = training.num_experts - len(missing)
            with progress_bar(total=training.num_experts, desc="experts", initial=done) as progress:
                for _ in run_parallel(start, missing, workers):
                    progress.update()
                    held.require_there()
    return ExpertBuffer(folder, training.num_experts)


def _missing(folder: Path, num_experts: int) -> list[int]:
    """Those that are not done, or of which a kill left what is kept until they are."""
    return from_first(
        lambda: [
            index
            for index in range(num_experts)
            if not expert_path(folder, index).exists() or _kept_path(folder, index).exists()
        ]
    )


def _kept_path(folder: Path, index: int) -> Path:
    return folder / f"training_{index:04d}.safetensors"


class _Trainer:
    """Trains expert after expert, on the device of its worker."""

    def __init__(
        self,
        make_network: Callable[[ImageData], nn.Module],
        data: ImageData,
        training: ExpertTraining,
        folder: Path,
        header: dict[str, Any],
        devices: Sequence[str],
        worker: int,
    ) -> None:
        self.make_network, self.training = make_network, training
        self.folder, self.header = folder, header
        self.data = data.to(devices[worker % len(devices)])

    def __call__(self, index: int) -> None:
        path, kept_path = expert_path(self.folder, index), _kept_path(self.folder, index)
        if not path.exists():
            if not self.folder.exists():
                raise gone(self.folder)
            with hold(self.folder, lock=False):  # also in a worker, so that it is not made anew
                self._train(index, path, kept_path)
        kept_path.unlink(missing_ok=True)

    def _train(self, index: int, path: Path, kept_path: Path) -> None:
        data, training = self.data, self.training
        seed, device = training.seed + index, data.image_train.device
        network = seeded_network(lambda: self.make_network(data), seed).to(device)
        kept = KeptTraining(kept_path, {**self.header, "index": index})
        steps_per_epoch = -(-len(data.image_train) // training.batch_train)
        # flatten_parameters copies: MTT stores p.detach().cpu(), on a CPU a view of live weights.
        initial = flatten_parameters(network).cpu()
        trajectory = initial.new_empty((training.train_epochs + 1, len(initial)))
        so_far = kept.beside.setdefault("trajectory", initial[None])
        epochs = min(kept.step // steps_per_epoch, training.train_epochs)
        if so_far.shape != (epochs + 1, len(initial)):
            raise ValueError(f"{kept_path} does not hold the trajectory up to its step: remove it")
        trajectory[: epochs + 1] = so_far

        def after_epoch() -> None:
            epoch = len(kept.beside["trajectory"])
            trajectory[epoch] = flatten_parameters(network).cpu()
            kept.beside["trajectory"] = trajectory[: epoch + 1]

        drop = training.decay_epoch
        train_network(
            network,
            data.image_train,
            data.label_train,
            num_steps=training.train_epochs * steps_per_epoch,
            lr=training.lr_expert,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            batch_size=training.batch_train,
            generator=torch.Generator(device).manual_seed(seed),
            augment=augmentation(training.dsa_strategy),
            lr_drop=None if drop is None else drop * steps_per_epoch,
            after_epoch=after_epoch,
            precision=training.precision,
            kept=kept,
        )
        if (epoch := first_not_finite(trajectory)) is not None:
            kept_path.unlink(missing_ok=True)
            raise FloatingPointError(
                f"expert {index} diverged in epoch {epoch}: lower lr_expert {training.lr_expert}"
            )
        score = accuracy(network, data.image_test, data.label_test)
        shapes, seconds = parameter_shapes(network), kept.seconds
        save_expert(path, trajectory, shapes, self.header, score, seconds)
