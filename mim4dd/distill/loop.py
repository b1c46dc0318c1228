"""The distillation loop: optimisers, checkpoints, metrics and interruption around any method."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor

from mim4dd._checks import check_choice, check_positive
from mim4dd._unroll.diagnostics import DivergenceError
from mim4dd.distill.data import ImageData
from mim4dd.distill.evaluate import Accuracy
from mim4dd.distill.methods.base import BaseMethod, RealData
from mim4dd.distill.progress import progress_bar
from mim4dd.distill.run import RunDirectory, SyntheticSet
from mim4dd.distill.settings import Settings

__all__ = ["Interrupted", "LoopSettings", "distill"]

# As in MTT, for images and step size alike.
_MOMENTUM = 0.5


class Interrupted(Exception):
    """The run was asked to stop, and has saved where it is."""


@dataclass(frozen=True)
class LoopSettings(Settings):
    """How the synthetic set is initialised and optimised.

    Args:
        ipc: Synthetic images per class.
        iterations: Outer steps.
        lr_img: Step size of the images' SGD, with momentum 0.5 as in MTT.
        lr_lr: Step size of the learned step size's SGD, likewise.
        lr_teacher: Initial value of the learned step size syn_lr.
        init: Start from "real" training images or from Gaussian "noise".
        seed: Seed of everything random in the run.
        checkpoint_every: Iterations between checkpoints.
        eval_every: Iterations between evaluations for the curves; 0 leaves them out.
    """

    ipc: int = 1
    iterations: int = 150
    lr_img: float = 5.0
    lr_lr: float = 1e-4
    lr_teacher: float = 0.03
    init: Literal["real", "noise"] = "real"
    seed: int = 0
    checkpoint_every: int = 20
    eval_every: int = 50

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(
            ipc=1, iterations=1, lr_img=0, lr_lr=0, seed=0, checkpoint_every=1, eval_every=0
        )
        check_positive("lr_teacher", self.lr_teacher)
        check_choice("init", self.init, ("real", "noise"))


def distill(
    method: BaseMethod,
    data: ImageData,
    settings: LoopSettings,
    run: RunDirectory,
    evaluate: Callable[[SyntheticSet], Accuracy] | None = None,
) -> SyntheticSet:
    """Optimise a synthetic set under ``method`` and leave it, with all metrics, in ``run``.

    Where ``run`` holds a checkpoint the loop continues from it, on a CPU bit for bit as if it had
    never stopped. A checkpoint is only ever a state whose loss and gradients were finite.

    Args:
        method: The objective.
        data: The real data.
        settings: How to initialise and optimise.
        run: Where metrics, checkpoints and the result go.
        evaluate: Judges the set every ``settings.eval_every`` iterations and at the end, for the
            curves alone: nothing is chosen by it.

    Returns:
        The set after the last iteration.

    Raises:
        ValueError: If a class has fewer than ``ipc`` images.
        FloatingPointError: If loss or gradients stop being finite, or the learned step size stops
            being positive; the last good state is in the checkpoint.
        Interrupted: After Ctrl-C or SIGTERM, once the state is saved.
    """
    state = _State.initial(data, settings)
    if run.checkpoint.exists():
        state.restore(*run.load_checkpoint())
    run.rewind_metrics(state.iteration)
    real = RealData(data, state.generator)

    def judge(row: dict[str, Any]) -> None:
        if evaluate is not None and settings.eval_every:
            judged = evaluate(state.result(data))
            row |= {"accuracy": judged.mean, "accuracy_std": judged.std}

    progress = progress_bar(
        initial=state.iteration, total=settings.iterations, desc="/".join(run.path.parts[-2:])
    )
    with progress, _interruptible() as stop:
        while state.iteration < settings.iterations:
            if stop.requested:
                run.save_checkpoint(*state.snapshot(state.generator.get_state()))
                raise Interrupted(
                    f"stopped before iteration {state.iteration} of {settings.iterations}; "
                    f"continue with --resume {run.path}"
                )
            row: dict[str, Any] = {"iteration": state.iteration, "syn_lr": state.syn_lr.item()}
            if settings.eval_every and state.iteration % settings.eval_every == 0:
                judge(row)
            stream = state.generator.get_state()
            try:
                outcome = method.loss(state.image_syn, state.label_syn, state.syn_lr, real)
            except DivergenceError as error:
                state.refuse(str(error), run)
            row |= {"loss": outcome.value.item(), **outcome.metrics}
            state.differentiate(outcome.value, run)
            state.last_good = state.snapshot(stream)
            if state.iteration % settings.checkpoint_every == 0:
                run.save_checkpoint(*state.last_good)
            state.update(run)
            run.append_metrics(row)
            progress.update()
            progress.set_postfix(_shown(row, data.num_classes), refresh=False)
        final: dict[str, Any] = {"iteration": state.iteration, "syn_lr": state.syn_lr.item()}
        judge(final)
    run.save_checkpoint(*state.snapshot(state.generator.get_state()))
    run.append_metrics(final)
    result = state.result(data)
    result.save(run.synthetic)
    return result


class _Snapshot(NamedTuple):
    """What a checkpoint holds."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]


