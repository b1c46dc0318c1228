"""All that an outer iteration changes: the synthetic set, its optimisers, and their copies."""

import math
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from mim4dd.distill.data import ImageData
from mim4dd.distill.data.normalization import Normalization
from mim4dd.distill.loop.plateau import Plateau
from mim4dd.distill.loop.settings import MAY_CHANGE, LoopSettings
from mim4dd.distill.methods.base import BaseMethod, Initial, Objective
from mim4dd.distill.runs import Provenance, RunDirectory, SyntheticSet
from mim4dd.distill.runtime.cost import Meter
from mim4dd.distill.runtime.ranks import average, gather, num_ranks, rank, wait_for_ranks
from mim4dd.step_size import PositiveStepSize

__all__ = ["LoopState", "Snapshot", "copied_state", "save"]

# As in MTT, and DATM for the labels.
_MOMENTUM = {"image_syn": 0.5, "syn_lr": 0.5, "syn_lr_rho": 0.5, "label_logits": 0.9}
# What a set is evaluated with, not a part of it.
_STEP_SIZES = frozenset({"syn_lr", "syn_lr_rho"})
# The options by which the learned tensors step, and a method's networks.
_STEP_SIZE_OF = {
    "image_syn": "lr_img",
    "syn_lr": "lr_lr",
    "syn_lr_rho": "lr_lr",
    "label_logits": "lr_y",
}
_OF_NETWORKS = ("lr_net", "inner_lr")

_METHOD = "method."  # how a checkpoint names what the method carries


