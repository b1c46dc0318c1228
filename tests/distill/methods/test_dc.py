"""DC against its definition, written out with loops over rows and plain autograd."""

import pytest
import torch
import torch.nn.functional as F
from bilevel import check_resumes_bit_for_bit, real_data, synthetic, task
from tiny import all_classes_at_once
from torch import nn
from torch.func import functional_call

from mim4dd import flatten_parameters
from mim4dd.distill.methods.dc import DC, DCSettings, gradient_distance

SETTINGS = DCSettings(outer_loop=3, inner_loop=2, lr_net=0.1, batch_real=4, batch_syn=4)


def distance_by_rows(gradients_syn, gradients_real):
    total = 0.0
    for syn, real in zip(gradients_syn, gradients_real, strict=True):
        if syn.dim() == 1:
            continue
        for row_syn, row_real in zip(syn.flatten(1), real.flatten(1), strict=True):
            lengths = row_syn.square().sum().sqrt() * row_real.square().sum().sqrt()
            total = total + 1 - (row_syn * row_real).sum() / (lengths + 1e-6)
    return total


def class_distance(network, samples, labels, batch, label):
    """Of one class, by plain autograd through the module."""
    parameters = dict(network.named_parameters())

    def gradients(images, truth, **options):
        logits = functional_call(network, parameters, (images,))
        return torch.autograd.grad(
            F.cross_entropy(logits, truth), list(parameters.values()), **options
        )

    truth = torch.full((len(batch),), label)
    return distance_by_rows(gradients(samples, labels, create_graph=True), gradients(batch, truth))


def test_the_distance_is_a_loop_over_rows():
    shapes = [torch.Size(shape) for shape in ((3, 2, 3, 3), (3,), (3,), (4, 5), (4,))]
    size = sum(shape.numel() for shape in shapes)
    syn, real = torch.randn(2, 6, size, dtype=torch.float64)
    syn[0, :18] = 0  # a filter that got no gradient

    def parts(row):
        pieces = row.split([shape.numel() for shape in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    expected = [distance_by_rows(parts(a), parts(b)) for a, b in zip(syn, real, strict=True)]
    torch.testing.assert_close(gradient_distance(syn, real, shapes), torch.stack(expected))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_the_loss_is_the_definition_along_the_inner_training(soft, together, monkeypatch):
    """Five steps by hand: fresh networks at 0 and 3, between them epochs of SGD on the set."""
    monkeypatch.setattr("mim4dd.distill.training.passes._PIXELS", 3 * 8 * 8)
    if together:
        monkeypatch.setattr("mim4dd.distill.methods.dc.sum_over_classes", all_classes_at_once)
    data, new_network = task()
    method = DC(new_network, SETTINGS)
    image_syn, label_syn = synthetic(data)
    if soft:
        label_syn = torch.randn(6, 3, dtype=torch.float64).softmax(1).requires_grad_()
    learned = [image_syn, label_syn] if soft else [image_syn]
    network = None
    for iteration in range(5):
        outcome = method.loss(image_syn, label_syn, None, real_data(data, iteration))
        found = torch.autograd.grad(outcome.value, learned)
        stream = real_data(data, iteration)
        if iteration % 3 == 0:
            network = new_network(stream.seed())
        else:
            # 6 samples in batches of at most 4: two of 3 in each of the two epochs.
            orders = [torch.randperm(6, generator=stream.generator) for _ in range(2)]
            stream.seed()  # of the augmentation, which DC has not
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
            for rows in torch.cat(orders).split(3):
                optimizer.zero_grad()
                labels = label_syn.detach()[rows]
                F.cross_entropy(network(image_syn.detach()[rows]), labels).backward()
                optimizer.step()
        expected = sum(
            class_distance(
                network,
                image_syn[2 * label : 2 * label + 2],
                label_syn[2 * label : 2 * label + 2],
                stream.sample_class(label, 4),
                label,
            )
            for label in range(3)
        )
        torch.testing.assert_close(outcome.value, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            found, torch.autograd.grad(expected, learned), rtol=1e-6, atol=1e-9
        )
        (compared,) = outcome.compared
        torch.testing.assert_close(compared.theta_syn, flatten_parameters(network))
        assert compared.theta_real is compared.theta_syn
        with torch.no_grad():
            image_syn -= 0.1 * found[0]  # the loop changes the set between two steps


def test_the_gradient_is_that_of_finite_differences():
    data, _ = task()

    def new_network(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(72, 3)).double()

    method = DC(new_network, DCSettings(batch_real=4))
    image_syn, label_syn = synthetic(data, ipc=1)
    assert torch.autograd.gradcheck(
        lambda images: method.loss(images, label_syn, None, real_data(data)).value,
        image_syn,
        fast_mode=True,
    )


def test_several_networks_are_the_mean_of_each():
    data, new_network = task()
    image_syn, label_syn = synthetic(data)
    both = DC(new_network, DCSettings(batch_real=4, num_networks=2))
    outcome = both.loss(image_syn, label_syn, None, real_data(data))
    assert len(outcome.compared) == 2
    assert not torch.equal(outcome.compared[0].theta_syn, outcome.compared[1].theta_syn)
    stream = real_data(data)
    networks = [new_network(stream.seed()) for _ in range(2)]
    batches = [stream.sample_class(label, 4) for label in range(3)]
    pairs = [samples.chunk(3) for samples in (image_syn, label_syn)]
    expected = [
        class_distance(network, pairs[0][label], pairs[1][label], batches[label], label)
        for network in networks
        for label in range(3)
    ]
    torch.testing.assert_close(outcome.value, sum(expected) / 2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_networks", [1, 2])
def test_it_resumes_bit_for_bit(num_networks, tmp_path):
    data, new_network = task(double=False)
    settings = DCSettings(
        outer_loop=4, inner_loop=2, lr_net=0.1, batch_real=4, num_networks=num_networks
    )
    check_resumes_bit_for_bit(lambda: DC(new_network, settings), data, tmp_path)


def test_a_state_is_never_changed_in_place():
    data, new_network = task()
    method = DC(new_network, SETTINGS)
    image_syn, label_syn = synthetic(data)
    method.loss(image_syn, label_syn, None, real_data(data, 0))
    state = method.state()
    copies = {name: tensor.clone() for name, tensor in state.items()}
    method.loss(image_syn, label_syn, None, real_data(data, 1))
    assert all(torch.equal(state[name], copies[name]) for name in state)
    assert not torch.equal(method.state()["theta"], state["theta"])


def test_what_cannot_work_is_refused():
    _, new_network = task()
    method = DC(new_network, SETTINGS)
    with pytest.raises(ValueError, match=r"the checkpoint must hold .*for DC .*got \{'theta'"):
        method.restore({"theta": torch.zeros(1, 5)})
    with pytest.raises(ValueError, match="network must have no BatchNorm, got one in '0'"):
        DC(lambda seed: nn.Sequential(nn.BatchNorm2d(1)), SETTINGS)
    for name in ("outer_loop", "inner_loop", "batch_real", "batch_syn", "num_networks"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            DCSettings(**{name: 0})
    with pytest.raises(ValueError, match="lr_net must be at least 0 and finite"):
        DCSettings(lr_net=float("inf"))