class _State:
    """All that an iteration changes."""

    def __init__(
        self,
        image_syn: Tensor,
        label_syn: Tensor,
        settings: LoopSettings,
        generator: torch.Generator,
    ) -> None:
        self.image_syn = image_syn.clone().requires_grad_()
        self.label_syn = label_syn
        self.syn_lr = torch.tensor(
            settings.lr_teacher, dtype=image_syn.dtype, device=image_syn.device, requires_grad=True
        )
        self.optimizers = {
            "image_syn": torch.optim.SGD([self.image_syn], settings.lr_img, momentum=_MOMENTUM),
            "syn_lr": torch.optim.SGD([self.syn_lr], settings.lr_lr, momentum=_MOMENTUM),
        }
        self.generator = generator
        self.iteration = 0
        self.last_good: _Snapshot | None = None
        self._seconds_before = 0.0
        self._started = time.perf_counter()

    @staticmethod
    def initial(data: ImageData, settings: LoopSettings) -> "_State":
        generator = torch.Generator().manual_seed(settings.seed)
        images, labels = data.sample(settings.ipc, generator)
        if settings.init == "noise":
            images = torch.randn(images.shape, generator=generator).to(images)
        return _State(images, labels, settings, generator)

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    def differentiate(self, value: Tensor, run: RunDirectory) -> None:
        """Fill in the gradients; refuse any that are not finite."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        value.backward()
        suspects = {
            "the loss": value,
            "the gradient of image_syn": self.image_syn.grad,
            "the gradient of syn_lr": self.syn_lr.grad,
        }
        for name, tensor in suspects.items():
            if tensor is not None and not tensor.isfinite().all():
                self.refuse(f"{name} is not finite", run)

    def update(self, run: RunDirectory) -> None:
        """Take one step with every optimiser."""
        for optimizer in self.optimizers.values():
            optimizer.step()
        if not self.image_syn.isfinite().all():
            self.refuse("image_syn is not finite after the step", run)
        if not self.syn_lr > 0:
            self.refuse(f"the learned step size fell to {self.syn_lr.item():g}", run)
        self.iteration += 1

    def refuse(self, what: str, run: RunDirectory) -> NoReturn:
        """Stop a run that diverged, with its last good state saved."""
        message = f"{what} in iteration {self.iteration}; lower lr_img, lr_lr or lr_teacher"
        if self.last_good is not None:
            run.save_checkpoint(*self.last_good)
            good = self.last_good.header["iteration"]
            message += f". The last good state, of iteration {good}, is kept in {run.checkpoint}"
        raise FloatingPointError(message)

    def snapshot(self, stream: Tensor) -> _Snapshot:
        """Copies of all that a checkpoint holds; ``stream`` is the state of the generator."""
        tensors = {
            "image_syn": self.image_syn.detach().clone(),
            "label_syn": self.label_syn,
            "syn_lr": self.syn_lr.detach().clone(),
            "generator": stream,
        }
        for name, optimizer in self.optimizers.items():
            for state in optimizer.state.values():
                if state.get("momentum_buffer") is not None:
                    tensors[f"momentum.{name}"] = state["momentum_buffer"].clone()
        return _Snapshot(tensors, {"iteration": self.iteration, "seconds": self.seconds})

    def restore(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        if tensors["image_syn"].shape != self.image_syn.shape:
            raise ValueError(
                f"the checkpoint holds images {tuple(tensors['image_syn'].shape)}, "
                f"the settings ask for {tuple(self.image_syn.shape)}"
            )
        with torch.no_grad():
            self.image_syn.copy_(tensors["image_syn"])
            self.syn_lr.copy_(tensors["syn_lr"])
        self.label_syn = tensors["label_syn"].to(self.label_syn.device)
        self.generator.set_state(tensors["generator"])
        for name, optimizer in self.optimizers.items():
            buffer = tensors.get(f"momentum.{name}")
            if buffer is not None:
                (parameter,) = optimizer.param_groups[0]["params"]
                optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device)
        self.iteration = header["iteration"]
        self._seconds_before = header["seconds"]

    def result(self, data: ImageData) -> SyntheticSet:
        """The set as it is now."""
        image_syn = self.image_syn.detach().clone()
        return SyntheticSet(
            image_syn,
            self.label_syn,
            self.syn_lr.detach().clone(),
            data.normalization.inverse(image_syn),
            data.class_names,
        )


@dataclass
class _Stop:
    requested: bool = False


@contextmanager
def _interruptible() -> Iterator[_Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request, so that no step is cut in half."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    previous: dict[int, Any] = {}

    def request(number: int, _frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(number, previous[number])  # a second one stops at once

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.getsignal(number)
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for known, handler in previous.items():
            signal.signal(known, handler)


def _shown(row: dict[str, Any], num_classes: int) -> dict[str, str]:
    """What the progress bar shows."""
    shown = {"loss": f"{row['loss']:.3f}", "syn_lr": f"{row['syn_lr']:.4f}"}
    if "mi_lower_bound" in row:
        ceiling = math.log(num_classes)
        shown["MI"] = f"{row['mi_lower_bound']:.2f}≤{ceiling:.2f} nats"
    return shown
