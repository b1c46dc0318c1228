"""All that an outer iteration changes: the synthetic set, its optimisers, and their copies."""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from mim4dd.distill.cost import Meter
from mim4dd.distill.data import ImageData
from mim4dd.distill.loop_settings import LoopSettings
from mim4dd.distill.methods.base import BaseLoss, BaseMethod, Initial
from mim4dd.distill.ranks import average, gather, num_ranks, rank, wait_for_ranks
from mim4dd.distill.run import RunDirectory, SyntheticSet

__all__ = ["LoopState", "Snapshot", "copied_state", "save"]

# As in MTT, and DATM for the labels.
_MOMENTUM = {"image_syn": 0.5, "syn_lr": 0.5, "label_logits": 0.9}

_METHOD = "method."  # how a checkpoint names what the method carries


class Snapshot(NamedTuple):
    """What a checkpoint holds, of one rank."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]


class LoopState:
    """The learned tensors, their optimisers and the number of the iteration."""

    def __init__(self, initial: Initial, class_syn: Tensor, settings: LoopSettings) -> None:
        self.class_syn = class_syn
        self.settings = settings
        image_syn = initial.image_syn
        syn_lr = torch.tensor(settings.lr_teacher, dtype=image_syn.dtype, device=image_syn.device)
        self.learned = {"image_syn": image_syn.clone(), "syn_lr": syn_lr}
        if initial.label_logits is not None:
            self.learned["label_logits"] = initial.label_logits.clone()
        for tensor in self.learned.values():
            tensor.requires_grad_()
        self.optimizers = {
            name: _make_optimizer(name, tensor, settings) for name, tensor in self.learned.items()
        }
        self.average_image = image_syn.clone() if settings.ema_decay else None
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
        return self.learned["syn_lr"]

    def label_syn(self) -> Tensor:
        """The classes (n,), or the learned probabilities (n, C)."""
        logits = self.learned.get("label_logits")
        return self.class_syn if logits is None else logits.softmax(1)

    def differentiate(self, outcome: BaseLoss | None) -> Tensor:
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
        if all(self.learned[name].grad is None for name in self.learned if name != "syn_lr"):
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

    def update(self, run: RunDirectory) -> None:
        """Take one step with every optimiser."""
        for optimizer in self.optimizers.values():
            optimizer.step()
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
        steps = "lower lr_img, lr_lr, lr_teacher or the step size of the method's networks"
        message = f"{what} in iteration {self.iteration}; {steps}"
        if self.last_good is not None:
            save(self.last_good, run)
            good = self.last_good.header["iteration"]
            message += f". The last good state, of iteration {good}, is kept in {run.checkpoint}"
        wait_for_ranks()  # whoever ends first has torchrun end the others
        raise FloatingPointError(message)

    def snapshot(self, method_state: dict[str, Tensor]) -> Snapshot:
        """All that a checkpoint holds of this rank: copies, and what :func:`copied_state` gave."""
        tensors = {name: tensor.detach().clone() for name, tensor in self.learned.items()}
        if self.average_image is not None:
            tensors["average_image"] = self.average_image.clone()
        for name, optimizer in self.optimizers.items():
            for key, value in optimizer.state[self.learned[name]].items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{name}.{key}"] = value.clone()
        tensors |= {f"{_METHOD}{name}": tensor for name, tensor in method_state.items()}
        return Snapshot(tensors, {"iteration": self.iteration} | self.meter.read())

    def restore(self, snapshot: Snapshot) -> dict[str, Tensor]:
        """Continue from a checkpoint; return what it holds of the method on this rank."""
        tensors, header = snapshot
        kept = {"average_image": self.average_image} if self.average_image is not None else {}
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
        self.meter.restore(header)
        return {
            name: value.to(self.image_syn.device) for name, value in _of_this_rank(snapshot).items()
        }

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
        )


def copied_state(method: BaseMethod) -> dict[str, Tensor]:
    """The method's state as it is now, which its next loss may change in place."""
    return {name: tensor.detach().clone() for name, tensor in method.state().items()}


def save(snapshot: Snapshot, run: RunDirectory) -> None:
    """Replace the checkpoint, on all ranks at once: it holds the method's state of each."""
    tensors, header = snapshot
    states = gather(_below(_METHOD, tensors))
    tensors = {name: part for name, part in tensors.items() if not name.startswith(_METHOD)}
    for number, state in enumerate(states):
        tensors |= {f"{_METHOD}{number}.{name}": part for name, part in state.items()}
    run.save_checkpoint(tensors, header | {"ranks": len(states)})


def _of_this_rank(snapshot: Snapshot) -> dict[str, Tensor]:
    """What a checkpoint holds of the method on this rank; its networks differ from rank to rank."""
    tensors, header = snapshot
    of_all = _below(_METHOD, tensors)
    if of_all and header["ranks"] != num_ranks():
        raise ValueError(
            f"the checkpoint holds what the method carries on {header['ranks']} ranks, so can be "
            f"continued by as many alone, got {num_ranks()}"
        )
    return _below(f"{rank()}.", of_all)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, under the rest of the names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _make_optimizer(name: str, tensor: Tensor, settings: LoopSettings) -> torch.optim.Optimizer:
    if name == "image_syn" and settings.optimizer_img == "adam":
        return torch.optim.Adam([tensor], settings.lr_img)
    lr = {"image_syn": settings.lr_img, "syn_lr": settings.lr_lr, "label_logits": settings.lr_y}
    return torch.optim.SGD([tensor], lr[name], momentum=_MOMENTUM[name])
