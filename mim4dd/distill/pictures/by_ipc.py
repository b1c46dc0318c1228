"""Accuracy against the number of images per class, as papers show it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mim4dd.distill.pictures.style import GREY, MARKERS, PALETTE, add_title, new_figure, styled
from mim4dd.distill.spread import Spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_accuracy_by_ipc"]

_LOG_SPAN = 10  # counts that span a decade get a logarithmic axis


@styled
def draw_accuracy_by_ipc(
    curves: Mapping[str, Mapping[int, Spread]],
    title: str,
    *,
    random_real: Mapping[int, Spread] | None = None,
    paper: bool = False,
) -> "Figure":
    """Draw the accuracy of sets of several sizes: a curve for each method.

    Error bars are one standard deviation over distillations.

    Args:
        curves: Accuracy, as a share from 0 to 1, by images per class, by the name of the curve.
        title: Stands above all.
        random_real: The same of random real images, as a dashed grey curve.
        paper: Draw at the size of a column of a paper, without a title.

    Raises:
        ValueError: If no accuracy is there.

    Example:
        >>> from mim4dd.distill.pictures import draw_accuracy_by_ipc
        >>> from mim4dd.distill.spread import Spread
        >>> curves = {"DM": {1: Spread(0.5, 0.01, 3), 10: Spread(0.7, 0.01, 3)}}
        >>> figure = draw_accuracy_by_ipc(curves, "digits")
        >>> figure.axes[0].get_xlabel()
        'images per class'
    """
    there = {name: _points(curve) for name, curve in curves.items()}
    there = {name: points for name, points in there.items() if points}
    if not there:
        raise ValueError(f"curves must hold at least one accuracy, got none in {', '.join(curves)}")
    figure = new_figure(3.25, 2.6, paper=paper) if paper else new_figure(6.4, 4.4, paper=paper)
    axis = figure.subplots()
    for number, (name, points) in enumerate(there.items()):
        _draw(axis, points, name, PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)])
    if real := _points(random_real or {}):
        _draw(axis, real, "random real images", GREY, "", linestyle="--")
    counts = sorted({x for points in [*there.values(), real] for x, _, _ in points})
    if counts[-1] >= _LOG_SPAN * counts[0]:
        axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("images per class")
    axis.set_ylabel("test accuracy [%]")
    axis.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=min(3 if not paper else 2, len(there) + 1))
    add_title(figure, title, paper=paper)
    return figure


def _points(curve: Mapping[int, Spread]) -> list[tuple[int, float, float]]:
    """Images per class, mean and deviation in percent; without the sizes that all diverged."""
    return [
        (ipc, 100 * accuracy.mean, 100 * (accuracy.std or 0.0))
        for ipc, accuracy in sorted(curve.items())
        if accuracy.mean is not None
    ]


def _draw(
    axis: Any, points: list[tuple[int, float, float]], name: str, color: str, marker: str,
    linestyle: str = "-",
) -> None:  # fmt: skip
    x, y, error = zip(*points, strict=True)
    drawn = axis.errorbar(x, y, error, color=color, marker=marker, linestyle=linestyle, capsize=2.5)
    # Not as a keyword: matplotlib takes a label that begins with an underscore for "leave me out".
    drawn.set_label(name.lstrip("_") or name)
