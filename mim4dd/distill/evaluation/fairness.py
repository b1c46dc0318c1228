"""What a set gains over random real images when both get the same labels and augmentation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from mim4dd.distill.data import ImageData
from mim4dd.distill.data.per_class import PerClass, class_counts
from mim4dd.distill.evaluation.recipe import (
    Accuracy,
    Evaluation,
    evaluate,
    evaluate_random_real,
    trained_network,
)
from mim4dd.distill.evaluation.teacher import ByTeacher, evaluate_by_teacher
from mim4dd.distill.training.network import soft_labels

__all__ = ["Gain", "Recipe", "fair_gains"]


class Recipe(NamedTuple):
    """What may flatter a set: the kind of its labels, and the augmentation in evaluation."""

    labels: str  # "soft", "hard", or "teacher"
    dsa_strategy: str


@dataclass(frozen=True)
class Gain:
    """Accuracies by one recipe of a set, and of as many random real images."""

    recipe: Recipe
    synthetic: Accuracy
    random_real: Accuracy

    @property
    def gain(self) -> Accuracy:
        """Differences over pairs of networks with the same initial weights and draws."""
        return self.synthetic.gain_over(self.random_real)


def fair_gains(
    make_network: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    lr: float,
    data: ImageData,
    evaluation: Evaluation,
    *,
    ipc: PerClass,
    lr_teacher: float,
    classes: Tensor | None = None,
    by_teacher: ByTeacher | None = None,
    teacher: nn.Module | None = None,
    num_tests: int = 1,
) -> list[Gain]:
    """Evaluate a set by its own recipe, and by hard labels with augmentation and without.

    An accuracy by a set's own recipe mixes what its images hold with what soft labels and
    augmentation bring to any images. So the same number of random real images is evaluated by each
    recipe too, step size included, and what counts is the gain.

    Where a set has soft labels, so have the random real images in its own recipe: the outputs of
    the teacher. Soft labels carry what was learned from all images; against hard ones that would be
    credited to the synthetic images.

    Args:
        make_network: Makes a freshly initialised network.
        images: The set, normalised as ``data`` is. (n, channels, H, W)
        labels: Its classes (n,), or probabilities of the classes (n, C).
        lr: Step size for the set and for random real images, as learned with the set.
        data: Where random real and test images come from.
        evaluation: The recipe; its augmentation is the set's own.
        ipc: Random real images per class, a number for all or one for each.
        lr_teacher: Step size of the default teacher.
        classes: The classes that the images stand for; by default their most likely labels. (n,)
        by_teacher: Where it is given, also by the other two regimes: one soft label for each image,
            and a teacher's labels for every batch. The teacher of both also labels a set that has
            hard labels.
        teacher: In eval mode; by default a network trained by the recipe on all images.
        num_tests: Tests of each network, evenly spread over its training. The last one counts.

    Returns:
        The own recipe first; what would be a recipe twice is there once.

    Raises:
        ValueError: If the labels do not fit the images or the classes.

    References:
        Li et al. DD-Ranking: Rethinking the Evaluation of Dataset Distillation. arXiv:2505.13300,
        whose hard-label accuracy and improvement over random these are; there the step sizes of
        random images are searched.
    """
    is_soft = labels.is_floating_point()
    if classes is None:
        classes = labels.argmax(1) if is_soft else labels
    own = Recipe("soft" if is_soft else "hard", evaluation.eval_dsa_strategy)
    recipes = dict.fromkeys((own, Recipe("hard", own.dsa_strategy), Recipe("hard", "none")))
    if by_teacher is not None:
        recipes |= dict.fromkeys([Recipe("soft", own.dsa_strategy)])
    if teacher is None and (is_soft or by_teacher is not None):
        teacher = _teacher(make_network, lr_teacher, data, evaluation, ipc)
    gains = []
    for recipe in recipes:
        by_recipe = replace(evaluation, eval_dsa_strategy=recipe.dsa_strategy)
        label_real = None
        if teacher is not None and recipe.labels != "hard":
            label_real = partial(soft_labels, teacher)
        given = labels if recipe == own else classes if label_real is None else label_real(images)
        synthetic = evaluate(make_network, images, given, lr, data, by_recipe, num_tests=num_tests)
        random_real = evaluate_random_real(
            make_network, ipc, lr, data, by_recipe, label_real, num_tests=num_tests
        )
        gains.append(Gain(recipe, synthetic, random_real))
    if by_teacher is not None and teacher is not None:
        judged = [
            evaluate_by_teacher(
                make_network, draw, teacher, data, evaluation, by_teacher, num_tests=num_tests
            )
            for draw in (lambda _: (images, classes), partial(data.sample, ipc))
        ]
        gains.append(Gain(Recipe("teacher", own.dsa_strategy), *judged))
    return gains


def _teacher(
    make_network: Callable[[], nn.Module],
    lr: float,
    data: ImageData,
    evaluation: Evaluation,
    ipc: PerClass,
) -> nn.Module:
    """A network trained as the baseline of the whole training set is."""
    seed, num_images = evaluation.eval_seed, sum(class_counts(ipc, data.num_classes))
    whole = data.image_train, data.label_train
    return trained_network(make_network, *whole, seed, lr, evaluation, num_images).eval()
