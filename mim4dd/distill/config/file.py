"""Configurations in JSON files."""

from pathlib import Path

from mim4dd.distill.config.commands import Config
from mim4dd.distill.files.atomic import read_json

__all__ = ["read_config"]


def read_config(path: str | Path, kind: type[Config]) -> Config:
    """Read a configuration from JSON.

    Raises:
        ValueError: If the file is not readable, names an unknown option or holds a bad value.
    """
    return kind.of(**kind.read(read_json(Path(path)), str(path)))
