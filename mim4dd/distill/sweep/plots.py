"""Pictures of a sweep: accuracy and cost against every varied option, MI bound against accuracy."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mim4dd.distill.pictures.by_ipc import draw_accuracy_by_ipc
from mim4dd.distill.pictures.style import (
    GREY,
    MARKERS,
    PALETTE,
    add_title,
    new_figure,
    save_figure,
    styled,
)
from mim4dd.distill.spread import Spread
from mim4dd.distill.sweep.grid import named, titled
from mim4dd.distill.sweep.job import Result
from mim4dd.distill.sweep.scale import Scale
from mim4dd.distill.sweep.table import Row

__all__ = ["draw_sweep", "varying"]


def draw_sweep(
    rows: Sequence[Row],
    results: Mapping[tuple[str, int], Result],
    title: str,
    folder: Path,
    *,
    cpu: bool,
    paper: bool = False,
) -> list[Path]:
    """Draw one picture per option that varies, and one of MI bounds; return their paths.

    ``cpu`` shows CPU time as the cost: the clock also runs for other processes of the machine.
    ``paper`` makes PDF and SVG beside PNG, all at the size of a page of a paper.
    """
    paths = []
    for name in varying(rows):
        scale = Scale(list(dict.fromkeys(row.options[name] for row in rows)))
        lines = _lines(name, rows, scale)
        if lines:
            figure = _draw_option(name, lines, scale, title, cpu, paper=paper)
            paths += save_figure(folder / f"{name}.png", figure, paper=paper)
        if lines and name == "ipc":
            figure = _draw_by_ipc(lines, title, paper)
            paths += save_figure(folder / "accuracy_by_ipc.png", figure, paper=paper)
    if any(result.mi_lower_bound is not None for result in results.values()):
        figure = _draw_bounds(rows, results, title, paper=paper)
        paths += save_figure(folder / "mi_bound.png", figure, paper=paper)
    return paths


def varying(rows: Sequence[Row]) -> list[str]:
    """The options in which the rows differ."""
    return [name for name in rows[0].options if len({row.options[name] for row in rows}) > 1]


def _draw_by_ipc(lines: Mapping[str, Sequence[Row]], title: str, paper: bool) -> Any:
    """The accuracies of all lines, and of the first's random real images."""
    curves = {
        label or "distilled": {row.options["ipc"]: row.accuracy for row in line}
        for label, line in lines.items()
    }
    real = {row.options["ipc"]: row.random_real for line in lines.values() for row in line}
    return draw_accuracy_by_ipc(curves, title, random_real=real, paper=paper)


@styled
def _draw_option(
    name: str,
    lines: Mapping[str, Sequence[Row]],
    scale: Scale,
    title: str,
    cpu: bool,
    *,
    paper: bool,
) -> Any:
    figure = new_figure(12.6, 4.2, paper=paper)
    accuracy, seconds, memory = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _draw_random_real(accuracy, lines.values(), scale, name)
    _draw_lines(accuracy, lines, scale, name, lambda row: row.accuracy, 100)
    _draw_failures(accuracy, lines.values(), scale, name)
    _draw_lines(seconds, lines, scale, name, lambda row: row.cpu_seconds if cpu else row.seconds)
    _draw_lines(memory, lines, scale, name, lambda row: row.peak_mib)
    counts = sorted({row.accuracy.count for line in lines.values() for row in line})
    number = "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    averaged = f"mean ± std of {number} distillations" if counts[-1] > 1 else "one distillation"
    accuracy.set_ylabel("test accuracy [%]")
    # A paper's caption says of how many, for which a small panel has no room.
    accuracy.set_title("accuracy" if paper else f"accuracy, {averaged}")
    seconds.set_title(("CPU " if cpu else "") + ("s" if paper else "seconds per distillation"))
    memory.set_title("peak memory [MiB]")
    for axis in (accuracy, seconds, memory):
        scale.apply(axis, name)
        axis.grid(alpha=0.3)
    for axis in (seconds, memory):  # from 0, so that a small difference looks small
        axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
    _add_legend(figure, accuracy)
    if len(lines) == 1 and "" not in lines:
        title += f"; the others at {next(iter(lines))}"
    add_title(figure, title, paper=paper)
    return figure


