"""The command line: mim4dd experts | buffer | distill | evaluate | compare | show | doctor."""

import typer

from mim4dd.cli.buffer import buffer
from mim4dd.cli.compare import compare
from mim4dd.cli.distill import distill
from mim4dd.cli.doctor import doctor
from mim4dd.cli.evaluate import evaluate
from mim4dd.cli.experts import experts
from mim4dd.cli.show import show

__all__ = ["app"]

app = typer.Typer(
    help="Dataset distillation by mutual-information maximisation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (experts, buffer, distill, evaluate, compare, show, doctor):
    app.command()(command)
