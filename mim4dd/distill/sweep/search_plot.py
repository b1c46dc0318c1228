"""The picture of a search: how it went, and where in every range it found what."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mim4dd.distill.pictures.style import (
    GREY,
    PALETTE,
    add_title,
    new_figure,
    save_figure,
    styled,
)
from mim4dd.distill.sweep.grid import named
from mim4dd.distill.sweep.scale import Scale
from mim4dd.distill.sweep.space import Range, Space, Trial

__all__ = ["draw_search"]

_MAX_COLUMNS = 3


def draw_search(
    path: Path, tried: Sequence[Trial], space: Space, title: str, *, paper: bool = False
) -> list[Path]:
    """Draw the accuracies on held-out training images by trial, and against every option."""
    return save_figure(path, _draw(tried, space, title, paper=paper), paper=paper)


@styled
def _draw(tried: Sequence[Trial], space: Space, title: str, *, paper: bool) -> Any:
    panels = 1 + len(space)
    columns = min(_MAX_COLUMNS, panels)
    rows = math.ceil(panels / columns)
    figure = new_figure(4.2 * columns, 3.4 * rows + 0.6, paper=paper)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[panels:]:
        axis.set_axis_off()
    done = [trial for trial in tried if trial.accuracy is not None]
    _draw_history(axes[0], done)
    for axis, (name, values) in zip(axes[1:], space.items(), strict=False):
        points = _draw_option(axis, name, values, done)
    for axis in axes[:panels]:
        axis.set_ylabel("held-out accuracy [%]")
        axis.grid(alpha=0.3)
    if len(done) > 1:
        figure.colorbar(points, ax=list(axes[1:panels]), label="trial", shrink=0.8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    counted = f"{title}: {len(tried)} settings, {len(tried) - len(done)} diverged"
    add_title(figure, counted, paper=paper)
    return figure


def _draw_history(axis: Any, done: Sequence[Trial]) -> None:
    numbers = [trial.number for trial in done]
    accuracies = [100 * (trial.accuracy or 0.0) for trial in done]
    errors = [100 * (trial.std or 0.0) for trial in done]
    axis.errorbar(
        numbers, accuracies, errors, color=GREY, marker="o", markersize=4, linestyle="none",
        linewidth=1, label="mean ± std over seeds",
    )  # fmt: skip
    best = list(itertools.accumulate(accuracies, max))
    axis.step(numbers, best, where="post", color=PALETTE[1], label="best so far")
    axis.set_xlabel("trial")


def _draw_option(axis: Any, name: str, values: Range | list[Any], done: Sequence[Trial]) -> Any:
    """Accuracy against one option, later trials lighter."""
    chosen = [trial.setting.options[name] for trial in done]
    scale = None if isinstance(values, Range) else Scale(values)
    points = axis.scatter(
        chosen if scale is None else [scale.position(value) for value in chosen],
        [100 * (trial.accuracy or 0.0) for trial in done],
        c=[trial.number for trial in done],
        cmap="viridis",
        edgecolors="0.3",
        linewidths=0.5,
        zorder=3,
    )
    if isinstance(values, Range):
        axis.set_xscale("log" if values.log else "linear")
        axis.set_xlabel(named(name))
    else:
        Scale(values).apply(axis, name)
    return points
