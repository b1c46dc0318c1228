"""DSA: what each family makes of an image, pixel by pixel, for given draws.

The formulas are those of the authors' functions in MTT, DC, CAFE and RaT-BPTT, written as sums over
pixels. Their codes differ in ``align_corners``; on square images both place the pixels alike: the
map turns and scales about the centre, in pixels.
"""

import math
from itertools import product

import pytest
import torch

from mim4dd.distill.training.augment import FAMILIES

SIZE = 9  # odd, and no multiple of 8: an eighth of it and a half are rounded


class Given:
    """Draws that the test knows: uniform numbers, and integers that scale them."""

    def __init__(self, count):
        self.numbers = torch.rand(4, count, dtype=torch.float64)
        self.used = 0

    def uniform(self):
        self.used += 1
        return self.numbers[self.used - 1][:, None, None, None]

    def integers(self, low, high):
        self.used += 1
        return (low + (self.numbers[self.used - 1] * (high - low)).floor()).long()[:, None]


def color(image, draws):
    brighter = image + draws[0] - 0.5
    grey = sum(brighter) / len(brighter)
    saturated = torch.stack([grey + 2 * draws[1] * (channel - grey) for channel in brighter])
    mean = saturated.sum() / saturated.numel()
    return mean + (0.5 + draws[2]) * (saturated - mean)


def crop(image, draws):
    reach = 1  # an eighth of 9 is 1.1
    shifts = [math.floor(draw * (2 * reach + 1)) - reach for draw in draws[:2]]
    return _from_pixels(image, lambda row, column: (row + shifts[0], column + shifts[1]))


def cutout(image, draws):
    box = 5  # half of 9 is 4.5; an odd box has a middle, which lies within the image
    middles = [math.floor(draw * SIZE) for draw in draws[:2]]

    def kept(*place):
        inside = (abs(at - middle) <= box // 2 for at, middle in zip(place, middles, strict=True))
        return None if all(inside) else place

    return _from_pixels(image, kept)


def flip(image, draws):
    mirrored = draws[0] < 0.5
    return _from_pixels(image, lambda row, column: (row, SIZE - 1 - column if mirrored else column))


def scale(image, draws):
    across, down = (1 / 1.2 + draw * (1.2 - 1 / 1.2) for draw in draws[:2])
    return _from_pixels(image, _about_the_centre(lambda y, x: (down * y, across * x)))


def rotate(image, draws):
    angle = (2 * draws[0] - 1) * math.pi / 12
    cos, sin = math.cos(angle), math.sin(angle)
    return _from_pixels(
        image, _about_the_centre(lambda y, x: (sin * x + cos * y, cos * x - sin * y))
    )


def _about_the_centre(move):
    centre = (SIZE - 1) / 2

    def source(row, column):
        y, x = move(row - centre, column - centre)
        return centre + y, centre + x

    return source


def _from_pixels(image, source):
    """Every pixel read at its source, between four neighbours by area; 0 outside."""
    pixels = list(product(range(SIZE), range(SIZE)))
    shares = [
        [
            max(0, 1 - abs(place[0] - y)) * max(0, 1 - abs(place[1] - x)) if place else 0
            for y, x in pixels
        ]
        for place in (source(*pixel) for pixel in pixels)
    ]
    return (image.flatten(1) @ torch.tensor(shares, dtype=image.dtype).T).view_as(image)


@pytest.mark.parametrize("definition", [color, crop, cutout, flip, scale, rotate])
def test_a_family_is_its_definition(definition):
    images = torch.randn(12, 3, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    given, found = Given(len(images)), images
    for transform in FAMILIES[definition.__name__]:
        found = transform(found, given)
    draws = given.numbers.T.tolist()
    expected = torch.stack([definition(*pair) for pair in zip(images, draws, strict=True)])
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, images, weights), torch.autograd.grad(expected, images, weights)
    )
