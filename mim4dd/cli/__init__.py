"""The command line: one command a file, in the order of `mim4dd --help`."""

from typing import Annotated

import typer

from mim4dd import __version__
from mim4dd.cli.buffer import buffer
from mim4dd.cli.compare import compare
from mim4dd.cli.distill import distill
from mim4dd.cli.doctor import doctor
from mim4dd.cli.evaluate import evaluate
from mim4dd.cli.experts import experts
from mim4dd.cli.options import add_command
from mim4dd.cli.reproduce import reproduce
from mim4dd.cli.show import show
from mim4dd.cli.sweep import sweep
from mim4dd.distill.runtime.ranks import require_one_process

__all__ = ["app"]

app = typer.Typer(
    help="Distil data sets: turn a training set into a few synthetic images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mim4dd {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    if context.invoked_subcommand in ("buffer", "show"):
        require_one_process(context.invoked_subcommand)


for command in (experts, buffer, distill, evaluate, compare, sweep, reproduce, show, doctor):
    add_command(app, command)
