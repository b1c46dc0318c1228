"""mim4dd compare."""

from pathlib import Path
from typing import Annotated

import typer

from mim4dd.cli.options import PAPER_HELP, with_options
from mim4dd.distill.config.commands import CompareConfig
from mim4dd.distill.runtime.ranks import joined_ranks, leads, sharing

__all__ = ["compare"]


@with_options(CompareConfig)
def compare(
    config: CompareConfig,
    out: Annotated[Path, typer.Option(help="Directory for all results.")] = Path("runs/compare"),
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that work at the same time; by default one for each CPU thread if the "
            "networks are small, otherwise one.",
            show_default=False,
        ),
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help=PAPER_HELP)] = False,
    install_seconds: Annotated[
        float | None, typer.Option(help="What installing took, for the summary.", hidden=True)
    ] = None,
) -> None:
    """Distil by a method with and without MIM4DD, and compare both with baselines.

    Experts are trained if the method needs them. Under torchrun every process distils and evaluates
    some of the sets.
    """
    from mim4dd.distill.commands.compare import compare as run_comparison
    from mim4dd.distill.commands.compare import comparison_table

    with joined_ranks(config.device), sharing():
        summary = run_comparison(config, out, install_seconds, workers=workers, paper=paper)
        if not leads():
            return
    typer.echo(comparison_table(summary))
    for picture in summary["pictures"]:
        typer.echo(picture)
