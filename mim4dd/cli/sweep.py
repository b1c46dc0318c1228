"""mim4dd sweep."""

from pathlib import Path
from typing import Annotated

import typer

from mim4dd.cli.options import PAPER_HELP, given_options, with_options
from mim4dd.distill.config.commands import SweepConfig
from mim4dd.distill.runtime.ranks import joined_ranks, leads, require_one_process, sharing

__all__ = ["sweep"]


@with_options(SweepConfig)
def sweep(
    config: SweepConfig,
    context: typer.Context,
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=VALUE,…",
            help="An option and its values, such as weight=0,0.1. Repeat it for more options. If "
            "values contain commas, separate them by |: layers=none|blocks.0,blocks.1. With "
            "--search also ranges: num_keys=50..400, weight=0.001..10:log.",
        ),
    ],
    one_at_a_time: Annotated[
        bool,
        typer.Option(
            "--one-at-a-time", help="Vary one option at a time instead of all combinations."
        ),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Show gains over the setting that has this value and is equal otherwise; by "
            "default over the base setting.",
        ),
    ] = None,
    search: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Let Optuna try N settings instead of a grid. They are judged on held-out "
            "training images, and the best one at the end on the test images.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Distillations of each setting, each with another seed.")
    ] = 5,
    workers: Annotated[int, typer.Option(help="Processes that work at the same time.")] = 1,
    out: Annotated[Path, typer.Option(help="Directory for all results.")] = Path("runs/sweep"),
    paper: Annotated[bool, typer.Option("--paper", help=PAPER_HELP)] = False,
) -> None:
    """Distil with several values of options and several seeds; tabulate accuracy and cost.

    The same command continues after an interruption. More values, options and seeds may be added.
    Under torchrun every process does some of the runs.
    """
    given = given_options(context)
    if search is not None:
        if one_at_a_time or against is not None:
            raise ValueError("--search takes neither --one-at-a-time nor --against")
        from mim4dd.distill.sweep.search import search as run_search
        from mim4dd.distill.sweep.space import parse_space

        require_one_process("sweep --search")
        space = parse_space(vary)
        study = run_search(
            given, space, out, trials=search, seeds=seeds, workers=workers, paper=paper
        )
    else:
        from mim4dd.distill.sweep.grid import parse_vary
        from mim4dd.distill.sweep.run import sweep as run_sweep

        with joined_ranks(config.device), sharing():
            study = run_sweep(
                given,
                parse_vary(vary),
                out,
                one_at_a_time=one_at_a_time,
                against=against,
                seeds=seeds,
                workers=workers,
                paper=paper,
            )
            if not leads():
                return
    typer.echo(study.table)
    for path in study.paths:
        typer.echo(str(path))
