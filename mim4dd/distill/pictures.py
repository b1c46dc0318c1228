"""Pictures of a run: the synthetic images as a labelled grid, and its curves."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim4dd.distill.storage import write_atomically

__all__ = ["save_curves", "save_grid"]

_MAX_COLUMNS = 10


def save_grid(
    path: Path,
    pixels: Tensor,  # (n, channels, H, W)
    labels: Tensor,  # (n,)
    class_names: Sequence[str],
    title: str,
) -> None:
    """Draw up to 10 images of every class: one row per class, or one row in all at one per class.

    Distilled pixels leave the range of photographs; what lies outside 0 to 1 is clipped.
    """
    from matplotlib.figure import Figure

    by_class = [pixels[labels == label][:_MAX_COLUMNS] for label in range(len(class_names))]
    depth = max(len(images) for images in by_class)
    if depth == 1:
        columns = min(_MAX_COLUMNS, len(by_class))
        rows = math.ceil(len(by_class) / columns)
    else:
        rows, columns = len(by_class), depth
    figure = Figure(figsize=(0.9 * columns + 0.4, 1.05 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for label, images in enumerate(by_class):
        for index, image in enumerate(images):
            row, column = divmod(label, columns) if depth == 1 else (label, index)
            axis = axes[row, column]
            shown = image.clamp(0, 1).permute(1, 2, 0).cpu().numpy()
            axis.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if index == 0:
                axis.set_title(class_names[label], fontsize=9)
    figure.suptitle(title, fontsize=10)
    _save(path, figure)


def save_curves(
    path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]], num_classes: int
) -> None:
    """Draw losses, MI bound, step size and accuracy of several runs over each other.

    Args:
        path: PNG file to write.
        runs: Rows of metrics by the name of the run.
        num_classes: C, for the line at log C that the MI bound cannot pass.
    """
    from matplotlib.figure import Figure

    present = {key for rows in runs.values() for row in rows for key in row}
    panels = [(key, title) for key, title in _PANELS if key in present]
    columns = min(3, len(panels))
    rows_of_panels = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows_of_panels), layout="constrained")
    axes = figure.subplots(rows_of_panels, columns, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (key, title) in zip(axes, panels, strict=False):
        for number, (name, rows) in enumerate(runs.items()):
            points = [(row["iteration"], row[key]) for row in rows if key in row]
            if points:
                _draw_curve(axis, points, f"C{number}", name, sparse=key == "accuracy")
        if key == "mi_lower_bound":
            _draw_ceiling(axis, math.log(num_classes))
        axis.set_xlabel("iteration")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    _save(path, figure)


_PANELS = [
    ("trajectory_loss", "trajectory loss"),
    ("contrastive_loss", "contrastive loss [nats]"),
    ("mi_lower_bound", "MI lower bound [nats]"),
    ("syn_lr", "learned step size"),
    ("accuracy", "test accuracy"),
]


def _draw_curve(
    axis: Any, points: Sequence[tuple[int, float]], color: str, name: str, sparse: bool
) -> None:
    x, y = (torch.tensor(values, dtype=torch.float64) for values in zip(*points, strict=True))
    if sparse:
        axis.plot(x, y, color=color, marker="o", markersize=3, label=name)
        return
    # Every iteration draws another segment of another expert: a running median shows the trend.
    axis.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
    axis.plot(x, _running_median(y), color=color, label=name)


def _draw_ceiling(axis: Any, ceiling: float) -> None:
    """The line that pairs sharing only a class cannot pass."""
    axis.axhline(ceiling, color="0.4", linestyle="--", linewidth=1)
    axis.annotate(f"log C = {ceiling:.2f}", (0, ceiling), va="bottom", fontsize=8, color="0.4")
    axis.margins(y=0.12)


def _running_median(values: Tensor, window: int = 21) -> Tensor:
    half = window // 2
    return torch.stack(
        [values[max(0, i - half) : i + half + 1].median() for i in range(len(values))]
    )


def _save(path: Path, figure: Any) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
