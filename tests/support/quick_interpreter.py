"""Triton's interpreter without the work that it repeats."""

import functools
from collections.abc import Callable
from typing import Any

from triton.runtime import interpreter


class _Nothing:
    """A scope in which nothing was changed."""

    def restore(self) -> None:
        """Nothing to restore."""


@functools.cache
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
