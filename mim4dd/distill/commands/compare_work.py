"""The work of a comparison, in several processes where its networks are too small for threads."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mim4dd.distill.config.commands import CompareConfig, DistillConfig, part
from mim4dd.distill.data import ImageData
from mim4dd.distill.evaluation.recipe import Accuracy
from mim4dd.distill.job import (
    judge_full,
    judge_random_real,
    judge_unchecked,
    run_distillation,
)
from mim4dd.distill.runs import RunDirectory, SyntheticSet
from mim4dd.distill.runtime.processes import run_parallel
from mim4dd.distill.runtime.progress import progress_bar
from mim4dd.distill.runtime.threads import work_of, workers_for
from mim4dd.distill.training.network import seeded_network

__all__ = ["distill_all", "judge_all", "workers_at"]

_BASELINES = {"full": judge_full, "random_real": judge_random_real}


def workers_at(config: CompareConfig, data: ImageData, batch: int, asked: int | None) -> int:
    """How many processes train networks on ``batch`` samples at the same time, where none asked."""
    if asked is not None:
        return asked
    network = seeded_network(lambda: config.make_network(data), config.seed)
    images = data.image_train[:batch]
    return workers_for(work_of(network, images), images.device)


def distill_all(
    runs: Sequence[tuple[DistillConfig, RunDirectory]],
    data: ImageData,
    workers: int,
    finished: Callable[[RunDirectory], object],
) -> None:
    """Distil into every directory, and call ``finished`` with each that is done.

    With one worker each distillation shows its own progress; with several a bar stands for all.
    """
    total = sum(config.iterations for config, _ in runs)

    def done() -> int:
        return sum(min(run.rows_written(), config.iterations) for config, run in runs)

    tasks = [(config, run.path) for config, run in runs]
    with progress_bar(total, "distill", initial=done(), quiet=workers == 1) as bar:
        for index, _ in run_parallel(
            partial(_distiller, data), tasks, workers, poll=lambda: bar.update(done() - bar.n)
        ):
            finished(runs[index][1])


def _distiller(data: ImageData, _worker: int) -> Callable[[tuple[DistillConfig, Path]], None]:
    def distill_one(task: tuple[DistillConfig, Path]) -> None:
        config, path = task
        run_distillation(config, data, RunDirectory(path))

    return distill_one


class _Network(NamedTuple):
    """A network to train and test: on a baseline's images, or on a set by method and number."""

    name: str
    number: int
    seed: int


def judge_all(
    config: CompareConfig,
    data: ImageData,
    sets: Mapping[str, Sequence[SyntheticSet]],
    workers: int,
) -> tuple[dict[str, Accuracy], float]:
    """Judge the baselines and all sets by one recipe; a method's values are of all its sets.

    Returns:
        Accuracies by name, and the seconds that all networks took together.
    """
    counts = dict.fromkeys(_BASELINES, 1) | {name: len(group) for name, group in sets.items()}
    # Those on the whole training set come first, as they take longest.
    networks = [
        _Network(name, number, config.eval_seed + index)
        for name, count in counts.items()
        for number in range(count)
        for index in range(config.num_eval)
    ]
    for group in sets.values():
        for synthetic in group:
            synthetic.require_data(data)
    values, seconds = [0.0] * len(networks), 0.0
    with progress_bar(len(networks), "evaluate") as bar:
        for index, (value, spent) in run_parallel(
            partial(_judge, config, data, sets), networks, workers
        ):
            values[index] = value
            seconds += spent
            bar.update()
    return {
        name: Accuracy(
            tuple(value for each, value in zip(networks, values, strict=True) if each.name == name)
        )
        for name in counts
    }, seconds


def _judge(
    config: CompareConfig,
    data: ImageData,
    sets: Mapping[str, Sequence[SyntheticSet]],
    _worker: int,
) -> Callable[[_Network], tuple[float, float]]:
    def judge_one(network: _Network) -> tuple[float, float]:
        started = time.perf_counter()
        recipe = part(config, DistillConfig, num_eval=1, eval_seed=network.seed)
        if network.name in _BASELINES:
            accuracy = _BASELINES[network.name](data, recipe)
        else:
            accuracy = judge_unchecked(sets[network.name][network.number], data, recipe)
        return accuracy.values[0], time.perf_counter() - started

    return judge_one
