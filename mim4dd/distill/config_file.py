"""Configurations in JSON files."""

from pathlib import Path

from mim4dd.distill.config import Config
from mim4dd.distill.settings import check_options
from mim4dd.distill.storage import read_json

__all__ = ["read_config"]


def read_config(path: str | Path, kind: type[Config]) -> Config:
    """Read a configuration from JSON.

    Raises:
        ValueError: If the file is not readable, names an unknown option or holds a bad value.
    """
    values = read_json(Path(path))
    check_options(values, kind, str(path))
    return kind(**values)
