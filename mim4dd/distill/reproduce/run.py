"""Distilling and judging a row: seed by seed, each continued where it was stopped."""

from pathlib import Path
from typing import Any

from mim4dd.distill.files.hold import hold
from mim4dd.distill.job import require_same_options
from mim4dd.distill.reproduce.record import (
    distillation,
    options_of_row,
    read_record,
    write_record,
)
from mim4dd.distill.reproduce.rows import PublishedRow
from mim4dd.distill.reproduce.table import write_table
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.runtime.machine import describe_machine
from mim4dd.distill.runtime.ranks import from_first, leads
from mim4dd.distill.sweep.job import Result
from mim4dd.distill.sweep.jobs import (
    claim_sources,
    distillation_job,
    random_real_job,
    run_jobs,
    train_needed_experts,
)
from mim4dd.distill.training.precision import Precision

__all__ = ["reproduce"]


def reproduce(
    row: PublishedRow,
    out: Path,
    results: Path,
    *,
    budget: str = "small",
    data_path: str = "data",
    device: str = "cpu",
    precision: Precision = "float32",
    workers: int = 1,
    note: str = "",
) -> Path:
    """Distil a row with every seed of its budget, judge it, and leave its file and the table.

    After every seed the file is written anew, so that it always tells what is known. A call that
    was stopped is repeated: finished experts, distillations and networks are kept, and a
    distillation goes on from its last checkpoint. Seeds that the file has already, of the same
    options, are kept, wherever they were distilled; a file of more iterations is left alone.

    Args:
        row: What to distil.
        out: Where runs and experts go; rows share it.
        results: Where the files of rows and the table are.
        budget: "small" or "published".
        data_path: Where the archives lie.
        device: Where to compute.
        precision: Arithmetic of experts and evaluation networks, which the file notes.
        workers: Processes that work at the same time.
        note: What else there is to say of the figures, for the table.

    Returns:
        The file.

    Raises:
        ValueError: If there is no such budget, the data are not there, or ``out`` holds the row
            with other options.
        Interrupted: After Ctrl-C or SIGTERM, once the distillations at work saved where they are.
    """
    setting = row.setting(budget, data_path=data_path, device=device, precision=precision)
    path = results / f"{row.name}.json"
    known = from_first(lambda: _known(path, options_of_row(setting), setting.config.iterations))
    if known is None:
        return path
    out = out / budget
    first = setting.config.seed
    seeds = range(first, first + row.budget(budget).seeds)
    missing = [seed for seed in seeds if seed not in known]
    for seed in missing:
        job = distillation_job(setting, seed, out)
        require_same_options(job.config, RunDirectory(job.path))
    if missing:
        claim_sources(out, [setting])
        train_needed_experts([setting], out, workers)
    for seed in missing:
        job, real = distillation_job(setting, seed, out), random_real_job(setting, seed, out)
        run_jobs([real, job], workers)
        known[seed] = distillation(
            Result.read(job.result), Result.read(real.result), describe_machine(device)
        )
        if not leads():
            continue
        with hold(results):  # the table is of all rows, which others may be at
            write_record(path, row, budget, setting, [known[each] for each in sorted(known)], note)
            write_table(results)
    return path


def _known(path: Path, options: dict[str, Any], iterations: int) -> dict[int, Any] | None:
    """Distillations by seed that a file has of these options; None where it has longer ones."""
    if not path.exists():
        return {}
    record = read_record(path)
    if record["options"] == options:
        return {each["seed"]: each for each in record["distillations"]}
    return None if record["iterations"] > iterations else {}
