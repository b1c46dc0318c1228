"""How a set of images changes while it is distilled, as an animation."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mim4dd.distill.files.atomic import write_atomically
from mim4dd.distill.pictures.grid import draw_grid
from mim4dd.distill.pictures.style import DPI, add_caption, styled

__all__ = ["save_evolution"]

_MILLISECONDS = 400
_LAST_MILLISECONDS = 2000  # the result, before it begins again


def save_evolution(
    path: Path,
    pixels: Mapping[int, Tensor],
    labels: Tensor,
    class_names: Sequence[str],
    title: str,
) -> None:
    """Write a GIF with one picture of the set for each iteration.

    Values outside 0 to 1 are clipped.

    Args:
        path: Where to.
        pixels: Pixels (n, channels, H, W) of the set by iteration, at least two of them.
        labels: Class of every image. (n,)
        class_names: Names of the C classes.
        title: Stands above all, with the iteration.

    Raises:
        ValueError: If there are fewer than two iterations, or sets and labels do not fit.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from mim4dd.distill.pictures import save_evolution
        >>> sets = {0: torch.rand(3, 1, 8, 8), 10: torch.rand(3, 1, 8, 8)}
        >>> save_evolution(
        ...     Path("set.gif"), sets, torch.arange(3), "abc", "three"
        ... )  # doctest: +SKIP
    """
    if len(pixels) < 2:
        raise ValueError(f"pixels must be of at least two iterations, got {len(pixels)}")
    frames = [
        _frame(pixels[iteration], labels, class_names, f"{title}, iteration {iteration}")
        for iteration in sorted(pixels)
    ]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="gif",
        save_all=True,
        append_images=frames[1:],
        duration=[*[_MILLISECONDS] * (len(frames) - 1), _LAST_MILLISECONDS],
        loop=0,  # without end
    )
    write_atomically(path, buffer.getvalue())


@styled
def _frame(pixels: Tensor, labels: Tensor, class_names: Sequence[str], title: str) -> Any:
    from PIL import Image

    # Clipped here, and with the same caption everywhere: otherwise the images would move about.
    figure = draw_grid({"": pixels.clamp(0, 1)}, labels, class_names, title)
    add_caption(figure, "Pixel values outside 0 to 1 are clipped.")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return Image.open(buffer).convert("RGB").quantize()
