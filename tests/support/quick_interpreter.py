"""Triton's interpreter without the work that it repeats, or throws away."""

import functools
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from triton.runtime import interpreter


class _Nothing:
    """A scope in which nothing was changed."""

    def restore(self) -> None:
        """Nothing to restore."""


@functools.cache
def interpret_quickly() -> None:
    """Leave out what changes no result: half of the interpreter's time and more."""
    patch_once_per_launch()
    look_up_dtypes_once()
    check_no_overflow()


def look_up_dtypes_once() -> None:
    """Remember which of numpy's types is which: a table of all is made for every tensor."""
    look_up: Callable[[Any], Any] | None = getattr(interpreter, "_get_np_dtype", None)
    if look_up is None:
        return
    known: dict[str, Any] = {}  # by name: types of blocks cannot be hashed

    def get_np_dtype(dtype: Any) -> Any:
        element = dtype.scalar
        if element.name not in known:
            known[element.name] = look_up(element)
        return known[element.name]

    interpreter._get_np_dtype = get_np_dtype


def check_no_overflow() -> None:
    """Compute no sums of integers again in 64 bits: without TRITON_DEBUG nobody looks at them."""
    builder = interpreter.interpreter_builder
    checks = any(field.name == "sanitize_overflow" for field in fields(builder.options))
    if checks and not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)


def patch_once_per_launch() -> None:
    """Let a launch replace what it needs of triton.language once.

    The interpreter does so anew in every call of a device function, which is two thirds of its
    time. What it replaces depends on the function's module alone, by what that has imported.
    """
    patch: Callable[[Any], Any] | None = getattr(interpreter, "_patch_lang", None)
    if patch is None or not hasattr(interpreter, "_LangPatchScope"):
        return  # another Triton, as slow as it is
    patched: set[str] = set()  # modules whose sight of the language is, in this launch

    def patch_lang(fn: Callable[..., Any]) -> Any:
        if fn.__module__ in patched:
            return _Nothing()
        scope = patch(fn)
        patched.add(fn.__module__)
        restore = scope.restore

        def end_launch() -> None:
            patched.clear()
            restore()

        scope.restore = end_launch
        return scope

    interpreter._patch_lang = patch_lang
