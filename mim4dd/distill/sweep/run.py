"""A sweep over a grid: experts, distillations, baselines, table and pictures, all resumable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mim4dd.distill.files.atomic import write_text
from mim4dd.distill.files.hold import hold
from mim4dd.distill.runtime.ranks import leads
from mim4dd.distill.sweep.grid import Setting, base_of, make_grid, parse_vary, shown
from mim4dd.distill.sweep.job import Result
from mim4dd.distill.sweep.jobs import (
    claim,
    claim_sources,
    distillation_job,
    random_real_job,
    run_jobs,
    train_needed_experts,
)
from mim4dd.distill.sweep.latex import latex_table
from mim4dd.distill.sweep.plots import draw_sweep, varying
from mim4dd.distill.sweep.table import Row, markdown_table, summarize, write_tables

__all__ = ["Study", "judge_settings", "sweep"]


@dataclass(frozen=True)
class Study:
    """What a sweep found: its rows, as a table to print, and the files it wrote."""

    rows: list[Row]
    table: str
    paths: list[Path]


def sweep(
    given: Mapping[str, Any],
    varied: Mapping[str, Sequence[Any]],
    out: Path,
    *,
    one_at_a_time: bool = False,
    against: str | None = None,
    seeds: int = 5,
    workers: int = 1,
    paper: bool = False,
) -> Study:
    """Distil by every setting of a grid with several seeds, judge all, and tabulate and draw it.

    An interrupted call continues where it stopped: finished distillations are kept as they are.
    In the same folder, more values, more options and more seeds may be asked for later.

    Args:
        given: Options of the base setting; those left out have their defaults.
        varied: Values by option, see :func:`~mim4dd.distill.sweep.grid.parse_vary`.
        out: Where everything goes.
        one_at_a_time: Change one option of the base at a time instead of all together.
        against: ``name=value``: gains are over the setting with this value and all else alike,
            instead of over the base.
        seeds: Distillations by each setting, with different seeds.
        workers: Processes that work at the same time.
        paper: Draw at the size of a paper, as PDF and SVG beside PNG.

    Raises:
        ValueError: If an option cannot be used, or ``out`` holds a sweep around another base.
        BlockingIOError: If another process is at work in ``out``.

    Example:
        >>> from pathlib import Path
        >>> from mim4dd.distill.sweep.run import sweep
        >>> study = sweep({"ipc": 1}, {"weight": [0.0, 0.1]}, Path("runs/sweep"))  # doctest: +SKIP
        >>> study.rows[1].gain.mean  # doctest: +SKIP
        -0.02
    """
    settings = make_grid(given, varied, one_at_a_time)
    references = _references(settings, against)
    with hold(out, lock=leads()):
        return judge_settings(settings, out, seeds, workers, references, paper=paper)


def _references(settings: Sequence[Setting], against: str | None) -> dict[str, str]:
    """For every setting the name of the one that its gain is over, where there is one."""
    if against is None:
        return dict.fromkeys((setting.name for setting in settings), base_of(settings).name)
    ((name, values),) = parse_vary([against]).items()
    if len(values) > 1:
        raise ValueError(f"against must be name=value, got {against!r}")
    by_options = {_key(setting.options): setting.name for setting in settings}
    references = {
        setting.name: by_options[key]
        for setting in settings
        if (key := _key({**setting.options, name: values[0]})) in by_options
    }
    if not references:
        raise ValueError(f"against must name a value that the sweep has, got {against!r}")
    return references


def _key(options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, shown(value)) for name, value in options.items()))


def judge_settings(
    settings: Sequence[Setting],
    out: Path,
    seeds: int,
    workers: int,
    references: Mapping[str, str],
    *,
    paper: bool = False,
) -> Study:
    """Distil and judge settings, one of them the base; ``references`` say what gains are over."""
    for name, value in (("seeds", seeds), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    claim(out, base_of(settings))
    claim_sources(out, settings)
    base = base_of(settings).config
    train_needed_experts(settings, out, workers)
    pairs = [(setting, base.seed + index) for index in range(seeds) for setting in settings]
    real = {(setting.name, seed): random_real_job(setting, seed, out) for setting, seed in pairs}
    jobs = {(setting.name, seed): distillation_job(setting, seed, out) for setting, seed in pairs}
    run_jobs([*dict.fromkeys(real.values()), *jobs.values()], workers)

    results = {key: Result.read(job.result) for key, job in jobs.items()}
    baselines = {key: Result.read(job.result) for key, job in real.items()}

    def of(name: str, among: Mapping[tuple[str, int], Result]) -> list[Result]:
        return [among[name, base.seed + index] for index in range(seeds)]

    rows = [
        summarize(
            setting,
            of(setting.name, results),
            of(setting.name, baselines),
            references.get(setting.name),
            of(references.get(setting.name, setting.name), results),
        )
        for setting in settings
    ]
    if not leads():
        return Study(rows, markdown_table(rows), [])
    paths = [*write_tables(rows, settings, results, out), out / "table.tex"]
    write_text(paths[-1], latex_table(rows))
    cpu = torch.device(base.device).type == "cpu"
    title = base.data if "ipc" in varying(rows) else f"{base.data}, ipc {base.ipc_title}"
    paths += draw_sweep(rows, results, title, out / "plots", cpu=cpu, paper=paper)
    return Study(rows, markdown_table(rows), paths)
