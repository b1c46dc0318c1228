"""What the tests of DC, DSA and CAFE share: a tiny task in float64, and runs cut in two."""

import dataclasses
import os
import signal

import pytest
import torch
from same_run import leavings
from tiny import make_data, make_network, with_loss

from mim4dd.distill.loop import Interrupted, LoopSettings, distill
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.training.network import seeded_network

LOOP = LoopSettings(iterations=8, lr_img=0.5, ipc=2, lr_teacher=0.05, checkpoint_every=4)


def task(double=True):
    """Data and a maker of networks, both in float64 unless told."""
    data = make_data()
    if not double:
        return data, lambda seed: seeded_network(lambda: make_network(data), seed)
    data = dataclasses.replace(
        data, image_train=data.image_train.double(), image_test=data.image_test.double()
    )
    return data, lambda seed: seeded_network(lambda: make_network(data).double(), seed)


def synthetic(data, ipc=2):
    images, labels = data.sample(ipc, torch.Generator().manual_seed(0))
    return images.clone().requires_grad_(), labels


def real_data(data, iteration=0):
    return RealData(data, torch.Generator().manual_seed(iteration), iteration)


def check_resumes_bit_for_bit(make_method, data, path):
    """Interrupt, and kill, between two renewals; the result is the uninterrupted run's."""
    whole = _run(path / "whole")
    distill(make_method(), data, LOOP, whole)
    for stop, iteration in ((Interrupted, 2), (Killed, 7)):
        parts = _run(path / stop.__name__)
        with pytest.raises(stop):
            distill(_stopping(make_method(), iteration, stop), data, LOOP, parts, resume=True)
        distill(make_method(), data, LOOP, parts, resume=True)  # it knows the checkpoint alone
        assert leavings(parts.path) == leavings(whole.path)


class Killed(Exception):
    pass


def _run(path):
    run = RunDirectory(path)
    run.create({})
    return run


def _stopping(method, iteration, stop):
    inner = method.loss

    def loss(image_syn, label_syn, syn_lr, real):
        if real.iteration == iteration:
            if stop is Killed:
                raise Killed
            os.kill(os.getpid(), signal.SIGINT)
        return inner(image_syn, label_syn, syn_lr, real)

    return with_loss(method, loss)
