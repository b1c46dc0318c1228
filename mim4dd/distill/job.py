"""One distillation by a configuration, and what its set is worth beside real images."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from torch import nn

from mim4dd.distill.config.commands import DistillConfig, ExpertsConfig
from mim4dd.distill.data import ImageData
from mim4dd.distill.evaluation.coresets import evaluate_coresets
from mim4dd.distill.evaluation.recipe import (
    Accuracy,
    Evaluation,
    evaluate,
    evaluate_full,
    evaluate_random_real,
)
from mim4dd.distill.experts import ExpertBuffer, train_experts
from mim4dd.distill.loggers import Logger
from mim4dd.distill.loop.loop import Moment, distill
from mim4dd.distill.loop.state import Snapshot
from mim4dd.distill.methods import METHODS
from mim4dd.distill.runs import RunDirectory, SyntheticSet

__all__ = [
    "judge",
    "judge_coresets",
    "judge_full",
    "judge_random_real",
    "judge_unchecked",
    "labelling_network",
    "note_accuracies",
    "note_accuracy",
    "require_same_options",
    "run_distillation",
    "train_experts_by",
]


def judge(
    synthetic: SyntheticSet,
    data: ImageData,
    config: DistillConfig,
    evaluation: Evaluation | None = None,
    *,
    num_tests: int = 1,
) -> Accuracy:
    """Evaluate a distilled set by a recipe, the configuration's where there is no other.

    Its networks take the step size that comes with the set.

    Raises:
        ValueError: If the set was made of other data.
    """
    synthetic.require_data(data)
    return judge_unchecked(synthetic, data, config, evaluation, num_tests=num_tests)


def judge_unchecked(
    synthetic: SyntheticSet,
    data: ImageData,
    config: DistillConfig,
    evaluation: Evaluation | None = None,
    *,
    num_tests: int = 1,
) -> Accuracy:
    """As :func:`judge`, of a set that is known to be of ``data``: to find out reads all of it."""
    synthetic = synthetic.to(config.device).decoded()
    return evaluate(
        config.network_maker(data),
        synthetic.image_syn,
        synthetic.label_syn,
        synthetic.syn_lr.item(),
        data,
        config if evaluation is None else evaluation,
        num_tests=num_tests,
    )


def note_accuracy(
    run: RunDirectory, synthetic: SyntheticSet, config: DistillConfig, accuracy: Accuracy
) -> None:
    """Have the set of a finished run tell what its configuration's networks reached on it.

    They take the place of the fewer ones that the loop judged it by at its end.
    """
    note_accuracies(run, synthetic, {config.network_name: accuracy}, config.eval_seed)


def note_accuracies(
    run: RunDirectory | None,
    synthetic: SyntheticSet,
    accuracies: Mapping[str, Accuracy],
    first_seed: int,
) -> SyntheticSet:
    """The set, which tells what networks of some names reached on it; so does that of a finished
    ``run``, where there is one to write to.

    What was measured of more networks of that name stays.
    """
    counts = {each.network: len(each.values) for each in synthetic.provenance.accuracies}
    noted = synthetic
    for network, accuracy in accuracies.items():
        if len(accuracy.values) >= counts.get(network, 0):
            noted = noted.with_accuracy(network, accuracy.values, first_seed)
    # A job that is done leaves its files alone.
    if run is not None and run.finished and noted.provenance != synthetic.provenance:
        with run.held():
            run.save_set(run.synthetic, noted)
    return noted


def labelling_network(
    config: DistillConfig, run: RunDirectory, data: ImageData
) -> nn.Module | None:
    """The network by which the method of a run labels images; None where it has none.

    The run's last checkpoint holds it. Where that is gone, it is trained again.
    """
    if METHODS[config.method_name].judged_by is None:
        return None
    method = config.make_method(data)
    if run.checkpoint.exists():  # of several ranks all have the same
        snapshot = Snapshot(*run.load_checkpoint())
        method.restore(snapshot.of_rank(0, data.image_train.device))
    return method.labelling_network()


def run_distillation(
    config: DistillConfig,
    data: ImageData,
    run: RunDirectory,
    *,
    resume: bool = True,
    from_iteration: int | None = None,
    may_change: Collection[str] = (),
    watch: Callable[[Moment], object] | None = None,
    loggers: Sequence[Logger] = (),
) -> SyntheticSet:
    """Distil into ``run``: start it, continue it, or read its result if it is finished.

    Args:
        config: All options.
        data: What :meth:`DistillConfig.load_data` gave, or a part of it.
        run: Where it goes.
        resume: Without it a directory that holds a run is refused.
        from_iteration: Go back to this checkpoint first.
        may_change: Options that may be others than the run's.
        watch: Called after every outer iteration.
        loggers: Given each row of metrics, and closed in the end.

    Raises:
        ValueError: If ``run`` holds a run with other options, or of other data.
        BlockingIOError: If another process is at work in ``run``.
    """
    with run.held(data.image_train.device):
        require_same_options(config, run, may_change)
        method = config.make_method(data)
        if not run.config.exists():  # only now: options that cannot work leave no run behind
            run.create(config.options())
        # Two networks show how a curve goes; the accuracies that count are of num_eval.
        recipe = {each.name: getattr(config, each.name) for each in fields(Evaluation)}
        glance = Evaluation(**recipe | {"num_eval": min(2, config.num_eval)})
        return distill(
            method,
            data,
            config,
            run,
            lambda synthetic: judge(synthetic, data, config, glance),
            resume=resume,
            from_iteration=from_iteration,
            config=config.options(),
            watch=watch,
            loggers=loggers,
        )


def train_experts_by(config: ExpertsConfig, data: ImageData, folder: str | Path) -> ExpertBuffer:
    """Train the experts that ``folder`` does not hold yet: see :func:`train_experts`."""
    return train_experts(
        config.make_network,
        config.network_title,
        data,
        config,
        folder,
        workers=config.workers,
        devices=config.worker_devices,
    )


def require_same_options(
    config: DistillConfig, run: RunDirectory, may_change: Collection[str] = ()
) -> None:
    """Raise ValueError if ``run`` holds a run whose options, but for ``may_change``, differ."""
    if not run.config.exists():
        return
    # Values alone: what the run was started with, such as its device, need not work here.
    values = run.read_config()
    stored = DistillConfig.complete(DistillConfig.read(values, str(run.config)))
    asked = config.options()
    differing = [
        f"{name}: {stored.get(name)!r} → {asked.get(name)!r}"
        for name in {**asked, **stored}
        if asked.get(name) != stored.get(name) and name not in may_change
    ]
    if differing:
        raise ValueError(
            f"{run.path} holds a run with another {'; '.join(differing)}; choose another --out"
        )


def judge_random_real(data: ImageData, config: DistillConfig, *, num_tests: int = 1) -> Accuracy:
    """What random real images of the same count reach by the same recipe."""
    task = config.network_maker(data), config.per_class, config.lr_teacher, data, config
    return evaluate_random_real(*task, num_tests=num_tests)


def judge_coresets(
    data: ImageData, config: DistillConfig, *, num_tests: int = 1
) -> dict[str, Accuracy]:
    """What chosen real images of the same count reach by the same recipe, by the choice."""
    task = config.network_maker(data), config.per_class, config.lr_teacher, data, config
    return evaluate_coresets(*task, num_tests=num_tests)


def judge_full(data: ImageData, config: DistillConfig, *, num_tests: int = 1) -> Accuracy:
    """What the whole training set reaches by the same recipe, in as many steps."""
    task = config.network_maker(data), config.per_class, config.lr_teacher, data, config
    return evaluate_full(*task, num_tests=num_tests)
