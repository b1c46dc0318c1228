"""mim4dd distill."""

from pathlib import Path
from typing import Annotated

import typer

from mim4dd.cli.options import on_command_line, with_options
from mim4dd.distill.config import DistillConfig, read_config

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
    """Distil a synthetic set by MTT + MIM4DD, or MTT alone with --weight 0."""
    from mim4dd.distill.compare import judge, run_distillation
    from mim4dd.distill.run import RunDirectory
    from mim4dd.distill.show import draw_run

    run = RunDirectory(out if resume is None else resume)
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
        config = read_config(run.config, DistillConfig)
    else:
        run.require_new()
    data = config.load_data()
    result = run_distillation(config, data, run)
    accuracy = judge(result, data, config)
    typer.echo(
        f"{run.synthetic}: test accuracy {100 * accuracy.mean:.1f} ± {100 * accuracy.std:.1f} % "
        f"over {len(accuracy.values)} networks"
    )
    for line in draw_run(run, data.name).lines:
        typer.echo(line)
