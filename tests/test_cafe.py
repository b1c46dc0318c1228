"""CAFE: its two losses written out with loops, and the schedule of its networks."""

import math

import pytest
import torch
from bilevel import check_resumes_bit_for_bit, real_data, synthetic, task
from torch import nn

from mim4dd import flatten_parameters
from mim4dd.distill.methods import cafe
from mim4dd.distill.methods.cafe import CAFE, CAFESettings

SETTINGS = CAFESettings(outer_loop=4, inner_loop=2, lr_net=0.1, batch_real=4, lambda_1=0.0)


def features_of(network, images):
    """Outputs of the two blocks, flat."""
    early = network.blocks[0](images)
    return early.flatten(1), network.blocks[1](early).flatten(1)


def definition(network, image_syn, batches, early, last, beta):
    total = 0.0
    centres = []
    for samples, batch in zip(image_syn.chunk(3), batches, strict=True):
        pairs = zip(features_of(network, samples), features_of(network, batch), strict=True)
        for weight, (syn, real) in zip((early, last), pairs, strict=True):
            mean_syn = sum(syn) / len(syn)
            total = total + weight * (mean_syn - sum(real) / len(real)).square().sum()
        centres.append(mean_syn)
    for label, batch in enumerate(batches):
        for feature in features_of(network, batch)[1]:
            logits = [(feature * centre).sum() for centre in centres]
            log_sum = torch.stack(logits).exp().sum().log()
            total = total + beta * (log_sum - logits[label])
    return total


@pytest.mark.parametrize(("early", "last", "beta"), [(0.3, 0, 0), (0, 2.0, 0), (0, 0, 0.01),
                                                     (0.1, 2.0, 0.01)])  # fmt: skip
def test_the_loss_is_alignment_and_discrimination(early, last, beta):
    data, new_network = task()
    settings = CAFESettings(
        batch_real=4, early_weight=early, last_weight=last, discrimination_weight=beta
    )
    image_syn, label_syn = synthetic(data)
    outcome = CAFE(new_network, settings).loss(image_syn, label_syn, None, real_data(data))
    stream = real_data(data)
    network = new_network(stream.seed())
    batches = [stream.sample_class(label, 4) for label in range(3)]
    expected = definition(network, image_syn, batches, early, last, beta)
    torch.testing.assert_close(outcome.value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(outcome.value, image_syn), torch.autograd.grad(expected, image_syn)
    )
    (compared,) = outcome.compared
    assert torch.equal(compared.theta_syn, flatten_parameters(network))


def test_classes_smaller_than_the_batch_keep_their_own_mean():
    data, new_network = task()
    rows = torch.cat([torch.where(data.label_train == 0)[0][:2], torch.where(data.label_train)[0]])
    object.__setattr__(data, "image_train", data.image_train[rows])
    object.__setattr__(data, "label_train", data.label_train[rows])
    image_syn, label_syn = synthetic(data)
    settings = CAFESettings(batch_real=5)
    outcome = CAFE(new_network, settings).loss(image_syn, label_syn, None, real_data(data))
    stream = real_data(data)
    network = new_network(stream.seed())
    batches = [stream.sample_class(label, 5) for label in range(3)]
    assert [len(batch) for batch in batches] == [2, 5, 5]
    torch.testing.assert_close(
        outcome.value, definition(network, image_syn, batches, 0.1, 2.0, 0.01)
    )


def image_steps(method, data, iterations):
    """For how many steps the first network had served, at each iteration."""
    image_syn, label_syn = synthetic(data)
    steps = []
    for iteration in range(iterations):
        method.loss(image_syn, label_syn, None, real_data(data, iteration))
        steps.append(int(method.state()["image_steps"][0]))
    return steps


def test_a_network_goes_when_its_accuracy_rests():
    """After ten image steps at the earliest, and after outer_loop at the latest."""
    data, new_network = task()
    still = CAFESettings(outer_loop=99, lr_net=0.0, batch_real=4, lambda_1=0.5)
    # Ten accuracies are in the window when the eleventh step begins.
    assert image_steps(CAFE(new_network, still), data, 12) == [*range(1, 11), 1, 2]
    restless = CAFESettings(outer_loop=3, lr_net=0.0, batch_real=4, lambda_1=0.0)
    assert image_steps(CAFE(new_network, restless), data, 5) == [1, 2, 3, 1, 2]


def test_training_ends_when_accuracy_has_moved(monkeypatch):
    """After ten epochs at the earliest, and after inner_loop at the latest."""
    data, new_network = task()
    image_syn, label_syn = synthetic(data)
    for lambda_2, accuracies, epochs in (
        (0.5, [0.1] * 9 + [0.7] * 9, 10),
        (0.5, [0.1] * 12 + [0.7] * 9, 13),
        (0.5, [0.1] * 99, 15),
        (0.7, [0.1] * 9 + [0.7] * 99, 15),
    ):
        settings = CAFESettings(outer_loop=9, inner_loop=15, batch_real=4, lambda_2=lambda_2)
        method = CAFE(new_network, settings)
        method.loss(image_syn, label_syn, None, real_data(data, 0))
        values, trained = iter([0.0, *accuracies]), []

        def watch(window, theta, real, values=values):
            return torch.cat([window[1:], torch.tensor([next(values)])])

        def train(theta, *rest, trained=trained, **options):
            trained.append(theta)
            return theta

        monkeypatch.setattr(method, "_watch", watch)
        monkeypatch.setattr(method, "train", train)
        method.loss(image_syn, label_syn, None, real_data(data, 1))
        assert len(trained) == epochs


def test_the_watched_accuracy_is_the_mean_over_the_classes():
    data, new_network = task()
    method = CAFE(new_network, SETTINGS)
    theta = flatten_parameters(new_network(5))
    window = method._watch(torch.full((10,), math.nan), theta, real_data(data))
    assert window[:9].isnan().all()
    with torch.no_grad():
        guesses = new_network(5)(data.image_train).argmax(1)
    hits = [(guesses[data.label_train == label] == label).double().mean() for label in range(3)]
    assert window[9].item() == pytest.approx(sum(hits).item() / 3)


@pytest.mark.parametrize("num_networks", [1, 2])
def test_it_resumes_bit_for_bit(num_networks, tmp_path, monkeypatch):
    monkeypatch.setattr(cafe, "_WINDOW", 3)  # so that networks also go early
    data, new_network = task(double=False)
    settings = CAFESettings(
        outer_loop=4, inner_loop=4, lr_net=0.1, batch_real=4, lambda_1=0.2,
        num_networks=num_networks,
    )  # fmt: skip
    check_resumes_bit_for_bit(lambda: CAFE(new_network, settings), data, tmp_path)


def test_what_cannot_work_is_refused():
    _, new_network = task()
    with pytest.raises(ValueError, match="must name the submodules to align in feature_layers"):
        CAFE(lambda seed: nn.Linear(4, 3), SETTINGS)
    with pytest.raises(ValueError, match=r"the checkpoint must hold .*accuracies.* for CAFE"):
        CAFE(new_network, SETTINGS).restore({"theta": torch.zeros(1, 5)})
    for name in ("early_weight", "last_weight", "discrimination_weight", "lambda_1", "lambda_2"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0"):
            CAFESettings(**{name: -1.0})
