"""What all pictures share: their look, their captions, and how they are written."""

import functools
import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mim4dd.distill.files.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "DPI",
    "GREY",
    "MARKERS",
    "PAGE_INCHES",
    "PALETTE",
    "add_caption",
    "add_title",
    "name_columns",
    "new_figure",
    "save_figure",
    "shorten",
    "styled",
]

# Ten colours that people with any colour vision tell apart: Petroff, arXiv:2107.02270.
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
# Where several curves are in one picture, for those who print it in grey.
MARKERS = "os^DvPX*<>"
GREY = "0.35"

PAGE_INCHES = 5.5  # the text width of NeurIPS and ICLR
DPI = 144
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    # Names of runs and classes are other people's: two dollar signs in one are no formula.
    "text.parse_math": False,
    # The same picture makes the same file.
    "svg.hashsalt": "mim4dd",
    # As TrueType: publishers refuse the Type 3 fonts that matplotlib embeds by default.
    "pdf.fonttype": 42,
}
# Near the size of a paper's captions, at the size at which the figure is printed.
_PAPER: dict[Any, Any] = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "legend.fontsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
}
# Readers of a vector file see no date, and git no change where there is none.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}
_CHARACTERS = 120  # of a caption in an inch, per point of its font

_P = ParamSpec("_P")
_R = TypeVar("_R")


def styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run ``draw`` under the common style and leave matplotlib's settings as they were.

    With ``paper=True`` among its arguments, the style has the fonts and lines of a paper.
    """

    @functools.wraps(draw)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        import matplotlib

        # Not the user's own style on top: a picture must not depend on who draws it.
        style = {**matplotlib.rcParamsDefault, **_STYLE, **(_PAPER if kwargs.get("paper") else {})}
        # Figures here need none, and what a context sets of it outlasts the context.
        del style["backend"]
        with matplotlib.rc_context(style):
            return draw(*args, **kwargs)

    return run


def new_figure(width: float, height: float, *, paper: bool) -> "Figure":
    """A figure of this size in inches; in a paper at most as wide as the text.

    A figure that becomes narrower becomes less high too, but by half at most.
    """
    from matplotlib.figure import Figure

    factor = min(1.0, PAGE_INCHES / width) if paper else 1.0
    return Figure(figsize=(factor * width, max(factor, 0.5) * height), layout="constrained")


def add_title(figure: "Figure", title: str, *, paper: bool) -> None:
    """Put ``title`` above all panels, wrapped to the figure; in a paper the text has the title."""
    if not paper:
        figure.suptitle(textwrap.fill(title, int(figure.get_figwidth() * 11)), fontsize=11)


def add_caption(figure: "Figure", caption: str) -> None:
    """Put ``caption`` below all panels, wrapped to the figure."""
    from matplotlib import rcParams

    size = 8 * rcParams["font.size"] / 9
    width = int(figure.get_figwidth() * _CHARACTERS / size)
    figure.supxlabel(textwrap.fill(caption, width), fontsize=size, color=GREY)


def shorten(name: str, length: int) -> str:
    """The beginning of a name that is longer than ``length``, marked as such."""
    return name if len(name) <= length else name[: max(1, length - 1)] + "…"


def name_columns(axis: Any, names: Sequence[str]) -> None:
    """Write a name below every column of a heat map, slanted where names are long."""
    texts = [shorten(name, 16) for name in names]
    axis.set_xticks(range(len(texts)), texts)
    if max(map(len, texts)) > 3:
        axis.tick_params(axis="x", rotation=50)
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


@styled
def save_figure(path: Path, figure: Any, *, paper: bool = False) -> list[Path]:
    """Write a figure atomically: as PNG, and with ``paper`` as PDF and SVG beside it.

    Returns:
        The paths of the files.

    Example:
        >>> from pathlib import Path
        >>> from mim4dd.distill.pictures import draw_curves, save_figure
        >>> rows = [{"iteration": step, "loss": 1 / (1 + step)} for step in range(5)]
        >>> figure = draw_curves({"run": rows}, num_classes=10, paper=True)
        >>> paths = save_figure(Path("curves.png"), figure, paper=True)  # doctest: +SKIP
    """
    paths = []
    for kind in ("png", "pdf", "svg") if paper else ("png",):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=_METADATA[kind])
        paths.append(path if kind == "png" else path.with_suffix(f".{kind}"))
        write_atomically(paths[-1], buffer.getvalue())
    return paths
