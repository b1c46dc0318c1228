"""mim4dd distill."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from mim4dd.cli.options import flag, flags_on_command_line, with_options
from mim4dd.distill.config.commands import DistillConfig
from mim4dd.distill.evaluation.recipe import Evaluation
from mim4dd.distill.files.regular import require_within
from mim4dd.distill.loggers import LOGGERS, Logger, named_loggers
from mim4dd.distill.loop.settings import MAY_CHANGE
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.runtime.ranks import is_restarted, joined_ranks, rank, sharing, wait_for_ranks
from mim4dd.distill.settings import options_of

__all__ = ["distill"]


# Of a run that goes on these may be others: how fast and how long, and where what it is compared
# by its content lies.
_ON_RESUME = (
    MAY_CHANGE
    | options_of(Evaluation).keys()
    | {"data", "data_path", "device", "experts"}
    | {"resume", "from_iteration", "log"}
)


@with_options(DistillConfig, {"resume": lambda path: RunDirectory(path).config})
def distill(
    config: DistillConfig,
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Run directory to create.")] = Path("runs/distill"),
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Continue this run; docs/runs.md says which options may change.",
        ),
    ] = None,
    from_iteration: Annotated[
        int | None,
        typer.Option(help="With --resume: go back to this checkpoint."),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Also log metrics to {' or '.join(LOGGERS)}; repeat the option for both.",
        ),
    ] = None,
) -> None:
    """Distil a synthetic set by a method + MIM4DD, or by the method alone (--weight 0).

    This shows the options and defaults of one method, data set and ipc; give others beside --help
    to see theirs. Under torchrun every process uses its own networks, and all average gradients.
    """
    if resume is not None:
        _require_may_change(context)
    elif from_iteration is not None:
        raise ValueError("--from-iteration needs --resume with the run to continue")
    device = torch.device(config.device)
    with joined_ranks(config.device):
        run = RunDirectory(out if resume is None else resume, read_only=rank() != 0)
        restarted = is_restarted(device)
        with run.held(device):
            goes_on = resume is not None or restarted
            if not goes_on:
                run.require_new()
                wait_for_ranks()  # before the first one makes it
            loggers = named_loggers(log or (), run.path, config.options())
            for name in log or ():  # whose files go into a folder of that name
                require_within(run.path / name, run.path)
            # Started again after a death, a run goes on from where it came to since.
            _distill(config, run, goes_on, None if restarted else from_iteration, loggers)


def _require_may_change(context: typer.Context) -> None:
    given = flags_on_command_line(context, without=_ON_RESUME)
    if given:
        may = ", ".join(map(flag, sorted(_ON_RESUME - {"resume"})))
        raise ValueError(
            f"--resume takes the run's own options, got {', '.join(given)} as well; only these may "
            f"differ from the run's: {may}"
        )


def _distill(
    config: DistillConfig,
    run: RunDirectory,
    resume: bool,
    from_iteration: int | None,
    loggers: Sequence[Logger],
) -> None:
    from mim4dd.distill.config.file import load_data_of
    from mim4dd.distill.evaluation.recipe import percent
    from mim4dd.distill.job import judge, note_accuracy, run_distillation
    from mim4dd.distill.report.show import draw_run

    data = load_data_of(config, run.path) if resume else config.load_data()
    result = run_distillation(
        config,
        data,
        run,
        resume=resume,
        from_iteration=from_iteration,
        may_change=_ON_RESUME,
        loggers=loggers,
    )
    with sharing():
        accuracy = judge(result, data, config)
    if rank() != 0:
        return
    note_accuracy(run, result, config, accuracy)
    typer.echo(
        f"{run.synthetic}: test accuracy {percent(accuracy.summary())} % "
        f"of {len(accuracy.values)} networks"
    )
    for line in draw_run(run, data.name).lines:
        typer.echo(line)
