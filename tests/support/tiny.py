"""A data set, a network and experts small enough to distil in a second."""

import dataclasses
import os
import signal

import pytest
import torch
from same_run import leavings

from mim4dd.distill.data import from_tensors
from mim4dd.distill.experts import ExpertTraining, train_experts
from mim4dd.distill.loop import Interrupted, distill
from mim4dd.distill.networks import ConvNet
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.training.network import seeded_network
from mim4dd.distill.training.passes import sum_over_classes

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


def doubled(data):
    """The data in float64, as definitions are compared in."""
    return dataclasses.replace(data, image_train=data.image_train.double())


def maker(data, norm="instance"):
    """Makes a network of a seed, in the dtype of the data."""

    def make(seed):
        network = seeded_network(
            lambda: ConvNet(data.num_classes, data.channels, 8, 2, data.image_size, norm), seed
        )
        return network.to(data.image_train.dtype)

    return make


def stream(seed=3):
    return torch.Generator().manual_seed(seed)


def make_set(data, ipc=2):
    """Real images to distil from, and their classes."""
    images, labels = data.sample(ipc, stream())
    return images.clone().requires_grad_(), labels


def make_experts(data, folder, training=TRAINING, network_name="tiny", **options):
    return train_experts(make_network, network_name, data, training, folder, **options)


def with_loss(method, loss):
    """The method with another loss, which says that it is the method all the same."""
    identity = method.identity()
    method.identity = lambda: identity
    method.loss = loss
    return method


def same_after_a_stop(make_method, data, settings, folder):
    """Whether a run stopped after three steps leaves what an uninterrupted one leaves.

    Either process has a method of its own: what it carries must be in the checkpoint.
    """

    def start(name):
        run = RunDirectory(folder / name)
        run.create({})
        return run

    whole, parts = start("whole"), start("parts")
    distill(make_method(), data, settings, whole)
    stopped = make_method()
    loss, calls = stopped.loss, []

    def loss_then_stop(*arguments):
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*arguments)

    with pytest.raises(Interrupted):
        distill(with_loss(stopped, loss_then_stop), data, settings, parts)
    distill(make_method(), data, settings, parts, resume=True)
    return leavings(whole.path) == leavings(parts.path)


def at_once(function, state, images):
    """What :func:`for_each_network` does on a GPU, on any device."""
    return torch.vmap(function, in_dims=(0, None))(state, images)


def all_classes_at_once(distance, counts, *of_samples, together):
    """What :func:`sum_over_classes` does on a GPU, on any device."""
    return sum_over_classes(distance, counts, *of_samples, together=True)
