"""The metrics of several runs over each other, a panel for each that is there."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mim4dd.distill.pictures.style import (
    GREY,
    PALETTE,
    add_title,
    new_figure,
    save_figure,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_curves", "save_curves"]

Rows = Sequence[Mapping[str, Any]]

_BOUND = "mi_lower_bound"
_STYLES = ("-", "--", ":", "-.")
_TITLES = {
    "loss": "loss",
    "contrastive_loss": "contrastive loss [nats]",
    _BOUND: "MI lower bound [nats]",
    "syn_lr": "step size that comes with the set",
    "accuracy": "test accuracy",
}
_PANEL_INCHES = (3.9, 2.9)
_LOG_SPAN = 50  # losses that fall further than by this factor get a logarithmic axis


def save_curves(
    path: Path, runs: Mapping[str, Rows], num_classes: int, *, paper: bool = False
) -> list[Path]:
    """Draw the curves of :func:`draw_curves` into files, as :func:`save_figure` does.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mim4dd.distill.pictures import save_curves
        >>> rows = [{"iteration": step, "loss": 1 / (1 + step)} for step in range(9)]
        >>> paths = save_curves(Path(tempfile.mkdtemp()) / "curves.png", {"run": rows}, 10)
        >>> [path.name for path in paths]
        ['curves.png']
    """
    return save_figure(path, draw_curves(runs, num_classes, paper=paper), paper=paper)


@styled
def draw_curves(runs: Mapping[str, Rows], num_classes: int, *, paper: bool = False) -> "Figure":
    """Draw losses, MI bounds, step size, accuracy and all other metrics of runs over each other.

    Accuracy comes with a band of one standard deviation over its networks. One run alone has the
    bounds of all layers in one panel; several have a panel for each layer.

    Args:
        runs: Rows of metrics, each with its ``iteration``, by the name of the run.
        num_classes: C, for the line at log C that the MI bound cannot pass.
        paper: Draw at the size of a page of a paper, without a title.

    Raises:
        ValueError: If no row holds a metric.

    Example:
        >>> from mim4dd.distill.pictures import draw_curves
        >>> rows = [{"iteration": step, "loss": 1 / (1 + step)} for step in range(5)]
        >>> [axis.get_title() for axis in draw_curves({"run": rows}, num_classes=10).axes]
        ['loss']
    """
    panels = _panels(runs)
    if not panels:
        raise ValueError(f"runs must hold at least one metric, got none in {', '.join(runs)}")
    columns = _columns(len(panels), most=3 if paper else 4)
    rows_of_panels = math.ceil(len(panels) / columns)
    width, height = _PANEL_INCHES
    figure = new_figure(width * columns, height * rows_of_panels, paper=paper)
    axes = figure.subplots(rows_of_panels, columns, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes, panels, strict=False):
        if panel.key == _BOUND and len(runs) == 1 and len(layers := _layers(runs)) > 1:
            _draw_layers(axis, next(iter(runs.values())), layers)
        else:
            for number, rows in enumerate(runs.values()):
                _draw_curve(axis, rows, panel.key, *_look(number))
        if panel.key.startswith(_BOUND):
            _draw_ceiling(axis, math.log(num_classes))
        elif panel.key.endswith("loss"):
            _scale(axis, [row[panel.key] for rows in runs.values() for row in rows
                          if row.get(panel.key) is not None])  # fmt: skip
        axis.set_xlabel("iteration")
        axis.set_title(textwrap.fill(panel.title, 24) if paper else panel.title)
        axis.grid(alpha=0.25)
    if len(runs) == 1:
        add_title(figure, next(iter(runs)), paper=paper)
    else:
        _name_runs(figure, list(runs))
    return figure


def _columns(num_panels: int, most: int) -> int:
    """Three, or ``most``, whichever leaves fewer places free."""
    if num_panels == 4:
        return 2
    return min(num_panels, min((3, most), key=lambda columns: -num_panels % columns))


class _Panel(NamedTuple):
    key: str
    title: str


def _panels(runs: Mapping[str, Rows]) -> list[_Panel]:
    """The metrics that are there, from losses to accuracy."""
    keys = list(
        dict.fromkeys(
            key
            for rows in runs.values()
            for row in rows
            for key, value in row.items()
            if isinstance(value, int | float)
        )
    )
    layers = _layers(runs)
    hidden = {"iteration", "accuracy_std", "accuracy_seeds", "seconds"}
    # The last layer's bound is the bound, and a single run shows all layers in its panel.
    hidden |= set(layers if len(runs) == 1 else layers[-1:])
    if _is_one_of_its_parts(runs, keys):
        hidden.add("loss")
    losses = ["loss", *sorted(key for key in keys if key.endswith("_loss"))]
    losses.sort(key=lambda key: key == "contrastive_loss")
    ends = ["syn_lr", "accuracy"]
    others = [key for key in keys if key not in {*losses, _BOUND, *layers, *ends}]
    order = [*losses, _BOUND, *layers, *others, *ends]
    return [_Panel(key, _title(key)) for key in order if key in keys and key not in hidden]


def _title(key: str) -> str:
    name, _, layer = key.partition("/")
    title = _TITLES.get(name, name.replace("_", " "))
    return f"{title}, layer {layer}" if layer else title


def _layers(runs: Mapping[str, Rows]) -> list[str]:
    """Keys of the bounds of single layers, early to late."""
    keys = {key for rows in runs.values() for row in rows for key in row}
    return sorted(
        (key for key in keys if key.startswith(f"{_BOUND}/")),
        key=lambda key: (len(key), key),  # as numbers: layer 10 comes after layer 9
    )


def _is_one_of_its_parts(runs: Mapping[str, Rows], keys: Sequence[str]) -> bool:
    """Whether the loss says nothing more than a method's own loss, as without the add-on."""
    rows = [row for part in runs.values() for row in part if "loss" in row]
    return any(
        all(row.get(key) == row["loss"] for row in rows) for key in keys if key.endswith("_loss")
    )


