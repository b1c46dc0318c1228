"""Evaluation: train fresh networks on a small set and test them on held-out real images."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mim4dd._checks import check_classes, check_probabilities
from mim4dd.distill.data import ImageData
from mim4dd.distill.data.byte_images import Images
from mim4dd.distill.data.per_class import PerClass, class_counts
from mim4dd.distill.runtime.ranks import share
from mim4dd.distill.spread import Spread
from mim4dd.distill.training.augment import augmentation
from mim4dd.distill.training.network import accuracy, seeded_network, train_network
from mim4dd.distill.training.precision import PrecisionSettings

__all__ = [
    "FIRST_SEED",
    "Accuracy",
    "Evaluation",
    "Examiner",
    "evaluate",
    "evaluate_full",
    "evaluate_random_real",
    "of_seeds",
    "percent",
    "trained_network",
]

# Experts and teachers have the seeds from 0 on. A network that judges must not start from the
# weights that one of them started from, to which the set was fitted.
FIRST_SEED = 2**31


@dataclass(frozen=True)
class Accuracy:
    """Test accuracies, as fractions, of networks that differ in their seed.

    Args:
        values: At the end of their training, which is what counts.
        best: The best of several tests of each, where there were several. The test images choose
            it, so it is higher than it should be; many papers report it.

    Example:
        >>> from mim4dd.distill.evaluation import Accuracy
        >>> accuracy = Accuracy((0.8, 0.9))
        >>> round(accuracy.mean, 3), round(accuracy.std, 3)
        (0.85, 0.071)
    """

    values: tuple[float, ...]
    best: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """Standard deviation over the seeds; 0 for one."""
        return Spread.of(self.values).std or 0.0

    def gain_over(self, other: "Accuracy") -> "Accuracy":
        """Differences to the networks of ``other``, pair by pair of the same seed.

        Raises:
            ValueError: If there are not as many.
        """
        if len(self.values) != len(other.values):
            raise ValueError(
                f"other must be of {len(self.values)} networks too, got {len(other.values)}"
            )
        pairs = zip(self.values, other.values, strict=True)
        return Accuracy(tuple(mine - theirs for mine, theirs in pairs))

    def summary(self) -> dict[str, float | int]:
        """Mean, standard deviation and number of seeds."""
        return {"mean": self.mean, "std": self.std, "seeds": len(self.values)}


def percent(summary: Mapping[str, float | int], sign: str = "") -> str:
    """Mean and, in brackets, deviation in percent, of what :meth:`Accuracy.summary` gave.

    In brackets, as it is over networks of one set, which says nothing of how another distillation
    would come out; ± is over distillations. One network has no deviation.

    Example:
        >>> from mim4dd.distill.evaluation.recipe import Accuracy, percent
        >>> percent(Accuracy((0.5, 0.7)).summary()), percent(Accuracy((0.5,)).summary())
        ('60.0 (14.1)', '50.0 (–)')
    """
    deviation = "–" if summary["seeds"] == 1 else f"{100 * summary['std']:.1f}"
    return f"{100 * summary['mean']:{sign}.1f} ({deviation})"


@dataclass(frozen=True)
class Evaluation(PrecisionSettings):
    """The field's recipe, by which every set is evaluated.

    SGD with momentum 0.9 and weight decay 5e-4, on augmented batches; at half of the epochs the
    step size falls to a tenth and the momentum starts anew, as in MTT.

    Args:
        num_eval: Networks to train, each from another seed.
        eval_epochs: Epochs of each network; published figures use 1000.
        eval_batch: Images in each step.
        eval_dsa_strategy: Augmentation: families joined by "_", or "none".
        eval_seed: Seed of the first evaluation network; the others follow.

    Example:
        >>> from mim4dd.distill.evaluation import Evaluation
        >>> Evaluation(num_eval=3, eval_epochs=1000).eval_batch
        256
    """

    GROUP: ClassVar[str] = "Evaluation"

    num_eval: int = 5
    eval_epochs: int = 300
    eval_batch: int = 256
    eval_dsa_strategy: str = "crop_scale_rotate"
    eval_seed: int = 0

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(num_eval=1, eval_epochs=1, eval_batch=1, eval_seed=0)
        augmentation(self.eval_dsa_strategy)

    def num_steps(self, num_images: int) -> int:
        """Steps of a network on a set of so many images."""
        return self.eval_epochs * -(-num_images // self.eval_batch)


class Examiner:
    """Test accuracies of a network after some steps of its training, evenly spread.

    Args:
        data: Where the test images come from.
        num_steps: Steps of the whole training; the last test comes after the last step.
        num_tests: How many tests, or as many as there are steps.

    Raises:
        ValueError: If there shall be none.
    """

    def __init__(self, data: ImageData, num_steps: int, num_tests: int) -> None:
        if num_tests < 1:
            raise ValueError(f"num_tests must be at least 1, got {num_tests}")
        self.data = data
        self.steps = {-(-num_steps * turn // num_tests) for turn in range(1, num_tests + 1)}
        self.accuracies: list[float] = []

    def is_due(self, step: int) -> bool:
        """Whether the network is to be tested after so many steps."""
        return step in self.steps

    def after_step(self, network: nn.Module, step: int) -> None:
        """Test the network if it is its turn, and leave it in the mode that it is in."""
        if self.is_due(step):
            training = network.training
            self.accuracies.append(accuracy(network, self.data.image_test, self.data.label_test))
            network.train(training)


def evaluate(
    make_network: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    lr: float,
    data: ImageData,
    evaluation: Evaluation,
    *,
    num_tests: int = 1,
) -> Accuracy:
    """Train networks on (images, labels) and test them.

    Args:
        make_network: Makes a freshly initialised network.
        images: The set to judge, normalised as ``data`` is. (n, channels, H, W)
        labels: Its classes (n,), or probabilities of the classes (n, C).
        lr: Step size: for a distilled set the one learned with it.
        data: Where the test images come from.
        evaluation: The recipe.
        num_tests: Tests of each network, evenly spread over its training. The last one counts.

    Returns:
        The test accuracy of every network; NaN for one that diverged.

    Raises:
        ValueError: If the labels do not fit the images or the classes, or hold no probabilities.

    Example:
        >>> from torch import nn
        >>> from mim4dd.distill.data import load_data
        >>> from mim4dd.distill.evaluation import Evaluation, evaluate
        >>> data = load_data("digits")
        >>> images, labels = data.image_train[:50], data.label_train[:50]
        >>> recipe = Evaluation(num_eval=2, eval_epochs=5, eval_dsa_strategy="none")
        >>> make_network = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> evaluate(make_network, images, labels, 0.01, data, recipe).mean > 0.1
        True
    """
    _check_labels(images, labels, data)
    given = images, labels
    return _evaluate(make_network, lambda _: given, lr, data, evaluation, len(images), num_tests)


def evaluate_random_real(
    make_network: Callable[[], nn.Module],
    ipc: PerClass,
    lr: float,
    data: ImageData,
    evaluation: Evaluation,
    label: Callable[[Tensor], Tensor] | None = None,
    *,
    num_tests: int = 1,
) -> Accuracy:
    """As :func:`evaluate`, on real images, ``ipc`` per class, others for every network.

    ``ipc`` is a number for all classes, or one for each.

    ``label`` gives images (n, channels, H, W) labels (n, C) in the place of their classes.

    Example:
        >>> from torch import nn
        >>> from mim4dd.distill.data import load_data
        >>> from mim4dd.distill.evaluation import Evaluation, evaluate_random_real
        >>> recipe = Evaluation(num_eval=2, eval_epochs=5, eval_dsa_strategy="none")
        >>> make_network = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> accuracy = evaluate_random_real(make_network, 5, 0.01, load_data("digits"), recipe)
        >>> len(accuracy.values)
        2
    """

    def draw(draws: torch.Generator) -> tuple[Tensor, Tensor]:
        images, classes = data.sample(ipc, draws)
        return images, classes if label is None else label(images)

    num_images = sum(class_counts(ipc, data.num_classes))
    return _evaluate(make_network, draw, lr, data, evaluation, num_images, num_tests)


def evaluate_full(
    make_network: Callable[[], nn.Module],
    ipc: PerClass,
    lr: float,
    data: ImageData,
    evaluation: Evaluation,
    *,
    num_tests: int = 1,
) -> Accuracy:
    """As :func:`evaluate`, on the whole training set, for as many steps as ``ipc`` images get.

    Equal steps, not equal epochs: what longer training brings is no merit of the whole set.

    Example:
        >>> from torch import nn
        >>> from mim4dd.distill.data import load_data
        >>> from mim4dd.distill.evaluation import Evaluation, evaluate_full
        >>> recipe = Evaluation(num_eval=1, eval_epochs=20, eval_dsa_strategy="none")
        >>> make_network = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> evaluate_full(make_network, 1, 0.01, load_data("digits"), recipe).mean > 0.5
        True
    """
    whole = data.image_train, data.label_train
    num_images = sum(class_counts(ipc, data.num_classes))
    return _evaluate(make_network, lambda _: whole, lr, data, evaluation, num_images, num_tests)


def trained_network(
    make_network: Callable[[], nn.Module],
    images: Images,
    labels: Tensor,
    seed: int,
    lr: float,
    evaluation: Evaluation,
    num_images: int,
    test: Examiner | None = None,
) -> nn.Module:
    """A network trained by the recipe, for as many steps as its epochs over ``num_images`` are.

    Args:
        make_network: Makes a freshly initialised network.
        images: What to train on. (n, channels, H, W)
        labels: Their classes (n,), or probabilities of the classes (n, C).
        seed: Of the initial weights, the order of the images and the augmentation.
        lr: Step size.
        evaluation: The recipe.
        num_images: Size of the set whose steps are taken; ``n`` where it is the set itself.
        test: Tests the network on its way.
    """
    device = images.device
    network = seeded_network(make_network, seed).to(device)
    num_steps = evaluation.num_steps(num_images)
    train_network(
        network,
        images,
        labels,
        num_steps=num_steps,
        lr=lr,
        momentum=0.9,
        weight_decay=5e-4,
        batch_size=evaluation.eval_batch,
        generator=torch.Generator(device).manual_seed(seed),
        augment=augmentation(evaluation.eval_dsa_strategy),
        lr_drop=(evaluation.eval_epochs + 1) // 2 * (num_steps // evaluation.eval_epochs),
        after_step=None if test is None else partial(test.after_step, network),
        precision=evaluation.precision,
    )
    return network


def _evaluate(
    make_network: Callable[[], nn.Module],
    draw_set: Callable[[torch.Generator], tuple[Images, Tensor]],
    lr: float,
    data: ImageData,
    evaluation: Evaluation,
    num_images: int,
    num_tests: int,
) -> Accuracy:
    def judge(seed: int) -> list[float]:
        images, labels = draw_set(torch.Generator().manual_seed(seed))
        test = Examiner(data, evaluation.num_steps(num_images), num_tests)
        trained_network(
            make_network, images, labels, FIRST_SEED + seed, lr, evaluation, num_images, test
        )
        return test.accuracies

    return of_seeds(judge, evaluation)


def of_seeds(judge: Callable[[int], list[float]], evaluation: Evaluation) -> Accuracy:
    """What the networks of a recipe reach in their tests, each by its seed; ranks that share do
    some of them.
    """
    seeds = range(evaluation.eval_seed, evaluation.eval_seed + evaluation.num_eval)
    tested = share(judge, seeds)
    best = tuple(_best(tests) for tests in tested if len(tests) > 1)
    return Accuracy(tuple(tests[-1] for tests in tested), best)


def _best(tests: Sequence[float]) -> float:
    """The highest; NaN where all are."""
    return max((each for each in tests if not math.isnan(each)), default=math.nan)


def _check_labels(images: Tensor, labels: Tensor, data: ImageData) -> None:
    soft = (len(images), data.num_classes)
    shape = soft if labels.is_floating_point() else soft[:1]
    if tuple(labels.shape) != shape:
        raise ValueError(
            f"labels must be classes {soft[:1]} or, as floating-point numbers, probabilities "
            f"{soft}, got {tuple(labels.shape)} of {labels.dtype}"
        )
    if labels.is_floating_point():
        check_probabilities("labels", labels)
    else:
        check_classes("labels", labels, data.num_classes)
