"""How alike a network finds synthetic and real samples, class by class."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mim4dd._checks import check_rank
from mim4dd.distill.pictures.style import (
    add_caption,
    add_title,
    name_columns,
    new_figure,
    shorten,
    styled,
)
from mim4dd.distill.training.class_means import class_means

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["class_similarity", "draw_similarity"]

_NAMED_CLASSES = 20  # more numbers and names would touch each other


def class_similarity(
    features_syn: Tensor,
    class_syn: Tensor,
    features_real: Tensor,
    label_real: Tensor,
    num_classes: int,
) -> Tensor:
    """Mean cosine similarity of every pair of a synthetic and a real class. (C, C)

    Args:
        features_syn: Rows of features of the synthetic samples. (n, D)
        class_syn: Their classes. (n,)
        features_real: Rows of features of real samples. (m, D)
        label_real: Their classes. (m,)
        num_classes: Number of classes C.

    Returns:
        Synthetic classes by rows, real ones by columns; NaN where a class has no sample.

    Example:
        >>> import torch
        >>> from mim4dd.distill.pictures import class_similarity
        >>> features, labels = torch.eye(2), torch.arange(2)
        >>> class_similarity(features, labels, features, labels, num_classes=2).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    for name, features in (("features_syn", features_syn), ("features_real", features_real)):
        check_rank(name, features, 2)
    # The mean over pairs of dot products is the dot product of the means.
    means = [
        class_means(F.normalize(features.double(), dim=1), labels, num_classes)
        for features, labels in ((features_syn, class_syn), (features_real, label_real))
    ]
    return means[0] @ means[1].T


@styled
def draw_similarity(
    similarities: Mapping[str, Tensor],
    class_names: Sequence[str],
    title: str,
    *,
    paper: bool = False,
) -> "Figure":
    """Draw the similarity between classes as a heat map for every layer.

    Args:
        similarities: What :func:`class_similarity` gave, (C, C), by the name of the layer.
        class_names: Names of the C classes.
        title: Stands above all.
        paper: Draw at the size of a page of a paper, without a title and without numbers.

    Example:
        >>> import torch
        >>> from mim4dd.distill.pictures import draw_similarity
        >>> figure = draw_similarity({"blocks.0": torch.eye(2)}, ["cat", "dog"], "similarity")
    """
    named = len(class_names) <= _NAMED_CLASSES
    columns = min(2, len(similarities))
    rows = math.ceil(len(similarities) / columns)
    size = max(4.4, 0.42 * len(class_names)) if named else 5.2
    # Long names take room on both sides.
    names = 0.07 * min(16, max(map(len, class_names))) if named else 0.0
    figure = new_figure(
        (size + names + 0.9) * columns, (size + names + 0.7) * rows + 0.6, paper=paper
    )
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(similarities) :]:
        axis.remove()
    for axis, (layer, similarity) in zip(axes, similarities.items(), strict=False):
        image = axis.imshow(similarity.cpu().numpy(), cmap="cividis", interpolation="nearest")
        axis.set_facecolor("0.85")  # what a class without samples leaves free
        axis.set_title(f"{layer}\n{_summary(similarity)}")
        axis.set_xlabel("real class")
        axis.set_ylabel("synthetic class")
        axis.spines[:].set_visible(False)
        figure.colorbar(image, ax=axis, shrink=0.8)
        if named and not paper:  # where a cell is too small for a number that can be read
            _write_numbers(axis, image, similarity.cpu())
        if named:
            _name_classes(axis, class_names)
    add_title(figure, title, paper=paper)
    add_caption(
        figure,
        "Mean cosine similarity between the features of synthetic samples (rows) and of real test "
        "samples (columns). The diagonal holds the positive pairs.",
    )
    return figure


def _summary(similarity: Tensor) -> str:
    own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    same, other = similarity[own].nanmean().item(), similarity[~own].nanmean().item()
    return f"same class {same:.2f}, other classes {other:.2f}"


def _write_numbers(axis: Any, image: Any, similarity: Tensor) -> None:
    for row, values in enumerate(similarity.tolist()):
        for column, value in enumerate(values):
            if math.isfinite(value):
                dark = image.norm(value) < 0.55
                axis.text(
                    column,
                    row,
                    f"{round(value, 2) + 0.0:.2f}",  # never -0.00
                    ha="center",
                    va="center",
                    fontsize=6.5,
                    color="white" if dark else "black",
                    fontweight="bold" if row == column else "normal",
                )


def _name_classes(axis: Any, class_names: Sequence[str]) -> None:
    name_columns(axis, class_names)
    axis.set_yticks(range(len(class_names)), [shorten(name, 16) for name in class_names])
    axis.tick_params(length=0)
