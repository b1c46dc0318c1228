"""Runs beside each other: on several networks, and against random real images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from mim4dd.distill.commands.cross_tables import cross_table
from mim4dd.distill.config.commands import DistillConfig, TaskSettings, part
from mim4dd.distill.config.file import load_data_of, read_config
from mim4dd.distill.data import ImageData
from mim4dd.distill.evaluation.dd_ranking import (
    Scores,
    score_gains,
    score_hard_labels,
)
from mim4dd.distill.evaluation.fairness import Gain, fair_gains
from mim4dd.distill.evaluation.recipe import Accuracy, Evaluation
from mim4dd.distill.evaluation.teacher import ByTeacher
from mim4dd.distill.job import (
    judge,
    judge_coresets,
    judge_full,
    judge_random_real,
    labelling_network,
)
from mim4dd.distill.methods import METHODS
from mim4dd.distill.networks import NETWORKS
from mim4dd.distill.runs import RunDirectory, SyntheticSet
from mim4dd.distill.runtime.progress import progress_bar
from mim4dd.distill.settings import options_of

__all__ = [
    "AccuracyTable",
    "JudgedRun",
    "cross_evaluate",
    "cross_gains",
    "cross_scores",
    "load_run",
    "network_columns",
    "require_same_task",
    "scores_of_table",
]


class AccuracyTable(dict[str, dict[str, Accuracy]]):
    """Accuracies by the name of the set and of the network; it prints as a table.

    Example:
        >>> from mim4dd.distill.commands.cross import AccuracyTable
        >>> from mim4dd.distill.evaluation.recipe import Accuracy
        >>> AccuracyTable({"runs/a": {"convnet": Accuracy((0.5, 0.7))}})
        %, of 2 networks each      convnet
        runs/a                 60.0 (14.1)
    """

    def __repr__(self) -> str:
        return cross_table(self)


class JudgedRun(NamedTuple):
    """A distilled set, the configuration that it is judged by, and how that loads its data.

    ``teacher`` gives the network by which the set's method labels images, where it has one.
    """

    name: str
    synthetic: SyntheticSet
    config: DistillConfig
    load: Callable[[DistillConfig], ImageData] = DistillConfig.load_data
    teacher: Callable[[ImageData], nn.Module | None] = lambda _: None

    def on_network(self, network: str | None) -> DistillConfig:
        """The configuration on another network; None stays on the run's own."""
        return self.config if network is None else self.config.on_network(network)


def network_columns(names: Sequence[str] | None) -> list[str | None]:
    """The networks that are asked for, in their order; None stands for each run's own.

    Raises:
        ValueError: If there is none, one that does not exist, or one twice.
    """
    if names is None:
        return [None]
    if not names or set(names) - set(NETWORKS) or len(set(names)) < len(names):
        raise ValueError(
            f"networks must be different ones of {', '.join(NETWORKS)}, got {','.join(names)!r}"
        )
    return list(names)


def load_run(path: Path, iteration: int | None = None, **changes: int) -> JudgedRun:
    """Read a run's set, with some options of its evaluation changed.

    Args:
        path: The run's directory.
        iteration: Which of its checkpoints to judge; by default the result, or the last there is.
        changes: Options by name.

    Raises:
        ValueError: If there is no run or no such checkpoint, or a value cannot be used.
    """
    run = RunDirectory(path)
    config = part(read_config(run.config, DistillConfig), DistillConfig, **changes)
    synthetic, reached = run.load_set(iteration)
    whole = reached == config.iterations
    name = str(path) if whole else f"{path}, {reached} of {config.iterations} iterations"
    load = partial(load_data_of, run=path)
    return JudgedRun(name, synthetic, config, load, partial(labelling_network, config, run))


def require_same_task(runs: Sequence[JudgedRun], networks: Sequence[str | None] = (None,)) -> None:
    """Raise ValueError unless one baseline, on every network, serves all runs."""
    shared = (
        TaskSettings.own_options().keys()
        | options_of(Evaluation).keys()
        | {"ipc", "ipc_by_class", "lr_teacher"}
    )
    configs = [run.config for run in runs]
    differing = {name for name in shared if len({getattr(config, name) for config in configs}) > 1}
    for network in networks:
        if len({run.on_network(network).network_title for run in runs}) > 1 and not differing:
            made_by = [_network_options(run.on_network(network)) for run in runs]
            differing = {
                name
                for name in set(made_by[0]).intersection(*made_by)
                if len({options[name] for options in made_by}) > 1
            }
    if differing:
        raise ValueError(
            "runs must share what the baselines depend on to stand beside them, these differ in "
            f"{', '.join(sorted(differing))}; --no-baselines leaves the baselines out"
        )


def _network_options(config: DistillConfig) -> dict[str, Any]:
    """By what a network is made; another one may not have all of it."""
    return {"network": config.network_name, **asdict(config.network)}  # type: ignore[call-overload]


