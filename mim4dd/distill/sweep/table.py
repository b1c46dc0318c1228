"""The table of a sweep: what is computed over seeds, as CSV and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim4dd.distill.files.atomic import write_csv, write_text
from mim4dd.distill.spread import CONFIDENCE, Spread
from mim4dd.distill.sweep.grid import Setting, shown
from mim4dd.distill.sweep.job import Result

__all__ = ["Row", "markdown_table", "summarize", "write_runs", "write_tables"]

_CONFIDENT = f"{100 * CONFIDENCE:.0f} %"


@dataclass(frozen=True)
class Row:
    """One setting over its seeds.

    ``gain`` is over the setting ``reference``, if there is one, and ``over_real`` over random real
    images by the same recipe, both paired by seed; ``failures`` are messages by seed.
    """

    setting: str
    options: dict[str, Any]
    accuracy: Spread
    networks: int
    reference: str | None
    gain: Spread
    random_real: Spread
    over_real: Spread
    mi_lower_bound: Spread
    seconds: Spread
    cpu_seconds: Spread
    peak_mib: Spread
    failures: dict[int, str]


def summarize(
    setting: Setting,
    results: Sequence[Result],
    real: Sequence[Result],
    reference: str | None,
    referred: Sequence[Result],
) -> Row:
    """The row of a setting; its results, those of real images and of its reference, by seed."""
    done = [result for result in results if result.failure is None]

    def measured(name: str, unit: float = 1.0) -> Spread:
        values = [getattr(result, name) for result in done]
        return Spread.of([value / unit for value in values if value is not None])

    return Row(
        setting=setting.name,
        options=setting.options,
        accuracy=Spread.of([result.mean for result in done]),
        networks=sum(len(result.accuracy) for result in done),
        reference=reference,
        gain=Spread.of([]) if reference is None else _paired(results, referred),
        random_real=Spread.of([result.mean for result in real if result.failure is None]),
        over_real=_paired(results, real),
        mi_lower_bound=measured("mi_lower_bound"),
        seconds=measured("seconds"),
        cpu_seconds=measured("cpu_seconds"),
        peak_mib=measured("peak_bytes", 2**20),
        failures={result.seed: result.failure for result in results if result.failure is not None},
    )


def _paired(results: Sequence[Result], others: Sequence[Result]) -> Spread:
    means = ([None if each.failure else each.mean for each in of] for of in (results, others))
    return Spread.of_gains(zip(*means, strict=True))


def write_tables(
    rows: Sequence[Row],
    settings: Sequence[Setting],
    results: Mapping[tuple[str, int], Result],
    out: Path,
) -> list[Path]:
    """Write ``table.csv``, ``table.md`` and ``runs.csv``; return their paths."""
    table, markdown, runs = out / "table.csv", out / "table.md", out / "runs.csv"
    _write_csv(table, [_csv_cells(row) for row in rows])
    write_text(markdown, markdown_table(rows) + "\n")
    write_runs(runs, settings, results)
    return [table, markdown, runs]


def write_runs(
    path: Path, settings: Sequence[Setting], results: Mapping[tuple[str, int], Result]
) -> None:
    """Write one line per distillation."""
    by_name = {setting.name: setting for setting in settings}
    metrics = dict.fromkeys(name for result in results.values() for name in result.metrics)
    lines = []
    for (name, seed), result in results.items():
        failed = result.failure is not None
        lines.append(
            {
                "setting": name,
                **{key: shown(value) for key, value in by_name[name].options.items()},
                "seed": seed,
                "accuracy": None if failed else result.mean,
                "networks": " ".join(map(str, result.accuracy)),
                **{metric: result.metrics.get(metric) for metric in metrics},
                "seconds": result.seconds,
                "cpu_seconds": result.cpu_seconds,
                "peak_bytes": result.peak_bytes,
                "failure": result.failure,
            }
        )
    _write_csv(path, lines)


def _csv_cells(row: Row) -> dict[str, Any]:
    low, high = row.gain.interval() or (None, None)
    return {
        "setting": row.setting,
        **{name: shown(value) for name, value in row.options.items()},
        "accuracy": row.accuracy.mean,
        "accuracy_std": row.accuracy.std,
        "distillations": row.accuracy.count,
        "networks": row.networks,
        "gain_over": row.reference,
        "gain": row.gain.mean,
        "gain_std": row.gain.std,
        "gain_low": low,
        "gain_high": high,
        "gain_p": row.gain.p_value(),
        "gain_pairs": row.gain.count,
        "random_real": row.random_real.mean,
        "random_real_std": row.random_real.std,
        "over_real": row.over_real.mean,
        "over_real_std": row.over_real.std,
        "mi_lower_bound": row.mi_lower_bound.mean,
        "mi_lower_bound_std": row.mi_lower_bound.std,
        "seconds": row.seconds.mean,
        "seconds_std": row.seconds.std,
        "cpu_seconds": row.cpu_seconds.mean,
        "peak_mib": row.peak_mib.mean,
        "failed": len(row.failures),
        "failure": "; ".join(f"seed {seed}: {text}" for seed, text in row.failures.items()),
    }


def _write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    write_csv(path, [list(lines[0]), *(list(line.values()) for line in lines)])


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows for people: accuracies in percent, gains in points, columns aligned."""
    names = list(rows[0].options)
    header = [
        *names, "accuracy %", "n", "gain", f"{_CONFIDENT} interval", "p", "over random real",
        "MI bound", "s", "CPU s", "MiB", "failed",
    ]  # fmt: skip
    lines = [
        [
            *(shown(row.options[name]) for name in names),
            row.accuracy.text(100),
            str(row.accuracy.count),
            *_gain_cells(row),
            row.over_real.text(100, sign="+"),
            row.mi_lower_bound.text(digits=2),
            row.seconds.text(),
            _number(row.cpu_seconds.mean),
            _number(row.peak_mib.mean, digits=0),
            str(len(row.failures)) if row.failures else "",
        ]
        for row in rows
    ]
    widths = [max(3, *map(len, column)) for column in zip(header, *lines, strict=True)]
    rule = ["-" * width for width in widths[: len(names)]]
    rule += ["-" * (width - 1) + ":" for width in widths[len(names) :]]
    text = [_line(header, widths, len(names)), f"| {' | '.join(rule)} |"]
    text += [_line(line, widths, len(names)) for line in lines]
    return "\n".join([*text, "", _legend(rows)])


