"""Heat maps of what is no image: rows of a tabular set, and soft labels."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mim4dd._checks import check_rank
from mim4dd.distill.pictures.choice import Choice, choose
from mim4dd.distill.pictures.style import (
    add_caption,
    add_title,
    name_columns,
    new_figure,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_rows", "draw_soft_labels"]

_MAX_CLASSES = 20
_MAX_ROWS = 100
_MAX_INCHES = 7.0
_NAMED_CLASSES = 20  # more names on an axis would touch each other


@styled
def draw_rows(
    panels: Mapping[str, Tensor],
    labels: Tensor,
    class_names: Sequence[str],
    title: str,
    *,
    paper: bool = False,
) -> "Figure":
    """Draw sets of rows side by side as heat maps, ordered by class.

    Args:
        panels: Normalised rows (n, D) of each set by its name.
        labels: Class of every row, the same in every set. (n,)
        class_names: Names of the C classes.
        title: Stands above all.
        paper: Draw at the size of a page of a paper, without a title.

    Raises:
        ValueError: If rows and labels do not fit.

    Example:
        >>> import torch
        >>> from mim4dd.distill.pictures import draw_rows
        >>> rows = {"initial": torch.randn(4, 7), "final": torch.randn(4, 7)}
        >>> figure = draw_rows(rows, torch.tensor([0, 0, 1, 1]), ["cat", "dog"], "rows")
    """
    for name, rows in panels.items():
        check_rank(f"rows of {name!r}", rows, 2)
        if len(rows) != len(labels):
            raise ValueError(
                f"labels must be one per row of {name!r}, got {len(labels)} and {len(rows)} rows"
            )
    chosen = _choose(labels, class_names)
    order = torch.cat(chosen.by_class)
    shown = {name: rows.detach().cpu()[order] for name, rows in panels.items()}
    largest = max(float(rows.abs().max()) for rows in shown.values())
    figure, axes = _panels(len(panels), len(order), paper=paper)
    for number, (axis, (name, rows)) in enumerate(zip(axes, shown.items(), strict=True)):
        image = axis.imshow(rows.numpy(), cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto")
        axis.set_title(name)
        axis.set_xlabel("feature")
        axis.xaxis.get_major_locator().set_params(integer=True)
        _mark_classes(axis, chosen.by_class, class_names, "black", named=number == 0)
    figure.colorbar(image, ax=list(axes), aspect=40, label="value, in deviations of the data")
    add_title(figure, title, paper=paper)
    add_caption(figure, chosen.left_out)
    return figure


@styled
def draw_soft_labels(
    probabilities: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    title: str,
    *,
    paper: bool = False,
) -> "Figure":
    """Draw learned soft labels as a heat map: a row per sample, a column per class.

    Args:
        probabilities: The labels, rows that add up to 1. (n, C)
        labels: The class that every sample was made for. (n,)
        class_names: Names of the C classes.
        title: Stands above all.
        paper: Draw at the size of a page of a paper, without a title.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> import torch
        >>> from mim4dd.distill.pictures import draw_soft_labels
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> figure = draw_soft_labels(probabilities, torch.arange(2), ["cat", "dog"], "labels")
    """
    if probabilities.shape != (len(labels), len(class_names)):
        raise ValueError(
            f"probabilities must be ({len(labels)}, {len(class_names)}) as there are labels and "
            f"classes, got {tuple(probabilities.shape)}"
        )
    chosen = _choose(labels, class_names)
    shown = probabilities.detach().cpu()[torch.cat(chosen.by_class)]
    width = 5.0 if len(class_names) <= _NAMED_CLASSES else 7.0
    figure, (axis,) = _panels(1, len(shown), width, paper=paper)
    image = axis.imshow(
        shown.numpy(), cmap="cividis", vmin=0, aspect="auto", interpolation="nearest"
    )
    _mark_classes(axis, chosen.by_class, class_names, "white", named=True)
    axis.set_xlabel("class of the label")
    axis.set_ylabel("class that the sample was made for")
    if len(class_names) <= _NAMED_CLASSES:
        name_columns(axis, class_names)
    figure.colorbar(image, ax=axis, aspect=40, label="probability")
    own = probabilities.detach().cpu().gather(1, labels.cpu()[:, None]).double().mean().item()
    add_title(figure, title, paper=paper)
    add_caption(figure, f"Mean probability of the own class: {own:.2f}. {chosen.left_out}".strip())
    return figure


def _choose(labels: Tensor, class_names: Sequence[str]) -> Choice:
    return choose(
        labels, class_names, _MAX_CLASSES, _MAX_ROWS // min(_MAX_CLASSES, len(class_names))
    )


def _panels(count: int, num_rows: int, width: float = 4.2, *, paper: bool) -> tuple[Any, Any]:
    height = min(_MAX_INCHES, max(2.2, 0.36 * num_rows)) + 1.4
    figure = new_figure(1.6 + width * count, height, paper=paper)
    return figure, figure.subplots(1, count, squeeze=False, sharey=True)[0]


def _mark_classes(
    axis: Any, by_class: list[Tensor], class_names: Sequence[str], line: str, named: bool
) -> None:
    """Lines between classes, and their names at the middle of their rows."""
    ends = torch.tensor([len(rows) for rows in by_class]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    for end in ends[:-1]:
        axis.axhline(end - 0.5, color=line, linewidth=0.8)
    if named:
        middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
        axis.set_yticks(middles, [shorten(name, 24) for name in class_names[: len(by_class)]])
    axis.tick_params(axis="y", length=0)
    axis.spines[:].set_visible(False)
