"""How a distilled set came to be: what its file tells beside the data that it was made of."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mim4dd.distill.spread import Spread

__all__ = ["Measured", "Provenance"]

# Options that say where something lies or is computed, which is nothing of the set.
_PLACES = frozenset({"data_path", "device", "download", "experts", "keep_bytes"})


@dataclass(frozen=True)
class Measured:
    """Test accuracies, as fractions, of networks that were trained on a set alone.

    Args:
        network: What the networks are called.
        values: Of each of them.
        first_seed: Seed of the first one; the others follow.
    """

    network: str
    values: tuple[float, ...]
    first_seed: int = 0

    def __str__(self) -> str:
        spread = Spread.of(self.values)
        mean, std = 100 * statistics.fmean(self.values), spread.std
        # Of a network that diverged it is NaN. In brackets, for ± is over distillations.
        deviation = "" if std is None or std != std else f" ({100 * std:.1f})"
        return f"{mean:.1f}{deviation} % of {spread.count} {self.network}"


@dataclass(frozen=True)
class Provenance:
    """How a set came to be, as far as it is known.

    Args:
        data: Name of the real data.
        method: What distilled it, with its add-on.
        options: Flat options of the distillation, without places; of a program that has none, how
            the set was initialised and optimised. ``seed`` is among them.
        version: The mim4dd that made it; empty where another project did.
        accuracies: What was measured of it.
        source: Where another project's set was read from, and what was taken for granted.

    Example:
        >>> from mim4dd.distill.runs import Provenance
        >>> made = Provenance(data="digits", method="dm", options={"ipc": 1})
        >>> made.options["ipc"], made.accuracies
        (1, ())
    """

    data: str = ""
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    accuracies: tuple[Measured, ...] = ()
    source: str = ""

    @staticmethod
    def of_run(
        identity: Mapping[str, Any], options: Mapping[str, Any] | None, data: str = ""
    ) -> "Provenance":
        """What a run makes of a set.

        Args:
            identity: What the run is of, as its checkpoint holds it.
            options: Its flat options; None where the program that started it has none.
            data: Name of the data, where it is known better than by the options.
        """
        method = ""
        if options is None:
            options = identity.get("settings", {})
            method = _class_names(identity.get("method", {}))
        elif "method" in options:
            method = str(options["method"])
            if options.get("weight", 0) and "add_on" in options:
                method += f" + {options['add_on']}"
        return Provenance(
            data or str(options.get("data", "")),
            method,
            {name: value for name, value in options.items() if name not in _PLACES},
            str(identity.get("mim4dd", "")),
        )

    @staticmethod
    def of_json(values: Mapping[str, Any]) -> "Provenance":
        """The inverse of :meth:`to_json`."""
        accuracies = tuple(
            Measured(each["network"], tuple(each["values"]), each["first_seed"])
            for each in values.get("accuracies", ())
        )
        return Provenance(**{**values, "accuracies": accuracies})

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return asdict(self)

    def with_accuracy(self, network: str, values: Sequence[float], first_seed: int) -> "Provenance":
        """The same with what was measured, in the place of what was for the same network."""
        others = tuple(each for each in self.accuracies if each.network != network)
        return replace(
            self, accuracies=(*others, Measured(network, tuple(map(float, values)), first_seed))
        )


def _class_names(method: Mapping[str, Any]) -> str:
    """The class of a method that a program made, and of the add-on around it."""
    name = str(method.get("class", "")).rpartition(".")[2]
    base = method.get("base")
    return f"{_class_names(base)} + {name}" if isinstance(base, Mapping) else name
