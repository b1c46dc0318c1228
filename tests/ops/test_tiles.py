"""Other tiles that `make gpu-again` times give the same results."""

import pytest
from contrastive_cases import only_lean_kernels, use_lean_tiles
from stages import tiles


@pytest.mark.parametrize(
    ("kind", "width", "sizes"),
    [pytest.param(*each, id=tiles.name_of(*each)) for each in tiles.candidates()],
)
def test_other_tiles(kind, width, sizes, kernel_device, monkeypatch):
    from mim4dd.kernels import clip_loss

    only_lean_kernels(monkeypatch)
    monkeypatch.setattr(clip_loss, "weights_kernel", None)
    if kernel_device == "cpu":
        use_lean_tiles(90, monkeypatch)
    with tiles.used(kind, width, sizes, kernel_device):
        tiles.check(kind, width, kernel_device, 144)
