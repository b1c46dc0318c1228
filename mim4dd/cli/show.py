"""mim4dd show."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["show"]


def show(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    out: Annotated[Path, typer.Option(help="PNG file for the curves of all runs.")] = Path(
        "runs/curves.png"
    ),
) -> None:
    """Draw the synthetic images of runs, and their curves over each other."""
    from mim4dd.distill.compare import draw_run
    from mim4dd.distill.pictures import save_curves
    from mim4dd.distill.run import RunDirectory, SyntheticSet

    directories = [RunDirectory(path) for path in runs]
    for run in directories:
        for picture in draw_run(run, run.read_config()["data"]):
            typer.echo(str(picture))
    if len(directories) > 1:
        num_classes = len(SyntheticSet.load(directories[0].synthetic).class_names)
        save_curves(out, {str(run.path): run.read_metrics() for run in directories}, num_classes)
        typer.echo(str(out))