def _add_legend(figure: Any, axis: Any) -> None:
    """Below all panels, where it covers no data, in as many columns as there is room for."""
    handles, labels = axis.get_legend_handles_labels()
    if labels:
        room = int(13 * figure.get_figwidth())
        columns = max(1, min(len(labels), room // (max(map(len, labels)) + 6)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        lines = math.ceil(len(labels) / columns)
        figure.set_figheight(figure.get_figheight() + 0.2 * (lines - 1))


def _lines(name: str, rows: Sequence[Row], scale: Scale) -> dict[str, list[Row]]:
    """Rows that differ in ``name`` alone, in the axis' order, by what the others have."""
    others = [other for other in varying(rows) if other != name]
    lines: dict[str, list[Row]] = {}
    for row in rows:
        label = ", ".join(_labelled(other, row.options[other]) for other in others)
        lines.setdefault(label, []).append(row)
    # A setting beside the grid, such as the base, makes no line.
    lines = {label: line for label, line in lines.items() if len(line) > 1}
    for line in lines.values():
        line.sort(key=lambda row: scale.position(row.options[name]))
    return lines


def _labelled(name: str, value: Any) -> str:
    """An option and its value in a legend; the name of a method says that it is one."""
    return titled(name, value) if name == "method" else f"{named(name)} {titled(name, value)}"


def _draw_lines(
    axis: Any,
    lines: Mapping[str, Sequence[Row]],
    scale: Scale,
    name: str,
    spread: Callable[[Row], Spread],
    factor: float = 1.0,
) -> None:
    many = len(lines) > len(PALETTE)
    # Side by side above the name of a category, where nothing else tells points apart.
    spacing = 0.5 / len(lines) if scale.kind == "category" else 0.0
    for number, (label, line) in enumerate(lines.items()):
        shift = spacing * (number - (len(lines) - 1) / 2)
        points = [
            (
                scale.position(row.options[name]) + shift,
                factor * value.mean,
                factor * (value.std or 0.0),
            )
            for row in line
            if (value := spread(row)).mean is not None
        ]
        if not points:
            continue
        x, y, error = zip(*points, strict=True)
        axis.errorbar(
            x,
            y,
            error,
            color=GREY if many else PALETTE[number],
            marker=MARKERS[number % len(MARKERS)],
            linestyle="none" if scale.kind == "category" else "-",
            linewidth=1.2,
            markersize=5,
            capsize=3,
            label=label if 1 < len(lines) <= len(PALETTE) else None,
        )


def _draw_random_real(axis: Any, lines: Any, scale: Scale, name: str) -> None:
    """Random real images by the recipe of each setting; a band of one standard deviation."""
    drawn: set[tuple[tuple[float, float, float], ...]] = set()
    for line in lines:
        points = tuple(
            (
                scale.position(row.options[name]),
                100 * row.random_real.mean,
                100 * (row.random_real.std or 0.0),
            )
            for row in line
            if row.random_real.mean is not None
        )
        if points in drawn or not points:
            continue
        label = None if drawn else "random real images"
        drawn.add(points)
        x, y, error = zip(*points, strict=True)
        if scale.kind == "category":
            style = {"linestyle": "none", "marker": "_", "markersize": 14}
            axis.errorbar(x, y, error, color=GREY, label=label, **style)
            continue
        axis.plot(x, y, color=GREY, linestyle="--", linewidth=1.2, label=label)
        low = [value - half for value, half in zip(y, error, strict=True)]
        high = [value + half for value, half in zip(y, error, strict=True)]
        axis.fill_between(x, low, high, color=GREY, alpha=0.15, linewidth=0)


def _draw_failures(axis: Any, lines: Any, scale: Scale, name: str) -> None:
    """A cross at the lower edge for every setting of which a distillation failed."""
    failed = {
        scale.position(row.options[name]): None for line in lines for row in line if row.failures
    }
    if failed:
        axis.plot(
            list(failed),
            [0.03] * len(failed),
            transform=axis.get_xaxis_transform(),
            color=PALETTE[2],
            marker="x",
            markersize=8,
            markeredgewidth=2,
            linestyle="none",
            clip_on=False,
            label="a distillation failed",
        )


@styled
def _draw_bounds(
    rows: Sequence[Row], results: Mapping[tuple[str, int], Result], title: str, *, paper: bool
) -> Any:
    """Every distillation: its MI bound and its accuracy."""
    done = {
        key: result
        for key, result in results.items()
        if result.mi_lower_bound is not None and result.failure is None
    }
    # A colour for every setting, or where there are many for every value of the first option. What
    # different critics estimate are different bounds: nothing else may share their colours.
    names = varying(rows)[:1] if len(rows) > len(PALETTE) else []
    names = ["critic"] if "critic" in varying(rows) else names
    options = {row.setting: row.options for row in rows}
    groups: dict[str, list[Result]] = {}
    for (setting, _), result in done.items():
        label = "".join(_labelled(name, options[setting][name]) for name in names) or setting
        groups.setdefault(label, []).append(result)
    told = f"{len(done)} distillations"
    if names == ["critic"]:
        groups = {f"{label}{_correlation(group)}": group for label, group in groups.items()}
    else:
        told += _correlation(list(done.values()))
    figure = new_figure(3.25, 2.9, paper=paper) if paper else new_figure(6.2, 4.7, paper=paper)
    axis = figure.subplots()
    many = len(groups) > len(PALETTE)
    for number, (label, group) in enumerate(groups.items()):
        axis.plot(
            [result.mi_lower_bound or 0.0 for result in group],
            [100 * result.mean for result in group],
            color=PALETTE[0] if many else PALETTE[number],
            marker=MARKERS[number % len(MARKERS)],
            linestyle="none",
            alpha=0.8,
            label=None if many else label,
        )
    _draw_ceilings(axis, done.values())
    axis.set_xlabel("MI lower bound, end of distillation [nats]")
    axis.set_ylabel("test accuracy [%]")
    axis.set_title(told)
    axis.grid(alpha=0.3)
    _add_legend(figure, axis)
    add_title(figure, title, paper=paper)
    return figure


def _draw_ceilings(axis: Any, results: Any) -> None:
    """What pairs that share only a class can carry at most."""
    for classes in {result.num_classes for result in results} - {0}:  # of files that name none
        axis.axvline(math.log(classes), color=GREY, linestyle="--", linewidth=1)
        axis.annotate(
            f"log C = {math.log(classes):.2f}",
            (math.log(classes), 0.02),
            xycoords=axis.get_xaxis_transform(),
            rotation=90,
            ha="right",
            fontsize="small",
            color=GREY,
        )


def _correlation(results: Sequence[Result]) -> str:
    """For the legend; of fewer than five points it would be chance."""
    bounds = [result.mi_lower_bound or 0.0 for result in results]
    accuracies = [result.mean for result in results]
    if len(results) < 5 or len(set(bounds)) == 1 or len(set(accuracies)) == 1:
        return ""
    return f", Pearson r = {statistics.correlation(bounds, accuracies):.2f}"
