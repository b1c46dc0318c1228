"""DSA: each family does what it says, replays bit for bit, and is differentiable."""

import pytest
import torch

from mim4dd.distill.training.augment import FAMILIES, Augmentation, augmentation


def generator(device="cpu", seed=0):
    return torch.Generator(device).manual_seed(seed)


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_replays_and_differs_between_images(family, channels, size, device):
    images = torch.rand(1, channels, size, size, device=device).expand(16, -1, -1, -1)
    augment = Augmentation(family)
    first = augment(images, generator(device))
    assert first.shape == images.shape
    assert torch.equal(first, augment(images, generator(device)))
    assert not torch.equal(first, augment(images, generator(device, 1)))
    assert len(first.flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_siamese_images_share_one_draw_whatever_their_number(family, device):
    image = torch.rand(1, 3, 16, 16, device=device)
    augment = Augmentation(family, siamese=True)
    many = augment(image.expand(7, -1, -1, -1), generator(device))
    for other in many[1:]:
        assert torch.equal(other, many[0])
    assert torch.equal(augment(image, generator(device)), many[:1])
    others = torch.cat([augment(image, generator(device, seed)) for seed in range(9)])
    assert len(others.flatten(1).unique(dim=0)) > 1


def test_siamese_batches_draw_the_same_family_and_leave_the_stream_alike():
    augment = Augmentation("color_crop_cutout_flip_scale_rotate", siamese=True)
    image = torch.rand(1, 3, 16, 16)
    few, many = generator(), generator()
    for _ in range(12):
        first = augment(image.expand(2, -1, -1, -1), few)
        assert torch.equal(first[0], augment(image.expand(5, -1, -1, -1), many)[3])


@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives(family):
    images = torch.rand(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Augmentation(family)(x, generator()), images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_comes_out_has_the_strides_of_a_new_tensor(family, memory_format, channels):
    """As of DiffAugment, so that a model can view it."""
    images = torch.rand(4, channels, 8, 8).to(memory_format=memory_format)
    out = Augmentation(family)(images, generator())
    assert out.stride() == torch.empty(out.shape).stride()


def test_one_family_is_drawn_per_batch():
    images = torch.rand(8, 1, 16, 16)
    both = Augmentation("flip_cutout")
    stream = generator()
    outcomes = set()
    for _ in range(20):
        out = both(images, stream)
        outcomes.add("cutout" if (out == 0).any() else "flip")
    assert outcomes == {"cutout", "flip"}


def test_crop_shifts_by_up_to_an_eighth():
    images = torch.zeros(500, 1, 16, 16)
    images[:, :, 8, 8] = 1
    rows, columns = torch.where(Augmentation("crop")(images, generator())[:, 0] == 1)[1:]
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 10, 6, 10)


def test_cutout_blanks_a_box_of_half_the_size():
    images = torch.ones(500, 1, 16, 16)
    blank = (Augmentation("cutout")(images, generator()) == 0).sum((1, 2, 3))
    assert blank.max() == 64  # 8 × 8 where the box lies inside
    assert (blank > 0).all()


def test_flip_mirrors_half_of_the_images():
    images = torch.rand(1, 1, 4, 4).expand(400, -1, -1, -1)
    flipped = (
        (Augmentation("flip")(images, generator()) == images.flip(3)).all((1, 2, 3)).float().mean()
    )
    assert 0.4 < flipped < 0.6


def test_rotation_of_a_centred_disc_changes_little():
    axis = torch.linspace(-1, 1, 33)
    disc = ((axis[:, None] ** 2 + axis**2) < 0.5).float().expand(8, 1, 33, 33)
    assert (Augmentation("rotate")(disc, generator()) - disc).abs().mean() < 0.03


def test_strategies_by_name():
    assert augmentation("none") is None
    assert augmentation("crop_flip").families == ["crop", "flip"]
    for strategy in ("", "blur", "crop_blur"):
        with pytest.raises(ValueError, match="strategy must join some of color, crop"):
            Augmentation(strategy)
