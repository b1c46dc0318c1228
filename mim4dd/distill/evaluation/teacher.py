"""Evaluation by a teacher's labels for every augmented, mixed batch: the newer regime."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mim4dd._checks import check_positive
from mim4dd._unroll.steps import Augment
from mim4dd.distill.data import ImageData
from mim4dd.distill.evaluation.recipe import FIRST_SEED, Accuracy, Evaluation, Examiner, of_seeds
from mim4dd.distill.settings import Settings
from mim4dd.distill.training.augment import augmentation, cropped
from mim4dd.distill.training.network import seeded_network
from mim4dd.distill.training.precision import Precision, arithmetic

__all__ = ["ByTeacher", "cut_mix", "evaluate_by_teacher", "mix_up", "train_by_teacher"]


@dataclass(frozen=True)
class ByTeacher(Settings):
    """How a network is trained on what a teacher says of its batches; the defaults are RDED's.

    Args:
        loss: "kl" of softmaxes, or "mse" of logits, the mean over images and classes.
        temperature: Of both softmaxes; "kl" is multiplied by its square.
        hard_weight: Weight of the cross entropy at the images' classes, beside the teacher's loss.
        least_area: Crop a square of every image, of at least this share of its area, and enlarge
            it; 1: no crops.
        mix: What becomes of a batch once it is augmented.
        optimizer: "adamw", or "sgd" with momentum 0.9.
        lr: Its step size, which a cosine lowers.
        weight_decay: Of the optimiser.
        smoothing: The cosine's length over that of the training: at 1 it ends at 0, at 2 at half.
        ema_decay: Test an exponential moving average of the weights; 0: the last weights.

    Example:
        >>> from mim4dd.distill.evaluation import ByTeacher
        >>> ByTeacher(temperature=30, mix="mixup", smoothing=1).lr
        0.001
    """

    loss: Literal["kl", "mse"] = "kl"
    temperature: float = 20.0
    hard_weight: float = 0.0
    least_area: float = 1.0
    mix: Literal["cutmix", "mixup", "none"] = "cutmix"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    smoothing: float = 2.0
    ema_decay: float = 0.0

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        check_positive("temperature", self.temperature)
        check_positive("lr", self.lr)
        self.require_at_least(hard_weight=0, weight_decay=0, smoothing=1)
        if not 0 < self.least_area <= 1:
            raise ValueError(f"least_area must lie in (0, 1], got {self.least_area}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")


def cut_mix(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images with one box, the same in all, of another image of the batch. (B, C, H, W)

    The box's share of the area is uniform in [0, 1), its centre anywhere, and the image's edge
    cuts it, as in Yun et al., arXiv:1905.04899, of Beta(1, 1).

    Raises:
        ValueError: If they are not images but rows.
    """
    if images.dim() != 4:
        raise ValueError(
            f"cutmix takes images (B, C, H, W), got {tuple(images.shape)}; mix rows by mixup"
        )
    side = _uniform(images, generator).sqrt()
    inside = []
    for size in images.shape[2:]:
        centre, half = size * _uniform(images, generator), size * side / 2
        middle = torch.arange(size, device=images.device) + 0.5
        inside.append((middle - centre).abs() < half)
    rows, columns = inside
    return torch.where(rows[:, None] & columns, _partners(images, generator), images)


