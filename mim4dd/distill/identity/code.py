"""What a function or class of other people's does, as a short text that changes with it."""

import dis
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Set
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
)
from typing import Any

__all__ = ["code_identity"]

# Of these no code is read; a checkpoint notes the version of mim4dd, a fingerprint that of Python.
_KNOWN = frozenset(sys.stdlib_module_names) | {"builtins", "mim4dd", "torch"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_COMPILED = (BuiltinFunctionType, GetSetDescriptorType, MemberDescriptorType)
_CODE = (type, FunctionType, MethodType, property, staticmethod, classmethod, *_COMPILED)
_WRAPPERS = (functools.cached_property, type(functools.lru_cache(lambda: None)))


def code_identity(value: Any, describe: Callable[[Any], Any]) -> str | None:
    """A fingerprint of a function's or class's compiled code, None where it is the library's.

    It covers the bases, defaults, what methods close over, and what the code names of its module:
    functions and classes of the same module, of others the name, and all values. Comments,
    docstrings and formatting do not count, the version of Python does: code is compiled otherwise
    there.

    Args:
        value: The function or class.
        describe: What an object is that is neither code, a container nor a plain constant.
    """
    parts = list(_Fingerprint(_module(value), describe).parts(value))
    if not parts:
        return None
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return f"Python {sys.version_info.major}.{sys.version_info.minor} {digest}"


def _module(value: Any) -> str:
    return getattr(value, "__module__", None) or ""


def _is_known(value: Any) -> bool:
    return _module(value).partition(".")[0] in _KNOWN


def _is_own_of_python(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


class _Fingerprint:
    """What of the code of a module ``home`` was seen, which is read once."""

    def __init__(self, home: str, describe: Callable[[Any], Any]) -> None:
        self.home = home
        self.describe = describe
        self.seen: set[int] = set()

    def parts(self, value: Any) -> Iterator[str]:
        value = _unwrapped(value)
        if _is_known(value) or self._was_seen(value):
            return
        if isinstance(value, type):
            yield f"class {value.__qualname__}"
            for base in value.__mro__[1:]:
                yield from self.parts(base)
            for name, member in sorted(vars(value).items()):
                # Python and dataclasses keep books under such names, beside methods and constants.
                books = _is_own_of_python(name) and not isinstance(member, (*_CODE, *_PLAIN))
                unread = ("__doc__", "__firstlineno__", "__module__", "__qualname__")
                if name not in unread and not books:
                    yield from self.member(name, member)
        elif isinstance(value, property):
            for accessor in (value.fget, value.fset):
                yield from self.parts(accessor)
        elif isinstance(value, MethodType):
            yield from self.parts(value.__func__)
            yield from self.member("self", value.__self__)
        elif isinstance(value, FunctionType):
            yield f"def {value.__qualname__}"
            yield _compiled(value.__code__)
            yield from self.parts(getattr(value, "__wrapped__", None))
            for index, default in enumerate(value.__defaults__ or ()):
                yield from self.member(f"default {index}", default)
            for name, default in sorted((value.__kwdefaults__ or {}).items()):
                yield from self.member(f"default {name}", default)
            for name, member in self.named(value):
                yield from self.member(name, member)

    def member(self, name: str, member: Any) -> Iterator[str]:
        """A value by a name: of an attribute, a global, a closure, or of a place in a container."""
        member = _unwrapped(member)
        if isinstance(member, _PLAIN):
            yield f"{name} = {member!r}"
        elif isinstance(member, _CODE):
            yield f"{name} is {getattr(member, '__qualname__', 'a property')}"
            yield from self.parts(member)
        # Equal tuples may be one object or two, by how Python compiled them.
        elif not isinstance(member, (tuple, frozenset)) and self._was_seen(member):
            yield f"{name} is {type(member).__qualname__}"
        elif isinstance(member, Mapping):
            yield f"{name} = {type(member).__qualname__}"
            for key, part in member.items():
                yield from self.member(f"{name}[{_key(key)}]", part)
        elif isinstance(member, (list, tuple)):
            yield f"{name} = {type(member).__qualname__}"
            for index, part in enumerate(member):
                yield from self.member(f"{name}[{index}]", part)
        elif isinstance(member, Set):
            yield f"{name} = {type(member).__qualname__}"
            # In the order of what they are, as that of a set differs from process to process.
            yield from sorted("\n".join(self.member(name, part)) for part in member)
        else:
            yield f"{name} = {self.describe(member)!r}"

    def named(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        """What a function closes over, and what it names of its own module."""
        code = function.__code__
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # not bound yet
                continue
        for name in sorted(_names(code)):
            if name not in function.__globals__:
                continue
            member = function.__globals__[name]
            if isinstance(member, _CODE) and _module(member) != self.home:
                yield name, getattr(member, "__qualname__", None)
            else:
                yield name, member

    def _was_seen(self, value: Any) -> bool:
        before = id(value) in self.seen
        self.seen.add(id(value))
        return before


def _unwrapped(value: Any) -> Any:
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    if isinstance(value, _WRAPPERS):
        return value.func if isinstance(value, functools.cached_property) else value.__wrapped__
    return value


def _key(key: Any) -> str:
    return repr(key) if isinstance(key, _PLAIN) else getattr(key, "__qualname__", str(type(key)))


def _names(code: CodeType) -> set[str]:
    inner = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*inner)


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
