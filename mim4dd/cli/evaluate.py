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
            help="Run directories, files of distilled sets, or files of MTT, DATM, DC and others."
        ),
    ],
    iteration: Annotated[
        int | None,
        typer.Option(help="Checkpoint to evaluate; by default the result, or the last checkpoint."),
    ] = None,
    networks: Annotated[
        str | None,
        typer.Option(
            help=f"Networks to train, joined by commas: some of {', '.join(NETWORKS)}; by default "
            "the run's."
        ),
    ] = None,
    fairness: Annotated[
        bool,
        typer.Option(
            "--fairness",
            help="Show instead the gains over the same number of random real images: with the "
            "set's labels and with hard labels, with and without augmentation.",
        ),
    ] = False,
    regimes: Annotated[
        bool,
        typer.Option(
            "--regimes",
            help="With --fairness: also with one soft label for each image, and with a teacher's "
            "labels for every augmented and mixed batch.",
        ),
    ] = False,
    num_eval: Annotated[
        int | None, typer.Option(help="Networks to train; by default the run's.")
    ] = None,
    eval_epochs: Annotated[
        int | None, typer.Option(help="Epochs of each; by default the run's.")
    ] = None,
    num_tests: Annotated[
        int,
        typer.Option(
            help="Tests of each network, evenly spread over its epochs. The last one counts. Of "
            "several, the best is shown too: many papers report it, but the test images choose it."
        ),
    ] = 1,
    baselines: Annotated[
        bool, typer.Option(help="Also evaluate random real images and the whole training set.")
    ] = True,
    coresets: Annotated[
        bool,
        typer.Option(
            "--coresets",
            help="Also evaluate real images that a trained network chooses: by herding, k-centre "
            "and EL2N.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Real data of a set in a file, if the set does not name them."),
    ] = None,
    data_path: Annotated[
        str | None, typer.Option(help="Folder of downloaded data sets; by default data.")
    ] = None,
    zca: Annotated[
        bool | None,
        typer.Option(
            "--zca/--no-zca",
            help="Whether images of other projects are ZCA-whitened; by default as published.",
            show_default=False,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Step size for sets of other projects; by default that of their files, or 0.01."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device for sets in files; by default the CPU.")
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(help="Also write the table to this CSV file, with accuracies as fractions."),
    ] = None,
) -> None:
    """Train fresh networks on distilled sets and test them on held-out real images.

    A set in a file is evaluated by its own options. If it has none, the defaults for its data and
    images per class are used. --data, --data-path, --zca, --lr and --device are for sets in files.
    Under torchrun every process trains some of the networks.
    """
    from mim4dd.distill.commands import cross, cross_tables
    from mim4dd.distill.commands.compare import accuracy_table
    from mim4dd.distill.commands.set_files import load_judged
    from mim4dd.distill.files.atomic import require_writable
    from mim4dd.distill.runs import is_set

    if regimes and not fairness:
        raise ValueError("--regimes needs --fairness")
    if coresets and (fairness or not baselines):
        raise ValueError("--coresets takes neither --fairness nor --no-baselines")
    if num_tests < 1:  # found out only once a network is trained
        raise ValueError(f"--num-tests must be at least 1, got {num_tests}")
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
            f"{', '.join(map(flag, of_sets))} must be left out for run directories, "
            f"which have their own, got {', '.join(map(str, runs))}"
        )
    judged = [each for path in runs for each in load_judged(path, iteration, of_sets, changes)]
    for each in judged:
        if each.synthetic.provenance.source:
            typer.echo(f"{each.name}: {each.synthetic.provenance.source}", err=True)
    with joined_ranks(judged[0].config.device), sharing():
        if fairness:
            gains = cross.cross_gains(judged, columns, regimes, num_tests)
            scores = cross.cross_scores(judged, columns, gains, baselines)
        else:
            table = cross.cross_evaluate(judged, columns, baselines, coresets, num_tests)
            scores = cross.scores_of_table(judged, table) if baselines else {}
        if not leads():
            return
    if fairness:
        typer.echo(cross_tables.gain_table(gains))
        if csv is not None:
            cross_tables.save_gains(csv, gains)
    elif networks is None and num_tests > 1:
        typer.echo(cross_tables.own_table(table))
    elif networks is None:
        own = {name: accuracy for name, row in table.items() for accuracy in row.values()}
        typer.echo(accuracy_table({name: accuracy.summary() for name, accuracy in own.items()}))
    else:
        typer.echo(cross_tables.cross_table(table))
    if csv is not None and not fairness:
        cross_tables.save_accuracies(csv, table)
    if scored := cross_tables.score_table(scores):
        typer.echo(scored)
