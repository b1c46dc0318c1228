"""Settings: frozen dataclasses that check themselves and can be mixed into one configuration."""

import dataclasses
import inspect
import re

__all__ = ["Settings", "field_help", "option_names"]


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
