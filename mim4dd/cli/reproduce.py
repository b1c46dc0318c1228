"""mim4dd reproduce."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from mim4dd.distill.runtime.ranks import joined_ranks, leads, sharing

__all__ = ["reproduce"]


def reproduce(
    rows: Annotated[
        list[str] | None,
        typer.Argument(help="Rows, such as mnist-dm-ipc1-0; by default all, one after another."),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show what rows there are instead, with what is here.")
    ] = False,
    budget: Annotated[
        str,
        typer.Option(
            help="small: hours on two cores. published: as many iterations, experts and networks "
            "as were published, for a GPU."
        ),
    ] = "small",
    data_path: Annotated[str, typer.Option(help="Where the archives lie (docs/data.md).")] = "data",
    device: Annotated[str, typer.Option(help="Where to compute.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that work at the same time.")] = 1,
    note: Annotated[
        str, typer.Option(help="What else there is to say of the figures, for the table.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Directory for runs and experts.")] = Path(
        "runs/reproduce"
    ),
    results: Annotated[
        Path, typer.Option(help="Directory for the files of rows and their table.")
    ] = Path("docs/reproduce"),
) -> None:
    """Distil and judge rows of published tables: ours beside theirs.

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
                    workers=workers,
                    note=note,
                )
            if leads():
                typer.echo(one_line(path) if path.exists() else f"{row.name}: not here")
