"""mim4dd doctor."""

import typer

__all__ = ["doctor"]


def doctor() -> None:
    """Report what is built, and the reason if something is not."""
    from mim4dd.doctor import report

    text, healthy = report()
    typer.echo(text)
    raise typer.Exit(0 if healthy else 1)
