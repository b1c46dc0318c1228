"""Settings: frozen dataclasses that check themselves."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

from mim4dd._checks import check_choice

__all__ = ["Option", "Settings", "check_type", "options_of"]


class Option(NamedTuple):
    """An option as a command has it, and the group that it is shown in."""

    hint: Any
    default: Any
    help: str
    group: str = ""


class Settings:
    """Base of all settings.

    A subclass is a frozen dataclass whose ``check`` raises ValueError on values that cannot be
    used, naming the field; a field of ``Literal`` type is checked by itself. A class that inherits
    from others has their fields and is checked by all of them. ``GROUP`` is what its fields are
    shown under.
    """

    GROUP: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal:
                check_choice(name, getattr(self, name), get_args(hint))
        for base in type(self).__mro__:
            if "check" in vars(base):
                vars(base)["check"](self)

    @classmethod
    def choices(cls, name: str) -> tuple[Any, ...]:
        """The values that a field of ``Literal`` type may have."""
        return get_args(get_type_hints(cls)[name])

    def require_at_least(self, **bounds: float) -> None:
        """Require each named field to be a finite number not below its bound."""
        for name, bound in bounds.items():
            value = getattr(self, name)
            if value is not None and not bound <= value < float("inf"):
                raise ValueError(f"{name} must be at least {bound:g} and finite, got {value}")


def options_of(kind: type[Settings]) -> Mapping[str, Option]:
    """All fields by name, in their order; the group is that of the class that first has one."""
    return _options_of(kind)  # type: ignore[arg-type]  # mypy takes a dataclass for its instances


@functools.cache  # a command asks a hundred times, which would take a second
def _options_of(kind: type[Settings]) -> Mapping[str, Option]:
    hints, texts, groups = get_type_hints(kind), _field_help(kind), _field_groups(kind)
    # Every settings class is a dataclass, which the type of their base can not say.
    every = dataclasses.fields(kind)  # type: ignore[arg-type]
    return MappingProxyType(
        {
            each.name: Option(
                hints[each.name], each.default, texts.get(each.name, ""), groups[each.name]
            )
            for each in every
        }
    )


def _field_help(kind: type[Settings]) -> dict[str, str]:
    """What the class docstrings say of every field."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        _, _, arguments = (inspect.getdoc(base) or "").partition("Args:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", arguments, re.MULTILINE):
            # Without the marks of reStructuredText.
            texts[name] = re.sub(r":\w+:`~?([^`]+)`", r"\1", " ".join(text.split()))
    return texts


def _field_groups(kind: type[Settings]) -> dict[str, str]:
    return {
        name: vars(base).get("GROUP", "")
        for base in kind.__mro__  # the most basic class comes last, and counts
        if issubclass(base, Settings)
        for name in vars(base).get("__annotations__", {})
    }


def check_type(name: str, value: Any, hint: Any, source: str) -> None:
    """Require the value of an option to be of its type."""
    allowed = _types(hint)
    if float in allowed:
        allowed.add(int)  # JSON writes 1.0 as 1
    if type(value) not in allowed:  # not isinstance, which takes True for an int
        names = " or ".join(sorted(each.__name__ for each in allowed))
        raise ValueError(f"{source}: {name} must be of type {names}, got {value!r}")


def _types(hint: Any) -> set[type]:
    """The types that X, X | None or Literal["a", "b"] allow, however they are nested."""
    parts = get_args(hint)
    if not parts:
        return {hint if isinstance(hint, type) else type(hint)}
    return {each for part in parts for each in _types(part)}
