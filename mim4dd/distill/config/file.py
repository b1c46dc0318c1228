"""Configurations in JSON files."""

from pathlib import Path

from mim4dd.distill.config.commands import Config
from mim4dd.distill.files.atomic import read_json
from mim4dd.distill.settings import check_options

__all__ = ["read_config"]


def read_config(path: str | Path, kind: type[Config]) -> Config:
    """Read a configuration from JSON.

    Raises:
        ValueError: If the file is not readable, names an unknown option or holds a bad value.
    """
    values = read_json(Path(path))
    check_options(values, kind, str(path))
    return kind(**values)
