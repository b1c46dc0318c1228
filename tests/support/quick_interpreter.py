"""Triton's interpreter without the work that it repeats or throws away, rounding as a GPU does."""

import functools
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
import triton.language as tl
from triton.runtime import interpreter


class _Nothing:
    """A scope in which nothing was changed."""

    def restore(self) -> None:
        """Nothing to restore."""


@functools.cache
def interpret_quickly() -> None:
    """Leave out half of the interpreter's time and more; only bfloat16 has other results then."""
    patch_once_per_launch()
    look_up_dtypes_once()
    check_no_overflow()
    convert_bfloat16_by_torch()


def convert_bfloat16_by_torch() -> None:
    """Round float32 to the nearest bfloat16, as a GPU does: the interpreter rounds towards 0."""
    builder = interpreter.InterpreterBuilder
    cast = builder.cast_impl

    def cast_by_torch(self: Any, src: Any, dst_type: Any) -> Any:
        dtypes = src.dtype.scalar, dst_type.scalar
        if dtypes == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(src.data).to(torch.bfloat16)
            return interpreter.TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)
        if dtypes == (tl.bfloat16, tl.float32):
            bits = torch.from_numpy(src.data).view(torch.bfloat16)
            return interpreter.TensorHandle(bits.float().numpy(), tl.float32)
        return cast(self, src, dst_type)

    builder.cast_impl = cast_by_torch


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
