"""YAML files, of which nothing but plain values is read."""

import re
from pathlib import Path
from typing import Any

from mim4dd._extras import import_extra
from mim4dd.distill.files.regular import read_text

__all__ = ["is_yaml", "read_yaml"]

# As YAML 1.2 and JSON write them: PyYAML, which is of 1.1, takes 1e-4 for text.
_FLOAT = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$")


def is_yaml(path: Path) -> bool:
    """Whether a file's name says that it is YAML."""
    return path.suffix.lower() in (".yaml", ".yml")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping of plain values.

    Raises:
        ValueError: If the file is not there or does not hold one.
        ModuleNotFoundError: If PyYAML is not installed.
    """
    yaml = import_extra("yaml")

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined]  # known as it runs
        def compose_node(self, parent: Any, index: Any) -> Any:
            # Lists of one list, many times over, would make a small file long.
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases, as *name, are not read: write the value out")
            return super().compose_node(parent, index)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    try:
        value = yaml.load(text, Loader)
    # PyYAML raises any error on a value that is not of the kind that its tag names.
    except Exception as error:
        raise ValueError(
            f"{path} is not readable as YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{path} must hold a mapping of options, got {type(value).__name__}")
    return value
