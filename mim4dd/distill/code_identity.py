"""What a function or class of other people's does, as a short text that changes with it."""

import dis
import hashlib
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

__all__ = ["code_identity"]

# Of these the version is known; what a user wrote is found out about by its code.
_KNOWN = frozenset(sys.stdlib_module_names) | {"builtins", "mim4dd", "torch"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def code_identity(value: Any) -> str | None:
    """A fingerprint of a function's or class's compiled code, None where it is the library's.

    It covers the bases, what methods close over, and the functions, classes and plain constants of
    the same module that the code names. Comments, docstrings and formatting do not count, the
    version of Python does: code is compiled otherwise there.
    """
    parts = list(_parts(value, _module(value), set()))
    if not parts:
        return None
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return f"Python {sys.version_info.major}.{sys.version_info.minor} {digest}"


def _module(value: Any) -> str:
    return getattr(value, "__module__", None) or ""


def _is_known(value: Any) -> bool:
    return _module(value).partition(".")[0] in _KNOWN


def _parts(value: Any, home: str, seen: set[int]) -> Iterator[str]:
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if id(value) in seen or _is_known(value):
        return
    seen.add(id(value))
    if isinstance(value, type):
        yield f"class {value.__qualname__}"
        for base in value.__mro__[1:]:
            yield from _parts(base, home, seen)
        for name, member in sorted(vars(value).items()):
            if name not in ("__doc__", "__firstlineno__", "__module__", "__qualname__"):
                yield from _member(name, member, home, seen)
    elif isinstance(value, property):
        for accessor in (value.fget, value.fset):
            yield from _parts(accessor, home, seen)
    elif isinstance(value, FunctionType):
        yield f"def {value.__qualname__} {_defaults(value)}"
        yield _compiled(value.__code__)
        yield from _parts(getattr(value, "__wrapped__", None), home, seen)
        for name, member in _named(value, home):
            yield from _member(name, member, home, seen)


def _member(name: str, member: Any, home: str, seen: set[int]) -> Iterator[str]:
    if isinstance(member, _PLAIN):
        yield f"{name} = {member!r}"
    elif isinstance(member, (type, FunctionType, property, staticmethod, classmethod)):
        yield from _parts(member, home, seen)


def _named(function: FunctionType, home: str) -> Iterator[tuple[str, Any]]:
    """What a function closes over, and what it names of its own module."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not bound yet
            continue
    for name in sorted(_names(code)):
        member = function.__globals__.get(name)
        if isinstance(member, _PLAIN) or _module(member) == home:
            yield name, member


def _names(code: CodeType) -> set[str]:
    inner = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*inner)


def _defaults(function: FunctionType) -> str:
    values = [*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items())]
    return repr([value for value in values if isinstance(value, (*_PLAIN, tuple))])


def _compiled(code: CodeType) -> str:
    """Every instruction, with the constant or the name that it means; locals by their number."""
    parts = []
    for step in dis.get_instructions(code):
        if step.opcode in dis.hasconst:
            parts.append(f"{step.opname} {_constant(step.argval)}")
        elif step.opcode in dis.hasname:
            parts.append(f"{step.opname} {step.argval}")
        else:
            parts.append(f"{step.opname} {step.arg}")
    return "\n".join(parts)


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return f"({_compiled(value)})"
    # The order of a set of strings differs from process to process.
    if isinstance(value, frozenset):
        return repr(sorted(map(repr, value)))
    return repr(value)
