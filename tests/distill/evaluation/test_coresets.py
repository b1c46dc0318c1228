"""Real images that are chosen: the choices by their definitions, and what is trained on them."""

from functools import partial

import pytest
import torch
from tiny import make_data, make_network
from torch import nn

from mim4dd.distill.evaluation.coresets import (
    CORESETS,
    choose_coresets,
    evaluate_coresets,
    herding,
    k_centre,
    least_el2n,
)
from mim4dd.distill.evaluation.recipe import Evaluation, evaluate, trained_network

EVALUATION = Evaluation(num_eval=2, eval_epochs=40, eval_dsa_strategy="none")


@pytest.fixture
def features():
    return torch.randn(30, 4, dtype=torch.float64)


def test_herding_comes_nearest_to_the_mean_with_every_sample(features):
    rows = herding(features, torch.zeros(30), 8).tolist()
    for number, row in enumerate(rows, 1):
        before = rows[: number - 1]
        distances = {
            other: (features[[*before, other]].mean(0) - features.mean(0)).norm().item()
            for other in set(range(30)) - set(before)
        }
        assert distances[row] == pytest.approx(min(distances.values()))


def test_k_centre_takes_the_sample_that_is_farthest_from_all(features):
    rows = k_centre(features, torch.zeros(30), 8).tolist()
    assert rows[0] == (features - features.mean(0)).norm(dim=1).argmin()
    distances = torch.cdist(features, features)
    for number in range(1, 8):
        nearest = distances[:, rows[:number]].amin(1)
        assert nearest[rows[number]] == nearest.max()


def test_el2n_takes_those_with_the_least_error(features):
    errors = torch.rand(30)
    rows = least_el2n(features, errors, 8)
    assert errors[rows].max() <= errors[[row for row in range(30) if row not in rows]].min()


@pytest.mark.parametrize("name", CORESETS)
def test_no_sample_comes_twice(name):
    """Not even where several are equal, and all of a class are asked for."""
    features, errors = torch.ones(6, 2), torch.zeros(6)
    assert sorted(CORESETS[name](features, errors, 6).tolist()) == list(range(6))


def chosen_by(choice, features, errors, data, ipc):
    def look(rows, label):
        assert data.label_train[rows].tolist() == [label] * len(rows)
        return features[rows], errors[rows]

    return choose_coresets(look, data, ipc, {"one": choice})["one"]


def test_choices_are_of_every_class():
    data = make_data()
    features = torch.randn(len(data.image_train), 3)
    images, labels = chosen_by(herding, features, features[:, 0], data, 2)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    rows = [int(torch.where((data.image_train == image).all((1, 2, 3)))[0]) for image in images]
    assert len(set(rows)) == 6
    assert data.label_train[rows].tolist() == labels.tolist()


def test_each_class_has_its_own_number():
    """As the set has whose baseline they are."""
    data = make_data()
    features, errors = (torch.randn(len(data.label_train), *size) for size in ((4,), ()))
    counts = [1 + label % 3 for label in range(data.num_classes)]
    _, labels = chosen_by(least_el2n, features, errors, data, counts)
    assert labels.bincount(minlength=data.num_classes).tolist() == counts


def test_a_network_trained_on_all_images_chooses(monkeypatch):
    data = make_data()
    made, judged = partial(make_network, data), []

    def spy(make_network, images, labels, lr, data, evaluation, **options):
        judged.append(images)
        return evaluate(make_network, images, labels, lr, data, evaluation, **options)

    monkeypatch.setattr("mim4dd.distill.evaluation.coresets.evaluate", spy)
    found = evaluate_coresets(made, 2, 0.05, data, EVALUATION)
    assert found.keys() == CORESETS.keys()
    for accuracy in found.values():
        assert len(accuracy.values) == 2
        assert accuracy.mean > 0.5  # a third by chance

    # The network of which the whole set's first accuracy is.
    whole = data.image_train, data.label_train
    teacher = trained_network(made, *whole, 0, 0.05, EVALUATION, 6).eval()
    with torch.no_grad():
        features = teacher.blocks(data.image_train).flatten(1)
        off = teacher(data.image_train).softmax(1) - torch.eye(3)[data.label_train]
    for images, choice in zip(judged, CORESETS.values(), strict=True):
        expected, _ = chosen_by(choice, features, off.norm(dim=1), data, 2)
        assert torch.equal(images, expected)
    assert not torch.equal(judged[0], judged[2])


def test_coresets_need_images_and_a_linear_layer():
    data = make_data()
    with pytest.raises(ValueError, match="ipc must be at most the size of the smallest class"):
        evaluate_coresets(lambda: make_network(data), 99, 0.05, data, EVALUATION)
    without = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    with pytest.raises(ValueError, match="network must have a linear layer"):
        evaluate_coresets(lambda: without, 2, 0.05, data, EVALUATION)
