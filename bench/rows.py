"""What benchmarks measured, as rows: one provider's time and ratios for one case."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

OURS, FLOORS = "mim4dd", ("gemms", "convolutions")


class Row(NamedTuple):
    """What one provider needs for one case."""

    op: str
    case: str
    device: str
    provider: str
    seconds: float
    ratios: tuple[float, ...]  # provider / ours, one per repeat
    floors: tuple[float, ...]  # provider / floor, one per repeat
    info: dict


def load_rows(results: Iterable[dict]) -> list[Row]:
    """Rows of what pytest-benchmark wrote, grouped by op and case in the order measured."""
    groups: dict[tuple[str, str, str], dict[str, dict[int, dict]]] = {}
    for each in results:
        for result in each["benchmarks"]:
            info = result["extra_info"]
            group = groups.setdefault((info["op"], info["case"], info["device"]), defaultdict(dict))
            group[info["provider"]][info["repeat"]] = {**info, "seconds": result["stats"]["median"]}
    return [
        Row(
            *group,
            provider,
            statistics.median(each["seconds"] for each in repeats.values()),
            _ratios(repeats, by_provider.get(OURS, {})),
            _ratios(repeats, _floor(by_provider)),
            repeats[min(repeats)],
        )
        for group, by_provider in groups.items()
        for provider, repeats in by_provider.items()
    ]


def _floor(by_provider: dict[str, dict[int, dict]]) -> dict[int, dict]:
    return next((by_provider[name] for name in FLOORS if name in by_provider), {})


def _ratios(repeats: dict[int, dict], other: dict[int, dict]) -> tuple[float, ...]:
    return tuple(
        each["seconds"] / other[repeat]["seconds"]
        for repeat, each in repeats.items()
        if repeat in other
    )
