"""CAFE: its two losses written out with loops, and the schedule of its networks."""

import math

import pytest
import torch
import torch.nn.functional as F
from bilevel import check_resumes_bit_for_bit, real_data, synthetic, task
from torch import nn

from mim4dd import flatten_parameters, fuse
from mim4dd.distill.config.presets import preset
from mim4dd.distill.methods import cafe
from mim4dd.distill.methods.cafe import CAFE, CAFESettings
from mim4dd.distill.networks import MLP, AlexNet, ConvNet
from mim4dd.distill.training.features import layer_features, unpooled_features

SETTINGS = CAFESettings(outer_loop=4, inner_loop=2, lr_net=0.1, batch_real=4, lambda_1=0.0)


def features_of(network, images):
    """Outputs of the two blocks, flat."""
    early = network.blocks[0](images)
    return early.flatten(1), network.blocks[1](early).flatten(1)


def maps_of(network, images):
    """What the two blocks pool, and what the last one's pooling makes of it, flat."""
    maps = []
    for block in network.blocks:
        norm = block[1]
        maps.append(F.group_norm(block[0](images), norm.num_groups, norm.weight, norm.bias).relu())
        images = F.avg_pool2d(maps[-1], 2)
    return [part.flatten(1) for part in (*maps, images)]


def definition(network, image_syn, batches, early, last, beta, features_of=features_of):
    total = 0.0
    centres = []
    weights = (early, last) if features_of is not maps_of else (early, last / 2, last)
    for samples, batch in zip(image_syn.chunk(3), batches, strict=True):
        pairs = zip(features_of(network, samples), features_of(network, batch), strict=True)
        for weight, (syn, real) in zip(weights, pairs, strict=True):
            mean_syn = sum(syn) / len(syn)
            total = total + weight * (mean_syn - sum(real) / len(real)).square().sum()
        centres.append(mean_syn)
    for label, batch in enumerate(batches):
        for feature in features_of(network, batch)[-1]:
            logits = [(feature * centre).sum() for centre in centres]
            log_sum = torch.stack(logits).exp().sum().log()
            total = total + beta * (log_sum - logits[label])
    return total


@pytest.mark.parametrize("aligned_maps", ["pooled", "unpooled"])
@pytest.mark.parametrize(("early", "last", "beta"), [(0.3, 0, 0), (0, 2.0, 0), (0, 0, 0.01),
                                                     (0.1, 2.0, 0.01)])  # fmt: skip
def test_the_loss_is_alignment_and_discrimination(early, last, beta, aligned_maps, monkeypatch):
    monkeypatch.setattr("mim4dd.distill.training.passes._PIXELS", 5 * 8 * 8)
    data, new_network = task()
    settings = CAFESettings(
        batch_real=4,
        aligned_maps=aligned_maps,
        early_weight=early,
        last_weight=last,
        discrimination_weight=beta,
    )
    image_syn, label_syn = synthetic(data)
    outcome = CAFE(new_network, settings).loss(image_syn, label_syn, None, real_data(data))
    stream = real_data(data)
    network = new_network(stream.seed())
    batches = [stream.sample_class(label, 4) for label in range(3)]
    features = maps_of if aligned_maps == "unpooled" else features_of
    expected = definition(network, image_syn, batches, early, last, beta, features)
    torch.testing.assert_close(outcome.value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(outcome.value, image_syn), torch.autograd.grad(expected, image_syn)
    )
    (compared,) = outcome.compared
    assert torch.equal(compared.theta_syn, flatten_parameters(network))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConvNet(3, 1, 8, 2, 8),
        lambda: ConvNet(3, 1, 8, 2, 8, norm="none"),
        lambda: ConvNet(3, 1, 8, 2, 8, pooling="max"),
        lambda: ConvNet(3, 1, 8, 2, 8, norm="none", pooling="max"),
        lambda: _fused(ConvNet(3, 1, 8, 2, 8, norm="none")),
        lambda: AlexNet(3, 1, 8),
    ],
)
def test_unpooled_features_pool_to_those_of_the_layers(make):
    """And are themselves of a layer that does not pool."""
    network, images = make(), torch.randn(2, 1, 8, 8)
    arguments = network, flatten_parameters(network), images, network.feature_layers
    *unpooled, last = unpooled_features(*arguments)
    pooled = layer_features(*arguments)
    assert torch.equal(last, pooled[-1])
    is_max = any(isinstance(module, nn.MaxPool2d) for module in network.modules())
    pool = F.max_pool2d if is_max else F.avg_pool2d
    halved = 0
    for maps, output in zip(unpooled, pooled, strict=True):
        if maps.shape != output.shape:
            maps, halved = pool(maps, 2), halved + 1
        torch.testing.assert_close(maps, output)
    assert halved == (3 if isinstance(network, AlexNet) else 2)


def _fused(network):
    """The network as a peer writes it, with norm, ReLU and pooling fused by the user."""
    for block in network.blocks:
        block[1] = nn.GroupNorm(8, 8)
    assert len(fuse(network)) == 2
    return network


def test_layers_without_maps_are_aligned_as_they_are():
    network, rows = MLP(3, 5), torch.randn(2, 5)
    arguments = network, flatten_parameters(network), rows, network.feature_layers
    *unpooled, last = unpooled_features(*arguments)
    for found, output in zip(unpooled, layer_features(*arguments), strict=True):
        assert torch.equal(found, output)
    assert torch.equal(unpooled[-1], last)


def test_the_presets_align_what_the_published_code_aligns():
    """Its step size is for maps before pooling; that of digits was measured with those after it."""
    for data in ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100"):
        assert preset(data, "cafe", 1)["aligned_maps"] == "unpooled"
    assert "aligned_maps" not in preset("digits", "cafe", 1)


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
    with pytest.raises(ValueError, match="aligned_maps must be one of"):
        CAFESettings(aligned_maps="all")
    for name in ("early_weight", "last_weight", "discrimination_weight", "lambda_1", "lambda_2"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0"):
            CAFESettings(**{name: -1.0})
