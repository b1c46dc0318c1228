"""Where synthetic samples lie among real ones, in two dimensions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mim4dd._checks import check_rank
from mim4dd.distill.pictures.choice import choose
from mim4dd.distill.pictures.style import (
    PALETTE,
    add_caption,
    add_title,
    new_figure,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_embedding"]

_MAX_CLASSES = len(PALETTE)
_MAX_REAL = 60
_MAX_SYN = 20
_PERPLEXITY = 30.0


class _Map(NamedTuple):
    title: str
    axes: tuple[str, str]
    real: Tensor  # (m, 2)
    syn: Tensor  # (n, 2)


@styled
def draw_embedding(
    features: Mapping[str, tuple[Tensor, Tensor]],
    class_syn: Tensor,
    label_real: Tensor,
    class_names: Sequence[str],
    title: str,
    *,
    paper: bool = False,
) -> "Figure":
    """Draw real and synthetic samples in the plane, by PCA and by t-SNE, a row for every layer.

    PCA is fitted to the real samples alone and shows the synthetic ones in their directions; t-SNE
    has no such projection and places both at once.

    Args:
        features: Features of the synthetic (n, D) and of the real samples (m, D) by layer.
        class_syn: Classes of the synthetic samples. (n,)
        label_real: Classes of the real samples. (m,)
        class_names: Names of the C classes; the first ten are shown.
        title: Stands above all.
        paper: Draw at the size of a page of a paper, without a title.

    Raises:
        ValueError: If features are not finite, or too few samples or features for a map.

    Example:
        >>> import torch
        >>> from mim4dd.distill.pictures import draw_embedding
        >>> features = {"blocks.0": (torch.randn(4, 8), torch.randn(30, 8))}
        >>> classes = torch.arange(30) % 2
        >>> figure = draw_embedding(features, classes[:4], classes, ["cat", "dog"], "features")
        >>> len(figure.axes)
        2
    """
    chosen_syn = choose(class_syn, class_names, _MAX_CLASSES, _MAX_SYN)
    chosen_real = choose(label_real, class_names, _MAX_CLASSES, _MAX_REAL)
    rows_syn, rows_real = torch.cat(chosen_syn.by_class), torch.cat(chosen_real.by_class)
    figure = new_figure(9.6, 4.4 * len(features) + 0.9, paper=paper)
    axes = figure.subplots(len(features), 2, squeeze=False)
    for pair, (layer, (features_syn, features_real)) in zip(axes, features.items(), strict=True):
        _check_features(layer, features_syn, features_real)
        maps = _maps(
            features_real.detach().double().cpu()[rows_real],
            features_syn.detach().double().cpu()[rows_syn],
        )
        for axis, found in zip(pair, maps, strict=True):
            look = _synthetic(paper)
            _draw_map(axis, found, label_real.cpu()[rows_real], class_syn.cpu()[rows_syn], look)
            _name_classes(axis, found.syn, class_syn.cpu()[rows_syn], class_names, look)
            axis.set_title(f"{layer}, {found.title}" if len(features) > 1 else found.title)
    _add_legend(figure, [shorten(name, 20) for name in class_names[:_MAX_CLASSES]])
    add_title(figure, title, paper=paper)
    notes = ["PCA is fitted to the real samples; in t-SNE only neighbourhoods have a meaning."]
    sides = {"real": chosen_real.left_out, "synthetic": chosen_syn.left_out}
    if len(set(sides.values())) == 1:
        notes.append(chosen_real.left_out)
    else:
        notes += [f"{note.removesuffix('.')} ({side})." for side, note in sides.items() if note]
    add_caption(figure, " ".join(filter(None, notes)))
    return figure


def _check_features(layer: str, features_syn: Tensor, features_real: Tensor) -> None:
    for side, features in (("synthetic", features_syn), ("real", features_real)):
        check_rank(f"{side} features of {layer}", features, 2)
        if not features.isfinite().all():
            raise ValueError(f"{side} features of {layer} must be finite, got NaN or infinity")
    if len(features_real) < 4 or features_real.shape[1] < 2:
        raise ValueError(
            f"features of {layer} must be of at least 4 real samples and 2 features to be mapped, "
            f"got {tuple(features_real.shape)}"
        )


def _maps(real: Tensor, syn: Tensor) -> list[_Map]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    pca = PCA(2, svd_solver="full").fit(real.numpy())
    shares = [f"PC {i + 1} ({100 * part:.0f} % of the variance)" for i, part in
              enumerate(pca.explained_variance_ratio_)]  # fmt: skip
    flat = [torch.from_numpy(pca.transform(part.numpy())) for part in (real, syn)]
    both = torch.cat([real, syn])
    # It must be below the number of samples; a third of them is where it still has a meaning.
    perplexity = min(_PERPLEXITY, (len(both) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=0)
    placed = torch.from_numpy(tsne.fit_transform(both.numpy()))
    return [
        _Map("PCA", (shares[0], shares[1]), *flat),
        _Map(
            f"t-SNE, perplexity {perplexity:.0f}",
            ("", ""),
            placed[: len(real)],
            placed[len(real) :],
        ),
    ]


def _synthetic(paper: bool) -> dict[str, Any]:
    """How a synthetic sample looks: large enough for a digit inside."""
    size, edge = (50, 0.8) if paper else (110, 1.2)
    return {"s": size, "edgecolors": "black", "linewidths": edge}


def _draw_map(
    axis: Any, found: _Map, label_real: Tensor, class_syn: Tensor, look: dict[str, Any]
) -> None:
    def colors(labels: Tensor) -> list[str]:
        return [PALETTE[label] for label in labels.tolist()]

    size = look["s"] / 12
    axis.scatter(*found.real.T, c=colors(label_real), s=size, alpha=0.6, linewidths=0)
    axis.scatter(*found.syn.T, c=colors(class_syn), **look)
    axis.set_xlabel(found.axes[0])
    axis.set_ylabel(found.axes[1])
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(True)
    axis.spines[:].set_color("0.8")


def _name_classes(
    axis: Any,
    places: Tensor,
    class_syn: Tensor,
    class_names: Sequence[str],
    look: dict[str, Any],
) -> None:
    """A name at a synthetic sample of each class: ten colours alone are hard to match."""
    from matplotlib.patheffects import withStroke

    for label in class_syn.unique().tolist():
        name = shorten(class_names[label], 14)
        own = places[class_syn == label]
        # The sample in the middle, so that the name stands at one.
        place = own[(own - own.median(0).values).norm(dim=1).argmin()].tolist()
        axis.scatter(*place, c=PALETTE[label], **look)  # once more, above its neighbours
        inside = len(name) <= 2
        text = axis.annotate(
            name,
            place,
            xytext=(0, 0 if inside else 6),
            textcoords="offset points",
            ha="center",
            va="center_baseline" if inside else "bottom",
            fontsize="small",
            fontweight="bold",
            color=_readable_on(PALETTE[label]) if inside else "black",
        )
        if not inside:
            text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _readable_on(color: str) -> str:
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(color)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _add_legend(figure: Any, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    def marker(color: str, size: float, edge: str) -> Line2D:
        return Line2D([], [], marker="o", linestyle="none", color=color, markersize=size,
                      markeredgecolor=edge)  # fmt: skip

    handles = [marker(color, 7, color) for color in PALETTE[: len(names)]]
    handles += [marker("0.7", 3, "0.7"), marker("0.7", 9, "black")]
    legend = figure.legend(handles, [" "] * len(handles), loc="outside right center")
    for text, name in zip(legend.get_texts(), [*names, "real", "synthetic"], strict=True):
        text.set_text(name)
