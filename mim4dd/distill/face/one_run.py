"""A distillation as an object: what it made so far, what that is worth, and how it goes on."""

import os
import shlex
import shutil
import signal
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from mim4dd.distill.add_ons import ADD_ONS
from mim4dd.distill.commands.cross import (
    AccuracyTable,
    JudgedRun,
    cross_evaluate,
    network_columns,
)
from mim4dd.distill.config.commands import DistillConfig, TaskSettings
from mim4dd.distill.config.file import names_data
from mim4dd.distill.data import ImageData
from mim4dd.distill.job import note_accuracies, run_distillation
from mim4dd.distill.loggers import Logger
from mim4dd.distill.loop import Interrupted, Moment
from mim4dd.distill.methods import METHODS
from mim4dd.distill.runs import RunDirectory, SyntheticSet
from mim4dd.distill.runtime.ranks import num_ranks, rank, require_one_process

__all__ = ["Run"]


class Run:
    """A distillation: :func:`mim4dd.distill.run` starts one, :func:`~mim4dd.distill.open_run` reads
    one. All properties may be read at any time: by a callback while it trains, and after Ctrl-C.

    Args:
        config: All options.
        out: Its directory; None takes a temporary one, which goes with this object.
        load: Makes the real data that a configuration is of.
        callback: Called with this object after every outer iteration.
        loggers: Given each row of metrics as it comes.

    Example:
        >>> from mim4dd import distill
        >>> few = {"iterations": 2, "eval_every": 0, "width": 4, "depth": 1}
        >>> run = distill.run("digits", method="dm", weight=0.0, batch_real=4, **few)
        >>> run
        <Run of DM on digits: 1 image per class, finished after 2 iterations>
        >>> run.images.shape, run.labels.tolist(), run.finished
        (torch.Size([10, 1, 8, 8]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], True)
    """

    def __init__(
        self,
        config: DistillConfig,
        out: str | Path | None,
        load: Callable[[TaskSettings], ImageData],
        callback: Callable[["Run"], object] | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        if num_ranks() == 1:
            require_one_process("distill.run")  # whose processes would all write one run
        self.config = config
        self.callback = callback
        self.loggers = tuple(loggers)
        self.is_temporary = out is None
        self._load = load
        self._keep_files: Callable[[], object] = _never
        if out is None:
            out = tempfile.mkdtemp(prefix="mim4dd-")
            self._keep_files = weakref.finalize(self, _remove, out, os.getpid()).detach
        self._directory = RunDirectory(out, read_only=rank() != 0)
        # While it trains: where it is, and the rows so far.
        self._moment: Moment | None = None
        self._rows: list[dict[str, Any]] | None = None
        self._reached: tuple[SyntheticSet, int] | None = None

    def __repr__(self) -> str:
        config = self.config
        title = METHODS[config.method_name].title
        if config.add_on.weight > 0:
            title += f" + {ADD_ONS[config.add_on_name].title}"
        images = "1 image" if config.ipc == 1 else f"{config.ipc_title} images"
        state = "finished after" if self.finished else f"{self.iteration} of"
        where = "" if self.is_temporary else f", in {self.path}"
        return (
            f"<Run of {title} on {config.data}: {images} per class, "
            f"{state} {config.iterations} iterations{where}>"
        )

    @property
    def path(self) -> Path:
        """The directory, as ``mim4dd distill`` leaves one."""
        return self._directory.path

    @cached_property
    def data(self) -> ImageData:
        """The real data, which are loaded when they are first asked for.

        Raises:
            ValueError: If they are not there, or were given in Python and not again.
        """
        return self._load(self.config)

    @property
    def synthetic(self) -> SyntheticSet:
        """The set as it is now.

        Raises:
            ValueError: If nothing was made yet.
        """
        return self._now()[0]

    @property
    def images(self) -> Tensor:
        """Images as networks are trained on them, normalised; ``synthetic.pixels`` are to look at.

        (n, channels, H, W), or rows (n, D), in the order of their classes.
        """
        return self.synthetic.image_syn

    @property
    def labels(self) -> Tensor:
        """Classes (n,), or the probabilities (n, C) that a method learned."""
        return self.synthetic.label_syn

    @property
    def syn_lr(self) -> Tensor:
        """The step size to train networks on the images with, ()."""
        return self.synthetic.syn_lr

    @property
    def iteration(self) -> int:
        """Outer iterations that the images have behind them."""
        if self._moment is not None:
            return self._moment.iteration
        begun = self._directory.checkpoint.exists() or self.finished
        return self._now()[1] if begun else 0

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What each iteration measured (loss, syn_lr, accuracies, the MI bound), a row for each."""
        return self._directory.read_metrics() if self._rows is None else list(self._rows)

    @property
    def finished(self) -> bool:
        """Whether it came to its last iteration."""
        return self._directory.finished

    def train(self, iterations: int | None = None) -> None:
        """Go on, to the last iteration or until Ctrl-C, after which this may be called again.

        Args:
            iterations: How many there shall be in all, more than before; by default as before.

        Raises:
            ValueError: If ``iterations`` are fewer than it has behind it, or the data are others.
            BlockingIOError: If another process is at work in its directory.
            RuntimeError: If it is training, as it is while its callback works.
            FloatingPointError: If it diverges: the last good state is in the directory, which is
                kept even where it was a temporary one.
            Interrupted: After SIGTERM, once the state is saved: the program is to end.
        """
        self.go_on(iterations, stacklevel=3)

    def go_on(self, iterations: int | None = None, *, stacklevel: int) -> None:
        """As :meth:`train`; a warning after Ctrl-C points at the caller so many calls above."""
        if self._moment is not None:
            raise RuntimeError("train cannot be called by the callback of the run: it is training")
        config = self.config if iterations is None else self.config.but(iterations=iterations)
        reached = None
        try:
            result = run_distillation(
                config,
                self.data,
                self._directory,
                may_change={"iterations"},
                watch=lambda moment: self._watch(config, moment),
                loggers=self.loggers,
            )
            reached = result, config.iterations
        except Interrupted as stopped:
            if stopped.signal != signal.SIGINT:
                raise
        except FloatingPointError:
            self._keep_files()  # which its message says how to continue
            raise
        finally:
            self._reached, self._moment, self._rows = reached, None, None
        self.config = config
        if reached is None:
            warnings.warn(self._how_to_go_on(), stacklevel=stacklevel)

    def evaluate(
        self,
        networks: Sequence[str] | None = None,
        seeds: int | None = None,
        baselines: bool = True,
    ) -> AccuracyTable:
        """Train fresh networks on the set and test them on held-out real images.

        As ``mim4dd evaluate`` does, by the recipe of the configuration: ``eval_epochs`` and so on.
        ``synthetic`` tells the accuracies from here on, and so does the file of a finished run.

        Args:
            networks: Names of the networks, a column each; by default the run's own.
            seeds: Networks to train of each, with different seeds; by default ``num_eval``.
            baselines: Whether random real images of the same count and the whole training set are
                rows as well.

        Returns:
            Accuracies by the name of the set, of the baselines, and of the network; it prints as a
            table, mean and in brackets deviation over networks, in percent.

        Raises:
            BlockingIOError: If the run is finished, and another process is at work in its folder.
            ValueError: If a network does not exist or cannot take the data, the data are not what
                the set was made of, or a class has too few real images for the baseline.
        """
        config = self.config if seeds is None else self.config.but(num_eval=seeds)
        columns = network_columns(networks)
        synthetic, reached = self._now()
        name = "distilled" if self.is_temporary else str(self.path)
        if reached < config.iterations:
            name += f", {reached} of {config.iterations} iterations"
        judged = JudgedRun(name, synthetic, config, lambda _: self.data)
        # Of a run that is not finished nothing is written, and of one that may only be read.
        writes = self.finished and os.access(self.path, os.W_OK)
        with self._directory.held() if writes else nullcontext():
            table = cross_evaluate([judged], columns, baselines)
            noted = note_accuracies(
                self._directory if writes else None, synthetic, table[name], config.eval_seed
            )
        self._reached = noted, reached
        return table

    def export(self, folder: str | Path) -> None:
        """Write the set as it is now to a folder that other programs read.

        :meth:`~mim4dd.distill.runs.SyntheticSet.export` says what is in it.

        Args:
            folder: A new one, or an earlier export.

        Raises:
            ValueError: If nothing was made yet, or the folder holds something else.
        """
        self.synthetic.export(folder)

    def _watch(self, config: DistillConfig, moment: Moment) -> None:
        self.config, self._moment, self._reached = config, moment, None
        if self._rows is None:
            self._rows = self._directory.read_metrics()
        else:
            self._rows.append(dict(moment.row))
        if self.callback is not None:
            self.callback(self)

    def _now(self) -> tuple[SyntheticSet, int]:
        """The set, and the iterations that it has behind it."""
        if self._reached is None:
            if self._moment is not None:
                self._reached = self._moment.result(), self._moment.iteration
            else:
                synthetic, iteration = self._directory.load_set()
                self._reached = synthetic.to(self.config.device), iteration
        return self._reached

    def _how_to_go_on(self) -> str:
        ways = "train() of this run goes on"
        if not self.is_temporary:
            ways += ", as does the same call of distill.run"
        if not self.is_temporary and names_data(self.config.data):
            ways += f", or `mim4dd distill --resume {shlex.quote(str(self.path))}`"
        return f"stopped before iteration {self.iteration} of {self.config.iterations}: {ways}"


def _remove(folder: str, process: int) -> None:
    """Remove a temporary directory, unless this is a fork of the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _never() -> None:
    """Files that nobody would remove are kept without a word."""
