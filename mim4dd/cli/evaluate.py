"""mim4dd evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from mim4dd.distill.networks import NETWORKS

__all__ = ["evaluate"]


def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    iteration: Annotated[
        int | None,
        typer.Option(help="Checkpoint to judge; by default the result, or the last there is."),
    ] = None,
    networks: Annotated[
        str | None,
        typer.Option(
            help=f"Networks to train, as columns: some of {', '.join(NETWORKS)}, joined by commas; "
            "else the run's."
        ),
    ] = None,
    fairness: Annotated[
        bool,
        typer.Option(
            "--fairness",
            help="Show what the sets gain over as many random real images instead: by their own "
            "labels and hard ones, with augmentation and without.",
        ),
    ] = False,
    num_eval: Annotated[int | None, typer.Option(help="Networks to train; else the run's.")] = None,
    eval_epochs: Annotated[int | None, typer.Option(help="Epochs of each; else the run's.")] = None,
    baselines: Annotated[
        bool, typer.Option(help="Also random real images, and the whole training set.")
    ] = True,
    csv: Annotated[
        Path | None, typer.Option(help="Also write the table to this CSV file, as fractions.")
    ] = None,
) -> None:
    """Train fresh networks on distilled sets and test them on held-out real images."""
    from mim4dd.distill.commands import cross
    from mim4dd.distill.commands.compare import accuracy_table
    from mim4dd.distill.files.atomic import require_writable

    columns = _columns(networks)
    if csv is not None:
        require_writable(csv)
    given = {"num_eval": num_eval, "eval_epochs": eval_epochs}
    changes = {name: value for name, value in given.items() if value is not None}
    judged = [cross.load_run(path, iteration, **changes) for path in runs]
    if fairness:
        gains = cross.cross_gains(judged, columns)
        typer.echo(cross.gain_table(gains))
        if csv is not None:
            cross.save_gains(csv, gains)
        return
    table = cross.cross_evaluate(judged, columns, baselines)
    if networks is None:
        own = {name: accuracy for name, row in table.items() for accuracy in row.values()}
        typer.echo(accuracy_table({name: accuracy.summary() for name, accuracy in own.items()}))
    else:
        typer.echo(cross.cross_table(table))
    if csv is not None:
        cross.save_accuracies(csv, table)


def _columns(networks: str | None) -> list[str | None]:
    """The networks asked for, in their order; None stands for the run's own."""
    if networks is None:
        return [None]
    asked = [name.strip() for name in networks.split(",")]
    unknown = [name for name in asked if name not in NETWORKS]
    if unknown or len(set(asked)) < len(asked):
        raise ValueError(
            f"networks must be different ones of {', '.join(NETWORKS)}, got {networks!r}"
        )
    return list(asked)
