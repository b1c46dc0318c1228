"""The picture beside the table: time and memory as N grows, then every case relative to ours."""

import re
import statistics
import textwrap
from collections import defaultdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from rows import FLOORS, OURS, Row

from mim4dd.distill.pictures.style import DPI, PALETTE, styled

_GREYS = {"#94a4a2", "#717581"}  # too near to the floors'
_COLORS = [to_rgb(color) for color in PALETTE if color not in _GREYS]
_PALETTE = [*_COLORS, *(tuple(0.55 * part for part in color) for color in _COLORS)]
_BAR_INCHES = 0.14


@styled
def save_plot(path: Path, rows: list[Row]) -> None:
    """Two panels for the longest sweep of N, where there is one, above one panel of bars per op."""
    colors = _colors(rows)
    swept = _sweep(rows)
    timed = [row for row in rows if row.ratios and row not in swept]
    ops = list(dict.fromkeys(row.op for row in timed))
    own = {op: [row for row in timed if row.op == op] for op in ops}
    heights = [_height(own[op]) for op in ops]
    parts = ([4.6] if swept else []) + ([sum(heights)] if ops else [])
    figure = Figure(figsize=(11, sum(parts)), layout="constrained")
    places = iter(figure.subfigures(len(parts), 1, squeeze=False, height_ratios=parts)[:, 0])
    if swept:
        _draw_sweep(next(places), swept, colors)
    if ops:
        panels = next(places).subplots(len(ops), 1, squeeze=False, height_ratios=heights)
        for axis, op in zip(panels[:, 0], ops, strict=True):
            _draw_bars(axis, own[op], colors)
    figure.savefig(path, dpi=DPI)


def _colors(rows: list[Row]) -> dict[str, object]:
    """One colour per provider in every panel; ours and the floor the same in every picture."""
    providers = dict.fromkeys(row.provider for row in rows)
    others = [name for name in providers if name not in (OURS, *FLOORS)]
    palette = {name: _PALETTE[1 + i % (len(_PALETTE) - 1)] for i, name in enumerate(others)}
    return {OURS: _PALETTE[0], **dict.fromkeys(FLOORS, "0.6"), **palette}


def _sweep(rows: list[Row]) -> list[Row]:
    """The rows that differ in N = M alone and have most sizes."""
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        if "dimension" in row.info and row.info["num_queries"] == row.info["num_keys"]:
            names = ("dimension", "dtype", "backward", "num_classes", "threads")
            groups[(row.op, row.device, *(row.info[name] for name in names))].append(row)
    longest = max(groups.values(), key=lambda group: len(_sizes(group)), default=[])
    return longest if len(_sizes(longest)) > 2 else []


def _sizes(rows: list[Row]) -> list[int]:
    return sorted({row.info["num_queries"] for row in rows})


def _draw_sweep(figure: Figure, rows: list[Row], colors: dict[str, object]) -> None:
    time, memory = figure.subplots(1, 2)
    for provider in dict.fromkeys(row.provider for row in rows):
        own = sorted(
            (row for row in rows if row.provider == provider), key=lambda r: r.info["num_queries"]
        )
        sizes = [row.info["num_queries"] for row in own]
        style = {
            "color": colors[provider],
            "label": provider,
            "marker": "o",
            "markersize": 3.5,
            "lw": 2.5 if provider == OURS else 1.3,
            "ls": "--" if provider in FLOORS else "-",
            "zorder": 3 if provider == OURS else 2,
        }
        time.plot(sizes, [1e3 * row.seconds for row in own], **style)
        if provider not in FLOORS:
            memory.plot(sizes, [max(1e-3, row.info["peak_bytes"] / 2**20) for row in own], **style)
    for axis, title in ((time, "time, ms"), (memory, "peak memory above the inputs, MiB")):
        axis.set(xscale="log", yscale="log", xlabel="N = M", title=title)
        axis.set_xticks(_sizes(rows), [str(size) for size in _sizes(rows)])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.minorticks_off()
        axis.grid(color="0.9")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    figure.legend(*time.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    case = rows[0].case.partition(" ")[2]
    figure.suptitle(f"{rows[0].op} on {rows[0].device}, {case}", fontsize=10)


def _two_lines(case: str) -> str:
    """Wrapped, but a number stays with what it counts."""
    return textwrap.fill(re.sub(r"(\d) ([a-z])", "\\1\N{NO-BREAK SPACE}\\2", case), 34)


def _height(rows: list[Row]) -> float:
    cases, providers = ({getattr(row, name) for row in rows} for name in ("case", "provider"))
    return max(0.9 + len(cases) * (0.1 + _BAR_INCHES * len(providers)), 1 + 0.17 * len(providers))


def _draw_bars(axis: Axes, rows: list[Row], colors: dict[str, object]) -> None:
    """Time of every provider, relative to ours, for every case."""
    cases = list(dict.fromkeys(row.case for row in rows))
    providers = list(dict.fromkeys(row.provider for row in rows))
    thickness = 0.85 / len(providers)
    for place, provider in enumerate(providers):
        own = [row for row in rows if row.provider == provider]
        y = [cases.index(row.case) + place * thickness for row in own]
        middle = [statistics.median(row.ratios) for row in own]
        spread = [
            [value - min(row.ratios) for value, row in zip(middle, own, strict=True)],
            [max(row.ratios) - value for value, row in zip(middle, own, strict=True)],
        ]
        axis.barh(
            y, middle, thickness, xerr=spread, label=provider, color=colors[provider],
            error_kw={"lw": 0.8},
        )  # fmt: skip
        for row, value, at in zip(own, middle, y, strict=True):
            axis.text(max(row.ratios), at, f" {value:.2f}", va="center", fontsize=6)
    axis.set_yticks([index + 0.425 - thickness / 2 for index in range(len(cases))])
    axis.set_yticklabels(map(_two_lines, cases), fontsize=7)
    axis.invert_yaxis()
    ratios = [ratio for row in rows for ratio in row.ratios]
    if max(ratios) > 8:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.axvline(1, color="0.4", lw=0.8)
    axis.margins(x=0.08)
    axis.set_title(
        f"{rows[0].op} on {rows[0].device}: time / {OURS}, shorter is faster", fontsize=9
    )
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