class Snapshot(NamedTuple):
    """What a checkpoint holds, of one rank."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]

    @property
    def iteration(self) -> int:
        """The iteration that it stands before."""
        return int(self.header["iteration"])

    def of_method(self, device: torch.device) -> dict[str, Tensor]:
        """What it holds of the method on this rank, whose networks differ from rank to rank.

        Raises:
            ValueError: If it is of more ranks than there are, or of fewer.
        """
        if self._of_ranks() and self.header.get("ranks") != num_ranks():
            raise ValueError(
                f"the checkpoint holds the method's state on {self.header.get('ranks')} "
                f"ranks, so exactly as many must continue it, got {num_ranks()}"
            )
        return self.of_rank(rank(), device)

    def of_rank(self, number: int, device: torch.device) -> dict[str, Tensor]:
        """What it holds of the method on one rank."""
        of_this = _below(f"{number}.", self._of_ranks())
        return {name: value.to(device) for name, value in of_this.items()}

    def _of_ranks(self) -> dict[str, Tensor]:
        return _below(_METHOD, self.tensors)


class LoopState:
    """The learned tensors, their optimisers and the number of the iteration."""

    def __init__(self, initial: Initial, class_syn: Tensor, settings: LoopSettings) -> None:
        self.class_syn = class_syn
        self.settings = settings
        self.identity: dict[str, Any] = {}
        self.options: Mapping[str, Any] | None = None
        self.normalization: Normalization | None = None
        self.tiles = 1
        self.changes: list[dict[str, Any]] = []
        image_syn = initial.image_syn
        like: dict[str, Any] = {"dtype": image_syn.dtype, "device": image_syn.device}
        self.positive: PositiveStepSize | None = None
        self.learned = {"image_syn": image_syn.clone()}
        if settings.positive_syn_lr:
            self.positive = PositiveStepSize(settings.lr_teacher, **like)
            self.learned["syn_lr_rho"] = self.positive.rho
        else:
            self.learned["syn_lr"] = torch.tensor(settings.lr_teacher, **like)
        if initial.label_logits is not None:
            self.learned["label_logits"] = initial.label_logits.clone()
        for tensor in self.learned.values():
            tensor.requires_grad_()
        self.optimizers = {
            name: _make_optimizer(name, tensor, settings) for name, tensor in self.learned.items()
        }
        self.plateau: Plateau | None = None
        if settings.patience_img:
            self.plateau = Plateau(
                self.optimizers["image_syn"], settings.lr_img, settings.patience_img
            )
        self.average_image = image_syn.clone() if settings.ema_decay else None
        # What the last loss sent gradients to; before the first it may be all.
        self.stepped = set(self.learned)
        self.iteration = 0
        self.last_good: Snapshot | None = None
        self.meter = Meter(image_syn.device)

    @property
    def image_syn(self) -> Tensor:
        """The images, (n, channels, H, W)."""
        return self.learned["image_syn"]

    @property
    def syn_lr(self) -> Tensor:
        """The learned step size, ()."""
        return self.learned["syn_lr"] if self.positive is None else self.positive()

    def label_syn(self) -> Tensor:
        """The classes (n,), or the learned probabilities (n, C)."""
        logits = self.learned.get("label_logits")
        return self.class_syn if logits is None else logits.softmax(1)

    def differentiate(self, outcome: Objective | None) -> Tensor:
        """Fill in the gradients, the mean over all ranks; return the mean loss.

        A rank whose loss could not be computed, None, makes both NaN on every rank.
        """
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        if outcome is not None:
            self._backward(outcome.value)
        gradients = [
            torch.full_like(tensor, torch.nan) if outcome is None
            else torch.zeros_like(tensor) if tensor.grad is None
            else tensor.grad
            for tensor in self.learned.values()
        ]  # fmt: skip
        value = self.syn_lr.detach() * torch.nan if outcome is None else outcome.value.detach()
        value, *gradients = average([value, *gradients])
        for tensor, gradient in zip(self.learned.values(), gradients, strict=True):
            tensor.grad = gradient
        return value

    def _backward(self, value: Tensor) -> None:
        if value.requires_grad:
            value.backward()
        self.stepped = {name for name, part in self.learned.items() if part.grad is not None}
        if not self.stepped - _STEP_SIZES:
            raise ValueError(
                "the method's loss must depend on image_syn or label_syn, but sends gradients to "
                "neither: is something detached, or computed under torch.no_grad()?"
            )

    def refuse_bad_gradients(self, value: Tensor, run: RunDirectory) -> None:
        """Stop at a loss or gradient that is not finite."""
        suspects: dict[str, Tensor | None] = {"the loss": value}
        suspects |= {f"the gradient of {name}": part.grad for name, part in self.learned.items()}
        for name, tensor in suspects.items():
            if tensor is not None and not tensor.isfinite().all():
                self.refuse(f"{name} is not finite", run)

    def update(self, loss: float, run: RunDirectory) -> None:
        """Take one step with every optimiser, from what had this loss."""
        if self.settings.cosine_img:
            turn = math.pi * self.iteration / self.settings.iterations
            for group in self.optimizers["image_syn"].param_groups:
                group["lr"] = self.settings.lr_img * (1 + math.cos(turn)) / 2
        for optimizer in self.optimizers.values():
            optimizer.step()
        if self.plateau is not None:
            self.plateau.step(loss)
        if self.settings.clip_img and self.normalization is not None:
            with torch.no_grad():
                self.image_syn.copy_(self.normalization.clip(self.image_syn))
        for name, tensor in self.learned.items():
            if not tensor.isfinite().all():
                self.refuse(f"{name} is not finite after the step", run)
        if not self.syn_lr > 0:
            self.refuse(f"the learned step size fell to {self.syn_lr.item():g}", run)
        if self.average_image is not None:
            self.average_image.lerp_(self.image_syn.detach(), 1 - self.settings.ema_decay)
        self.iteration += 1

    def refuse(self, what: str, run: RunDirectory) -> NoReturn:
        """Stop a run that diverged, with its last good state saved."""
        steps = self._step_sizes(anew=self.last_good is None)
        message = f"{what} in iteration {self.iteration}; lower {', '.join(steps)}"
        if self.last_good is not None:
            save(self, self.last_good, run)
            message += (
                f". The last good state, of iteration {self.last_good.iteration}, is kept in "
                f"{run.checkpoint}: go on from it by --resume {shlex.quote(str(run.path))} with "
                "smaller steps"
            )
            if "syn_lr" in self.stepped:
                message += ", perhaps with --positive-syn-lr"
            if earlier := [each for each in run.kept_iterations() if each <= self.iteration]:
                message += f", or --from-iteration {', '.join(map(str, earlier))}"
        wait_for_ranks()  # whoever ends first has torchrun end the others
        raise FloatingPointError(message)

    def _step_sizes(self, anew: bool) -> list[str]:
        """The step sizes that this run depends on and may go on, or begin anew, with others of."""
        names = [_STEP_SIZE_OF[name] for name in self.learned if name in self.stepped]
        names += [name for name in _OF_NETWORKS if _has_setting(self.identity, name)]
        may = [name for name in names if name in MAY_CHANGE]
        # Where a step size begins is what the run is of.
        return [*may, "lr_teacher"] if anew and self.stepped & _STEP_SIZES else may

    def snapshot(self, method_state: dict[str, Tensor]) -> Snapshot:
        """All that a checkpoint holds of this rank: copies, and what :func:`copied_state` gave."""
        tensors = {name: tensor.detach().clone() for name, tensor in self.learned.items()}
        tensors["syn_lr"] = self.syn_lr.detach().clone()
        if self.average_image is not None:
            tensors["average_image"] = self.average_image.clone()
        for name, optimizer in self.optimizers.items():
            for key, value in optimizer.state[self.learned[name]].items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{name}.{key}"] = value.clone()
        tensors |= {f"{_METHOD}{name}": tensor for name, tensor in method_state.items()}
        header = {
            "iteration": self.iteration,
            "identity": self.identity,
            "changes": self.changes,
            "tiles": self.tiles,
        }
        if self.plateau is not None:
            header["plateau"] = self.plateau.state()
        return Snapshot(tensors, header | self.meter.read())

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a checkpoint."""
        tensors, header = snapshot
        kept = {"average_image": self.average_image} if self.average_image is not None else {}
        if self.positive is not None and "syn_lr_rho" not in tensors:
            # Until here it was learned by itself.
            tensors = tensors | {"syn_lr_rho": _rho(self.positive, tensors["syn_lr"])}
        for name, tensor in (self.learned | kept).items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                stored = tuple(tensors[name].shape) if name in tensors else "none"
                raise ValueError(
                    f"the checkpoint must hold {name} of shape {tuple(tensor.shape)}, as the "
                    f"settings ask for, got {stored}"
                )
            with torch.no_grad():
                tensor.copy_(tensors[name])
        for name, optimizer in self.optimizers.items():
            tensor = self.learned[name]
            optimizer.state[tensor].update(
                {
                    # Adam's step count stays on the CPU, where it reads it.
                    key: value if key == "step" else value.to(tensor.device)
                    for key, value in _below(f"optimizer.{name}.", tensors).items()
                }
            )
        self.iteration = header["iteration"]
        self.changes = header.get("changes", [])
        if self.plateau is not None:
            self.plateau.restore(header.get("plateau", {}))
        self.meter.restore(header)

    def result(
        self, data: ImageData, relabel: Callable[[Tensor], Tensor | None] | None = None
    ) -> SyntheticSet:
        """The set as it is now; the averaged images where they are averaged."""
        images = self.image_syn if self.average_image is None else self.average_image
        images = images.detach().clone()
        labels = None if relabel is None else relabel(images)
        return SyntheticSet(
            images,
            self.label_syn().detach().clone() if labels is None else labels,
            self.class_syn,
            self.syn_lr.detach().clone(),
            data.normalization.inverse(images),
            data.class_names,
            self.identity.get("data"),
            Provenance.of_run(self.identity, self.options, data.name),
            self.tiles,
        )

    def viewed(self, snapshot: Snapshot) -> dict[str, Tensor]:
        """What a checkpoint holds beside the state, so that the set can be looked at."""
        images = snapshot.tensors.get("average_image", snapshot.tensors["image_syn"])
        pixels = images if self.normalization is None else self.normalization.inverse(images)
        return {"class_syn": self.class_syn, "pixels": pixels}


