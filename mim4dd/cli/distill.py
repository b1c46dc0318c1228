"""mim4dd distill."""

from pathlib import Path
from typing import Annotated

import typer

from mim4dd.cli.options import on_command_line, with_options
from mim4dd.distill.config import DistillConfig
from mim4dd.distill.config_file import read_config
from mim4dd.distill.ranks import joined_ranks, rank, wait_for_ranks
from mim4dd.distill.run import RunDirectory

__all__ = ["distill"]


@with_options(DistillConfig)
def distill(
    config: DistillConfig,
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Run directory to make.")] = Path("runs/distill"),
    resume: Annotated[
        Path | None, typer.Option(help="Run directory to continue, with its own options.")
    ] = None,
) -> None:
    """Distil a synthetic set by a method + MIM4DD, or the method alone with --weight 0.

    Defaults that are tabulated for the method, data and ipc (docs/methods.md) come before those
    shown here. Under torchrun every process matches networks of its own, and all step along the
    mean gradient.
    """
    if resume is not None:
        given = [
            f"--{name.replace('_', '-')}"
            for name in context.params
            if name != "resume" and on_command_line(context, name)
        ]
        if given:
            raise ValueError(
                f"--resume takes the run's own options, got {', '.join(given)} as well"
            )
        config = read_config(RunDirectory(resume).config, DistillConfig)
    with joined_ranks(config.device):
        run = RunDirectory(out if resume is None else resume, read_only=rank() != 0)
        if resume is None:
            run.require_new()
            wait_for_ranks()  # before the first one makes it
        _distill(config, run)


def _distill(config: DistillConfig, run: RunDirectory) -> None:
    from mim4dd.distill.compare import judge, run_distillation
    from mim4dd.distill.evaluate import percent
    from mim4dd.distill.show import draw_run

    data = config.load_data()
    result = run_distillation(config, data, run)
    if rank() != 0:
        return
    accuracy = judge(result, data, config)
    typer.echo(
        f"{run.synthetic}: test accuracy {percent(accuracy.summary()).lstrip()} % "
        f"of {len(accuracy.values)} networks"
    )
    for line in draw_run(run, data.name).lines:
        typer.echo(line)
