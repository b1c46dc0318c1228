"""NCFM against its definition: characteristic functions as complex numbers, tile by tile."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tiny import doubled, make_data, maker, same_after_a_stop, stream
from torch import nn

from mim4dd import MIM4DDLoss
from mim4dd.distill.add_ons.mutual_information import MIM4DD
from mim4dd.distill.data import from_tensors
from mim4dd.distill.loop import LoopSettings, distill
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.ncfm import NCFM, NCFMSettings, characteristic_distance
from mim4dd.distill.runs import RunDirectory, SyntheticSet
from mim4dd.distill.training.augment import ComposedAugmentation

SETTINGS = NCFMSettings(
    num_pairs=2, squeeze_epochs=2, squeeze_batch=16, batch_real=5, num_frequencies=7
)


def characteristic(frequencies, rows):
    return torch.stack([torch.exp(1j * (rows @ t)).mean() for t in frequencies])


def distance_by_hand(frequencies, real, syn, alpha=0.5):
    here, there = (characteristic(frequencies, rows) for rows in (real, syn))
    apart = (here.abs() - there.abs()) ** 2
    turned = 2 * here.abs() * there.abs() * (1 - torch.cos(here.angle() - there.angle()))
    return (alpha * apart + (1 - alpha) * turned).sqrt().mean()


@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_the_distance_is_that_of_the_characteristic_functions(alpha):
    frequencies, real, syn = (torch.randn(n, 6).double() for n in (9, 4, 3))
    distance = characteristic_distance(real, syn, frequencies, alpha)
    torch.testing.assert_close(distance, distance_by_hand(frequencies, real, syn, alpha))
    if alpha == 0.5:
        apart = characteristic(frequencies, real) - characteristic(frequencies, syn)
        torch.testing.assert_close(distance, apart.abs().mean() / 2**0.5)


def test_the_distance_of_a_set_to_itself_has_a_gradient():
    rows = torch.randn(4, 6).double().requires_grad_()
    distance = characteristic_distance(rows.detach(), rows, torch.randn(9, 6).double())
    assert distance < 1e-5
    assert torch.autograd.grad(distance, rows)[0].isfinite().all()


def decoded_by_hand(image):
    """The four quarters of an image (C, H, W), each at twice its size, row by row."""
    height, width = image.shape[1] // 2, image.shape[2] // 2
    quarters = [image[:, y : y + height, x : x + width] for y in (0, height) for x in (0, width)]
    return F.interpolate(torch.stack(quarters), scale_factor=2, mode="bilinear")


def embed(network, theta, images):
    network = frozen_copy(network)
    nn.utils.vector_to_parameters(theta, network.parameters())
    rows = network.blocks(images).flatten(1)
    return rows / (rows**2).sum(1, keepdim=True).sqrt()


def frozen_copy(network):
    return copy.deepcopy(network).requires_grad_(False)


@pytest.mark.parametrize(("seed", "pair"), [(3, 0), (5, 1)])
def test_the_loss_is_the_definition(seed, pair):
    """Σ_c 300 D(real_c, decoded_c) at a blend of weights, + CE of the trained network."""
    data = doubled(make_data())
    method = NCFM(maker(data), data, 5, SETTINGS)
    image_syn, label_syn = method.initial(RealData(data, stream()), 2).image_syn, None
    image_syn = image_syn.clone().requires_grad_()
    draws = [RealData(data, torch.Generator().manual_seed(seed)) for _ in range(2)]
    outcome = method.loss(image_syn, label_syn, torch.tensor(0.1), draws[0])

    real = draws[1]
    assert real.integer(2) == pair
    share = torch.rand((), generator=real.generator).item()
    network = method.teachers.networks[pair]
    vector = nn.utils.parameters_to_vector
    initial = vector(maker(data)(5 + pair).parameters()).detach()
    trained = vector(network.parameters()).detach()
    theta = share * initial + (1 - share) * trained
    distance = cross_entropy = 0
    for label in range(3):
        batch = real.sample_class(label, 5)
        real.seed()
        parts = torch.cat([decoded_by_hand(image) for image in image_syn[2 * label :][:2]])
        rows = embed(network, theta, batch), embed(network, theta, parts)
        noise = torch.Generator().manual_seed(real.seed())
        frequencies = torch.randn(7, rows[0].shape[1], generator=noise, dtype=torch.float64)
        distance = distance + distance_by_hand(frequencies, *rows)
        logits = frozen_copy(network)(parts)
        cross_entropy = cross_entropy - logits.log_softmax(1)[:, label].mean()
    torch.testing.assert_close(outcome.value, 300 * distance + cross_entropy)
    torch.testing.assert_close(
        *(
            torch.autograd.grad(value, image_syn)[0]
            for value in (outcome.value, 300 * distance + cross_entropy)
        )
    )
    assert outcome.metrics["characteristic_distance"] == pytest.approx(distance.item())
    assert outcome.metrics["cross_entropy"] == pytest.approx(cross_entropy.item())
    (compared,) = outcome.compared
    torch.testing.assert_close(compared.theta_syn, theta)
    torch.testing.assert_close(compared.theta_real, theta)


def test_the_set_starts_from_scaled_real_images():
    data = make_data()
    method = NCFM(maker(data), data, 0, SETTINGS)
    images = method.initial(RealData(data, stream()), [3, 1, 2]).image_syn
    chosen, labels = data.sample([12, 4, 8], stream())
    assert labels.tolist() == [0] * 12 + [1] * 4 + [2] * 8
    assert images.shape == (6, 1, 8, 8)
    for number, image in enumerate(chosen):
        down, right = divmod(number % 4, 2)
        tile = images[number // 4, :, 4 * down : 4 * down + 4, 4 * right : 4 * right + 4]
        assert torch.equal(tile, image[:, ::2, ::2])


def test_real_and_synthetic_images_are_augmented_alike():
    """Sets that are the same images stay at distance 0 under any transformation."""
    data = doubled(make_data())
    order = data.label_train.argsort(stable=True)
    settings = dataclasses.replace(
        SETTINGS, tiles=1, batch_real=1000, dsa_strategy="color_crop_cutout"
    )
    method = NCFM(maker(data), data, 0, settings)
    for seed in range(3):
        real = RealData(data, torch.Generator().manual_seed(seed))
        outcome = method.loss(data.image_train[order], None, torch.tensor(0.1), real)
        assert outcome.metrics["characteristic_distance"] < 1e-5


def test_composed_augmentation_is_one_family_after_another():
    images = torch.rand(3, 2, 8, 6).double()
    composed = ComposedAugmentation("color_crop_cutout", siamese=True)(images, stream())
    draws = stream()

    def uniform():
        return torch.rand(1, 1, 1, 1, generator=draws, dtype=torch.float64).item()

    def integer(below):
        return int(torch.randint(0, below, (1, 1), generator=draws))

    bright, saturated, contrasted = uniform() - 0.5, 2 * uniform(), uniform() + 0.5
    down, right = integer(3), integer(3)
    centre_y, centre_x = integer(9), integer(7 - 1)
    expected = torch.zeros_like(images)
    for image, out in zip(images, expected, strict=True):
        image = image + bright
        image = saturated * image + (1 - saturated) * image.mean(0)
        image = contrasted * image + (1 - contrasted) * image.mean()
        for y in range(8):
            for x in range(6):
                hidden = -2 <= y - centre_y < 2 and -1 <= x - centre_x < 2
                from_y, from_x = y + down - 1, x + right - 1
                if not hidden and 0 <= from_y < 8 and 0 <= from_x < 6:
                    out[:, y, x] = image[:, from_y, from_x]
    torch.testing.assert_close(composed, expected)


def test_networks_are_trained_on_the_tiles(tmp_path):
    """What the result holds, and what is decoded of it after it was saved and loaded."""
    data, run = make_data(), RunDirectory(tmp_path / "run")
    run.create({})
    method = MIM4DD(NCFM(maker(data), data, 0, SETTINGS), MIM4DDLoss(), weight=0.1, num_keys=12)
    settings = LoopSettings(
        ipc=2, iterations=2, optimizer_img="adamw", lr_img=0.5, clip_img=True, weight_decay_img=0.1
    )
    result = distill(method, data, settings, run)
    assert result.tiles == 2
    assert len(result) == 6
    loaded = SyntheticSet.load(run.synthetic).decoded()
    expected = torch.cat([decoded_by_hand(image) for image in result.image_syn])
    torch.testing.assert_close(loaded.image_syn, expected)
    assert loaded.label_syn.tolist() == loaded.class_syn.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert loaded.tiles == 1
    torch.testing.assert_close(loaded.pixels, data.normalization.inverse(expected))
    assert result.pixels.min() >= -1e-6
    assert result.pixels.max() <= 1 + 1e-6
    of_checkpoint, _ = run.load_set(0)
    assert of_checkpoint.tiles == 2
    result.export(tmp_path / "out")
    exported = torch.load(tmp_path / "out" / "set.pt", weights_only=True)
    torch.testing.assert_close(exported["images"], expected)
    assert SyntheticSet.load(tmp_path / "out" / "set.safetensors").tiles == 2


def test_a_stopped_run_continues_bit_for_bit(tmp_path):
    data = make_data()
    settings = LoopSettings(
        iterations=6, checkpoint_every=2, optimizer_img="adamw", lr_img=0.3, patience_img=1,
        weight_decay_img=0.01, clip_img=True,
    )  # fmt: skip

    def make():
        return NCFM(maker(data), data, 0, dataclasses.replace(SETTINGS, dsa_strategy="color_crop"))

    assert same_after_a_stop(make, data, settings, tmp_path)


def test_what_cannot_be_used_is_refused():
    data = make_data()
    with pytest.raises(ValueError, match="method 'ncfm' needs a network without BatchNorm"):
        NCFM(maker(data, "batch"), data, 0, SETTINGS)
    with pytest.raises(ValueError, match="network must have a linear layer"):
        NCFM(lambda seed: nn.Sequential(nn.Flatten()), data, 0, SETTINGS)
    method = NCFM(maker(data), data, 0, dataclasses.replace(SETTINGS, tiles=3))
    with pytest.raises(ValueError, match="tiles must divide the size of the images, 8, got 3"):
        method.require_data(data)
    whitened = from_tensors(torch.rand(30, 1, 8, 8), torch.arange(30) % 3, name="w", zca=True)
    with pytest.raises(ValueError, match="'ncfm' scales images, w holds images whitened by ZCA"):
        method.require_data(whitened)
    with pytest.raises(ValueError, match=r"ipc must be at most the size .* 16 images were asked"):
        NCFM(maker(data), data, 0, SETTINGS).initial(RealData(data, stream()), 4)
    for change, message in (
        ({"num_pairs": 0}, "num_pairs must be at least 1"),
        ({"tiles": 0}, "tiles must be at least 1"),
        ({"num_frequencies": 0}, "num_frequencies must be at least 1"),
        ({"batch_real": 0}, "batch_real must be at least 1"),
        ({"amplitude": 1.5}, r"amplitude must lie in \[0, 1\], got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SETTINGS, **change)
