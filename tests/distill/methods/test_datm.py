"""DATM: its window, where it starts, and its label gradient against the naive graph."""

import dataclasses

import pytest
import torch
from tiny import make_data, make_experts, make_network

from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.loop import LoopSettings, distill
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.datm import DATM, DATMSettings
from mim4dd.distill.runs import RunDirectory, SyntheticSet

SETTINGS = DATMSettings(syn_steps=4, max_start_epoch=3, batch_syn=4)


class DoubleExperts:
    """The same experts in float64."""

    def __init__(self, experts):
        self.num_epochs = experts.num_epochs
        self.require_parameters_of = experts.require_parameters_of
        self.experts = experts

    def __len__(self):
        return len(self.experts)

    def segment(self, *place):
        return tuple(theta.double() for theta in self.experts.segment(*place))


@pytest.fixture
def task(tmp_path):
    data = make_data()
    return data, make_network(data), make_experts(data, tmp_path / "experts")


def test_the_window_grows_as_published():
    """[min, first + ⌊(max − first) · iteration / end⌋), up to max."""
    settings = DATMSettings(
        min_start_epoch=1, initial_max_start_epoch=10, max_start_epoch=20, expansion_end=1000
    )
    for iteration in (0, 99, 100, 101, 550, 999, 1000, 5000):
        upper = min(10 + int((20 - 10) * iteration / 1000), 20)
        assert settings.start_epochs(iteration) == range(1, upper)
    whole = DATMSettings(min_start_epoch=3, max_start_epoch=9)
    assert whole.start_epochs(0) == whole.start_epochs(10**6) == range(3, 9)


def test_starts_are_drawn_from_the_window(task):
    data, network, experts = task
    settings = DATMSettings(
        min_start_epoch=1, initial_max_start_epoch=2, max_start_epoch=3, expansion_end=10
    )
    method, stream = DATM(network, experts, settings), torch.Generator()
    for iteration, window in ((0, {1}), (9, {1}), (10, {1, 2}), (99, {1, 2})):
        real = RealData(data, stream, iteration)
        assert {method._start_epoch(real) for _ in range(30)} == window


def test_bad_windows_are_refused():
    for change, message in (
        ({"min_start_epoch": -1}, "min_start_epoch must be at least 0"),
        ({"min_start_epoch": 5}, "max_start_epoch must be above min_start_epoch 5, got 5"),
        (
            {"min_start_epoch": 2, "initial_max_start_epoch": 2},
            "initial_max_start_epoch must be above min_start_epoch 2, got 2",
        ),
        ({"initial_max_start_epoch": 6}, "initial_max_start_epoch must be at most max_start_epoch"),
        ({"expansion_end": 0}, "expansion_end must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            DATMSettings(**change)


def readable_task(images_by_class, experts):
    """A data set of logits, which "experts" scale, so that what they say is plain to see."""
    images = torch.cat([torch.tensor(rows) for rows in images_by_class]).view(-1, 3, 1, 1)
    labels = torch.repeat_interleave(torch.tensor([len(rows) for rows in images_by_class]))
    data = dataclasses.replace(make_data(), image_train=images, label_train=labels)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 3, bias=False))
    return data, DATM(network, ScalingExperts(experts), SETTINGS)


class ScalingExperts:
    """Experts whose weights are their diagonal."""

    num_epochs = 4

    def __init__(self, diagonals):
        self.diagonals = diagonals

    def require_parameters_of(self, network):
        assert [parameter.numel() for parameter in network.parameters()] == [9]

    def __len__(self):
        return len(self.diagonals)

    def segment(self, expert, start_epoch, epochs):
        assert (start_epoch, epochs) == (4, 0)  # what the end of training says
        theta = torch.tensor(self.diagonals[expert]).diag().flatten()
        return theta, theta


