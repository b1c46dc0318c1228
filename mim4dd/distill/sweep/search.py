"""Search for the best setting by Optuna, judged by held-out training images until the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mim4dd.distill.files.atomic import write_csv
from mim4dd.distill.runtime.progress import progress_bar
from mim4dd.distill.spread import Spread
from mim4dd.distill.sweep.grid import Setting, make_setting, require_effect, shown
from mim4dd.distill.sweep.job import Result
from mim4dd.distill.sweep.jobs import (
    claim,
    claim_sources,
    distillation_job,
    run_jobs,
    train_needed_experts,
)
from mim4dd.distill.sweep.run import Study, judge_settings
from mim4dd.distill.sweep.search_plot import draw_search
from mim4dd.distill.sweep.space import Range, Space, Trial

__all__ = ["search"]

# The share of the training images that trials are judged by.
_HELD_OUT = 0.2
# What others have an effect depends on these.
_DECIDING = {"method", "network", "weight"}
# Whose other values may mean data or experts that the base has not.
_OF_DATA = {"data", "data_path", "image_size", "zca", "experts"}


def search(
    given: Mapping[str, Any],
    space: Space,
    out: Path,
    *,
    trials: int,
    seeds: int = 5,
    workers: int = 1,
    paper: bool = False,
) -> Study:
    """Search for the setting with the best accuracy on held-out training images.

    Optuna's tree-structured Parzen estimator, seeded, proposes one setting after another; the seeds
    of a setting are distilled at the same time. A fifth of the training images stands for the test
    images. At the end the best setting and the base are distilled again from all training images
    and judged by the test images, which nothing was chosen by.

    Every distillation is kept, and the estimator is told all of them again in the same order, so an
    interrupted search continues as if it had not been.

    Args:
        given: Options of the base setting, which is the first trial where the space holds it.
        space: What to search, see :func:`~mim4dd.distill.sweep.space.parse_space`.
        out: Where everything goes.
        trials: Settings to try.
        seeds: Distillations by each setting, with different seeds.
        workers: Processes that work at the same time.
        paper: Draw at the size of a paper, as PDF and SVG beside PNG.

    Returns:
        The base and the best setting, judged by the test images.

    Raises:
        ModuleNotFoundError: If Optuna is missing.
        ValueError: If an option cannot be used, or ``out`` holds a sweep around another base.
        FloatingPointError: If every setting that was tried diverged.
    """
    for name, value in (("search", trials), ("seeds", seeds), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    base = make_setting(given, {}, space)
    if _DECIDING.isdisjoint(space):
        require_effect(space, [base])
    tried = _try_settings(given, space, base, out, trials, seeds, workers)
    best = max(
        (trial for trial in tried if trial.accuracy is not None),
        key=lambda trial: trial.accuracy or 0.0,
        default=None,
    )
    if best is None:
        raise FloatingPointError(f"all {len(tried)} settings tried diverged; narrow the ranges")
    table, picture = out / "trials.csv", out / "plots" / "search.png"
    _write_trials(table, tried)
    title = f"{base.config.data}, ipc {base.config.ipc_title}"
    pictures = draw_search(picture, tried, space, title, paper=paper)
    settings = list({setting.name: setting for setting in (base, best.setting)}.values())
    references = dict.fromkeys((setting.name for setting in settings), base.name)
    study = judge_settings(settings, out, seeds, workers, references, paper=paper)
    note = (
        f"- Best of {len(tried)} by held-out training images, on which it reached "
        f"{100 * (best.accuracy or 0.0):.1f} %: {best.setting.name}. "
        "The table is of the test images."
    )
    return Study(study.rows, f"{study.table}\n{note}", [table, *pictures, *study.paths])


def _try_settings(
    given: Mapping[str, Any],
    space: Space,
    base: Setting,
    out: Path,
    trials: int,
    seeds: int,
    workers: int,
) -> list[Trial]:
    import optuna

    claim(out, base)
    claim_sources(out, [base])
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the progress bar tells the same
    try:
        sampler = optuna.samplers.TPESampler(seed=base.config.seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
    finally:
        optuna.logging.set_verbosity(verbosity)
    if all(base.options[name] in values for name, values in space.items()):
        study.enqueue_trial({name: base.options[name] for name in space})
    tried = []
    with progress_bar(trials, "search") as bar:
        for number in range(trials):
            proposal = study.ask()
            change = {name: _suggest(proposal, name, space[name]) for name in space}
            setting = make_setting(given, change, space, base)
            if not _OF_DATA.isdisjoint(change):
                claim_sources(out, [setting])
            tried.append(_try(number, setting, out / "search", seeds, workers))
            accuracy = tried[-1].accuracy
            if accuracy is None:
                study.tell(proposal, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(proposal, accuracy)
            bar.update()
    return tried


def _suggest(proposal: Any, name: str, values: Range | list[Any]) -> Any:
    if isinstance(values, list):
        return proposal.suggest_categorical(name, values)
    if isinstance(values.low, int):
        return proposal.suggest_int(name, values.low, values.high, log=values.log)
    number = proposal.suggest_float(name, values.low, values.high, log=values.log)
    return float(f"{number:.4g}")  # to be read, and to name a folder


def _try(number: int, setting: Setting, out: Path, seeds: int, workers: int) -> Trial:
    train_needed_experts([setting], out, workers, _HELD_OUT)
    first = setting.config.seed
    jobs = [distillation_job(setting, first + index, out, _HELD_OUT) for index in range(seeds)]
    run_jobs(jobs, workers, quiet=True)
    results = [Result.read(job.result) for job in jobs]
    if any(result.failure for result in results):
        return Trial(number, setting, None, None)
    accuracy = Spread.of([result.mean for result in results])
    return Trial(number, setting, accuracy.mean, accuracy.std)


def _write_trials(path: Path, tried: Sequence[Trial]) -> None:
    rows: list[list[Any]] = [["trial", *tried[0].setting.options, "held_out_accuracy", "std"]]
    for trial in tried:
        values = [shown(value) for value in trial.setting.options.values()]
        rows.append([trial.number, *values, trial.accuracy, trial.std])
    write_csv(path, rows)