def cross_evaluate(
    runs: Sequence[JudgedRun],
    networks: Sequence[str | None],
    baselines: bool,
    coresets: bool = False,
    num_tests: int = 1,
) -> AccuracyTable:
    """Judge every set on every network, by the recipe and the step size that it comes with.

    Args:
        runs: The sets.
        networks: The columns; None is the network of each run.
        baselines: Whether random real images and the whole training set are rows, too; the runs
            then must be of one task.
        coresets: Whether real images that are chosen by what a network trained on all of them says
            are rows, too; only with ``baselines``.
        num_tests: Tests of each network, evenly spread over its training. The last one counts.

    Returns:
        Accuracies by names of the row and of the network.

    Raises:
        ValueError: If the runs are of several tasks, or a class of the real images has fewer than
            the sets, and baselines are asked for.
    """
    if baselines:
        require_same_task(runs, networks)
    table = AccuracyTable({run.name: {} for run in runs})
    with progress_bar(len(networks) * (len(runs) + baselines), "evaluate") as progress:
        for run, data in _with_data(runs):
            if baselines:  # which are the same for all runs, so refused before anything is trained
                _require_real(run, data, "--no-baselines leaves the baselines out")
            for network in networks:
                config = run.on_network(network)
                table[run.name][config.network_name] = judge(
                    run.synthetic, data, config, num_tests=num_tests
                )
                progress.update()
        if baselines:
            rows = {
                f"{run.config.ipc_title} random real images per class": judge_random_real,
                "whole training set": judge_full,
            }
            table |= {row: {} for row in rows}
            for network in networks:
                config = run.on_network(network)
                for row, judge_real in rows.items():
                    table[row][config.network_name] = judge_real(data, config, num_tests=num_tests)
                if coresets:
                    for name, accuracy in judge_coresets(data, config, num_tests=num_tests).items():
                        row = f"{config.ipc_title} real images per class by {name}"
                        table.setdefault(row, {})[config.network_name] = accuracy
                progress.update()
    return table


def cross_gains(
    runs: Sequence[JudgedRun],
    networks: Sequence[str | None],
    regimes: bool = False,
    num_tests: int = 1,
) -> dict[tuple[str, str], list[Gain]]:
    """What every set gains over random real images, on every network by every recipe.

    With ``regimes`` one soft label for each image and a teacher's labels for every batch are
    recipes, too. The latter trains as the set's method does; by default as RDED. Each network is
    tested ``num_tests`` times; the last test counts.

    Returns:
        Gains by names of the run and of the network.

    Raises:
        ValueError: If a class of the real images has fewer than a set.
    """
    for run in runs:  # before anything is trained
        data = run.load(replace(run.config, zca=False))  # whitening changes no counts
        _require_real(run, data, "evaluate this set without --fairness")
    gains: dict[tuple[str, str], list[Gain]] = {}
    with progress_bar(len(networks) * len(runs), "evaluate") as progress:
        for run, data in _with_data(runs):
            needed = regimes or run.synthetic.label_syn.is_floating_point()
            teacher = run.teacher(data) if needed else None
            for network in networks:
                config = run.on_network(network)
                gains[run.name, config.network_name] = _gains(
                    run.synthetic, config, data, teacher, regimes, num_tests
                )
                progress.update()
    return gains


def cross_scores(
    runs: Sequence[JudgedRun],
    networks: Sequence[str | None],
    gains: Mapping[tuple[str, str], Sequence[Gain]],
    baselines: bool,
) -> dict[tuple[str, str], Scores]:
    """DD-Ranking's scores of what :func:`cross_gains` gave for the same runs and networks.

    Args:
        runs: The sets.
        networks: As of :func:`cross_gains`.
        gains: What it gave.
        baselines: Whether networks are trained on the whole training set, which LRS needs.
    """
    scores: dict[tuple[str, str], Scores] = {}
    for run, data in _with_data(runs):
        for network in networks:
            config = run.on_network(network)
            names = run.name, config.network_name
            full = judge_full(data, config) if baselines else None
            scores[names] = score_gains(gains[names], full)
    return scores


def scores_of_table(
    runs: Sequence[JudgedRun], table: Mapping[str, Mapping[str, Accuracy]]
) -> dict[tuple[str, str], Scores]:
    """DD-Ranking's scores of the sets with hard labels in a table with baselines.

    Random real images have hard labels there, so they stand beside no set with soft ones.
    """
    return {
        (run.name, network): Scores(
            score_hard_labels(
                table["whole training set"][network],
                accuracy,
                table[f"{run.config.ipc_title} random real images per class"][network],
            )
        )
        for run in runs
        if not run.synthetic.label_syn.is_floating_point()
        for network, accuracy in table[run.name].items()
    }


def _require_real(run: JudgedRun, data: ImageData, way_out: str) -> None:
    """Require as many real images of every class as the set has."""
    try:
        data.require(run.config.per_class)
    except ValueError as error:
        raise ValueError(
            f"{run.name} cannot be compared with random real images: {error}; {way_out}"
        ) from error


def _gains(
    synthetic: SyntheticSet,
    config: DistillConfig,
    data: ImageData,
    teacher: nn.Module | None,
    regimes: bool,
    num_tests: int,
) -> list[Gain]:
    synthetic.require_data(data)
    synthetic = synthetic.to(config.device).decoded()
    return fair_gains(
        lambda: config.make_network(data),
        synthetic.image_syn,
        synthetic.label_syn,
        synthetic.syn_lr.item(),
        data,
        config,
        ipc=config.per_class,
        lr_teacher=config.lr_teacher,
        classes=synthetic.class_syn,
        by_teacher=_by_teacher(config, data) if regimes else None,
        teacher=teacher,
        num_tests=num_tests,
    )


def _by_teacher(config: DistillConfig, data: ImageData) -> ByTeacher:
    """How a teacher's labels judge the sets of a configuration."""
    settings = METHODS[config.method_name].judged_by or ByTeacher()
    # Rows have no boxes to cut and no squares to enlarge.
    return settings if data.has_images else replace(settings, mix="mixup", least_area=1.0)


def _with_data(runs: Sequence[JudgedRun]) -> Iterator[tuple[JudgedRun, ImageData]]:
    for run in runs:
        yield run, run.load(run.config)