def mix_up(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images, blended with others of the batch, all by one uniform share. (B, C, H, W)"""
    share = _uniform(images, generator)
    return images.lerp(_partners(images, generator), share)


def _uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand((), generator=generator, dtype=images.dtype, device=images.device)


def _partners(images: Tensor, generator: torch.Generator) -> Tensor:
    return images[torch.randperm(len(images), generator=generator, device=images.device)]


_MIXES: dict[str, Callable[[Tensor, torch.Generator], Tensor] | None] = {
    "cutmix": cut_mix,
    "mixup": mix_up,
    "none": None,
}


def train_by_teacher(
    network: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    classes: Tensor,
    settings: ByTeacher,
    *,
    num_steps: int,
    batch_size: int,
    generator: torch.Generator,
    augment: Augment | None = None,
    precision: Precision = "float32",
    test: Examiner | None = None,
) -> nn.Module:
    r"""Train a network in place to say of every batch what a teacher says of it.

    .. math::
        \tau^2\, \mathrm{KL}\big(\mathrm{softmax}(t(x) / \tau) \,\big\|\,
            \mathrm{softmax}(s(x) / \tau)\big)

    or :math:`\|t(x) - s(x)\|^2 / C`, plus ``hard_weight`` times the cross entropy, in the mean over
    a batch x that is augmented and mixed, at a step size of
    :math:`\tfrac12 (1 + \cos(\pi i / (\zeta n)))` of its first in step i of n, with ζ the
    smoothing. RDED's code leaves :math:`\tau^2` out, which AdamW does not mind. A mixed image keeps
    the class of the one that another was mixed into, as in EDC's code.

    Args:
        network: The student.
        teacher: In eval mode.
        images: What the batches are of. (n, C, H, W)
        classes: Theirs, for ``hard_weight``. (n,)
        settings: How to train.
        num_steps: Number of steps.
        batch_size: Images per step; the last batch of an epoch may be smaller.
        generator: Source of every random draw, on the device of ``images``.
        augment: Applied to every batch, after it is cropped and before it is mixed.
        precision: Arithmetic of the passes through both networks.
        test: Tests on the way what is to be tested.

    Returns:
        What is to be tested: the network, or the average of its weights with its own buffers.

    References:
        Sun et al. On the Diversity and Realism of Distilled Dataset (RDED). arXiv:2312.03526;
        the other loss, crops, smoothing and average as in Shao et al. (EDC), arXiv:2404.13733.
    """
    parameters, mix = list(network.parameters()), _MIXES[settings.mix]
    optimizer = _optimizer(parameters, settings)
    average = None
    if settings.ema_decay:
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
    network.train()
    order: list[Tensor] = []
    for step in range(num_steps):
        if not order:
            permutation = torch.randperm(len(images), generator=generator, device=images.device)
            order = list(permutation.split(batch_size))
        rows = order.pop(0)
        batch = images[rows]
        if settings.least_area < 1:
            batch = cropped(batch, settings.least_area, generator)
        batch = batch if augment is None else augment(batch, generator)
        batch = batch if mix is None else mix(batch, generator)
        for group in optimizer.param_groups:
            turn = math.pi * step / (settings.smoothing * num_steps)
            group["lr"] = settings.lr * (1 + math.cos(turn)) / 2
        with arithmetic(precision, images.device):
            with torch.no_grad():
                told = teacher(batch)
            said = network(batch)
            loss = _distance(said, told, settings)
            if settings.hard_weight:
                loss = loss + settings.hard_weight * F.cross_entropy(said, classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if average is not None:
            average.update_parameters(network)
        if test is not None and test.is_due(step + 1):
            test.after_step(_to_be_tested(network, average), step + 1)
    return _to_be_tested(network, average)


def _to_be_tested(network: nn.Module, average: AveragedModel | None) -> nn.Module:
    """The network, or the average of its weights with its own buffers as they are now."""
    if average is None:
        return network
    for averaged, own in zip(average.module.buffers(), network.buffers(), strict=True):
        averaged.copy_(own)
    return average.module


def _distance(said: Tensor, told: Tensor, settings: ByTeacher) -> Tensor:
    """How far a student's logits are from a teacher's, by the loss that is asked for. ()"""
    if settings.loss == "mse":
        return F.mse_loss(said, told)
    said, told = ((logits / settings.temperature).log_softmax(1) for logits in (said, told))
    return settings.temperature**2 * F.kl_div(said, told, reduction="batchmean", log_target=True)


def _optimizer(parameters: list[nn.Parameter], settings: ByTeacher) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters, settings.lr, momentum=0.9, weight_decay=settings.weight_decay
    )


def evaluate_by_teacher(
    make_network: Callable[[], nn.Module],
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    teacher: nn.Module,
    data: ImageData,
    evaluation: Evaluation,
    settings: ByTeacher,
    *,
    num_tests: int = 1,
) -> Accuracy:
    """Train networks on what a teacher says of the images, as many steps as the recipe, and test.

    The networks start from the same weights as those of
    :func:`~mim4dd.distill.evaluation.evaluate`. What counts is the accuracy after the last epoch.

    Args:
        make_network: Makes a freshly initialised network.
        draw: Gives the images of a network (n, C, H, W) and their classes (n,), by a stream of its
            seed.
        teacher: In eval mode.
        data: Where the test images come from.
        evaluation: How many networks, epochs, images per step, and which augmentation.
        settings: How to train.
        num_tests: Tests of each network, evenly spread over its training. The last one counts.

    Example:
        >>> from torch import nn
        >>> from mim4dd.distill.data import load_data
        >>> from mim4dd.distill.evaluation import ByTeacher, Evaluation, evaluate_by_teacher
        >>> data = load_data("digits")
        >>> recipe = Evaluation(num_eval=1, eval_epochs=2, eval_dsa_strategy="none")
        >>> make_network = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> few, teacher = (data.image_train[:20], data.label_train[:20]), make_network().eval()
        >>> accuracy = evaluate_by_teacher(
        ...     make_network, lambda generator: few, teacher, data, recipe, ByTeacher()
        ... )
        >>> len(accuracy.values)
        1
    """

    def judge(seed: int) -> list[float]:
        images, classes = draw(torch.Generator().manual_seed(seed))
        num_steps = evaluation.num_steps(len(images))
        test = Examiner(data, num_steps, num_tests)
        train_by_teacher(
            seeded_network(make_network, FIRST_SEED + seed).to(images.device),
            teacher,
            images,
            classes,
            settings,
            num_steps=num_steps,
            batch_size=evaluation.eval_batch,
            generator=torch.Generator(images.device).manual_seed(FIRST_SEED + seed),
            augment=augmentation(evaluation.eval_dsa_strategy),
            precision=evaluation.precision,
            test=test,
        )
        return test.accuracies

    return of_seeds(judge, evaluation)
