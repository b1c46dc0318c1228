"""The functions of `mim4dd.distill`: begin, open, and train experts."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mim4dd.distill.config.commands import DistillConfig, ExpertsConfig
from mim4dd.distill.config.file import load_data_of, read_config
from mim4dd.distill.experts import ExpertBuffer
from mim4dd.distill.face.given import Data, loader, options_beside
from mim4dd.distill.face.one_run import Run
from mim4dd.distill.job import train_experts_by
from mim4dd.distill.loggers import Logger
from mim4dd.distill.runs import RunDirectory

__all__ = ["open_run", "run", "train_experts"]


def run(
    data: Data,
    *,
    out: str | Path | None = None,
    callback: Callable[[Run], object] | None = None,
    loggers: Sequence[Logger] = (),
    **options: Any,
) -> Run:
    """Distil a synthetic set of some data, as ``mim4dd distill`` does.

    After Ctrl-C it warns, and returns the run where it is: ``train`` of the run continues it.

    Args:
        data: Name of a data set or a folder, as ``--data`` takes them, with the options
            ``data_path``, ``zca`` and ``image_size``; an
            :class:`~mim4dd.distill.data.ImageData`; or a pair of tensors (images, labels) or a
            map-style :class:`torch.utils.data.Dataset`, with the option ``zca``, of which a fifth
            of every class is held out to test on.
        out: Run directory. What it holds of a run with the same options is continued. By default a
            temporary one, which goes with the run that is returned.
        callback: Called with the run after every outer iteration.
        loggers: Given each row of metrics as it comes, and closed in the end:
            :class:`~mim4dd.distill.loggers.TensorBoard`, :class:`~mim4dd.distill.loggers.WandB`,
            or any :class:`~mim4dd.distill.loggers.Logger`.
        options: All others of the command, flat, as :func:`mim4dd.distill.resolve` takes them:
            ``method``, ``ipc``, ``weight``, ``iterations``, ``experts``, …

    Raises:
        ValueError: If an option does not exist or cannot be used, the data cannot, ``out`` holds a
            run with other options or of other data, or there are no experts for a method that
            matches them: :func:`train_experts` trains them.
        TypeError: If ``data`` is none of these.
        BlockingIOError: If another process is at work in ``out``.
        FloatingPointError: If it diverges: the last good state is in the directory.
        Interrupted: After SIGTERM, once the state is saved: the program is to end.

    Example:
        >>> import torch
        >>> from mim4dd import distill
        >>> images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 2
        >>> small = {"width": 4, "depth": 1, "batch_real": 4, "eval_every": 0}
        >>> run = distill.run((images, labels), method="dm", ipc=3, iterations=2, **small)
        >>> run.images.shape, run.labels.tolist()
        (torch.Size([6, 1, 8, 8]), [0, 0, 0, 1, 1, 1])
    """
    config = DistillConfig.resolve(**options_beside(data, options))
    begun = Run(config, out, loader(data), callback, loggers)
    begun.go_on(stacklevel=3)
    return begun


def open_run(
    path: str | Path,
    data: Data | None = None,
    *,
    callback: Callable[[Run], object] | None = None,
    loggers: Sequence[Logger] = (),
) -> Run:
    """Open the directory of a run, finished or not, that the command or Python made.

    Args:
        path: The directory.
        data: The real data, which evaluating and going on need; by default those that the run was
            started with, if they have a name or are a folder.
        callback: Called with the run after every outer iteration, once it goes on.
        loggers: Likewise given each row of metrics, as in :func:`run`.

    Raises:
        ValueError: If there is no run.
        TypeError: If ``data`` is nothing that :func:`run` takes.

    Example:
        >>> from mim4dd import distill
        >>> run = distill.open_run("runs/a")  # doctest: +SKIP
        >>> run.train(iterations=500)  # doctest: +SKIP
    """
    config = read_config(RunDirectory(path).config, DistillConfig)
    load = partial(load_data_of, run=path) if data is None else loader(data)
    return Run(config, path, load, callback, loggers)


def train_experts(data: Data, out: str | Path, **options: Any) -> ExpertBuffer:
    """Train the experts that MTT, TESLA, DATM and the like match, as ``mim4dd experts`` does.

    Experts that ``out`` holds already are kept, so a call that was stopped may be repeated.

    Args:
        data: As for :func:`run`.
        out: Folder for them, which :func:`run` takes as the option ``experts``.
        options: All others of the command, flat: ``num_experts``, ``train_epochs``, ``network``, …

    Returns:
        The experts. Their network must be that of the distillation.

    Raises:
        ValueError: If an option or the data cannot be used, or ``out`` holds experts of another
            kind.
        TypeError: If ``data`` is nothing that :func:`run` takes.
        BlockingIOError: If another process is at work in ``out``.
        FloatingPointError: If an expert diverges.

    Example:
        >>> from mim4dd import distill
        >>> experts = distill.train_experts("digits", "runs/experts")  # doctest: +SKIP
        >>> run = distill.run("digits", method="mtt", experts="runs/experts")  # doctest: +SKIP
    """
    config = ExpertsConfig.resolve(**options_beside(data, options))
    return train_experts_by(config, loader(data)(config), out)
