"""Progress bars that stay readable in a log file."""

import multiprocessing
import sys
from typing import NoReturn

from tqdm import tqdm

from mim4dd.distill.runtime.ranks import rank

__all__ = ["progress_bar"]


def progress_bar(total: int, desc: str, initial: int = 0, quiet: bool = False) -> "tqdm[NoReturn]":
    """A bar on standard error: live in a terminal, a line every few seconds elsewhere.

    A worker process shows none: its bar and those of others would write over each other. Of several
    ranks, the first one's stands for all.
    """
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total,
        desc=desc,
        initial=initial,
        mininterval=interval,
        leave=True,
        disable=quiet or rank() != 0 or multiprocessing.parent_process() is not None,
    )
