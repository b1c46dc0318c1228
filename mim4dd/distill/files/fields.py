"""What JSON that a file holds must have, where a program reads on."""

from collections.abc import Mapping
from typing import Any

from mim4dd.distill.settings import check_type

__all__ = ["require_accuracies", "require_each", "require_fields"]


def require_fields(values: Any, source: str, /, **hints: Any) -> None:
    """Require a mapping whose fields are of these types; one that may be None may be left out.

    Raises:
        ValueError: If it is no mapping or a field is not of its type, naming both.

    Example:
        >>> from mim4dd.distill.files.fields import require_fields
        >>> require_fields({"seed": 1}, "result.json", seed=int, failure=str | None)
    """
    check_type("it", values, dict, source)
    for name, hint in hints.items():
        check_type(name, values.get(name), hint, source)


def require_each(values: Any, source: str, hint: Any) -> None:
    """Require a list, or the values of a mapping, to be of a type.

    Raises:
        ValueError: If it is neither, or one of them is of another type.

    Example:
        >>> from mim4dd.distill.files.fields import require_each
        >>> require_each([0.5, 1], "accuracy", float)
    """
    check_type("it", values, list | tuple | dict, source)
    for place, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        check_type(f"[{place!r}]", value, hint, source)


def require_accuracies(values: Any, source: str) -> None:
    """Require a list of fractions, or NaN, which a network that diverged has.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> from mim4dd.distill.files.fields import require_accuracies
        >>> require_accuracies([0.5, 1, float("nan")], "accuracy")
    """
    require_each(values, source, float)
    for value in values:
        if value < 0 or value > 1:
            raise ValueError(f"{source}: accuracies must be from 0 to 1, got {value}")
