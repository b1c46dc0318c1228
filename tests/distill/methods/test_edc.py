"""EDC against its definition: one teacher a step, all layers' statistics, averaged over steps."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from recovered import maker
from tiny import doubled, make_data, make_set, same_after_a_stop, stream
from torch import nn

from mim4dd import MIM4DDLoss
from mim4dd.distill.add_ons.mutual_information import MIM4DD
from mim4dd.distill.loop import LoopSettings
from mim4dd.distill.methods.base import Ingredients, RealData
from mim4dd.distill.methods.edc import EDC, EDCSettings
from mim4dd.distill.methods.layer_statistics import moments, moments_of_each
from mim4dd.distill.methods.named_networks import parse_networks
from mim4dd.distill.methods.rded import random_crop
from mim4dd.distill.networks import AlexNet, ConvNet

SETTINGS = EDCSettings(
    squeeze_epochs=2, squeeze_batch=16, r_statistics=0.3, images_together=4, average_decay=0.75,
    category_weight=0.4, least_area=0.5,
)  # fmt: skip
LR = torch.tensor(0.1)


def make(data, settings=SETTINGS, teachers=2):
    new = maker(data)
    return EDC([new(seed) for seed in range(teachers)], data, 0, settings)


def inputs_of_layers(network, images):
    """Logits of ConvNet in eval mode, and what goes into every convolution and BatchNorm."""
    inputs = []
    for convolution, norm, *rest in network.blocks:
        inputs.append((convolution, images))
        images = convolution(images)
        inputs.append((norm, images))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        images = (images - norm.running_mean[:, None, None]) * scale[:, None, None]
        images = images + norm.bias[:, None, None]
        for module in rest:
            images = module(images)
    return network.classifier(images.flatten(1)), inputs


def mean_and_variance(values):
    mean = values.sum() / values.numel()
    return mean, ((values - mean) ** 2).sum() / values.numel()


def by_hand(layer, maps):
    """By channel, then for convolutions by patch, one after another."""
    pairs = [mean_and_variance(maps[:, channel]) for channel in range(maps.shape[1])]
    found = [torch.stack(part) for part in zip(*pairs, strict=True)]
    if isinstance(layer, nn.Conv2d):
        size = [4 * -(-length // 4) for length in maps.shape[2:]]
        maps = F.interpolate(maps, size, mode="bilinear")
        pairs = [
            mean_and_variance(maps[:, :, top : top + 4, left : left + 4])
            for top in range(0, size[0], 4)
            for left in range(0, size[1], 4)
        ]
        found += [torch.stack(part) for part in zip(*pairs, strict=True)]
    return found


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 2, 1), nn.BatchNorm2d(3)])
@pytest.mark.parametrize("size", [(8, 4), (5, 6), (1, 1)])
def test_moments(layer, size):
    maps = torch.randn(2, 3, *size, dtype=torch.float64)
    for found, expected in zip(moments(layer, maps), by_hand(layer, maps), strict=True):
        torch.testing.assert_close(found, expected)
    of_each = [by_hand(layer, maps[image : image + 1]) for image in range(2)]
    for found, parts in zip(moments_of_each(layer, maps), zip(*of_each, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(parts))


def targets(network, data):
    """Of every layer the running statistics and those of every class."""
    with torch.no_grad():
        _, whole = inputs_of_layers(network, data.image_train)
    found = []
    for layer, maps in whole:
        of_each = [by_hand(layer, image[None]) for image in maps]
        of_classes = [
            [torch.stack([of_each[row][part] for row in torch.where(data.label_train == label)[0]])
             .mean(0) for label in range(data.num_classes)]
            for part in range(len(of_each[0]))
        ]  # fmt: skip
        if isinstance(layer, nn.BatchNorm2d):
            running = [layer.running_mean, layer.running_var]
        else:  # 36 training images are one batch
            running = by_hand(layer, maps)
        found.append((running, of_classes))
    return found


def test_the_loss_is_the_definition():
    data = doubled(make_data())
    image_syn, label_syn = make_set(data, ipc=2)  # 6 images, in batches of 4 and 2
    method = make(data)
    averages = {}
    real_targets = None
    for iteration in range(4):
        images = (image_syn + 0.1 * iteration).detach().requires_grad_()
        real = RealData(data, stream(), iteration)
        outcome = method.loss(images, label_syn, LR, real)
        teachers = method.teachers.networks
        if real_targets is None:
            real_targets = [targets(teacher, data) for teacher in teachers]
        turn = iteration % 2
        cropped = random_crop(images.flatten(0, 1), 8, stream(), 0.5).view_as(images)
        expected = 0
        for group, rows in enumerate((slice(0, 4), slice(4, 6))):
            logits, layers = inputs_of_layers(teachers[turn], cropped[rows])
            value = F.cross_entropy(logits, label_syn[rows])
            for number, (layer, maps) in enumerate(layers):
                running, of_classes = real_targets[turn][number]
                for part, found in enumerate(by_hand(layer, maps)):
                    key = turn, group, number, part
                    last = averages.get(key, found.detach())
                    averages[key] = 0.75 * last + 0.25 * found.detach()
                    straight = averages[key] + found - found.detach()
                    of_batch = torch.stack([of_classes[part][y] for y in label_syn[rows]]).mean(0)
                    distance = 0.6 * (running[part] - straight).norm()
                    distance = distance + 0.4 * (of_batch - straight).norm()
                    value = value + 0.3 * (10 if number == 0 else 1) * distance
            expected = expected + value / 2
        torch.testing.assert_close(outcome.value, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(value, images)[0] for value in (outcome.value, expected))
        )


def test_convolutions_are_left_out_at_a_rate():
    data = doubled(make_data())
    image_syn, label_syn = make_set(data)
    values = {}
    for rate in (0.0, 0.999999):
        method = make(data, dataclasses.replace(SETTINGS, drop_rate=rate), teachers=1)
        outcome = method.loss(image_syn, label_syn, LR, RealData(data, stream()))
        values[rate] = outcome.metrics["statistics_distance"]
        numbers = {name.split(".")[2] for name in method.averages}
        assert numbers == ({"0", "1", "2", "3"} if rate == 0 else {"1", "3"})
    assert values[0.999999] < values[0.0]


def test_a_stopped_run_continues_bit_for_bit(tmp_path):
    data = make_data()
    settings = LoopSettings(
        iterations=5, checkpoint_every=2, ipc=2, optimizer_img="adam", lr_img=0.01
    )
    options = dataclasses.replace(SETTINGS, dsa_strategy="crop_scale", drop_rate=0.3)
    assert same_after_a_stop(lambda: make(data, options), data, settings, tmp_path)


def test_the_identity_is_not_of_what_it_saw():
    data = make_data()
    image_syn, label_syn = make_set(data)
    method = make(data)
    before = method.identity()
    method.loss(image_syn, label_syn, LR, RealData(data, stream()))
    assert method.identity() == before
    other = make(data)
    other.restore(method.state())
    assert other.averages.keys() == method.averages.keys()


def test_the_add_on_looks_into_the_first_teacher():
    data = make_data()
    image_syn, label_syn = make_set(data)
    base = make(data)
    method = MIM4DD(base, MIM4DDLoss(), weight=0.1, num_keys=12)
    for iteration in range(2):
        real = RealData(data, stream(), iteration)
        outcome = method.loss(image_syn, label_syn, LR, real)
        assert [each.network for each in outcome.compared] == [base.teachers.networks[0]]
        assert "mi_lower_bound" in outcome.metrics


def test_teachers_may_be_of_other_architectures():
    data = make_data()
    image_syn, label_syn = make_set(data)
    settings = dataclasses.replace(SETTINGS, other_teachers="convnet:width=6:depth=2,alexnet")
    ingredients = Ingredients(data, lambda: ConvNet(3, 1, 4, 1, 8, "batch"), lambda: None, seed=5)
    method = EDC.make(ingredients, settings)
    shapes = [(type(each), len(each.feature_layers)) for each in method.teachers.networks]
    assert shapes == [(ConvNet, 1), (ConvNet, 2), (AlexNet, 5)]
    values = [
        method.loss(image_syn, label_syn, LR, RealData(data, stream(), iteration)).value.item()
        for iteration in range(3)
    ]
    assert len(set(values)) == 3
    assert {name.split(".")[0] for name in method.averages} == {"0", "1", "2"}
    again = EDC.make(ingredients, settings)
    value = again.loss(image_syn, label_syn, LR, RealData(data, stream(), 2)).value.item()
    assert value == values[2]  # the seed says what the teachers are


def test_what_cannot_be_used_is_refused():
    data = make_data()
    with pytest.raises(ValueError, match=r"method 'edc' needs networks with BatchNorm"):
        EDC([maker(data)(0), maker(data, "instance")(0)], data, 0, SETTINGS)
    for text, message in {
        "mlp": "other_teachers must name networks among alexnet, convnet, .*, got 'mlp'",
        "convnet:size=3": "other_teachers must give convnet options among .*, got 'size=3'",
        "convnet:norm=none": "options among width, depth, pooling, got 'norm=none'",
        "convnet:width=big": "other_teachers must give width of convnet a number, got 'big'",
        "convnet:width=0": "width must be at least 1",
        "convnet,": "got ''",
    }.items():
        with pytest.raises(ValueError, match=message):
            EDCSettings(other_teachers=text)
    assert parse_networks("option", "") == []
    for change in (
        {"average_decay": 1.0}, {"drop_rate": -0.1}, {"category_weight": 2.0},
        {"least_area": 0.0}, {"images_together": 0},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(change))} must"):
            dataclasses.replace(SETTINGS, **change)
