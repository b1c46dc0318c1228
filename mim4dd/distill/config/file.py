"""Configurations in JSON files, and the data that those of runs are of."""

from pathlib import Path

from mim4dd.distill.config.commands import Config, TaskSettings
from mim4dd.distill.data import DATA_SETS, ImageData
from mim4dd.distill.files.atomic import read_json

__all__ = ["load_data_of", "names_data", "read_config"]


def read_config(path: str | Path, kind: type[Config]) -> Config:
    """Read a configuration from JSON.

    Raises:
        ValueError: If the file is not readable, names an unknown option or holds a bad value.
    """
    return kind.of(**kind.read(read_json(Path(path)), str(path)))


def names_data(name: str) -> bool:
    """Whether a configuration's ``data`` is a name here: that of others was given in Python."""
    return name in DATA_SETS or Path(name).is_dir()


def load_data_of(config: TaskSettings, run: str | Path) -> ImageData:
    """Load the real data that the configuration of the run in a directory names.

    Raises:
        ValueError: If they were given in Python, so that nothing here has that name, and what
            :meth:`TaskSettings.load_data` raises.
    """
    if not names_data(config.data):
        raise ValueError(
            f"{run} is of data {config.data!r}, which is no data set's name and no folder here: "
            f"data that were given in Python must be given there again, by "
            f"mim4dd.distill.open_run({str(run)!r}, data)"
        )
    return config.load_data()
