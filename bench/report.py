"""Turn result files of `make bench` into one Markdown table and, if asked, a plot.

    python bench/report.py results.json [more.json ...] [--plot times.png]

Times are medians over the repeats; ratios are taken within each repeat, where providers took turns,
and given as median and range.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

OURS = "mim4dd"


class Row(NamedTuple):
    """What one provider needs for one case."""

    op: str
    case: str
    device: str
    provider: str
    seconds: float
    ratios: tuple[float, ...]  # provider / ours, one per repeat
    peak_bytes: int
    rate: str


def load_rows(results: Iterable[dict]) -> list[Row]:
    """Rows of what pytest-benchmark wrote, grouped by op and case in the order measured."""
    groups: dict[tuple[str, str, str], dict[str, dict[int, dict]]] = {}
    for each in results:
        for result in each["benchmarks"]:
            info = result["extra_info"]
            group = groups.setdefault((info["op"], info["case"], info["device"]), defaultdict(dict))
            group[info["provider"]][info["repeat"]] = {**info, "seconds": result["stats"]["median"]}
    return [
        _row(group, provider, repeats, by_provider.get(OURS, {}))
        for group, by_provider in groups.items()
        for provider, repeats in by_provider.items()
    ]


def _row(
    group: tuple[str, str, str], provider: str, repeats: dict[int, dict], ours: dict[int, dict]
) -> Row:
    seconds = statistics.median(each["seconds"] for each in repeats.values())
    ratios = tuple(
        each["seconds"] / ours[repeat]["seconds"]
        for repeat, each in repeats.items()
        if repeat in ours
    )
    first = next(iter(repeats.values()))
    rate = ""
    if "moved_bytes" in first:
        rate = f"{first['moved_bytes'] / seconds / 1e9:.1f} GB/s"
    elif "flop" in first:
        rate = f"{first['flop'] / seconds / 1e9:.1f} GFLOP/s"
    return Row(*group, provider, seconds, ratios, first["peak_bytes"], rate)


def markdown(rows: list[Row]) -> str:
    """The table."""
    lines = [
        "| op | case | device | provider | time | time / ours (range) | peak memory | rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = "–"  # where ours gave a wrong answer it was not timed
        if row.ratios:
            low, middle, high = min(row.ratios), statistics.median(row.ratios), max(row.ratios)
            ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        lines.append(
            f"| {row.op} | {row.case} | {row.device} | {row.provider} | {1e3 * row.seconds:.3g} ms "
            f"| {ratio} | {row.peak_bytes / 2**20:.1f} MiB "
            f"| {row.rate} |"
        )
    return "\n".join(lines)


def save_plot(path: Path, rows: list[Row]) -> None:
    """One panel per op: time of every provider, relative to ours, for every case."""
    from matplotlib.figure import Figure

    ops = list(dict.fromkeys(row.op for row in rows if row.ratios))
    cases = {op: list(dict.fromkeys(row.case for row in rows if row.op == op)) for op in ops}
    heights = [1 + len(cases[op]) for op in ops]
    figure = Figure(figsize=(9, 1 + 0.7 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(ops), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, op in zip(panels, ops, strict=True):
        own = [row for row in rows if row.op == op and row.ratios]
        providers = list(dict.fromkeys(row.provider for row in own))
        thickness = 0.8 / len(providers)
        for place, provider in enumerate(providers):
            mine = [row for row in own if row.provider == provider]
            y = [cases[op].index(row.case) + place * thickness for row in mine]
            middle = [statistics.median(row.ratios) for row in mine]
            spread = [
                [value - min(row.ratios) for value, row in zip(middle, mine, strict=True)],
                [max(row.ratios) - value for value, row in zip(middle, mine, strict=True)],
            ]
            axis.barh(y, middle, thickness, xerr=spread, label=provider, error_kw={"lw": 0.8})
        axis.set_yticks([index + 0.4 - thickness / 2 for index in range(len(cases[op]))])
        axis.set_yticklabels(cases[op], fontsize=8)
        axis.invert_yaxis()
        axis.axvline(1, color="0.4", lw=0.8)
        axis.set_title(f"{op} on {own[0].device}: time / {OURS}, shorter is faster", fontsize=10)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    args = parser.parse_args()
    rows = load_rows(json.loads(path.read_text()) for path in args.results)
    print(markdown(rows))
    if args.plot is not None:
        save_plot(args.plot, rows)


if __name__ == "__main__":
    main()
