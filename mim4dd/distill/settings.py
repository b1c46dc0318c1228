"""Settings: frozen dataclasses that check themselves and can be mixed into one configuration."""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

__all__ = ["Settings", "check_options", "field_help", "option_names"]


class Settings:
    """Base of all settings.

    A subclass is a frozen dataclass whose ``check`` raises ValueError on values that cannot be
    used, naming the field. A class that inherits from several has the fields of all and is checked
    by all.
    """

    def __post_init__(self) -> None:
        for base in type(self).__mro__:
            if "check" in vars(base):
                vars(base)["check"](self)

    def require_at_least(self, **bounds: float) -> None:
        """Require each named field to be a finite number not below its bound."""
        for name, bound in bounds.items():
            value = getattr(self, name)
            if value is not None and not bound <= value < float("inf"):
                raise ValueError(f"{name} must be at least {bound:g} and finite, got {value}")


def field_help(settings: type) -> dict[str, str]:
    """What the class docstrings say of every field, for the command line."""
    texts: dict[str, str] = {}
    for base in reversed(settings.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        _, _, arguments = (inspect.getdoc(base) or "").partition("Args:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", arguments, re.MULTILINE):
            texts[name] = " ".join(text.split())
    return texts


def option_names(kind: type[Settings]) -> set[str]:
    """Names of all options."""
    # Every settings class is a dataclass, which the type of their base can not say.
    return {option.name for option in dataclasses.fields(kind)}  # type: ignore[arg-type]


def check_options(values: Mapping[str, Any], kind: type[Settings], source: str) -> None:
    """Require every option to exist and to have its type."""
    unknown = sorted(set(values) - option_names(kind))
    if unknown:
        raise ValueError(f"{source} names unknown options: {', '.join(unknown)}")
    hints = get_type_hints(kind)
    for name, value in values.items():
        allowed = _types(hints[name])
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
