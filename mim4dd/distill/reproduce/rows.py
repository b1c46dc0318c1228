"""A cell of a published table: what was reported, and how long it is distilled here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mim4dd._checks import check_choice
from mim4dd.distill.sweep.grid import Setting, make_setting, shown

__all__ = ["BUDGETS", "Budget", "PublishedRow"]

BUDGETS = ("small", "published")


@dataclass(frozen=True)
class Budget:
    """The work on a row: distillations with different seeds, and options beside the row's own."""

    seeds: int
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedRow:
    """A cell of a published table.

    Args:
        data: Name of the data set.
        method: Name of the method.
        ipc: Images per class.
        weight: Of MIM4DD's loss; 0 is the method alone.
        published: Test accuracy, a fraction; None where none is known that could be checked.
        source: Where it stands.
        small: The work for two cores of a CPU.
        whole: The work as published: iterations and experts are those of the presets.
        recipe: Options by which the authors judged, where they are not those of all methods.

    Example:
        >>> from mim4dd.distill.reproduce.known import chosen_rows
        >>> (row,) = chosen_rows(["mnist-dm-ipc10-0"])
        >>> row.published, row.setting("published").config.iterations
        (0.975, 20000)
    """

    data: str
    method: str
    ipc: int
    weight: float
    published: float | None
    source: str
    small: Budget
    whole: Budget
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How it is asked for, and what its file is called."""
        return f"{self.data}-{self.method}-ipc{self.ipc}-{shown(self.weight)}"

    def budget(self, name: str) -> Budget:
        """The work by one of ``BUDGETS``.

        Raises:
            ValueError: If there is none by that name.
        """
        check_choice("budget", name, BUDGETS)
        return self.small if name == "small" else self.whole

    def setting(self, budget: str, **places: Any) -> Setting:
        """All options by a budget, and ``places``, such as ``data_path`` and ``device``."""
        given = {
            "data": self.data,
            "method": self.method,
            "ipc": self.ipc,
            "weight": self.weight,
            **self.recipe,
            **self.budget(budget).options,
            **places,
        }
        made = make_setting(given, {}, ())
        return Setting(self.name, {}, made.config, made.experts)
