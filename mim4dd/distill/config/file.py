"""Configurations in JSON and YAML files, and the data that those of runs are of."""

from pathlib import Path
from typing import Any

from mim4dd.distill.config.commands import Config, TaskSettings
from mim4dd.distill.data import DATA_SETS, ImageData
from mim4dd.distill.data.readers.elsewhere import ELSEWHERE
from mim4dd.distill.files.atomic import read_json
from mim4dd.distill.files.regular import naming
from mim4dd.distill.files.yaml import is_yaml, read_yaml

__all__ = ["load_data_of", "names_data", "read_config", "read_options"]


_PREFIXES = tuple(f"{library}:" for library in ELSEWHERE)


def read_config(path: str | Path, kind: type[Config]) -> Config:
    """Read a configuration from a file.

    Raises:
        ValueError: If the file is not readable, names an unknown option or holds a bad value.
    """
    with naming(path):
        return kind.of(**kind.read(read_options(Path(path)), str(path)))


def read_options(path: Path) -> dict[str, Any]:
    """The flat options in a file: YAML if its name ends in .yaml or .yml, else JSON.

    Raises:
        ValueError: If the file is not readable.
    """
    return read_yaml(path) if is_yaml(path) else read_json(path)


def names_data(name: str) -> bool:
    """Whether a configuration's ``data`` is a name here: that of others was given in Python."""
    return name in DATA_SETS or name.startswith(_PREFIXES) or Path(name).is_dir()


def load_data_of(config: TaskSettings, run: str | Path) -> ImageData:
    """Load the real data that the configuration of the run in a directory names.

    Raises:
        ValueError: If they were given in Python, so that nothing here has that name, and what
            :meth:`TaskSettings.load_data` raises.
    """
    if not names_data(config.data):
        raise ValueError(
            f"{run} is of data {config.data!r}, which is neither a known name nor a folder here. "
            f"Data that were given in Python must be given again, by "
            f"mim4dd.distill.open_run({str(run)!r}, data)"
        )
    return config.load_data()
