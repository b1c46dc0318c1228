"""The loggers that commands know by name."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mim4dd.distill.loggers.logger import Logger
from mim4dd.distill.loggers.tensorboard import TensorBoard
from mim4dd.distill.loggers.wandb import WandB

__all__ = ["LOGGERS", "named_loggers"]

LOGGERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Logger]] = {
    "tensorboard": lambda folder, _: TensorBoard(folder / "tensorboard"),
    "wandb": lambda folder, options: WandB(
        group=folder.resolve().name, config=options, folder=folder
    ),
}


def named_loggers(names: Sequence[str], folder: Path, options: Mapping[str, Any]) -> list[Logger]:
    """Loggers of the run in a directory, with its options.

    Args:
        names: Some of "tensorboard", whose files go into the directory, and "wandb".
        folder: The directory of the run.
        options: Its options.

    Raises:
        ValueError: If a name is none of these, or there twice.
        ModuleNotFoundError: If what a logger needs is not installed.

    Example:
        >>> from pathlib import Path
        >>> from mim4dd.distill.loggers import named_loggers
        >>> loggers = named_loggers(["tensorboard"], Path("runs/a"), {"ipc": 1})  # doctest: +SKIP
    """
    if set(names) - set(LOGGERS) or len(set(names)) < len(names):
        raise ValueError(
            f"log must name different ones of {', '.join(LOGGERS)}, got {', '.join(names)}"
        )
    return [LOGGERS[name](folder, options) for name in names]