def _look(number: int) -> tuple[str, Any]:
    """Colour and line style: when the colours are through they come again in another style."""
    return PALETTE[number % len(PALETTE)], _STYLES[number // len(PALETTE) % len(_STYLES)]


def _draw_curve(axis: Any, rows: Rows, key: str, color: Any, style: Any) -> None:
    """One metric of one run; nothing where it has none."""
    there = [row for row in rows if row.get(key) is not None]
    if not there:
        return
    x = torch.tensor([row["iteration"] for row in there])
    y = torch.tensor([row[key] for row in there], dtype=torch.float64)
    if len(there) == 1:
        axis.plot(x, y, color=color, marker="o", markersize=5, linestyle="none")
    elif key == "accuracy":
        axis.plot(x, y, color=color, linestyle=style, marker="o", markersize=3)
    else:
        # Every iteration draws other real samples: a running median shows the trend.
        axis.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
        axis.plot(x, _running_median(y), color=color, linestyle=style)
    if key == "accuracy":
        std = torch.tensor([row.get("accuracy_std", 0.0) for row in there], dtype=torch.float64)
        if len(there) == 1:
            axis.errorbar(x, y, std, color=color, capsize=3)
        else:
            axis.fill_between(x, y - std, y + std, color=color, alpha=0.15, linewidth=0)


def _draw_layers(axis: Any, rows: Rows, layers: Sequence[str]) -> None:
    """The bounds of all layers of one run, dark to bright from early to late."""
    from matplotlib import colormaps

    for number, key in enumerate(layers):
        color = colormaps["viridis"](0.8 * number / (len(layers) - 1))
        _draw_curve(axis, rows, key, color, "-")
        axis.lines[-1].set_label(f"layer {key.partition('/')[2]}")
    # Beside the panel, where it covers no curve.
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _scale(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic axis for what stays positive and spans orders of magnitude."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > _LOG_SPAN * min(finite):
        axis.set_yscale("log")
        # Not as powers of ten, which are formulas.
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())


def _draw_ceiling(axis: Any, ceiling: float) -> None:
    """The line that pairs sharing only a class cannot pass."""
    axis.axhline(ceiling, color=GREY, linestyle=(0, (4, 3)), linewidth=1)
    axis.annotate(
        f"log C = {ceiling:.2f}",
        (0.01, ceiling),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        fontsize="small",
        color=GREY,
    )
    axis.margins(y=0.12)


def _name_runs(figure: Any, names: Sequence[str]) -> None:
    """One legend for all panels, below them."""
    from matplotlib.lines import Line2D

    room = int(14 * figure.get_figwidth())
    wrapped = [textwrap.fill(name, room - 8, break_on_hyphens=False) for name in names]
    looks = [_look(number) for number in range(len(names))]
    columns = max(1, min(len(names), room // (max(map(len, wrapped)) + 8)))
    legend = figure.legend(
        [Line2D([], [], color=color, linestyle=style, linewidth=2) for color, style in looks],
        [" "] * len(names),
        loc="outside lower center",
        ncols=columns,
        handlelength=2.6,
    )
    lines = math.ceil(sum(name.count("\n") + 1 for name in wrapped) / columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * lines)
    # Not as labels: matplotlib takes one that begins with an underscore for "leave me out".
    for text, name in zip(legend.get_texts(), wrapped, strict=True):
        text.set_text(name)


def _running_median(values: Tensor, window: int = 21) -> Tensor:
    """The median of up to ``window`` values around each, fewer at the ends. (n,)"""
    half, size = window // 2, len(values)

    def around(index: int) -> Tensor:
        return values[max(0, index - half) : index + half + 1].median()

    if size <= window:
        return torch.stack([around(index) for index in range(size)])
    inner = values.unfold(0, window, 1).median(1).values
    first = [around(index) for index in range(half)]
    last = [around(index) for index in range(size - half, size)]
    return torch.cat([torch.stack(first), inner, torch.stack(last)])
