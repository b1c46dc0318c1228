"""How many threads torch's operators have on a CPU, and whether a user said so."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

__all__ = ["adopt_threads", "process_threads", "use_threads", "user_threads"]

# What torch chose, noted when mim4dd is imported: a program that calls set_num_threads differs.
_default: int | None = torch.get_num_threads()
# torch reads both when it starts. A worker has its parent's word instead: its own environment is
# that of the process that starts workers, which may be older.
_variables: tuple[str, ...] = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

_outside: ContextVar[int | None] = ContextVar("threads outside of use_threads", default=None)


def process_threads() -> int:
    """The threads that this process may use, whatever a block of :func:`use_threads` does with."""
    return _outside.get() or torch.get_num_threads()


def user_threads() -> int | None:
    """The threads that the user gave this process; None where torch chose.

    A user says so by ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS``, or by ``torch.set_num_threads``
    after ``import mim4dd``. A call that sets what torch chose anyway can not be told from none.

    Example:
        >>> import torch
        >>> from mim4dd._threads import user_threads
        >>> threads = torch.get_num_threads()
        >>> torch.set_num_threads(threads + 1)
        >>> user_threads() == threads + 1
        True
        >>> torch.set_num_threads(threads)
    """
    threads = process_threads()
    said = threads != _default or any(os.environ.get(name) for name in _variables)
    return threads if said else None


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Have torch's operators use so many threads inside, and then as many as before."""
    before, outside = torch.get_num_threads(), _outside.get()
    if threads == before:
        yield
        return
    _outside.set(process_threads())
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _outside.set(outside)


def adopt_threads(threads: int, of_user: bool) -> None:
    """Start a worker process with its share of the threads, which a user set or torch chose."""
    global _default, _variables
    torch.set_num_threads(threads)
    _default, _variables = None if of_user else threads, ()
