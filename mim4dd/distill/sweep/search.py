"""Search for the best setting by Optuna, judged by held-out training images until the end."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mim4dd._extras import import_extra
from mim4dd.distill.files.atomic import write_csv
from mim4dd.distill.files.hold import hold
from mim4dd.distill.runtime.progress import progress_bar
from mim4dd.distill.spread import Spread
from mim4dd.distill.sweep.grid import Setting, make_setting, require_effect, shown
from mim4dd.distill.sweep.job import Job, Result
from mim4dd.distill.sweep.jobs import (
    claim,
    claim_sources,
    distillation_job,
    run_queue,
    train_needed_experts,
)
from mim4dd.distill.sweep.run import Study, judge_settings
from mim4dd.distill.sweep.search_plot import draw_search
from mim4dd.distill.sweep.space import Space, Trial
from mim4dd.distill.sweep.trial_store import TrialStore

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

    Optuna's tree-structured Parzen estimator, seeded, proposes a setting whenever a worker is free
    and all seeds of those before are at work or done. With one worker, what it proposes is the same
    every time; with more it depends on which results are there. A fifth of the training images
    stands for the test images. At the end the best setting and the base are distilled again from
    all training images and judged by the test images, which nothing was chosen by.

    Proposals and accuracies are in Optuna's storage ``out/optuna.db``, which its dashboard shows
    meanwhile, and every distillation is kept: an interrupted search goes on with the settings that
    it was at. Another space, or another number of seeds, is another study in the same storage.

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
        BlockingIOError: If another process is at work in ``out``.
    """
    for name, value in (("search", trials), ("seeds", seeds), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    base = make_setting(given, {}, space)
    if _DECIDING.isdisjoint(space):
        require_effect(space, [base])
    with hold(out):
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
    import_extra("optuna")  # before anything is written
    claim(out, base)
    claim_sources(out, [base])
    store = TrialStore(out / "optuna.db", space, seeds, base.config.seed)
    store.begin(base.options)
    tried: dict[int, Trial] = {}
    running: dict[int, tuple[Setting, list[Job]]] = {}

    def collect() -> None:
        """Note, and tell Optuna, what all seeds are done of."""
        for number, (setting, jobs) in list(running.items()):
            if all(job.result.exists() for job in jobs):
                del running[number]
                tried[number] = _judged(number, setting, jobs)
                store.tell(number, tried[number].accuracy)
                bar.update()

    def jobs_to_run() -> Iterator[Job]:
        handed_out = set()
        for position in range(trials):
            collect()
            number, change = store.proposal(position)
            setting = make_setting(given, change, space, base)
            if not _OF_DATA.isdisjoint(change):
                claim_sources(out, [setting])
            train_needed_experts([setting], out / "search", workers, _HELD_OUT)
            first = setting.config.seed
            jobs = [
                distillation_job(setting, first + index, out / "search", _HELD_OUT)
                for index in range(seeds)
            ]
            running[number] = setting, jobs
            for job in jobs:
                # Another trial may be at the same setting.
                if job.path not in handed_out and not job.result.exists():
                    handed_out.add(job.path)
                    yield job

    with progress_bar(trials, "search") as bar:
        run_queue(jobs_to_run(), workers, lambda: f"{len(tried)} of {trials} settings tried")
        collect()
    return [tried[number] for number in sorted(tried)]


def _judged(number: int, setting: Setting, jobs: Sequence[Job]) -> Trial:
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
