"""The file of a row: what its distillations reached, and what they were."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mim4dd.distill.files.atomic import read_json, write_json
from mim4dd.distill.files.fields import require_accuracies, require_fields
from mim4dd.distill.files.regular import naming
from mim4dd.distill.methods import METHODS
from mim4dd.distill.reproduce.rows import PublishedRow
from mim4dd.distill.spread import Spread
from mim4dd.distill.sweep.grid import Setting
from mim4dd.distill.sweep.job import Result

__all__ = ["distillation", "means", "options_of_row", "read_record", "write_record"]

# Where things lie or are computed, which is nothing of the row.
_PLACES = frozenset({"data_path", "device", "experts", "seed"})
_OF_EXPERTS = ("num_experts", "train_epochs")
_FIELDS: Mapping[str, Any] = {
    **dict.fromkeys(("data", "method", "note"), str),
    **dict.fromkeys(("ipc", "iterations", "experts"), int),
    **dict.fromkeys(("accuracy", "random_real", "differs", "options"), dict),
    **dict.fromkeys(("seconds_per_iteration", "cpu_seconds_per_iteration"), float | None),
    **dict.fromkeys(("peak_mib", "published"), float | None),
    "weight": float,
    "distillations": list,
}
_SUMMARY = {"mean": float | None, "std": float | None, "n": int}
_DISTILLATION = {"seed": int, "accuracy": list, "random_real": list, "failure": str | None}


def options_of_row(setting: Setting) -> dict[str, Any]:
    """All that a distillation of the row depends on, flat, with how its experts are trained."""
    options = setting.config.options()
    if "experts" in options:
        experts = setting.experts.options()
        options |= {name: experts[name] for name in _OF_EXPERTS}
    return {name: value for name, value in options.items() if name not in _PLACES}


def distillation(result: Result, real: Result, machine: Mapping[str, Any]) -> dict[str, Any]:
    """One distillation as the file holds it, beside random real images of the same seed."""
    kept = asdict(result)
    del kept["num_classes"]
    return kept | {"random_real": list(real.accuracy), **machine}


def read_record(path: Path) -> dict[str, Any]:
    """Read the file of a row.

    Raises:
        ValueError: If it is not there or holds something else.
    """
    values = read_json(path)
    with naming(path):
        _require_all(values, f"{path} must hold a row of docs/reproduce", _FIELDS)
        METHODS[values["method"]]
        for name in ("accuracy", "random_real"):
            _require_all(values[name], f"{name} must be a mean", _SUMMARY)
        for name, each in values["differs"].items():
            _require_all(each, f"{name} must differ", {"here": Any, "published": Any})
        for each in values["distillations"]:
            _require_all(each, "distillations must be such", _DISTILLATION)
            for name in ("accuracy", "random_real"):
                require_accuracies(each[name], f"distillations: {name}")
    return values


def _require_all(values: Any, rule: str, hints: Mapping[str, Any]) -> None:
    """Require a mapping of these fields, all of them there."""
    require_fields(values, rule)
    if missing := sorted(hints.keys() - values.keys()):
        raise ValueError(f"{rule}, it lacks {', '.join(missing)}")
    require_fields(values, rule, **{name: each for name, each in hints.items() if each is not Any})


def write_record(
    path: Path,
    row: PublishedRow,
    budget: str,
    setting: Setting,
    distillations: Sequence[Mapping[str, Any]],
    note: str,
) -> None:
    """Write the file of a row, with what its distillations come to."""
    options = options_of_row(setting)
    published = options_of_row(row.setting("published"))
    done = [each for each in distillations if each["failure"] is None]
    iterations = setting.config.iterations
    values = {
        "data": row.data,
        "method": row.method,
        "ipc": row.ipc,
        "weight": row.weight,
        "budget": budget,
        "iterations": iterations,
        "experts": options.get("num_experts", 0),
        "published": row.published,
        "source": row.source,
        "accuracy": Spread.of(list(means(distillations).values())).summary(),
        "random_real": Spread.of(list(means(distillations, "random_real").values())).summary(),
        "seconds_per_iteration": _per_iteration(done, "seconds", iterations),
        "cpu_seconds_per_iteration": _per_iteration(done, "cpu_seconds", iterations),
        "peak_mib": max((each["peak_bytes"] / 2**20 for each in done), default=None),
        "note": note,
        "differs": {
            name: {"here": value, "published": published[name]}
            for name, value in options.items()
            if value != published[name]
        },
        "options": options,
        "distillations": list(distillations),
    }
    write_json(path, values)


def means(distillations: Sequence[Mapping[str, Any]], name: str = "accuracy") -> dict[int, float]:
    """What the networks of every distillation, or of its random real images, reach, by seed."""
    return {
        each["seed"]: statistics.fmean(each[name])
        for each in distillations
        if each["failure"] is None and each[name]
    }


def _per_iteration(done: Sequence[Mapping[str, Any]], name: str, iterations: int) -> float | None:
    mean = Spread.of([each[name] for each in done]).mean
    return None if mean is None else mean / iterations
