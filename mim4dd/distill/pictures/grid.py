"""Synthetic images as labelled mosaics, one or several side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mim4dd._checks import check_rank
from mim4dd.distill.pictures.choice import choose
from mim4dd.distill.pictures.style import (
    PAGE_INCHES,
    add_caption,
    add_title,
    save_figure,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_grid", "save_grid"]

_MAX_COLUMNS = 10
_MAX_ROWS = 20
_INCHES = 12.0  # of all panels, in either direction
_MAX_CELL_INCHES = 0.9


def save_grid(
    path: Path,
    pixels: Tensor,  # (n, channels, H, W)
    labels: Tensor,  # (n,)
    class_names: Sequence[str],
    title: str,
    *,
    paper: bool = False,
) -> list[Path]:
    """Draw one set of images by :func:`draw_grid` into files, as :func:`save_figure` does.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from mim4dd.distill.pictures import save_grid
        >>> pixels = torch.rand(2, 1, 8, 8)
        >>> path = Path(tempfile.mkdtemp()) / "grid.png"
        >>> [each.name for each in save_grid(path, pixels, torch.arange(2), ["cat", "dog"], "two")]
        ['grid.png']
    """
    figure = draw_grid({"": pixels}, labels, class_names, title, paper=paper)
    return save_figure(path, figure, paper=paper)


@styled
def draw_grid(
    panels: Mapping[str, Tensor],
    labels: Tensor,
    class_names: Sequence[str],
    title: str,
    *,
    paper: bool = False,
) -> "Figure":
    """Draw sets of images side by side: a row for every class, or a cell at one image per class.

    Distilled pixels leave the range of photographs: what lies outside 0 to 1 is clipped, and the
    caption says how much did, as it says what of a large set is left out.

    Args:
        panels: Pixels (n, channels, H, W) of each set by its name; "" names none.
        labels: Class of every image, the same in every set. (n,)
        class_names: Names of the C classes.
        title: Stands above all.
        paper: Draw at the size of a page of a paper, without a title.

    Raises:
        ValueError: If the sets are not equally many images of one size, or labels do not fit.

    Example:
        >>> import torch
        >>> from mim4dd.distill.pictures import draw_grid
        >>> before, after = torch.rand(2, 6, 3, 8, 8)
        >>> labels = torch.arange(3).repeat_interleave(2)
        >>> figure = draw_grid({"initial": before, "final": after}, labels, "abc", "six images")
        >>> [axis.get_title() for axis in figure.axes]
        ['initial', 'final']
    """
    _check_panels(panels, labels)
    single = int(labels.bincount(minlength=1).max()) <= 1
    chosen = choose(
        labels, class_names, _MAX_ROWS * _MAX_COLUMNS // 2 if single else _MAX_ROWS, _MAX_COLUMNS
    )
    columns = (
        _columns_of_singles(len(chosen.by_class))
        if single
        else max(len(rows) for rows in chosen.by_class)
    )
    height, width = next(iter(panels.values())).shape[2:]
    layout = _Layout(chosen.by_class, single, columns, height, width)
    across = layout.columns * len(panels)
    down = layout.rows * layout.aspect
    if paper:
        cell = min(_MAX_CELL_INCHES / 2, (PAGE_INCHES - 0.6) / across, 1.5 * PAGE_INCHES / down)
        figure = _figure(max(2.4, cell * across + 0.6), cell * down + 0.4)
    else:
        cell = min(_MAX_CELL_INCHES, _INCHES / across, _INCHES / down)
        figure = _figure(max(4.5, cell * across + 1.2), cell * down + 0.9)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for number, (axis, (name, pixels)) in enumerate(zip(axes, panels.items(), strict=True)):
        axis.imshow(layout.mosaic(pixels), interpolation="nearest")
        axis.set_title(name)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
        if single:
            layout.name_cells(axis, class_names, cell, 6.5 if paper or cell <= 0.6 else 8)
        elif number == 0:
            layout.name_rows(axis, class_names)
    add_title(figure, title, paper=paper)
    add_caption(figure, " ".join(filter(None, [chosen.left_out, _clipped(panels)])))
    return figure


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Sets stand further apart than the images in them.
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.08))


def _check_panels(panels: Mapping[str, Tensor], labels: Tensor) -> None:
    if not panels:
        raise ValueError("panels must hold at least one set of images, got none")
    shapes = {tuple(pixels.shape) for pixels in panels.values()}
    for name, pixels in panels.items():
        check_rank(f"pixels of {name!r}", pixels, 4)
    if len(shapes) > 1 or len(labels) != next(iter(shapes))[0]:
        raise ValueError(
            "panels must hold equally many images of one size, one per label, got "
            f"{sorted(shapes)} and {len(labels)} labels"
        )


def _columns_of_singles(num_classes: int) -> int:
    return num_classes if num_classes <= 5 else min(_MAX_COLUMNS, -(-num_classes // 2))


def _clipped(panels: Mapping[str, Tensor]) -> str:
    """How much of each set lies outside the range that can be shown."""
    shares = {
        name: ((pixels < 0) | (pixels > 1)).double().mean().item()
        for name, pixels in panels.items()
    }
    beyond = ", ".join(
        f"{100 * share:.1f} %{f' ({name})' if name else ''}"
        for name, share in shares.items()
        if share > 0
    )
    note = f"Pixel values outside 0 to 1, clipped: {beyond}." if beyond else ""
    channels = next(iter(panels.values())).shape[1]
    if channels not in (1, 3):
        note += f" The mean of {channels} channels is shown."
    return note.strip()


class _Layout:
    """Where each image stands in a mosaic."""

    def __init__(
        self, by_class: list[Tensor], single: bool, columns: int, height: int, width: int
    ) -> None:
        self.by_class, self.single, self.columns = by_class, single, columns
        self.rows = -(-len(by_class) // columns) if single else len(by_class)
        self.height, self.width = height, width
        self.gap = max(1, round(0.06 * width))
        # A name stands above each image where there is one per class.
        self.head = max(2, round(0.34 * width)) if single else self.gap

    @property
    def aspect(self) -> float:
        """Height of a cell per its width."""
        return (self.height + self.head) / (self.width + self.gap)

    def place(self, label: int, index: int) -> tuple[int, int]:
        """Top and left pixel of an image."""
        row, column = divmod(label, self.columns) if self.single else (label, index)
        return row * (self.height + self.head) + self.head, column * (self.width + self.gap)

    def mosaic(self, pixels: Tensor) -> Any:
        """All images on transparent ground, (rows, columns, 4)."""
        canvas = torch.zeros(
            self.rows * (self.height + self.head), self.columns * (self.width + self.gap), 4
        )
        for label, rows in enumerate(self.by_class):
            for index, row in enumerate(rows.tolist()):
                top, left = self.place(label, index)
                there = canvas[top : top + self.height, left : left + self.width]
                image = pixels[row].detach().cpu().clamp(0, 1)
                if len(image) != 3:
                    image = image.mean(0, keepdim=True)
                there[..., :3] = image.permute(1, 2, 0)
                there[..., 3] = 1
        return canvas.numpy()

    def name_cells(self, axis: Any, class_names: Sequence[str], cell: float, size: float) -> None:
        """Write a class above its image, as much of it as ``cell`` inches hold."""
        room = int(cell * 72 / (0.6 * size))
        for label in range(len(self.by_class)):
            top, left = self.place(label, 0)
            axis.text(
                left + (self.width - 1) / 2,
                top - 0.5 - self.gap / 2,
                shorten(class_names[label], room),
                fontsize=size,
                ha="center",
                va="bottom",
            )

    def name_rows(self, axis: Any, class_names: Sequence[str]) -> None:
        """Write a class beside its row."""
        middles = [
            self.place(label, 0)[0] + (self.height - 1) / 2 for label in range(len(self.by_class))
        ]
        names = [shorten(class_names[label], 24) for label in range(len(self.by_class))]
        axis.set_yticks(middles, names)
        axis.tick_params(length=0)