def copied_state(method: BaseMethod) -> dict[str, Tensor]:
    """The method's state as it is now, which its next loss may change in place."""
    return {name: tensor.detach().clone() for name, tensor in method.state().items()}


def save(state: LoopState, snapshot: Snapshot, run: RunDirectory) -> None:
    """Replace the checkpoint, on all ranks at once: it holds the method's state of each."""
    tensors, header = snapshot
    states = gather(_below(_METHOD, tensors))
    if run.read_only:
        return
    tensors = {name: part for name, part in tensors.items() if not name.startswith(_METHOD)}
    for number, method_state in enumerate(states):
        tensors |= {f"{_METHOD}{number}.{name}": part for name, part in method_state.items()}
    run.save_checkpoint(tensors | state.viewed(snapshot), header | {"ranks": len(states)})


def _has_setting(description: Any, name: str) -> bool:
    """Whether what a run is of, whose method may hold another one, has a setting."""
    if not isinstance(description, dict):
        return False
    settings = description.get("settings")
    if isinstance(settings, dict) and name in settings:
        return True
    return any(_has_setting(part, name) for part in description.values())


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, under the rest of the names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _make_optimizer(name: str, tensor: Tensor, settings: LoopSettings) -> torch.optim.Optimizer:
    decay = settings.weight_decay_img if name == "image_syn" else 0.0
    if name == "image_syn" and settings.optimizer_img != "sgd":
        kind = torch.optim.Adam if settings.optimizer_img == "adam" else torch.optim.AdamW
        betas = settings.beta1_img, settings.beta2_img
        return kind([tensor], settings.lr_img, betas, weight_decay=decay)
    lr = {
        "image_syn": settings.lr_img,
        "syn_lr": settings.lr_lr,
        # So that the step size begins to move as by SGD of rate lr_lr on itself.
        "syn_lr_rho": settings.lr_lr * (2 * math.log(2) / settings.lr_teacher) ** 2,
        "label_logits": settings.lr_y,
    }
    return torch.optim.SGD([tensor], lr[name], momentum=_MOMENTUM[name], weight_decay=decay)


def _rho(positive: PositiveStepSize, value: Tensor) -> Tensor:
    """The parameter at which a positive step size has a value."""
    scaled = value.double() * math.log(2) / positive.initial.double().cpu()
    # log(exp(x) − 1), which would overflow as it is written.
    return (scaled + torch.log(-torch.expm1(-scaled))).to(value.dtype)
