"""mim4dd reproduce."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from mim4dd.distill.runtime.ranks import joined_ranks, leads, sharing
from mim4dd.distill.training.precision import Precision

__all__ = ["reproduce"]


def reproduce(
    rows: Annotated[
        list[str] | None,
        typer.Argument(help="Rows, such as mnist-dm-ipc1-0; by default all, one after another."),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Only list the rows, and which are finished here.")
    ] = False,
    budget: Annotated[
        str,
        typer.Option(
            help="small: takes hours on two cores. published: the published iterations, experts, "
            "networks; for a GPU."
        ),
    ] = "small",
    data_path: Annotated[
        str, typer.Option(help="Folder of the data archives (docs/data.md).")
    ] = "data",
    device: Annotated[str, typer.Option(help="Device to compute on.")] = "cpu",
    precision: Annotated[
        Precision,
        typer.Option(help="Arithmetic of experts and evaluation networks (docs/methods.md)."),
    ] = "float32",
    workers: Annotated[int, typer.Option(help="Processes that work at the same time.")] = 1,
    note: Annotated[str, typer.Option(help="Remark to write into the files of the rows.")] = "",
    out: Annotated[Path, typer.Option(help="Directory for runs and experts.")] = Path(
        "runs/reproduce"
    ),
    results: Annotated[
        Path, typer.Option(help="Directory for the files of rows and their table.")
    ] = Path("docs/reproduce"),
) -> None:
    """Repeat rows of published tables, and compare the accuracies.

    The same command continues after an interruption. Under torchrun every process does some of the
    work.
    """
    from mim4dd.distill.files.hold import hold
    from mim4dd.distill.reproduce.known import chosen_rows
    from mim4dd.distill.reproduce.run import reproduce as run_row
    from mim4dd.distill.reproduce.table import one_line

    chosen = chosen_rows(rows or [])
    with joined_ranks(device), sharing(), ExitStack() as holding:
        if not list_:
            holding.enter_context(hold(out, lock=leads()))  # over all rows: no other call comes in
        for row in chosen:
            path = results / f"{row.name}.json"
            if not list_:
                run_row(
                    row,
                    out,
                    results,
                    budget=budget,
                    data_path=data_path,
                    device=device,
                    precision=precision,
                    workers=workers,
                    note=note,
                )
            if leads():
                typer.echo(one_line(path) if path.exists() else f"{row.name}: not here")
