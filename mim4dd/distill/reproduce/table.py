"""The table of all rows that have a file: ours beside the published figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mim4dd.distill.files.atomic import write_text
from mim4dd.distill.files.regular import read_text
from mim4dd.distill.methods import METHODS
from mim4dd.distill.reproduce.known import ROWS
from mim4dd.distill.reproduce.record import means, read_record
from mim4dd.distill.spread import Spread
from mim4dd.distill.sweep.grid import shown

__all__ = ["markdown_table", "one_line", "write_table"]

_BEGIN, _END = "<!-- rows -->", "<!-- end of rows -->"
_HEADER = (
    "data", "method", "ipc", "ours %", "n", "published %", "difference", "random real %",
    "over random real", "MIM4DD adds", "iterations", "experts", "s / it", "CPU s / it", "MiB",
    "otherwise than published",
)  # fmt: skip
_NAMES = 2  # columns with words, on the left


def write_table(folder: Path) -> Path:
    """Write the table of the rows in a folder into its README.md, between two marks.

    What stands around the marks is kept; a page without them gets them at its end.

    Raises:
        ValueError: If a file of the folder holds no row.
    """
    page = folder / "README.md"
    text = read_text(page) if page.exists() else ""
    before, begin, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2] if begin else "\n"
    order = {row.name: place for place, row in enumerate(ROWS)}
    paths = sorted(folder.glob("*.json"), key=lambda path: (order.get(path.stem, -1), path.stem))
    table = markdown_table([read_record(path) for path in paths])
    write_text(page, f"{before}{_BEGIN}\n\n{table}\n\n{_END}{after}")
    return page


def markdown_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The rows for people: accuracies in percent, differences in points."""
    lines = [_HEADER, *(_cells(record, _alone(record, records)) for record in records)]
    rule = ["---"] * _NAMES + ["---:"] * (len(_HEADER) - _NAMES - 1) + ["---"]
    lines.insert(1, tuple(rule))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def one_line(path: Path) -> str:
    """A row in short, from its file."""
    record = read_record(path)
    accuracy, published = record["accuracy"], record["published"]
    return (
        f"{path.stem}: {_percent(accuracy)} % (n = {accuracy['n']}), published "
        f"{'–' if published is None else f'{100 * published:.1f} %'}, random real images "
        f"{_percent(record['random_real'])} %, {record['iterations']} iterations"
    )


def _alone(
    record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """The row of the same method by itself, of the same options, beside one with MIM4DD."""
    wanted = {**record["options"], "weight": 0.0}
    found = [other for other in records if other["options"] == wanted]
    return found[0] if found and record["weight"] else None


def _gain(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Points gained, seed by seed: what they may be in truth, and how likely so many by chance."""
    gain = Spread.of_gains((value, theirs.get(seed)) for seed, value in ours.items())
    text = gain.text(100, sign="+")
    if gain.std is None:
        return text
    return f"{text} ({gain.interval_text(100)}; p {gain.p_value():.3f})"


def _cells(record: Mapping[str, Any], alone: Mapping[str, Any] | None) -> tuple[str, ...]:
    distillations = record["distillations"]
    ours = means(distillations)
    accuracy, published = record["accuracy"], record["published"]
    known = accuracy["mean"] is not None and published is not None
    title = METHODS[record["method"]].title
    return (
        record["data"],
        title if record["weight"] == 0 else f"{title} + MIM4DD, λ {shown(record['weight'])}",
        str(record["ipc"]),
        _percent(accuracy),
        str(accuracy["n"]),
        "–" if published is None else f"{100 * published:.1f}",
        f"{100 * (accuracy['mean'] - published):+.1f}" if known else "–",
        _percent(record["random_real"]),
        _gain(ours, means(distillations, "random_real")),
        "" if alone is None else _gain(ours, means(alone["distillations"])),
        str(record["iterations"]),
        str(record["experts"] or ""),
        _number(record["seconds_per_iteration"], 2),
        _number(record["cpu_seconds_per_iteration"], 2),
        _number(record["peak_mib"], 0),
        _otherwise(record),
    )


def _otherwise(record: Mapping[str, Any]) -> str:
    """What the row has otherwise than published, and what the one who ran it had to say."""
    parts = [
        f"`{name}` {shown(each['here'])} for {shown(each['published'])}"
        for name, each in record["differs"].items()
    ]
    failed = [each["seed"] for each in record["distillations"] if each["failure"] is not None]
    parts += [f"seed {seed} diverged" for seed in failed]
    return ", ".join([*parts, *filter(None, [record["note"]])])


def _percent(summary: Mapping[str, Any]) -> str:
    return Spread(summary["mean"], summary["std"], summary["n"]).text(100) or "–"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
