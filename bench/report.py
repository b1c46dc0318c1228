"""Turn result files of `make bench` into one Markdown table and, if asked, a plot.

    python bench/report.py results.json [more.json ...] [--plot times.png]

Times are medians over the repeats; ratios are taken within each repeat, where providers took turns,
and given as median and range. The floor is the matrix products alone, with the logits in memory: a
kernel that keeps them in cache may come below it; for trajectories, the convolutions alone. Peak
memory is above the inputs, and once more without the results. Errors, where a suite has them, are
relative and against float64. What was not timed, and why, stands below the table.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from rows import FLOORS, Row, load_rows


def markdown(rows: list[Row]) -> str:
    """The table."""
    lines = [
        "| op | case | device | provider | time | time / ours (range) | time / floor "
        "| peak memory | without results | rate | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = "–"  # where ours gave a wrong answer it was not timed
        if row.ratios:
            low, middle, high = min(row.ratios), statistics.median(row.ratios), max(row.ratios)
            ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        floor = f"{statistics.median(row.floors):.2f}" if row.floors else "–"
        memory = f"{_memory(row)} | {_memory(row, 'result_bytes')}"
        lines.append(
            f"| {row.op} | {row.case} | {row.device} | {row.provider} | {1e3 * row.seconds:.3g} ms "
            f"| {ratio} | {floor} | {memory} | {_rate(row)} "
            f"| {_errors(row)} |"
        )
    return "\n".join(lines)


def _memory(row: Row, less: str | None = None) -> str:
    if row.provider in FLOORS or "peak_bytes" not in row.info:
        return "–"  # the floor writes into buffers that are there
    return f"{max(0, row.info['peak_bytes'] - row.info.get(less, 0)) / 2**20:.4g} MiB"


def _rate(row: Row) -> str:
    if "pairs" in row.info:
        return f"{1e9 * row.seconds / row.info['pairs']:.3g} ns/pair"
    if "moved_bytes" in row.info:
        return f"{row.info['moved_bytes'] / row.seconds / 1e9:.1f} GB/s"
    if "flop" in row.info:
        return f"{row.info['flop'] / row.seconds / 1e9:.1f} GFLOP/s"
    return ""


def _errors(row: Row) -> str:
    errors, bias = (
        ", ".join(f"{name} {error:.1e}" for name, error in row.info.get(kind, {}).items())
        for kind in ("errors", "bias")
    )
    return f"{errors}; of the approximation: {bias}" if bias else errors


def not_timed(results: Iterable[dict]) -> str:
    """What was left out or wrong, one line for all cases that share a reason."""
    cases: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    missing: dict[str, None] = {}
    for each in results:
        missing |= dict.fromkeys(each.get("missing", []))
        for out in each.get("left_out", []):
            cases[out["op"], out["provider"], out["reason"]].append(out["case"])
    lines = [
        f"- {op}, {provider}: {reason} ({'; '.join(own) if len(own) < 5 else f'{len(own)} cases'})"
        for (op, provider, reason), own in cases.items()
    ]
    lines += [f"- {line}" for line in missing]
    return "\n".join(["", "Not timed:", "", *lines]) if lines else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    args = parser.parse_args()
    results = [json.loads(path.read_bytes()) for path in args.results]
    rows = load_rows(results)
    print(markdown(rows))
    print(not_timed(results))
    if args.plot is not None:
        from plot import save_plot  # matplotlib, which a GPU machine may lack

        save_plot(args.plot, rows)


if __name__ == "__main__":
    main()
