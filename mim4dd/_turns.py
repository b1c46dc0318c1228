"""What is changed for a while in a module or the process, and threads that must not see that."""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["alone_in", "alone_with", "differentiable_attention"]

_locks: WeakKeyDictionary[object, threading.RLock] = WeakKeyDictionary()


def alone_in(model: nn.Module) -> AbstractContextManager[None]:
    """:func:`alone_with` for all modules of a model, which models may share.

    To call a model with other parameters puts them into its modules for the time of the call. Of
    two threads that do, each would compute with some of the other's, and leave them behind. Code
    that torch.compile makes does not: parameters are arguments there.
    """
    if torch.compiler.is_dynamo_compiling():
        return nullcontext()
    return alone_with(*model.modules())


@contextmanager
def alone_with(*things: object) -> Iterator[None]:
    """Within it no other thread is within it for any of these; one that is may enter again."""
    taken: list[threading.RLock] = []
    try:
        # In one order everywhere, so that threads that share several never wait for each other.
        for each in sorted(things, key=id):
            lock = _locks.get(each) or _locks.setdefault(each, threading.RLock())
            lock.acquire()
            taken.append(lock)
        yield
    finally:
        for lock in reversed(taken):
            lock.release()


class _Attention:
    """PyTorch's choice of kernels for attention, which is one for all threads of a process.

    The first thread that needs others sets them, the last one puts the process's back: each for
    itself would put back what another one had set.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within: list[int] = []  # a thread for each time that it entered
        self._chosen = ExitStack()

    def enter(self) -> None:
        with self._lock:
            if not self._within:
                self._chosen.enter_context(sdpa_kernel(SDPBackend.MATH))
            self._within.append(threading.get_ident())

    def leave(self) -> None:
        with self._lock:
            self._within.remove(threading.get_ident())
            if not self._within:
                self._chosen.close()

    def forget_other_threads(self) -> None:
        self._lock = threading.Lock()
        self._within = [each for each in self._within if each == threading.get_ident()]
        if not self._within:
            self._chosen.close()


_attention = _Attention()


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Within it attention runs by the kernels that differentiate twice; the others do once."""
    _attention.enter()
    try:
        yield
    finally:
        _attention.leave()


def _forget_other_threads() -> None:
    """In a forked process, where they do not run, and never leave what they had entered."""
    _locks.clear()
    _attention.forget_other_threads()


os.register_at_fork(after_in_child=_forget_other_threads)
