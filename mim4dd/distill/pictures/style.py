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
    "GREY",
    "PALETTE",
    "add_caption",
    "add_title",
    "name_columns",
    "save_figure",
    "shorten",
    "styled",
]

# Ten colours that people with any colour vision tell apart: Petroff, arXiv:2107.02270.
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
GREY = "0.35"

DPI = 144
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    # Names of runs and classes are other people's: two dollar signs in one are no formula.
    "text.parse_math": False,
}
_CHARACTERS_PER_INCH = 15  # of a caption

_P = ParamSpec("_P")
_R = TypeVar("_R")


def styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run ``draw`` under the common style and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        import matplotlib

        # Not the user's own style on top: a picture must not depend on who draws it.
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"}):
            return draw(*args, **kwargs)

    return run


def add_title(figure: "Figure", title: str) -> None:
    """Put ``title`` above all panels, wrapped to the figure."""
    width = int(figure.get_figwidth() * 11)
    figure.suptitle(textwrap.fill(title, width), fontsize=11)


def add_caption(figure: "Figure", caption: str) -> None:
    """Put ``caption`` below all panels, wrapped to the figure."""
    width = int(figure.get_figwidth() * _CHARACTERS_PER_INCH)
    figure.supxlabel(textwrap.fill(caption, width), fontsize=8, color=GREY)


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
def save_figure(path: Path, figure: Any) -> None:
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    write_atomically(path, buffer.getvalue())
