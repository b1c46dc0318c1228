"""Things known by name: those of this package, of other packages, and of a user's files."""

import importlib
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from mim4dd._checks import check_choice
from mim4dd.distill.settings import Settings, options_of

__all__ = ["PLUGINS", "Entry", "NoSettings", "Registry", "import_plugin"]

# Python files, or modules, that are imported before a name is looked up; worker processes, which
# inherit the variable, import them too.
PLUGINS = "MIM4DD_PLUGINS"


@dataclass(frozen=True)
class NoSettings(Settings):
    """Of what has no options of its own."""


@dataclass(frozen=True)
class Entry:
    """Something by its name: how it is made, and of which settings."""

    name: str
    title: str
    make: Callable[..., Any]
    settings: type[Settings] = NoSettings

    @property
    def options(self) -> set[str]:
        """Names of its own options."""
        return set(options_of(self.settings))


Kind = TypeVar("Kind", bound=Entry)


class Registry(Mapping[str, Kind], Generic[Kind]):
    """Entries by name. The modules that make them are imported when the first name is asked for.

    These are the modules of ``package``, what other packages list under the entry points ``group``,
    and what ``MIM4DD_PLUGINS`` names: Python files or modules, joined by ``os.pathsep``. Whoever
    imports a module of their own has no need of either.

    Args:
        option: What the names are values of, as in messages.
        package: Its modules register themselves as they are imported.
        group: Name of the entry points, each a module to import or an object in one.
    """

    def __init__(self, option: str, package: str, group: str) -> None:
        self.option, self.package, self.group = option, package, group
        self._entries: dict[str, Kind] = {}
        self._is_complete = False

    def add(self, entry: Kind) -> None:
        """Take an entry up.

        Raises:
            ValueError: If another module has registered the name.
        """
        known = self._entries.get(entry.name)
        # A module that is imported again, as a worker does the main one, brings its own again.
        if known is not None and _origin(known) != _origin(entry):
            raise ValueError(
                f"{self.option} {entry.name!r} is there already, of {_origin(known)[0]}: "
                f"{_origin(entry)[0]} must choose another name"
            )
        self._entries[entry.name] = entry

    def __getitem__(self, name: str) -> Kind:
        if not isinstance(name, str) or name not in self._entries:  # a file may hold anything
            self._complete()
            check_choice(self.option, name, tuple(self))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._complete()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._complete()
        return iter(sorted(self._entries))  # in whatever order the modules were imported

    def __len__(self) -> int:
        self._complete()
        return len(self._entries)

    def options(self) -> set[str]:
        """The options of all entries."""
        return set().union(*(entry.options for entry in self.values()))

    def _complete(self) -> None:
        if self._is_complete:
            return
        self._is_complete = True  # before the imports, which may ask for names
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.group):
            try:
                point.load()
            except Exception as error:  # someone else's package must not stop everything
                warnings.warn(
                    f"entry point {point.name} of {self.group}, {point.value}, cannot be loaded: "
                    f"{type(error).__name__}: {error}",
                    stacklevel=2,
                )
        for name in filter(None, os.environ.get(PLUGINS, "").split(os.pathsep)):
            import_plugin(name)


def _origin(entry: Entry) -> tuple[str, str]:
    """Where what makes an entry was defined."""
    made_by = getattr(entry.make, "__func__", entry.make)
    module = getattr(made_by, "__module__", "")
    if module == "__mp_main__":  # the main module, in a worker
        module = "__main__"
    return module, getattr(made_by, "__qualname__", "")


def import_plugin(name: str) -> ModuleType:
    """Import a Python file, or a module by its name, for what it registers.

    A file is imported under its own name, with its folder on the path, so that worker processes
    find it; they are told by the environment variable ``MIM4DD_PLUGINS``.

    Raises:
        ValueError: If there is no such file or module, or another module has its name.
    """
    file = Path(name)
    module_name = name
    if file.suffix == ".py":
        if not file.is_file():
            raise ValueError(f"plugin must be a Python file or a module, {name} does not exist")
        file = file.resolve()
        module_name, folder = file.stem, str(file.parent)
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        raise ValueError(f"plugin must be a Python file or a module, got {name!r}") from error
    found = getattr(module, "__file__", None)
    if file.suffix == ".py" and (found is None or Path(found).resolve() != file):
        raise ValueError(
            f"plugin {name} has the name of another module, {found or module_name}: rename the file"
        )
    known = os.environ.get(PLUGINS, "").split(os.pathsep)
    asked = str(file) if file.suffix == ".py" else module_name
    if asked not in known:
        os.environ[PLUGINS] = os.pathsep.join([*filter(None, known), asked])
    return module
