"""A generated data set: geometric shapes that a linear model hardly tells apart.

Position, size, rotation and colours say nothing of the class. What does is the outline, behind
thin lines, on a texture, under noise: a ConvNet-3 gets most of them right, a linear model a third,
and so does the ConvNet after ten random images of each class.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mim4dd.distill.data.image_data import ImageData
from mim4dd.distill.data.registry import data_set
from mim4dd.distill.data.tensors import from_tensors

__all__ = ["draw_shapes", "load_shapes"]

_NUM_TRAIN, _NUM_TEST = 5000, 1000
_MIN_SIZE = 8
_CHUNK = 500
_NUM_LINES = 2
_NOISE = 0.08
# By how much a shape is lighter than its ground, in every channel: were it darker as often, no
# class would have a mean image, and no distilled set of one image per class could say anything.
_CONTRAST = (0.15, 0.4)


@data_set("shapes", sized=True)
def load_shapes(_data_path: Path, zca: bool, image_size: int | None = None) -> ImageData:
    """5,000 training and 1,000 test images of 10 shapes, in colour, the same on each call.

    A size other than 32 gives the same pictures, drawn at it.

    Raises:
        ValueError: If the size is below 8 pixels.
    """
    size = 32 if image_size is None else image_size
    if size < _MIN_SIZE:
        raise ValueError(f"image_size must be at least {_MIN_SIZE} for shapes, got {size}")
    labels = torch.arange(_NUM_TRAIN + _NUM_TEST) % len(_DISTANCES)
    images = draw_shapes(labels, size, seed=0)
    return from_tensors(
        images[:_NUM_TRAIN],
        labels[:_NUM_TRAIN],
        (images[_NUM_TRAIN:], labels[_NUM_TRAIN:]),
        class_names=list(_DISTANCES),
        name="shapes",
        zca=zca,
    )


def draw_shapes(labels: Tensor, size: int, seed: int) -> Tensor:
    """A picture of bytes (N, 3, size, size) for every label (N,)."""
    generator = torch.Generator().manual_seed(seed)
    # The draws of a scene do not depend on the size, those of the noise do: they come last.
    scenes = _Scenes(len(labels), generator)
    images = torch.empty(len(labels), 3, size, size, dtype=torch.uint8)
    for rows in torch.arange(len(labels)).split(_CHUNK):
        clean = scenes.paint(rows, labels[rows], size)
        noisy = clean + _NOISE * torch.randn(clean.shape, generator=generator)
        images[rows] = noisy.clamp_(0, 1).mul_(255).round_().byte()
    return images


class _Scenes:
    """What is random in N pictures, in units of half the picture's side."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.empty(count, *shape).uniform_(low, high, generator=generator)

        self.centre = uniform(-0.3, 0.3, 2)
        self.radius = uniform(0.5, 0.8)
        self.angle = uniform(-0.25 * math.pi, 0.25 * math.pi)
        self.ground = uniform(0, 0.6, 3)
        self.figure = self.ground + uniform(*_CONTRAST, 3)
        self.waves = [_Waves(uniform), _Waves(uniform)]
        self.line_angle = uniform(0, 2 * math.pi, _NUM_LINES)
        self.line_offset = uniform(-0.9, 0.9, _NUM_LINES)
        self.line_colour = uniform(0, 1, _NUM_LINES, 3)

    def paint(self, rows: Tensor, labels: Tensor, size: int) -> Tensor:
        """The pictures of the given rows, without noise. (n, 3, size, size)"""
        axis = (torch.arange(size) + 0.5) * (2 / size) - 1
        x, y = axis.view(1, 1, -1), axis.view(1, -1, 1)
        pixel = 2 / size

        def column(values: Tensor) -> Tensor:
            return values[rows].view(-1, 1, 1)

        ground = self.ground[rows].view(-1, 3, 1, 1) + self.waves[0].paint(rows, x, y)
        figure = self.figure[rows].view(-1, 3, 1, 1) + self.waves[1].paint(rows, x, y)
        cos, sin = column(self.angle.cos()), column(self.angle.sin())
        dx, dy = x - column(self.centre[:, 0]), y - column(self.centre[:, 1])
        radius = column(self.radius)
        u, v = (cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius
        distance = torch.empty_like(u)
        for label, shape in enumerate(_DISTANCES.values()):
            chosen = labels == label
            distance[chosen] = shape(u[chosen], v[chosen])
        picture = _cover(ground, figure, distance * radius, pixel)
        for line in range(_NUM_LINES):
            angle = column(self.line_angle[:, line])
            across = (angle.cos() * x + angle.sin() * y - column(self.line_offset[:, line])).abs()
            colour = self.line_colour[rows, line].view(-1, 3, 1, 1)
            picture = _cover(picture, colour, across - 0.04, pixel)
        return picture


class _Waves:
    """A texture of every picture: a plane wave of its own direction, length and strength."""

    def __init__(self, uniform: Callable[..., Tensor]) -> None:
        self.direction = uniform(0, 2 * math.pi)
        self.frequency = uniform(2, 10)
        self.phase = uniform(0, 2 * math.pi)
        self.strength = uniform(-0.1, 0.1, 3)

    def paint(self, rows: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """What it adds to the colour. (n, 3, size, size)"""
        direction, frequency, phase = (
            values[rows].view(-1, 1, 1) for values in (self.direction, self.frequency, self.phase)
        )
        wave = (frequency * (direction.cos() * x + direction.sin() * y) + phase).sin()
        return self.strength[rows].view(-1, 3, 1, 1) * wave.unsqueeze(1)


def _cover(under: Tensor, over: Tensor, distance: Tensor, pixel: float) -> Tensor:
    """Paint ``over`` where ``distance`` is negative, a pixel on the edge in part."""
    share = (0.5 - distance / pixel).clamp(0, 1).unsqueeze(1)
    return under + share * (over - under)


def _box(u: Tensor, v: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def _disc(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.85


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - 0.7).abs() - 0.2


def _square(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 0.75, 0.75)


def _frame(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(_box(u, v, 0.8, 0.8), -_box(u, v, 0.45, 0.45))


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    slanted = math.sqrt(0.75) * u.abs() + 0.5 * v
    return torch.maximum(slanted, -v) - 0.5


def _star(u: Tensor, v: Tensor) -> Tensor:
    turn = torch.atan2(v, u) * (5 / (2 * math.pi))
    from_tip = 2 * (turn - turn.round()).abs()  # 0 at a tip, 1 between two
    return torch.hypot(u, v) - (1 - 0.6 * from_tip)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u, v, 0.95, 0.27), _box(u, v, 0.27, 0.95))


def _crescent(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(u, v) - 0.9, 0.75 - torch.hypot(u - 0.45, v))


def _half_disc(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(u, v + 0.4) - 1, -v - 0.4)


def _bar(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 1, 0.3)


# By class: how far a point lies outside of the shape, negative inside; about one unit large.
_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "frame": _frame,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
    "half disc": _half_disc,
    "bar": _bar,
}
