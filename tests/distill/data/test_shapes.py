"""The generated shapes."""

import math

import pytest
import torch

from mim4dd.distill.data import load_data
from mim4dd.distill.data.readers.shapes import _DISTANCES, draw_shapes


def test_the_set_is_fixed_balanced_and_of_the_same_scenes_at_every_size():
    first, second = load_data("shapes", image_size=8), load_data("shapes", image_size=8)
    assert torch.equal(first.image_train, second.image_train)
    assert first.image_train.shape == (5000, 3, 8, 8)
    assert first.image_test.shape == (1000, 3, 8, 8)
    assert first.label_train.bincount().tolist() == [500] * 10
    assert first.label_test.bincount().tolist() == [100] * 10
    assert first.class_names[5] == "star"
    every = torch.cat([first.image_train, first.image_test])
    assert len({image.numpy().tobytes() for image in every}) == 6000
    labels = torch.arange(20) % 10
    small, large = (draw_shapes(labels, size, seed=3) / 255 for size in (16, 64))
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert (shrunk - small).abs().mean() < 0.1  # the noise alone accounts for 0.06
    assert not torch.equal(draw_shapes(labels, 16, seed=4) / 255, small)


def test_sizes_too_small_to_show_a_shape_are_refused():
    with pytest.raises(ValueError, match="image_size must be at least 8 for shapes, got 7"):
        load_data("shapes", image_size=7)


# Areas by geometry, in units of the radius.
STAR_TIP, STAR_DENT = 1.0, 0.4
AREAS = {
    "disc": math.pi * 0.85**2,
    "ring": math.pi * (0.9**2 - 0.5**2),
    "square": 1.5**2,
    "frame": 1.6**2 - 0.9**2,
    "triangle": 3 * math.sqrt(3) * 0.5**2,  # of an inscribed circle of radius 0.5
    "cross": 2 * 1.9 * 0.54 - 0.54**2,
    "bar": 2 * 0.6,
    # r = 1 − 0.6 s with s even between 0 and 1: ½ ∮ r² = π E[r²]
    "star": math.pi * (STAR_TIP**2 + STAR_TIP * STAR_DENT + STAR_DENT**2) / 3,
}


@pytest.mark.parametrize("name", sorted(AREAS))
def test_areas_of_the_shapes(name):
    axis = torch.linspace(-1.2, 1.2, 1201, dtype=torch.float64)
    inside = _DISTANCES[name](axis[None, :], axis[:, None]) < 0
    area = inside.sum().item() * (axis[1] - axis[0]).item() ** 2
    assert area == pytest.approx(AREAS[name], rel=0.01)
    border = torch.cat([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    assert not border.any()


def test_a_linear_model_does_not_tell_them_apart():
    from sklearn.linear_model import RidgeClassifier

    data = load_data("shapes", image_size=8)
    train, test = data.image_train.flatten(1).numpy(), data.image_test.flatten(1).numpy()
    model = RidgeClassifier(alpha=1000.0).fit(train, data.label_train.numpy())
    assert 0.15 < model.score(test, data.label_test.numpy()) < 0.4
