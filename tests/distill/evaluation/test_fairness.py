"""What a set gains over random real images by the same recipe."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import make_data, make_network

from mim4dd.distill.evaluation.fairness import Recipe, fair_gains
from mim4dd.distill.evaluation.recipe import (
    Evaluation,
    evaluate,
    evaluate_full,
    evaluate_random_real,
)

LR = 0.05
EVALUATION = Evaluation(num_eval=2, eval_epochs=20, eval_dsa_strategy="crop")


@pytest.fixture(scope="module")
def task():
    data = make_data()
    images, labels = data.sample(2, torch.Generator().manual_seed(0))
    return data, lambda: make_network(data), images, labels


def gains_of(task, labels, evaluation=EVALUATION, **options):
    data, make, images, _ = task
    return fair_gains(make, images, labels, LR, data, evaluation, ipc=2, lr_teacher=0.1, **options)


def test_hard_labels_with_augmentation_and_without(task):
    data, make, images, labels = task
    gains = gains_of(task, labels)
    assert [each.recipe for each in gains] == [Recipe("hard", "crop"), Recipe("hard", "none")]
    for each in gains:
        recipe = replace(EVALUATION, eval_dsa_strategy=each.recipe.dsa_strategy)
        assert each.synthetic == evaluate(make, images, labels, LR, data, recipe)
        assert each.random_real == evaluate_random_real(make, 2, LR, data, recipe)
        pairs = zip(each.synthetic.values, each.random_real.values, strict=True)
        assert each.gain.values == tuple(mine - theirs for mine, theirs in pairs)


def test_a_recipe_is_not_there_twice(task):
    (only,) = gains_of(task, task[3], replace(EVALUATION, eval_dsa_strategy="none"))
    assert only.recipe == Recipe("hard", "none")


def test_soft_labels_have_soft_labels_to_beat(task, monkeypatch):
    data, _, _, labels = task
    soft = 0.4 * F.one_hot(labels, 3) + 0.2
    trained_on = []

    def spy(network, images, labels, **options):
        is_augmented = options["augment"] is not None
        trained_on.append((len(images), labels, options["lr"], is_augmented))
        if options["after_step"] is not None:  # none of the teacher's
            options["after_step"](options["num_steps"])

    monkeypatch.setattr("mim4dd.distill.evaluation.recipe.train_network", spy)
    gains = gains_of(task, soft)
    assert [tuple(each.recipe) for each in gains] == [
        ("soft", "crop"),
        ("hard", "crop"),
        ("hard", "none"),
    ]
    (size, whole, lr, _), *students = trained_on  # the teacher, and per recipe two times two
    assert (size, lr) == (len(data.image_train), 0.1)
    assert torch.equal(whole, data.label_train)
    assert len(students) == 12
    assert all((size, lr) == (6, LR) for size, _, lr, _ in students)
    assert [is_augmented for *_, is_augmented in students] == 8 * [True] + 4 * [False]
    own, others = students[:4], students[4:]
    assert all(torch.equal(given, soft) for _, given, *_ in own[:2])
    for _, given, *_ in own[2:]:
        assert given.shape == (6, 3)
        torch.testing.assert_close(given.sum(1), torch.ones(6))
        assert not torch.equal(given, given.round())
    assert all(torch.equal(given, labels) for _, given, *_ in others)


def test_random_real_images_are_labelled_by_what_the_whole_set_teaches(task, monkeypatch):
    """The teacher is the network whose accuracy is the whole training set's."""
    data, make, _, labels = task
    long = replace(EVALUATION, num_eval=1, eval_epochs=100)
    seen = []

    def spy(make_network, ipc, lr, data, evaluation, label=None, **options):
        seen.append(label)
        return evaluate_random_real(make_network, ipc, lr, data, evaluation, label, **options)

    monkeypatch.setattr("mim4dd.distill.evaluation.fairness.evaluate_random_real", spy)
    gains_of(task, F.one_hot(labels, 3).float(), long)
    label, *others = seen
    assert others == [None, None]
    hits = (label(data.image_test).argmax(1) == data.label_test).float().mean().item()
    assert hits == pytest.approx(evaluate_full(make, 2, 0.1, data, long).mean)
    assert hits > 0.8


def test_the_classes_that_images_stand_for_may_differ_from_their_labels(task):
    labels = task[3]
    confused = F.one_hot((labels + 1) % 3, 3).float()
    by_default, told = gains_of(task, confused), gains_of(task, confused, classes=labels)
    assert by_default[0] == told[0]
    assert told[1].synthetic == gains_of(task, labels)[0].synthetic
    assert by_default[1].synthetic != told[1].synthetic
