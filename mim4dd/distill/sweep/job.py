"""One distillation of a sweep and one baseline, each with a result of its own."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from mim4dd.distill.config.commands import DistillConfig, TaskSettings
from mim4dd.distill.data import ImageData
from mim4dd.distill.evaluation.recipe import Accuracy, Evaluation, evaluate
from mim4dd.distill.files.atomic import read_json
from mim4dd.distill.files.fields import require_accuracies, require_each, require_fields
from mim4dd.distill.job import judge, note_accuracy, run_distillation
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.runs.metrics import final_means

__all__ = ["Job", "Result", "held_out_data", "run_job"]


@dataclass(frozen=True)
class Job:
    """A distillation to run and judge, or real images to judge by the same recipe.

    ``path`` is the run directory, or the folder of the baseline's result. ``held_out`` is the share
    of the training images, drawn by ``split_seed``, that stands for the test images; 0 judges by
    the test images themselves.
    """

    config: DistillConfig
    path: Path
    held_out: float = 0.0
    split_seed: int = 0
    baseline: bool = False

    @property
    def result(self) -> Path:
        """Where the result is, once there is one."""
        return self.path / "result.json"


@dataclass(frozen=True)
class Result:
    """What came out: accuracies of the networks trained on the set, and what making it cost.

    ``metrics`` are the losses and bounds at its end; ``failure`` says why there is no accuracy.
    """

    seed: int
    accuracy: tuple[float, ...] = ()
    num_classes: int = 0
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    failure: str | None = None

    @property
    def mean(self) -> float:
        """Mean accuracy of the networks: what one distillation counts."""
        return statistics.fmean(self.accuracy)

    @property
    def mi_lower_bound(self) -> float | None:
        """The bound at the end, in nats; None where no add-on measured it."""
        return self.metrics.get("mi_lower_bound")

    @staticmethod
    def read(path: Path) -> "Result":
        """Read what :func:`run_job` wrote.

        Raises:
            ValueError: If the file is not there or not readable.
        """
        values = read_json(path)
        known = {known.name for known in fields(Result)}
        if set(values) - known or not isinstance(values.get("accuracy"), list):
            raise ValueError(f"{path} does not hold the result of a distillation")
        hints: dict[str, Any] = {"num_classes": int | None, "metrics": dict | None}
        hints |= dict.fromkeys(("seconds", "cpu_seconds", "peak_bytes"), float | None)
        hints["failure"] = str | None
        require_fields(values, str(path), seed=int, **hints)
        require_accuracies(values["accuracy"], str(path))
        require_each(values.get("metrics") or {}, str(path), float)
        if not values["accuracy"] and not values.get("failure"):
            raise ValueError(f"{path} must hold accuracies or a failure, got neither")
        filled = {"num_classes": values.get("num_classes") or 0}
        filled |= {"metrics": values.get("metrics") or {}, "accuracy": tuple(values["accuracy"])}
        return Result(**values | filled)


def run_job(job: Job) -> None:
    """Run a job and leave its result; one that has a result is left as it is.

    A distillation that was interrupted continues from its checkpoint. One that diverges, itself or
    in the networks trained on its set, has a message as result.
    """
    if job.result.exists():
        return
    run = RunDirectory(job.path)
    with run.held():
        data = held_out_data(job.config, job.held_out, job.split_seed)
        values = _judge_real(job, data, run) if job.baseline else _distill(job, data, run)
        result = {"seed": job.config.seed, "num_classes": data.num_classes} | values
        run.save_json(job.result, result)


def held_out_data(task: TaskSettings, fraction: float, seed: int) -> ImageData:
    """The data; with a fraction above 0 that of its training images stands for the test images."""
    data = task.load_data()
    return data.hold_out(fraction, seed) if fraction else data


def _judge_real(job: Job, data: ImageData, run: RunDirectory) -> dict[str, Any]:
    """Judge as many real images, drawn by the seed."""
    config = job.config
    images, labels = data.sample(config.per_class, torch.Generator().manual_seed(config.seed))
    maker = config.network_maker(data)
    return _judged(
        _one_by_one(
            job,
            run,
            lambda recipe: evaluate(maker, images, labels, config.lr_teacher, data, recipe),
        )
    )


def _one_by_one(
    job: Job, run: RunDirectory, judge_by: Callable[[Evaluation], Accuracy]
) -> Accuracy:
    """Judge by one network after another, and note each, so that a stop costs one at most."""
    note = job.path / "networks.json"
    # NaN of a network that diverged has no place in JSON.
    noted: list[float | None] = read_json(note).get("accuracy", []) if note.exists() else []
    require_each(noted, str(note), float | None)
    for index in range(len(noted), job.config.num_eval):
        seed = job.config.eval_seed + index
        (value,) = judge_by(replace(job.config, num_eval=1, eval_seed=seed)).values
        noted.append(None if math.isnan(value) else value)
        run.save_json(note, {"accuracy": noted})
    return Accuracy(tuple(math.nan if value is None else value for value in noted))


def _judged(judged: Accuracy) -> dict[str, Any]:
    """Accuracies, or why they have no mean."""
    diverged = sum(map(math.isnan, judged.values))
    if diverged:
        failure = f"{diverged} of {len(judged.values)} networks trained on the set diverged"
        return {"accuracy": (), "failure": failure}
    return {"accuracy": judged.values}


def _distill(job: Job, data: ImageData, run: RunDirectory) -> dict[str, Any]:
    try:
        synthetic = run_distillation(job.config, data, run)
    except FloatingPointError as error:
        return {"accuracy": (), "failure": str(error)}
    except ValueError as error:  # one of many settings: which?
        raise ValueError(f"{job.path.parent.name}: {error}") from error
    _, header = run.load_checkpoint()
    rows = run.read_metrics()
    accuracy = _one_by_one(job, run, lambda recipe: judge(synthetic, data, job.config, recipe))
    note_accuracy(run, synthetic, job.config, accuracy)
    return {
        **_judged(accuracy),
        **{name: header[name] for name in ("seconds", "cpu_seconds", "peak_bytes")},
        "metrics": final_means(rows),
    }
