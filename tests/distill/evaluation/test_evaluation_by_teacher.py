"""The regime of a teacher's labels: its loss and steps by hand, what it mixes, and its table."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tiny import make_data, make_network
from torch import nn

from mim4dd.distill.evaluation import ByTeacher, Evaluation, evaluate, evaluate_by_teacher
from mim4dd.distill.evaluation.fairness import fair_gains
from mim4dd.distill.evaluation.teacher import cut_mix, mix_up, train_by_teacher

EVALUATION = Evaluation(num_eval=2, eval_epochs=30, eval_dsa_strategy="none")
PLAIN = {"mix": "none", "optimizer": "sgd", "weight_decay": 0.0, "lr": 0.3}


@pytest.fixture
def task():
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double() for _ in range(2))
    return student, teacher, torch.randn(6, 3, 2, 2, dtype=torch.float64)


CLASSES = torch.tensor([0, 2, 1, 0, 1, 2])


def train(student, teacher, images, settings, num_steps, seed=0):
    return train_by_teacher(
        student, teacher, images, CLASSES, settings, num_steps=num_steps, batch_size=len(images),
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def by_softmax(said, told):
    told = (told / 3).softmax(1)
    return 9 * (told * (told.log() - (said / 3).log_softmax(1))).sum(1).mean()


def by_logits(said, told):
    of_class = said.softmax(1)[torch.arange(6), CLASSES]
    return ((said - told) ** 2).sum() / 18 - 0.4 * of_class.log().mean()


@pytest.mark.parametrize(
    ("options", "loss_of"),
    [({"temperature": 3.0}, by_softmax), ({"loss": "mse", "hard_weight": 0.4}, by_logits)],
)
def test_steps_are_those_of_the_formula(task, options, loss_of):
    student, teacher, images = task
    settings = ByTeacher(**options, smoothing=2.0, **PLAIN)
    weights = [parameter.detach().clone() for parameter in student.parameters()]
    velocity = [torch.zeros_like(weight) for weight in weights]
    for step in range(3):
        for weight in weights:
            weight.requires_grad_()
        said = images.flatten(1) @ weights[0].T + weights[1]
        gradients = torch.autograd.grad(loss_of(said, teacher(images).detach()), weights)
        lr = 0.3 * 0.5 * (1 + math.cos(math.pi * step / (2 * 3)))
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        weights = [(w - lr * v).detach() for w, v in zip(weights, velocity, strict=True)]
    train(student, teacher, images, settings, 3)
    for mine, theirs in zip(student.parameters(), weights, strict=True):
        torch.testing.assert_close(mine.detach(), theirs)


def test_the_average_is_of_the_weights_after_every_step(task):
    student, teacher, images = task
    other = copy.deepcopy(student)
    expected = None
    for steps in (1, 2):  # without a schedule a shorter training is the beginning of a longer one
        network = copy.deepcopy(student)
        settings = ByTeacher(**PLAIN, smoothing=1e9)
        weight = train(network, teacher, images, settings, steps)[1].weight.detach()
        expected = weight if expected is None else 0.75 * expected + 0.25 * weight
    averaged = train(other, teacher, images, ByTeacher(**PLAIN, smoothing=1e9, ema_decay=0.75), 2)
    torch.testing.assert_close(averaged[1].weight.detach(), expected)
    assert not torch.equal(averaged[1].weight, other[1].weight)


def test_buffers_are_those_of_the_student():
    student = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = torch.randn(6, 3, 2, 2) + 5
    averaged = train(student, teacher, images, ByTeacher(ema_decay=0.5), 4)
    assert averaged is not student
    assert torch.equal(averaged[0].running_mean, student[0].running_mean)
    assert averaged[0].running_mean.min() > 1


def test_cut_mix_puts_one_box_of_another_image_into_each():
    images = torch.arange(5.0)[:, None, None, None].expand(5, 2, 8, 8).contiguous()
    sizes = set()
    for seed in range(30):
        mixed = cut_mix(images, torch.Generator().manual_seed(seed))
        assert torch.equal(mixed[:, 0], mixed[:, 1])
        changed = (mixed != images).any(0)[0]  # some image is its own partner
        sizes.add(int(changed.sum()))
        rows, columns = changed.any(1), changed.any(0)
        assert torch.equal(changed, rows[:, None] & columns)
        for image in mixed[:, 0]:
            assert len(image.unique()) <= 2
    assert len(sizes) > 5
    assert min(sizes) < 16 < 30 < max(sizes)


def test_batches_are_cropped():
    """Images of their own coordinates: a crop's slopes are its side, and its middle its place."""
    rows = torch.arange(8.0).view(8, 1).expand(8, 8)
    images = torch.stack([rows, rows.T]).expand(64, 2, 8, 8)
    seen = []
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(128, 3)) for _ in range(2))
    student.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    for least_area in (1.0, 0.25):
        train_by_teacher(
            student, teacher, images, torch.zeros(64, dtype=torch.int64),
            ByTeacher(mix="none", least_area=least_area),
            num_steps=1, batch_size=64, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    whole, cropped = seen
    assert torch.equal(whole, images)
    vertical, horizontal = cropped.unbind(1)
    side = (vertical[:, 6, 0] - vertical[:, 1, 0]) / 5  # the outermost pixels are on the edge
    steps = side[:, None, None].expand(64, 5, 8)
    torch.testing.assert_close(vertical[:, 1:7].diff(dim=1), steps)
    torch.testing.assert_close(horizontal[:, :, 1:7].diff(dim=2), steps.transpose(1, 2))
    area = side.square()
    assert 0.25 - 1e-5 < area.min() < 0.3
    assert 0.95 < area.max() < 1
    middles = cropped[:, :, 3:5, 3:5].mean((2, 3)) + 0.5  # in [side · 4, 8 − side · 4]
    free = (middles - 4 * side[:, None]) / (8 - 8 * side[:, None])
    assert (free > -1e-3).all()
    assert (free < 1.001).all()
    assert (free.amin(0) < 0.1).all()
    assert (free.amax(0) > 0.9).all()


def test_mix_up_blends_all_by_one_share():
    images = torch.eye(4, dtype=torch.float64)[:, :, None, None]
    mixed = mix_up(images, torch.Generator().manual_seed(1)).squeeze()
    torch.testing.assert_close(mixed.sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(mixed.sum(0), torch.ones(4, dtype=torch.float64))
    assert len({round(value, 9) for value in mixed.flatten().tolist() if 0 < value < 1}) <= 2


def test_networks_learn_what_the_teacher_knows():
    """Of images whose own labels are wrong, as nothing is asked of them."""
    data = make_data()
    made = partial(make_network, data)
    images, labels = data.sample(3, torch.Generator().manual_seed(0))
    hard = evaluate(made, images, (labels + 1) % 3, 0.05, data, EVALUATION)
    assert hard.mean < 0.2
    teacher = made()
    settings = ByTeacher(lr=0.01)
    gains = fair_gains(
        made, images, labels, 0.05, data, EVALUATION, ipc=3, lr_teacher=0.1, by_teacher=settings
    )
    assert [tuple(each.recipe) for each in gains] == [
        ("hard", "none"), ("soft", "none"), ("teacher", "none")
    ]  # fmt: skip
    assert all(len(each.synthetic.values) == 2 for each in gains)
    assert gains[2].synthetic.mean > 0.6  # a third by chance
    again, other = (
        evaluate_by_teacher(
            made, lambda _: (images, labels), teacher.eval(), data, EVALUATION, each
        )
        for each in (settings, ByTeacher(lr=0.01, mix="mixup"))
    )
    assert again == evaluate_by_teacher(
        made, lambda _: (images, labels), teacher, data, EVALUATION, settings
    )
    assert len(other.values) == 2


def test_soft_labels_of_hard_sets_are_the_teachers(monkeypatch):
    data = make_data()
    made, seen = partial(make_network, data), []

    def spy(make_network, images, labels, *others, **options):
        seen.append(labels)
        return evaluate(make_network, images, labels, *others, **options)

    monkeypatch.setattr("mim4dd.distill.evaluation.fairness.evaluate", spy)
    images, labels = data.sample(1, torch.Generator().manual_seed(0))
    fair_gains(
        made, images, labels, 0.05, data, EVALUATION, ipc=1, lr_teacher=0.1, by_teacher=ByTeacher()
    )
    hard, soft = seen
    assert torch.equal(hard, labels)
    assert soft.shape == (3, 3)
    torch.testing.assert_close(soft.sum(1), torch.ones(3))
    assert F.cross_entropy(soft.log(), labels) < math.log(3)


def test_a_teacher_that_is_given_labels_all():
    """The set and random real images, softly and batch by batch."""
    data = make_data()
    made, labelled = partial(make_network, data), []

    class Teacher(nn.Module):
        def forward(self, images):
            labelled.append(len(images))
            return torch.tensor([0.0, 5.0, 0.0]).expand(len(images), 3)

    images, labels = data.sample(1, torch.Generator().manual_seed(0))
    gains = fair_gains(
        made, images, labels, 0.05, data, EVALUATION, ipc=1, lr_teacher=0.1,
        by_teacher=ByTeacher(), teacher=Teacher().eval(),
    )  # fmt: skip
    by_chance = (data.label_test == 1).float().mean().item()
    for each in gains[1:]:  # all that it says is that everything is of class 1
        assert each.recipe.labels in ("soft", "teacher")
        assert each.synthetic.values == pytest.approx((by_chance, by_chance))
        assert each.random_real.values == pytest.approx((by_chance, by_chance))
    # Soft labels of the set once and of two draws; a batch of 3 in 30 steps of four networks.
    assert len(labelled) == 3 + 4 * EVALUATION.eval_epochs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"smoothing": 0.5}, "smoothing must be at least 1"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
        ({"least_area": 0.0}, r"least_area must lie in \(0, 1\], got 0.0"),
        ({"hard_weight": -1.0}, "hard_weight must be at least 0"),
        ({"loss": "l2"}, "loss must be one of 'kl', 'mse'"),
        ({"mix": "cut"}, "mix must be one of 'cutmix', 'mixup', 'none'"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ByTeacher(**options)


def test_rows_have_no_boxes():
    with pytest.raises(ValueError, match=r"cutmix takes images \(B, C, H, W\), got \(4, 3\)"):
        cut_mix(torch.randn(4, 3), torch.Generator())
