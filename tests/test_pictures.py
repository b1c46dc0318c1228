"""Pictures show what they are given."""

import math

import pytest
import torch
from PIL import Image

from mim4dd.distill.pictures import save_curves, save_grid

NAMES = ["cat", "dog", "owl"]


def pixels_of(path):
    image = Image.open(path).convert("RGB")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(
        image.height, image.width, 3
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ipc", [1, 2])
def test_a_grid_shows_every_image_once_and_alike(channels, ipc, tmp_path):
    labels = torch.arange(3).repeat_interleave(ipc)

    def draw(images):
        save_grid(tmp_path / "grid.png", images, labels, NAMES, "title")
        return pixels_of(tmp_path / "grid.png")

    black = torch.zeros(3 * ipc, channels, 8, 8)
    areas = []
    for index in range(len(black)):
        one_white = black.clone()
        one_white[index] = 1.0
        areas.append((draw(one_white) != draw(black)).any(2).sum().item())
    assert min(areas) > 80**2  # of a picture at 144 dpi
    assert max(areas) - min(areas) < 0.05 * min(areas)
    everything = (draw(black + 1) != draw(black)).any(2).sum().item()
    assert everything == sum(areas)


def test_curves_draw_what_is_there(tmp_path):
    rows = [
        {"iteration": i, "trajectory_loss": 1 / (i + 1), "syn_lr": 0.1, "mi_lower_bound": 1.0}
        for i in range(30)
    ]
    save_curves(tmp_path / "one.png", {"run": rows}, num_classes=3)
    without = [{key: row[key] for key in ("iteration", "trajectory_loss")} for row in rows]
    save_curves(tmp_path / "less.png", {"run": without}, num_classes=3)
    one, less = pixels_of(tmp_path / "one.png"), pixels_of(tmp_path / "less.png")
    assert one.shape[1] > 2 * less.shape[1]  # three panels against one
    coloured = (less.float().std(2) > 20).sum()
    assert coloured > 200


def test_no_rows_at_all_still_leave_a_picture(tmp_path):
    save_curves(tmp_path / "none.png", {"run": [{"iteration": 0, "syn_lr": math.nan}]}, 3)
    assert (tmp_path / "none.png").stat().st_size > 0