def _gain_cells(row: Row) -> tuple[str, str, str]:
    """The gain, what it may be, and how likely as large a one is by chance."""
    if row.reference == row.setting:
        return "reference", "", ""
    return (
        row.gain.text(100, sign="+"),
        row.gain.interval_text(100),
        _number(row.gain.p_value(), digits=3),
    )


def _line(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    aligned = [
        f"{cell:<{width}}" if index < left else f"{cell:>{width}}"
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(aligned)} |"


def _legend(rows: Sequence[Row]) -> str:
    real = {(row.random_real.mean, row.random_real.std): row.random_real for row in rows}
    baselines = ", ".join(
        f"{spread.text(100)} % (n = {spread.count})" for spread in real.values() if spread.count
    )
    lines = [
        "± is the standard deviation over n distillations, each the mean of its networks; gains "
        "are in points, paired by seed. The interval is Student's for the mean gain, p how often "
        "distillations that do not differ would show as large a one.",
        "s and CPU s are per distillation without its judging; MiB is the peak of its process.",
        f"Random real images by the same recipe: {baselines or 'none, all diverged'}.",
    ]
    for row in rows:
        lines += [f"{row.setting}, seed {seed}: {text}" for seed, text in row.failures.items()]
    return "\n".join(f"- {line}" for line in lines)


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"
