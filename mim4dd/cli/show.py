"""mim4dd show."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mim4dd.cli.options import PAPER_HELP, flag

__all__ = ["show"]


def show(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories, or files of sets. Pictures of a file are written beside it."
        ),
    ],
    out: Annotated[Path, typer.Option(help="PNG file for the curves of several runs.")] = Path(
        "runs/curves.png"
    ),
    features: Annotated[
        bool | None,
        typer.Option(
            help="Draw features of a network trained on real data: by default if the run's experts "
            "exist. With --features a network is trained if they do not.",
            show_default=False,
        ),
    ] = None,
    iteration: Annotated[
        int | None,
        typer.Option(help="Checkpoint to draw; by default the result, or the last checkpoint."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Submodules whose features to draw, joined by commas; by default the network's."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Device for the features.")] = "cpu",
    paper: Annotated[bool, typer.Option("--paper", help=PAPER_HELP)] = False,
    gif: Annotated[
        bool,
        typer.Option(
            "--gif",
            help="Also write an animation of the images; distill --keep-every gives more frames.",
        ),
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Also write one HTML file with all pictures.")
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(help="Also write TensorBoard event files here, in a folder for each run."),
    ] = None,
) -> None:
    """Draw the images of runs, their loss curves, and their features."""
    from mim4dd.distill.pictures import save_curves
    from mim4dd.distill.report.html import ReportedRun, write_report
    from mim4dd.distill.report.show import (
        Picture,
        draw_evolution,
        draw_run,
        draw_run_features,
        draw_set,
        run_names,
    )
    from mim4dd.distill.report.tensorboard import export_tensorboard
    from mim4dd.distill.runs import RunDirectory, is_set

    if features is False and layers is not None:
        raise ValueError(f"--layers has no effect with --no-features, got {layers}")
    sets = [path for path in runs if is_set(path) and not RunDirectory(path).started]
    of_runs = {
        "html": html,
        "tensorboard": tensorboard,
        "iteration": iteration,
        "layers": layers,
        "features": features or None,
        "gif": gif or None,
    }
    if sets:
        _require_none(of_runs, sets[0])
    for path in sets:
        for line in draw_set(path, paper=paper).lines:
            typer.echo(line)
    runs = [path for path in runs if path not in sets]
    chosen = None if layers is None else [layer.strip() for layer in layers.split(",")]
    shown = []
    for path, name in run_names(runs).items() if runs else ():
        run = RunDirectory(path)
        # A run of Python's has no configuration, unless its program wrote one.
        config = run.read_config() if run.config.exists() else {}
        data_name = config.get("data", name)
        drawn = draw_run(run, data_name, iteration, paper=paper)
        if features is not False:
            train = features is True
            drawn.extend(draw_run_features(run, device, chosen, train, iteration, paper=paper))
        if gif:
            drawn.extend(draw_evolution(run, data_name))
        for line in drawn.lines:
            typer.echo(line)
        if tensorboard is not None:
            typer.echo(str(export_tensorboard(run, drawn.pictures, tensorboard / name)))
        shown.append(ReportedRun(name, run, drawn))
    shared = []
    if len(shown) > 1:
        num_classes = len(shown[0].run.load_set()[0].class_names)
        curves = {each.name: each.run.read_metrics() for each in shown}
        for written in save_curves(out, curves, num_classes, paper=paper):
            typer.echo(str(written))
        shared.append(Picture(out, "Curves"))
    if html is not None:
        write_report(html, shown, shared)
        typer.echo(str(html))


def _require_none(options: Mapping[str, Any], path: Path) -> None:
    """Require that nothing is asked for which only runs have."""
    given = [flag(name) for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} is of runs, {path} is a set in a file")
