"""mim4dd evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from mim4dd.cli.options import flag
from mim4dd.distill.networks import NETWORKS
from mim4dd.distill.runtime.ranks import joined_ranks, leads, sharing

__all__ = ["evaluate"]


def evaluate(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories, files of distilled sets, or what MTT, DATM, DC and others left."
        ),
    ],
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
    regimes: Annotated[
        bool,
        typer.Option(
            "--regimes",
            help="With --fairness: also by one soft label for each image, and by a teacher's "
            "labels for every augmented, mixed batch.",
        ),
    ] = False,
    num_eval: Annotated[int | None, typer.Option(help="Networks to train; else the run's.")] = None,
    eval_epochs: Annotated[int | None, typer.Option(help="Epochs of each; else the run's.")] = None,
    baselines: Annotated[
        bool, typer.Option(help="Also random real images, and the whole training set.")
    ] = True,
    coresets: Annotated[
        bool,
        typer.Option(
            "--coresets",
            help="Also real images that a network trained on all of them chooses: by herding, "
            "k-centre and EL2N.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Real data of sets that do not name them: as for distill."),
    ] = None,
    data_path: Annotated[
        str | None, typer.Option(help="Where the data of sets lie; by default data.")
    ] = None,
    zca: Annotated[
        bool | None,
        typer.Option(
            "--zca/--no-zca",
            help="Whether images of other projects are whitened; by default as published.",
            show_default=False,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Step size for sets of other projects; by default their files', or 0.01."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to judge sets; by default on the CPU.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Also write the table to this CSV file, as fractions.")
    ] = None,
) -> None:
    """Train fresh networks on distilled sets and test them on held-out real images.

    Sets in files are judged by what they say of their distillation, others by the defaults for
    their data and images per class; --data, --data-path, --zca, --lr and --device are for them.
    Under torchrun every process trains some of the networks.
    """
    from mim4dd.distill.commands import cross
    from mim4dd.distill.commands.compare import accuracy_table
    from mim4dd.distill.commands.set_files import load_judged
    from mim4dd.distill.evaluation import ByTeacher
    from mim4dd.distill.files.atomic import require_writable
    from mim4dd.distill.runs import is_set

    if regimes and not fairness:
        raise ValueError("--regimes is for the table of --fairness, which must be asked for")
    if coresets and (fairness or not baselines):
        raise ValueError("--coresets takes neither --fairness nor --no-baselines")
    named = None if networks is None else [name.strip() for name in networks.split(",")]
    columns = cross.network_columns(named)
    if csv is not None:
        require_writable(csv)
    given = {"num_eval": num_eval, "eval_epochs": eval_epochs}
    changes = {name: value for name, value in given.items() if value is not None}
    asked = {"data": data, "data_path": data_path, "zca": zca, "lr": lr, "device": device}
    of_sets = {name: value for name, value in asked.items() if value is not None}
    if of_sets and not any(map(is_set, runs)):
        raise ValueError(
            f"{', '.join(map(flag, of_sets))} is of sets in files, {', '.join(map(str, runs))} "
            "must be run directories, which have it from their runs"
        )
    judged = [each for path in runs for each in load_judged(path, iteration, of_sets, changes)]
    for each in judged:
        if each.synthetic.provenance.source:
            typer.echo(f"{each.name}: {each.synthetic.provenance.source}", err=True)
    with joined_ranks(judged[0].config.device), sharing():
        if fairness:
            gains = cross.cross_gains(judged, columns, ByTeacher() if regimes else None)
            scores = cross.cross_scores(judged, columns, gains, baselines)
        else:
            table = cross.cross_evaluate(judged, columns, baselines, coresets)
            scores = cross.scores_of_table(judged, table) if baselines else {}
        if not leads():
            return
    if fairness:
        typer.echo(cross.gain_table(gains))
        if csv is not None:
            cross.save_gains(csv, gains)
    elif networks is None:
        own = {name: accuracy for name, row in table.items() for accuracy in row.values()}
        typer.echo(accuracy_table({name: accuracy.summary() for name, accuracy in own.items()}))
    else:
        typer.echo(cross.cross_table(table))
    if csv is not None and not fairness:
        cross.save_accuracies(csv, table)
    if scored := cross.score_table(scores):
        typer.echo(scored)
