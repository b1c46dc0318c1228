"""mim4dd experts."""

from pathlib import Path
from typing import Annotated

import typer

from mim4dd.cli.options import with_options
from mim4dd.distill.config.commands import ExpertsConfig
from mim4dd.distill.runtime.ranks import joined_ranks, leads, sharing

__all__ = ["experts"]


@with_options(ExpertsConfig)
def experts(
    config: ExpertsConfig,
    out: Annotated[Path, typer.Option(help="Folder for the trajectories.")] = Path("runs/experts"),
) -> None:
    """Train expert networks on the real data; continue an interrupted call.

    Under torchrun every process trains some of the experts.
    """
    from mim4dd.distill.job import train_experts_by

    with joined_ranks(config.device), sharing():
        buffer = train_experts_by(config, config.load_data(), out)
        if not leads():
            return
    accuracies = [header["accuracy"] for header in buffer.headers]
    typer.echo(
        f"{len(buffer)} experts of {buffer.num_epochs} epochs in {out}, "
        f"test accuracy {min(accuracies):.3f} to {max(accuracies):.3f}"
    )
