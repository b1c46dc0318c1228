"""Ctrl-C and SIGTERM as requests that a loop answers between two steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

__all__ = ["Interrupted", "Stop", "interruptible", "stopping_at_once"]


class Interrupted(Exception):
    """The run was asked to stop, and has saved where it is.

    ``signal`` is the number of the signal that asked, None where it is not known.

    Example:
        >>> from mim4dd.distill.loop import Interrupted
        >>> try:
        ...     raise Interrupted("stopped before iteration 3", signal=2)
        ... except Interrupted as stopped:
        ...     print(stopped, "by signal", stopped.signal)
        stopped before iteration 3 by signal 2
    """

    def __init__(self, message: str, signal: int | None = None) -> None:
        super().__init__(message)
        self.signal = signal


@dataclass
class Stop:
    """Whether the run was asked to stop, and by which signal."""

    signal: int | None = None

    @property
    def requested(self) -> bool:
        """Whether there was a signal."""
        return self.signal is not None


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request, so that no step is cut in half."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    previous: dict[int, Any] = {}

    def request(number: int, _frame: FrameType | None) -> None:
        stop.signal = number
        signal.signal(number, previous[number])  # a second one stops at once

    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if handler is not None:  # that of a program which embeds Python could not be put back
            previous[number] = handler
            signal.signal(number, request)
    try:
        yield stop
    finally:
        for known, handler in previous.items():
            signal.signal(known, handler)


@contextmanager
def stopping_at_once(message: Callable[[], str]) -> Iterator[None]:
    """Raise :class:`Interrupted` at Ctrl-C and SIGTERM, where the state is saved already, or is for
    workers to save.

    Args:
        message: Says how far it got, and how to go on.
    """

    asked = int(signal.SIGINT)  # for which Python raises KeyboardInterrupt by itself

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        nonlocal asked
        asked = number
        raise KeyboardInterrupt

    previous: Any = None  # None is also of a program that embeds Python
    if threading.current_thread() is threading.main_thread():
        previous = signal.getsignal(signal.SIGTERM)
    if previous is not None:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(message(), asked) from None
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)
