"""What SRe2L and its followers recover images from, as their definitions have it."""

import dataclasses

import torch

from mim4dd.distill.networks import ConvNet
from mim4dd.distill.training.network import seeded_network


def doubled(data):
    return dataclasses.replace(data, image_train=data.image_train.double())


def maker(data, norm="batch"):
    def make(seed):
        network = seeded_network(
            lambda: ConvNet(data.num_classes, data.channels, 8, 2, data.image_size, norm), seed
        )
        return network.to(data.image_train.dtype)

    return make


def stream():
    return torch.Generator().manual_seed(3)


def make_set(data, ipc=2):
    images, labels = data.sample(ipc, stream())
    return images.clone().requires_grad_(), labels


def by_hand(network, images):
    """Logits of ConvNet in eval mode, and the input of every BatchNorm."""
    inputs = []
    for convolution, norm, *rest in network.blocks:
        images = convolution(images)
        inputs.append((norm, images))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        images = images * scale[:, None, None] + shift[:, None, None]
        for module in rest:
            images = module(images)
    return network.classifier(images.flatten(1)), inputs
