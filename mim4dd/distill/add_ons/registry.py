"""What may be added to any base method, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mim4dd.distill.methods.base import BaseMethod, Ingredients
from mim4dd.distill.registry import Entry, Registry
from mim4dd.distill.settings import Settings

__all__ = ["ADD_ONS", "AddOnSettings", "add_on"]

Make = Callable[[BaseMethod, Any, Ingredients], BaseMethod]


@dataclass(frozen=True)
class AddOnEntry(Entry):
    """What is added to a method, and makes another of it."""

    make: Make


ADD_ONS: Registry[AddOnEntry] = Registry("add_on", "mim4dd.distill.add_ons", "mim4dd.add_ons")


@dataclass(frozen=True)
class AddOnSettings(Settings):
    """What every add-on has.

    Args:
        weight: Weight of the added loss; 0 leaves it out.

    Example:
        >>> from mim4dd.distill.add_ons import AddOnSettings
        >>> AddOnSettings(weight=0.3).weight
        0.3
    """

    weight: float = 0.1

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(weight=0)


def add_on(
    name: str, *, title: str | None = None, settings: type[AddOnSettings] = AddOnSettings
) -> Callable[[Make], Make]:
    """Name a function that adds to a method, for ``--add-on`` and configurations.

    It gets the base method, the settings, and what methods are made of, and returns a method.

    Args:
        name: What it is called where it is asked for.
        title: What it is called where it is shown; by default its name.
        settings: A frozen dataclass of its options. ``config.add_on`` is one.

    Raises:
        ValueError: If another module has registered the name.

    Example:
        >>> from mim4dd.distill.add_ons import ADD_ONS
        >>> ADD_ONS["mim4dd"].settings().critic
        'info_nce'
    """

    def register(make: Make) -> Make:
        ADD_ONS.add(AddOnEntry(name, title or name, make, settings))
        return make

    return register
