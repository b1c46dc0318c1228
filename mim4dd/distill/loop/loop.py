"""The distillation loop: optimisers, checkpoints, metrics and interruption around any method."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mim4dd._unroll.diagnostics import DivergenceError
from mim4dd.distill.data import ImageData
from mim4dd.distill.data.per_class import class_counts
from mim4dd.distill.evaluation.recipe import Accuracy
from mim4dd.distill.loggers import Logger, numbers
from mim4dd.distill.loop.resume import checkpoint_to_continue, run_identity
from mim4dd.distill.loop.settings import LoopSettings
from mim4dd.distill.loop.state import LoopState, copied_state, save
from mim4dd.distill.methods.base import BaseMethod, Initial, Objective, RealData
from mim4dd.distill.runs import RunDirectory, SyntheticSet
from mim4dd.distill.runtime.interruption import (
    Interrupted,
    Stop,
    interruptible,
    stopping_at_once,
)
from mim4dd.distill.runtime.progress import progress_bar
from mim4dd.distill.runtime.ranks import agree, any_rank, rank, sharing, wait_for_ranks
from mim4dd.distill.runtime.threads import working_threads

__all__ = ["Interrupted", "LoopSettings", "Moment", "distill"]


class Moment(NamedTuple):
    """Where a run is after an outer iteration.

    ``row`` is the last one of its metrics, and ``result`` makes the set of it.

    Example:
        >>> from mim4dd.distill.loop import Moment
        >>> moment = Moment(3, {"iteration": 3, "loss": 0.5}, result=lambda: None)
        >>> moment.row["loss"]
        0.5
    """

    iteration: int
    row: Mapping[str, Any]
    result: Callable[[], SyntheticSet]


def distill(
    method: BaseMethod,
    data: ImageData,
    settings: LoopSettings,
    run: RunDirectory,
    evaluate: Callable[[SyntheticSet], Accuracy] | None = None,
    *,
    resume: bool = False,
    from_iteration: int | None = None,
    config: Mapping[str, Any] | None = None,
    watch: Callable[[Moment], object] | None = None,
    loggers: Sequence[Logger] = (),
) -> SyntheticSet:
    """Optimise a synthetic set under ``method`` and leave it, with all metrics, in ``run``.

    With ``resume`` it continues from the checkpoint in ``run``, if there is one, on a CPU bit for
    bit as if it had never stopped. A checkpoint says what the run is of: the settings, the method
    with its class, its code and its networks, and the data; another run is refused. Only
    ``loop.settings.MAY_CHANGE``, step sizes and counts, may be other ones. A
    checkpoint is only ever a state whose loss and gradients were finite. Under torchrun every rank
    computes a loss with draws of its own, and all step along the mean gradient. On a CPU it takes
    as many threads as the set is large enough for, where the user set none.

    Args:
        method: The objective.
        data: The real data.
        settings: How to initialise and optimise.
        run: Where metrics, checkpoints and the result go.
        evaluate: Judges the set every ``settings.eval_every`` iterations and at the end, for the
            curves alone: nothing is chosen by it. Called on every rank: the networks of
            :func:`~mim4dd.distill.evaluation.evaluate` are shared out.
        resume: Continue the run that ``run`` holds; without it such a directory is refused. Where
            there is none yet, begin.
        from_iteration: Go back to this one of ``run.iterations()`` before continuing.
        config: All options, which ``config.json`` holds from here on, once it is known that the run
            may begin or go on.
        watch: Called after every outer iteration.
        loggers: Given each row of metrics, on the first rank, and closed in the end.

    Returns:
        The set after the last iteration.

    Raises:
        ValueError: If ``run`` holds a run and ``resume`` is not asked for, or another run than
            this: what differs is named; or if its checkpoint is gone. If the method was made for
            other data or needs as many images of every class, real images to start from are fewer
            than asked for in a class, the method's own start does not fit, its loss depends on
            neither images nor labels, or rows are to be clipped to valid pixels.
        TypeError: If the method's loss is not an :class:`~mim4dd.distill.methods.base.Objective`.
        FloatingPointError: If loss or gradients stop being finite, or the learned step size stops
            being positive; the last good state is in the checkpoint.
        BlockingIOError: If another process is at work in ``run``.
        OSError: If ``run`` cannot be written, or is gone; its last checkpoint is as it was.
        Interrupted: After Ctrl-C or SIGTERM, once the state is saved.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> from mim4dd.distill.data import load_data
        >>> from mim4dd.distill.loop import LoopSettings, distill
        >>> from mim4dd.distill.methods.dm import DM, DMSettings
        >>> from mim4dd.distill.runs import RunDirectory
        >>> def new_network(seed):
        ...     torch.manual_seed(seed)
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> data = load_data("digits")
        >>> method = DM(new_network, DMSettings(batch_real=16))
        >>> settings = LoopSettings(ipc=2, iterations=3, eval_every=0)
        >>> distill(method, data, settings, RunDirectory(tempfile.mkdtemp())).image_syn.shape
        torch.Size([20, 1, 8, 8])
    """
    if settings.clip_img and not data.has_images:
        raise ValueError(f"clip_img must be False for data of rows, as {data.name} is, got True")
    method.require_data(data)
    method.require_per_class(class_counts(settings.per_class, data.num_classes))
    device = data.image_train.device
    with run.held(device), _threads(method, data, settings), ExitStack() as closing:
        for logger in loggers:
            closing.callback(logger.close)
        return _distill(
            method, data, settings, run, evaluate, resume, from_iteration, config, watch, loggers
        )


def _threads(
    method: BaseMethod, data: ImageData, settings: LoopSettings
) -> AbstractContextManager[None]:
    """The threads for all synthetic samples going through a network at once."""
    network = method.example_network()
    if network is None:
        return nullcontext()
    sample = data.image_train[:1]
    num_samples = sum(class_counts(settings.per_class, data.num_classes))
    return working_threads(network, sample.expand(num_samples, *sample.shape[1:]))


def _distill(
    method: BaseMethod,
    data: ImageData,
    settings: LoopSettings,
    run: RunDirectory,
    evaluate: Callable[[SyntheticSet], Accuracy] | None,
    resume: bool,
    from_iteration: int | None,
    config: Mapping[str, Any] | None,
    watch: Callable[[Moment], object] | None,
    loggers: Sequence[Logger],
) -> SyntheticSet:
    identity = run_identity(method, data, settings)
    device = data.image_train.device
    snapshot = checkpoint_to_continue(run, identity, resume, from_iteration, device)
    if snapshot is not None and run.finished and snapshot.iteration == settings.iterations:
        if config is not None:
            run.change_config(config)
        return run.load_result()
    if snapshot is not None:
        # Also before what takes hours, such as the teachers that a start may need, is made anew.
        method.restore(snapshot.of_method(device))
    _prepare(method, run)
    state = _initial_state(method, data, settings)
    state.identity, state.normalization, state.tiles = identity, data.normalization, method.tiles
    state.options = config
    if snapshot is None:
        run.save_set(run.initial, state.result(data))
    else:
        state.restore(snapshot)
        method.restore(snapshot.of_method(device))
    agree(state.iteration, list(state.learned.values()))
    if config is not None:
        run.change_config(config)  # before the checkpoint: if killed between, it goes on by this
    if snapshot is not None:
        run.drop_result()
    if any_rank(snapshot is not None or run.preparation.exists(), device):
        # With what is asked for from here on, and what was prepared, whenever this is stopped.
        state.last_good = state.snapshot(copied_state(method))
        save(state, state.last_good, run)
        run.drop_preparation()
    run.rewind(state.iteration)

    def judge(row: dict[str, Any]) -> Accuracy | None:
        if evaluate is None or not settings.eval_every:
            return None
        with sharing():
            judged = evaluate(state.result(data, method.relabel))
        row |= {
            "accuracy": judged.mean,
            "accuracy_std": judged.std,
            "accuracy_seeds": len(judged.values),
        }
        return judged

    def note(row: Mapping[str, Any]) -> None:
        run.append_metrics(row)
        for logger in loggers if rank() == 0 else ():
            logger.log(row["iteration"], numbers(row))

    progress = progress_bar(
        initial=state.iteration, total=settings.iterations, desc="/".join(run.path.parts[-2:])
    )
    with progress, interruptible() as stop:
        while state.iteration < settings.iterations:
            _stop_if_asked(stop, state, method, settings, run)
            row: dict[str, Any] = {"iteration": state.iteration, "syn_lr": state.syn_lr.item()}
            if settings.eval_every and state.iteration % settings.eval_every == 0:
                judge(row)
            started = time.perf_counter()
            row |= _step(state, method, data, settings, run)
            row["seconds"] = round(time.perf_counter() - started, 6)
            note(row)
            if settings.keep_every and state.iteration % settings.keep_every == 0:
                run.keep_set(state.iteration, state.result(data, method.relabel))
            progress.update()
            progress.set_postfix(_shown(row, data.num_classes), refresh=False)
            if watch is not None:
                watch(Moment(state.iteration, row, partial(state.result, data, method.relabel)))
        final: dict[str, Any] = {"iteration": state.iteration, "syn_lr": state.syn_lr.item()}
        judged = judge(final)
    save(state, state.snapshot(copied_state(method)), run)
    note(final)
    result = state.result(data, method.relabel)
    if judged is not None:
        asked = config or {}
        network, first_seed = asked.get("network", "networks"), asked.get("eval_seed", 0)
        result = result.with_accuracy(network, judged.values, first_seed)
    run.save_set(run.synthetic, result)
    return result


def _prepare(method: BaseMethod, run: RunDirectory) -> None:
    # At once: a training that may take hours is kept as it goes.
    with stopping_at_once(
        lambda: f"stopped before the first iteration; continue with --resume {run.path}"
    ):
        method.prepare(run.preparation)


def _initial_state(method: BaseMethod, data: ImageData, settings: LoopSettings) -> LoopState:
    # Before the first iteration, and the same on every rank.
    stream = _stream(settings.seed, -1, 0)
    counts = class_counts(settings.per_class, data.num_classes)
    real = RealData(data, stream, per_class=counts)
    initial = method.initial(real, settings.per_class)
    if initial is not None:
        _check_initial(initial, data, sum(counts), settings.ipc_title)
    else:
        initial = Initial(_first_images(data, settings, stream))
    classes = real.class_syn(sum(counts)).to(initial.image_syn.device)
    return LoopState(initial, classes, settings)


def _first_images(data: ImageData, settings: LoopSettings, stream: torch.Generator) -> Tensor:
    if settings.init == "real":
        images, _ = data.sample(settings.per_class, stream)
        return images
    data.sample(1, stream)  # so that a seed gives the noise that it always gave
    num_images = sum(class_counts(settings.per_class, data.num_classes))
    shape = (num_images, *data.image_train.shape[1:])
    images = torch.randn(shape, generator=stream)
    images = images.to(data.image_train.device, data.image_train.dtype)
    if settings.init == "unit_noise":
        images = F.normalize(images.flatten(1)).view_as(images)
    return images


def _check_initial(initial: Initial, data: ImageData, num_images: int, ipc: str) -> None:
    parts = {
        "image_syn": (initial.image_syn, (num_images, *data.image_train.shape[1:])),
        "label_logits": (initial.label_logits, (num_images, data.num_classes)),
    }
    for name, (tensor, shape) in parts.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"initial must give {name} {shape} for {ipc} images per class, "
                f"got {tuple(tensor.shape)}"
            )


def _stream(seed: int, iteration: int, rank: int) -> torch.Generator:
    """The stream of an iteration's draws on a rank, unrelated to every other."""
    entropy = np.random.SeedSequence((seed, iteration + 1, rank))
    # torch takes 64 bits, of which the first is a sign.
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))


