"""Entry point of the command line: turns errors into one line each."""

import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from mim4dd._extras import missing

__all__ = ["main"]

_PACKAGE = Path(__file__).resolve().parent


def main() -> None:
    """Run ``mim4dd``; exit with 1 on a bad option, file or divergence, with 130 if interrupted."""
    try:
        from mim4dd.cli import app
        from mim4dd.cli.signs import print_any_sign
        from mim4dd.distill.loop import Interrupted
        from mim4dd.distill.runtime.heap import keep_freed_memory
        from mim4dd.distill.runtime.processes import WorkerError
    except ModuleNotFoundError as error:
        _exit_missing(error)
    keep_freed_memory()
    print_any_sign((sys.stdout, sys.stderr))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line(warnings.showwarning)
            app()
    except Interrupted as stopped:
        sys.stderr.write(f"mim4dd: {stopped}\n")
        sys.exit(130)
    except ModuleNotFoundError as error:  # commands import what they alone need
        _exit_missing(error)
    except OSError as error:
        sys.exit(f"mim4dd: {_sentence(error)}")
    except (ValueError, TypeError, FloatingPointError, WorkerError) as error:
        sys.exit(f"mim4dd: {error}")


def _sentence(error: OSError) -> str:
    """What an error of the system says, without its number."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _one_line(show: Any) -> Any:
    """Show our own warnings as one line each, and others by ``show``."""

    def show_one(message: Warning | str, category: type[Warning], file: str, *more: Any) -> None:
        if category is UserWarning and Path(file).resolve().is_relative_to(_PACKAGE):
            sys.stderr.write(f"mim4dd: warning: {message}\n")
        else:
            show(message, category, file, *more)

    return show_one


def _exit_missing(error: ModuleNotFoundError) -> NoReturn:
    if error.name is None or error.name.partition(".")[0] == "mim4dd":
        raise error
    sys.exit(f"mim4dd: {missing(error.name)}")


if __name__ == "__main__":
    main()
