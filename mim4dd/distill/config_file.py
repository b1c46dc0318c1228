"""Configurations in JSON files."""

from pathlib import Path
from typing import Any, get_args, get_type_hints

from mim4dd.distill.config import Config, TaskSettings
from mim4dd.distill.settings import option_names
from mim4dd.distill.storage import read_json

__all__ = ["check_options", "read_config"]


def read_config(path: str | Path, kind: type[Config]) -> Config:
    """Read a configuration from JSON.

    Raises:
        ValueError: If the file is not readable, names an unknown option or holds a bad value.
    """
    values = read_json(Path(path))
    check_options(values, kind, str(path))
    return kind(**values)


def check_options(values: dict[str, Any], kind: type[TaskSettings], source: str) -> None:
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
