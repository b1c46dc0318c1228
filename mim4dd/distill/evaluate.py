"""Evaluation: train fresh networks on a small set and test them on held-out real images."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mim4dd.distill.augment import augmentation
from mim4dd.distill.data import ImageData
from mim4dd.distill.settings import Settings
from mim4dd.distill.training import accuracy, seeded_network, train_network

__all__ = ["Accuracy", "Evaluation", "evaluate", "evaluate_full", "evaluate_random_real"]


@dataclass(frozen=True)
class Accuracy:
    """Test accuracies, as fractions, of networks that differ in their seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """Standard deviation over the seeds; 0 for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def summary(self) -> dict[str, float | int]:
        """Mean, standard deviation and number of seeds."""
        return {"mean": self.mean, "std": self.std, "seeds": len(self.values)}


@dataclass(frozen=True)
class Evaluation(Settings):
    """The recipe that every set is evaluated by: SGD with momentum, one drop of the step size.

    Args:
        num_eval: Networks to train, with different initial weights and draws.
        eval_steps: SGD steps of each; an epoch is one step where a set fits into a batch.
        eval_batch: Images per step.
        eval_dsa_strategy: Augmentation in evaluation: families joined by "_", or "none".
        eval_seed: Seed of the first network; the others follow.
    """

    num_eval: int = 5
    eval_steps: int = 300
    eval_batch: int = 256
    eval_dsa_strategy: str = "crop_scale_rotate"
    eval_seed: int = 0

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(num_eval=1, eval_steps=1, eval_batch=1, eval_seed=0)
        augmentation(self.eval_dsa_strategy)


def evaluate(
    make_network: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    lr: float,
    data: ImageData,
    evaluation: Evaluation,
) -> Accuracy:
    """Train networks on (images, labels) and test them.

    Args:
        make_network: Makes a freshly initialised network.
        images: The set to judge, normalised as ``data`` is. (n, channels, H, W)
        labels: Its classes. (n,)
        lr: Step size: for a distilled set the one learned with it.
        data: Where the test images come from.
        evaluation: The recipe.

    Returns:
        The test accuracy of every network.
    """
    return _evaluate(make_network, lambda _: (images, labels), lr, data, evaluation)


def evaluate_random_real(
    make_network: Callable[[], nn.Module],
    ipc: int,
    lr: float,
    data: ImageData,
    evaluation: Evaluation,
) -> Accuracy:
    """As :func:`evaluate`, on ``ipc`` real images per class, others for every network."""
    return _evaluate(make_network, lambda draws: data.sample(ipc, draws), lr, data, evaluation)


def evaluate_full(
    make_network: Callable[[], nn.Module], lr: float, data: ImageData, evaluation: Evaluation
) -> Accuracy:
    """As :func:`evaluate`, on the whole training set, for the same number of steps."""
    return evaluate(make_network, data.image_train, data.label_train, lr, data, evaluation)


def _evaluate(
    make_network: Callable[[], nn.Module],
    draw_set: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    lr: float,
    data: ImageData,
    evaluation: Evaluation,
) -> Accuracy:
    device = data.image_train.device
    augment = augmentation(evaluation.eval_dsa_strategy)
    values = []
    for seed in range(evaluation.eval_seed, evaluation.eval_seed + evaluation.num_eval):
        images, labels = draw_set(torch.Generator().manual_seed(seed))
        network = seeded_network(make_network, seed).to(device)
        train_network(
            network,
            images,
            labels,
            num_steps=evaluation.eval_steps,
            lr=lr,
            momentum=0.9,
            weight_decay=5e-4,
            batch_size=evaluation.eval_batch,
            generator=torch.Generator(device).manual_seed(seed),
            augment=augment,
            lr_drop=evaluation.eval_steps // 2,
        )
        values.append(accuracy(network, data.image_test, data.label_test))
    return Accuracy(tuple(values))
