"""How many images go through a network at once, and how many graphs are held at once."""

import weakref
from contextlib import contextmanager

import pytest
import torch
from bilevel import real_data
from tiny import make_data, make_network
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.checkpoint import checkpoint

from mim4dd import MIM4DDLoss
from mim4dd.distill.add_ons.mutual_information import MIM4DD
from mim4dd.distill.methods.base import BaseMethod, ComparedNetwork, Objective
from mim4dd.distill.methods.cafe import CAFE, CAFESettings
from mim4dd.distill.methods.dc import DC, DCSettings
from mim4dd.distill.methods.dm import DM, DMSettings
from mim4dd.distill.methods.dsa import DSA, DSASettings
from mim4dd.distill.methods.rat_bptt import RaTBPTT, RaTBPTTSettings
from mim4dd.distill.networks import ConvNet
from mim4dd.distill.training.network import accuracy, seeded_network
from mim4dd.distill.training.passes import in_passes, sum_in_turn
from mim4dd.unroll import flatten_parameters

BATCH = 4  # of real images in a pass


@pytest.fixture(autouse=True)
def small_passes(monkeypatch):
    monkeypatch.setattr("mim4dd.distill.training.passes._PIXELS", BATCH * 8 * 8)


@contextmanager
def batches_of_convnets():
    """The sizes of the batches that the networks get within it."""
    sizes = []

    def note(module, inputs):
        if isinstance(module, ConvNet):
            sizes.append(len(inputs[0]))

    handle = register_module_forward_pre_hook(note)
    try:
        yield sizes
    finally:
        handle.remove()


class ComparedAlone(BaseMethod):
    """No loss of its own, and the network for the add-on to look into."""

    def __init__(self, new_network):
        self.network = new_network(0)

    def loss(self, image_syn, label_syn, syn_lr, real):
        theta = flatten_parameters(self.network)
        return Objective(torch.zeros(()), [ComparedNetwork(self.network, theta, theta)])


METHODS = {
    "dm": lambda make: DM(make, DMSettings(batch_real=10, dsa_strategy="crop_scale")),
    "dc": lambda make: DC(make, DCSettings(batch_real=10)),
    "dsa": lambda make: DSA(make, DSASettings(batch_real=10, dsa_strategy="crop_scale")),
    "cafe": lambda make: CAFE(make, CAFESettings(batch_real=10, outer_loop=9)),
    "rat_bptt": lambda make: RaTBPTT(make, RaTBPTTSettings(syn_steps=2, batch_target=20)),
    "mim4dd": lambda make: MIM4DD(ComparedAlone(make), MIM4DDLoss(), weight=1.0, num_keys=20),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_classes", [2, 4])
def test_no_batch_grows_with_the_classes(method, num_classes):
    """Real images come in passes; of synthetic ones there are at most as many as in a pass."""
    data = make_data(num_classes)
    objective = METHODS[method](lambda seed: seeded_network(lambda: make_network(data), seed))
    images, labels = data.sample(1, torch.Generator().manual_seed(0))
    images.requires_grad_()
    with batches_of_convnets() as sizes:
        for iteration in range(2):  # CAFE watches real images from the second on
            real = real_data(data, iteration)
            objective.loss(images, labels, torch.tensor(0.1), real).value.backward()
    assert max(sizes) == BATCH
    assert images.grad.isfinite().all()


@pytest.mark.parametrize("method", ["dm", "dc", "dsa"])
def test_no_graph_is_held_for_the_way_back(method):
    """It would be that of all classes: each one's gradient is there when the next one comes."""
    data = make_data()
    objective = METHODS[method](lambda seed: seeded_network(lambda: make_network(data), seed))
    images, labels = data.sample(2, torch.Generator().manual_seed(0))
    value = objective.loss(images.requires_grad_(), labels, None, real_data(data)).value
    names, nodes = set(), [value.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(node.name())
        nodes += [following for following, _ in node.next_functions if following is not None]
    assert names == {
        "SumBackward0", "StackBackward0", "_SumInTurnBackward", "SplitWithSizesBackward0",
        "torch::autograd::AccumulateGrad",
    }  # fmt: skip


def test_accuracy_is_taken_in_passes():
    data = make_data()
    network = make_network(data)
    with batches_of_convnets() as sizes:
        found = accuracy(network, data.image_train, data.label_train)
    assert max(sizes) == BATCH
    assert sum(sizes) == len(data.image_train) > 2 * BATCH
    with torch.no_grad():
        hits = network(data.image_train).argmax(1) == data.label_train
    assert found == pytest.approx(hits.double().mean().item(), abs=1e-12)


def test_passes_are_of_as_many_images_as_their_pixels_allow():
    for shape, size in (
        ((9, 3, 8, 8), BATCH), ((9, 1, 16, 16), 1), ((9, 1, 99, 99), 1), ((3, 1, 8, 8), 3),
        ((9, 64), BATCH), ((9, 1000), 1),
    ):  # fmt: skip
        images = torch.randn(shape)
        parts = in_passes(images)
        assert len(parts[0]) == size
        assert torch.equal(torch.cat(parts), images)
    elsewhere = torch.zeros(9, 3, 8, 8, device="meta")
    assert [len(part) for part in in_passes(elsewhere, otherwise=6)] == [6, 3]


def test_a_sum_in_turn_is_the_sum():
    tensors = [torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    constant = torch.randn(3, 5, dtype=torch.float64)
    scales = torch.randn(4, dtype=torch.float64)

    def term(scale):
        return lambda a, b, c: (scale * a * c).sin().sum() + (scale > 0) * b.exp().sum()

    value = sum_in_turn((term(scale) for scale in scales), *tensors, constant)
    expected = sum(term(scale)(*tensors, constant) for scale in scales)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(3 * value, tensors), torch.autograd.grad(3 * expected, tensors)
    )
    with torch.no_grad():
        without = sum_in_turn((term(scale) for scale in scales), *tensors, constant)
    torch.testing.assert_close(without, expected)
    assert not without.requires_grad
    unused = sum_in_turn([lambda a, b: a.sum()], *tensors)  # b's gradient is 0, not missing
    assert not torch.autograd.grad(unused, tensors)[1].any()


def test_a_sum_in_turn_within_a_checkpoint():
    x = torch.randn(5, requires_grad=True)

    def total(x):
        return sum_in_turn([torch.sin, torch.exp], x.sum())

    checkpoint(total, x, use_reentrant=False).backward()
    torch.testing.assert_close(x.grad, (x.sum().cos() + x.sum().exp()).detach().expand(5))


def test_a_sum_in_turn_holds_one_graph():
    held = []

    def term(x):
        assert all(graph() is None for graph in held)
        middle = x.exp()
        held.append(weakref.ref(middle))
        return middle.square().sum()

    x = torch.randn(5, requires_grad=True)
    sum_in_turn([term] * 3, x).backward()
    torch.testing.assert_close(x.grad, 6 * (2 * x.detach()).exp())


def test_a_sum_in_turn_refuses_a_second_derivative():
    x = torch.randn(5, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        sum_in_turn([lambda x: x.pow(3).sum()], x), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiates once"):
        gradient.sum().backward()
