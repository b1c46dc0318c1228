"""Evaluation: the field's recipe, on the held-out images, with the step size and draws it says."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import make_data, make_network, maker
from torch import nn

from mim4dd import flatten_parameters
from mim4dd.distill.data import from_tensors
from mim4dd.distill.evaluation.recipe import (
    Accuracy,
    Evaluation,
    Examiner,
    evaluate,
    evaluate_full,
    evaluate_random_real,
    of_seeds,
    trained_network,
)
from mim4dd.distill.training.network import accuracy, seeded_network, train_network

EVALUATION = Evaluation(num_eval=2, eval_epochs=100, eval_dsa_strategy="none")


@pytest.mark.parametrize("name", ["num_eval", "eval_epochs", "eval_batch"])
def test_nothing_to_evaluate_is_refused(name):
    Evaluation(**{name: 1})
    with pytest.raises(ValueError, match=f"{name} must be at least 1 .*got 0"):
        Evaluation(**{name: 0})


def test_accuracy_is_of_the_held_out_images():
    data = make_data()
    pixels = data.normalization.inverse(data.image_train)
    wrong = (data.label_train + 1) % 3  # held-out labels that contradict the training ones
    crossed = from_tensors(pixels, data.label_train, test=(pixels, wrong))
    honest = evaluate_full(lambda: make_network(data), 1, 0.05, data, EVALUATION)
    assert honest.mean > 0.9
    assert evaluate_full(lambda: make_network(data), 1, 0.05, crossed, EVALUATION).mean < 0.1


def test_the_last_test_counts_and_the_best_stands_beside_it():
    """Tests on the way change nothing; a network tested after fewer steps is one trained less."""
    data = make_data()
    images, labels = data.sample(2, torch.Generator().manual_seed(0))
    recipe = replace(EVALUATION, eval_epochs=9, eval_batch=4)  # of 6 images: 18 steps

    def made():
        return maker(data, "batch")(0)

    plain = evaluate(made, images, labels, 0.01, data, recipe)
    often = evaluate(made, images, labels, 0.01, data, recipe, num_tests=6)
    assert plain.best == ()
    assert often.values == plain.values
    seen = []
    for seed in range(2):
        on_the_way = Examiner(data, 18, 6)
        trained_network(made, images, labels, 2**31 + seed, 0.01, recipe, 6, on_the_way)
        seen.append(on_the_way.accuracies)
    assert all(len(tests) == 6 for tests in seen)
    assert often.best == tuple(max(tests) for tests in seen)
    assert all(len(set(tests)) > 1 for tests in seen)
    falling = of_seeds(lambda seed: [0.2, math.nan, 0.9, 0.5 + seed], recipe)
    assert falling == Accuracy((0.5, 1.5), best=(0.9, 1.5))


def test_tests_are_spread_evenly_and_the_last_step_is_one():
    data = make_data()
    assert Examiner(data, 10, 1).steps == {10}
    assert Examiner(data, 10, 4).steps == {3, 5, 8, 10}
    assert Examiner(data, 3, 20).steps == {1, 2, 3}
    with pytest.raises(ValueError, match="num_tests must be at least 1, got 0"):
        Examiner(data, 10, 0)


def test_the_step_size_counts():
    data = make_data()
    images, labels = data.sample(2, torch.Generator().manual_seed(0))
    still = evaluate(lambda: make_network(data), images, labels, 1e-12, data, EVALUATION)
    moved = evaluate(lambda: make_network(data), images, labels, 0.05, data, EVALUATION)
    assert moved.mean > still.mean + 0.2


def test_no_expert_starts_from_the_weights_of_a_network_that_judges():
    data = make_data()
    images, labels = data.sample(1, torch.Generator().manual_seed(0))
    initial = []

    def spy():
        initial.append(flatten_parameters(make_network(data)))
        return make_network(data)

    evaluate(spy, images, labels, 0.05, data, EVALUATION)
    of_experts = [
        flatten_parameters(seeded_network(lambda: make_network(data), seed)) for seed in range(10)
    ]
    assert len(initial) == 2
    assert not any(torch.equal(mine, theirs) for mine in initial for theirs in of_experts)


def test_random_real_images_differ_from_network_to_network(monkeypatch):
    data = make_data()
    drawn = []
    sample = type(data).sample

    def spy(self, ipc, generator):
        drawn.append(sample(self, ipc, generator)[0])
        return sample(self, ipc, generator)

    monkeypatch.setattr(type(data), "sample", spy)
    evaluate_random_real(lambda: make_network(data), 1, 0.05, data, EVALUATION)
    assert len(drawn) == 2
    assert not torch.equal(drawn[0], drawn[1])


def written_out(weight, images, labels, lr, steps, drop):
    """SGD with momentum 0.9 and weight decay 5e-4, its step size a tenth and momentum 0 at drop."""
    velocity = torch.zeros_like(weight)
    for step in range(steps):
        if step == drop:
            lr, velocity = 0.1 * lr, torch.zeros_like(weight)
        weight = weight.detach().requires_grad_()
        loss = -(labels * (images.flatten(1) @ weight.T).log_softmax(1)).sum(1).mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        velocity = 0.9 * velocity + gradient + 5e-4 * weight.detach()
        weight = weight.detach() - lr * velocity
    return weight


class Linear(nn.Module):
    def __init__(self, num_features, num_classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, num_features).double())

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "probabilities"])
@pytest.mark.parametrize("epochs", [1, 6, 7])
def test_the_recipe_is_the_fields(epochs, soft):
    images = torch.randn(6, 2, 3, 3).double()
    labels = torch.randn(6, 4).double().softmax(1) if soft else torch.randint(4, (6,))
    probabilities = labels if soft else F.one_hot(labels, 4).double()
    network = Linear(18, 4)
    expected = written_out(
        network.weight, images, probabilities, lr=0.5, steps=epochs, drop=(epochs + 1) // 2
    )
    evaluation = Evaluation(eval_epochs=epochs, eval_dsa_strategy="none")
    trained = trained_network(lambda: network, images, labels, 0, 0.5, evaluation, num_images=6)
    torch.testing.assert_close(trained.weight.detach(), expected, rtol=1e-12, atol=1e-14)


def schedule_of(monkeypatch, call):
    """Numbers of images, of steps and of steps before the drop that training is asked for."""
    asked = []

    def spy(network, images, labels, **options):
        asked.append((len(images), options["num_steps"], options["lr_drop"]))
        options["after_step"](options["num_steps"])

    monkeypatch.setattr("mim4dd.distill.evaluation.recipe.train_network", spy)
    call()
    return set(asked)


def test_epochs_are_of_the_set_and_the_whole_training_set_gets_as_many_steps(monkeypatch):
    data = make_data()  # 36 training images
    evaluation = Evaluation(num_eval=2, eval_epochs=7, eval_batch=4, eval_dsa_strategy="none")

    def make():
        return make_network(data)

    whole = data.image_train, data.label_train
    calls = {
        (6, 14, 8): lambda: evaluate_random_real(make, 2, 0.1, data, evaluation),
        (36, 14, 8): lambda: evaluate_full(make, 2, 0.1, data, evaluation),
        (36, 63, 36): lambda: evaluate(make, *whole, 0.1, data, evaluation),
    }
    for expected, call in calls.items():
        assert schedule_of(monkeypatch, call) == {expected}


def test_soft_labels_teach_what_they_say():
    """Images of one class, said to be another: accuracy is of the words, not of the images."""
    data = make_data()
    images, labels = data.sample(5, torch.Generator().manual_seed(0))
    soft = 0.7 * F.one_hot((labels + 1) % 3, 3) + 0.1
    misled = evaluate(lambda: make_network(data), images, soft, 0.05, data, EVALUATION)
    told = evaluate(lambda: make_network(data), images, soft.roll(-1, 1), 0.05, data, EVALUATION)
    assert told.mean > 0.8
    assert misled.mean < 0.2


@pytest.mark.parametrize(
    "labels", [torch.zeros(6, 3, dtype=torch.int64), torch.zeros(6), torch.zeros(6, 4),
               torch.zeros(5, dtype=torch.int64)]
)  # fmt: skip
def test_labels_that_do_not_fit(labels):
    data = make_data()
    images, _ = data.sample(2, torch.Generator().manual_seed(0))
    message = r"labels must be classes \(6,\) or, as floating-point numbers, probabilities \(6, 3\)"
    with pytest.raises(ValueError, match=message):
        evaluate(lambda: make_network(data), images, labels, 0.05, data, EVALUATION)


def test_a_network_that_diverged_has_no_accuracy():
    data = make_data()
    network = make_network(data)
    assert 0 <= accuracy(network, data.image_test, data.label_test) <= 1
    train_network(
        network, data.image_train, data.label_train, num_steps=5, lr=1e30, momentum=0.0,
        weight_decay=0.0, batch_size=20, generator=torch.Generator(),
    )  # fmt: skip
    assert math.isnan(accuracy(network, data.image_test, data.label_test))
    diverged = Accuracy((0.5, math.nan))
    assert math.isnan(diverged.mean)
    assert math.isnan(diverged.std)


def test_gains_are_of_pairs():
    gain = Accuracy((0.5, 0.7, 0.9)).gain_over(Accuracy((0.4, 0.7, 0.6)))
    assert gain.values == pytest.approx((0.1, 0.0, 0.3))
    assert gain.mean == pytest.approx(0.4 / 3)
    assert gain.std == pytest.approx(((0.1**2 + 0.3**2 - 0.4**2 / 3) / 2) ** 0.5)
    with pytest.raises(ValueError, match="other must be of 3 networks too, got 1"):
        Accuracy((0.5, 0.7, 0.9)).gain_over(Accuracy((0.5,)))
