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


def names_data(config: TaskSettings) -> bool:
    """Whether a configuration's data have a name here: others were given in Python."""
    return config.data in DATA_SETS or Path(config.data).is_dir()


def load_data_of(config: TaskSettings, run: str | Path) -> ImageData:
    """Load the real data that the configuration of the run in a directory names.

    Raises:
        ValueError: If they were given in Python, so that nothing here has that name, and what
            :meth:`TaskSettings.load_data` raises.
    """
    if not names_data(config):
        raise ValueError(
            f"{run} is of data {config.data!r}, which is no data set's name and no folder here: "
            f"data that were given in Python must be given there again, by "
            f"mim4dd.distill.open_run({str(run)!r}, data)"
        )
    return config.load_data()