def test_the_set_starts_from_images_that_the_expert_gets_right():
    right = [[3.0, 0.1 * index, 0.2] for index in range(20)]
    wrong = [[0.0, 1.0, 0.01 * index] for index in range(20)]
    one_right = [[5.0, 6.0, 0.0], [9.0, 1.0, 0.0], [3.0, 2.0, 0.0], [2.0, 1.9, 1.0]]
    none_right = [[4.0, 0.0, 1.0], [2.0, 0.0, 1.9], [1.0, 2.0, 1.5]]
    data, method = readable_task([right + wrong, one_right, none_right], [[1.0, 1.0, 1.0]])
    draws = set()
    for seed in range(20):
        real = RealData(data, torch.Generator().manual_seed(seed))
        images = method.initial(real, 2).image_syn.flatten(1).tolist()
        known = [[round(value, 4) for value in image] for image in images]
        assert known[0][0] == known[1][0] == 3.0
        assert known[0] != known[1]
        # Then those of the class that it finds likeliest: by the gap to what it says instead.
        assert known[2:] == [one_right[0], one_right[3], none_right[1], none_right[2]]
        draws.add(tuple(known[0]))
    assert len(draws) > 5


def test_labels_of_images_that_no_expert_gets_right_are_the_mean_of_all():
    wrong = [[[-1.0, 2.0, 3.0]], [[1.0, -2.0, 3.0]], [[1.0, 2.0, -3.0]]]
    data, method = readable_task(wrong, [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    initial = method.initial(RealData(data, torch.Generator()), 1)
    torch.testing.assert_close(initial.label_logits, 1.5 * initial.image_syn.flatten(1))


def test_labels_start_as_the_mean_logits_of_the_experts_that_are_right():
    one_each = [[[3.0, 1.0, 0.5]], [[1.0, 3.0, 0.5]], [[0.5, 1.0, 3.0]]]
    experts = [[1.0, 1.0, 1.0], [0.1, 1.0, 1.0], [2.0, 1.0, 1.0]]  # the second misses class 0
    data, method = readable_task(one_each, experts)
    logits = method.initial(RealData(data, torch.Generator()), 1).label_logits
    expected = torch.tensor([[4.5, 1.0, 0.5], [3.1 / 3, 3.0, 0.5], [1.55 / 3, 1.0, 3.0]])
    torch.testing.assert_close(logits, expected)


def test_the_gradient_of_labels_is_that_of_the_naive_graph(task):
    """Cross-entropy with softmax(label_logits), as DATM's, through all steps, in float64."""
    data, network, experts = task
    network.double()
    method = DATM(network, DoubleExperts(experts), SETTINGS)
    images, _ = data.sample(2, torch.Generator().manual_seed(0))
    image_syn = images.double().requires_grad_()
    label_logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    syn_lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    learned = (image_syn, label_logits, syn_lr)
    real = RealData(data, torch.Generator(), iteration=5)
    value = method.loss(image_syn, label_logits.softmax(1), syn_lr, real).value

    stream = RealData(data, torch.Generator())
    expert, start = stream.integer(2), stream.integer(3)
    first, target = (theta.double() for theta in experts.segment(expert, start, 2))
    theta, call = first.clone().requires_grad_(), FunctionalModel(network)
    for _ in range(4):
        rows = torch.randperm(6, generator=stream.generator)[:4]
        soft = label_logits[rows].softmax(1)
        loss = -(soft * call(theta, image_syn[rows]).log_softmax(1)).sum() / 4
        theta = theta - syn_lr * torch.autograd.grad(loss, theta, create_graph=True)[0]
    expected = (theta - target).square().sum() / (first - target).square().sum()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, learned), torch.autograd.grad(expected, learned)
    )


def test_a_run_learns_its_labels_and_averages_its_images(task, tmp_path):
    data, network, experts = task
    method = DATM(network, experts, dataclasses.replace(SETTINGS, batch_syn=None))
    settings = LoopSettings(iterations=4, lr_img=5.0, lr_teacher=0.05, ema_decay=0.5)
    run = RunDirectory(tmp_path / "run")
    run.create(dataclasses.asdict(settings))
    result = distill(method, data, settings, run)
    first = SyntheticSet.load(run.initial)
    assert result.label_syn.shape == (3, 3)
    torch.testing.assert_close(result.label_syn.sum(1), torch.ones(3))
    assert not torch.equal(result.label_syn, first.label_syn)
    average = first.image_syn
    raw = run.load_checkpoint()[0]["image_syn"]
    assert not torch.equal(result.image_syn, raw)
    assert not torch.equal(result.image_syn, average)
    assert torch.equal(run.load_checkpoint()[0]["average_image"], result.image_syn)