def _stop_if_asked(
    stop: Stop, state: LoopState, method: BaseMethod, settings: LoopSettings, run: RunDirectory
) -> None:
    if any_rank(stop.requested, state.image_syn.device):
        save(state, state.snapshot(copied_state(method)), run)
        wait_for_ranks()  # whoever ends first has torchrun end the others
        raise Interrupted(
            f"stopped before iteration {state.iteration} of {settings.iterations}; "
            f"continue with --resume {run.path}",
            stop.signal,
        )


def _step(
    state: LoopState,
    method: BaseMethod,
    data: ImageData,
    settings: LoopSettings,
    run: RunDirectory,
) -> dict[str, float]:
    """One outer iteration; what it measured."""
    real = RealData(
        data,
        _stream(settings.seed, state.iteration, rank()),
        state.iteration,
        class_counts(settings.per_class, data.num_classes),
    )
    method_state = copied_state(method)
    try:
        outcome = method.loss(state.image_syn, state.label_syn(), state.syn_lr, real)
    except DivergenceError as error:
        state.differentiate(None)  # which the other ranks wait for
        state.refuse(str(error), run)
    if not isinstance(outcome, Objective):
        raise TypeError(
            f"loss of {type(method).__name__} must return an Objective, "
            f"got {type(outcome).__name__}"
        )
    value = state.differentiate(outcome)
    state.refuse_bad_gradients(value, run)
    state.last_good = state.snapshot(method_state)
    if state.iteration % settings.checkpoint_every == 0:
        save(state, state.last_good, run)
        run.keep_checkpoint(state.iteration)
    state.update(value.item(), run)
    return {"loss": value.item(), **outcome.metrics}


def _shown(row: dict[str, Any], num_classes: int) -> dict[str, str]:
    """What the progress bar shows."""
    shown = {"loss": f"{row['loss']:.3f}", "syn_lr": f"{row['syn_lr']:.4f}"}
    if "mi_lower_bound" in row:
        ceiling = math.log(num_classes)
        shown["MI"] = f"{row['mi_lower_bound']:.2f}≤{ceiling:.2f} nats"
    return shown
