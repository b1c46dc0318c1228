"""A data set, a network and experts small enough to distil in a second."""

import torch

from mim4dd.distill.data import from_tensors
from mim4dd.distill.experts import ExpertTraining, train_experts
from mim4dd.distill.networks import ConvNet

TRAINING = ExpertTraining(num_experts=2, train_epochs=4, lr_expert=0.05, batch_train=16)


def make_data(num_classes=3, per_class=15, size=8):
    """Classes that differ in where a bright bar lies, plus noise."""
    labels = torch.arange(num_classes).repeat(per_class)
    images = 0.3 * torch.rand(len(labels), 1, size, size)
    for index, label in enumerate(labels):
        images[index, 0, 2 * int(label) : 2 * int(label) + 2] += 0.6
    return from_tensors(images, labels, name="bars")


def make_network(data):
    return ConvNet(data.num_classes, data.channels, 8, 2, data.image_size)


def make_experts(data, folder, training=TRAINING, network_name="tiny", **options):
    return train_experts(make_network, network_name, data, training, folder, **options)
