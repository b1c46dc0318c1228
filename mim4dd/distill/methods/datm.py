"""Difficulty-aligned trajectory matching (DATM)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.data.byte_images import Images, taken
from mim4dd.distill.data.per_class import PerClass, class_counts, rows_of_classes
from mim4dd.distill.experts.train import ExpertBuffer
from mim4dd.distill.methods.base import Initial, RealData
from mim4dd.distill.methods.mtt import MTT, MTTSettings
from mim4dd.distill.methods.registry import method
from mim4dd.distill.training.passes import has_batch_norm, pass_size

__all__ = ["DATM", "DATMSettings"]

_BATCH = 1024


@dataclass(frozen=True)
class DATMSettings(MTTSettings):
    """What trajectory matching matches, and which start epochs at which iteration.

    Args:
        min_start_epoch: Smallest start epoch that is drawn.
        initial_max_start_epoch: Value from which max_start_epoch grows.
        expansion_end: Iteration at which max_start_epoch is reached.
    """

    min_start_epoch: int = 0
    initial_max_start_epoch: int | None = None
    expansion_end: int = 1000

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(min_start_epoch=0, expansion_end=1)
        first = self.initial_max_start_epoch
        bounds = {"max_start_epoch": self.max_start_epoch, "initial_max_start_epoch": first}
        for name, bound in bounds.items():
            if bound is not None and bound <= self.min_start_epoch:
                raise ValueError(
                    f"{name} must be above min_start_epoch {self.min_start_epoch}, got {bound}"
                )
        if first is not None and first > self.max_start_epoch:
            raise ValueError(
                f"initial_max_start_epoch must be at most max_start_epoch {self.max_start_epoch}, "
                f"got {first}"
            )

    def start_epochs(self, iteration: int) -> range:
        """The start epochs that an iteration draws from."""
        first = self.max_start_epoch
        if self.initial_max_start_epoch is not None:
            first = self.initial_max_start_epoch
        grown = (self.max_start_epoch - first) * iteration // self.expansion_end
        return range(self.min_start_epoch, min(first + grown, self.max_start_epoch))


@method(
    "datm",
    title="DATM",
    settings=DATMSettings,
    needs_experts=True,
    learns=("syn_lr", "labels"),
)
class DATM(MTT):
    """:class:`MTT` from easy to hard, with soft labels that are learned with the images.

    Start epochs come from a window that grows with the iteration. The set starts from real images
    that an expert gets right; their labels from the experts' mean logits.

    Args:
        network: The network that the experts are; its own parameters are not used.
        experts: Their trajectories.
        settings: What to match.

    Raises:
        ValueError: If the experts are of another network or too short.

    References:
        Guo et al. Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching.
        arXiv:2310.05773. docs/methods.md tells where the published code differs.
    """

    settings: DATMSettings

    def __init__(self, network: nn.Module, experts: ExpertBuffer, settings: DATMSettings) -> None:
        super().__init__(network, experts, settings)

    def initial(self, real: RealData, ipc: PerClass) -> Initial:
        """Real images that a drawn expert gets right, and the experts' logits for them.

        Of a class with too few such images, the likeliest others fill up.

        Raises:
            ValueError: If a class has too few images.
        """
        real.data.require(ipc)
        images, labels = real.data.image_train, real.data.label_train
        order = torch.randperm(len(images), generator=real.generator).to(images.device)
        classes, expert = labels[order], real.integer(len(self.experts))
        # Of all images one number each: their logits would be as many times the memory as classes.
        truths, logits = classes.split(self._batch(images)), self._logits(expert, images, order)
        keys = torch.cat([_key(*each) for each in zip(logits, truths, strict=True)])
        counts = class_counts(ipc, real.data.num_classes)
        chosen = [
            # Stable, so that those it gets right stay in the order drawn.
            order[members[keys[members].sort(descending=True, stable=True).indices[:count]]]
            for count, members in zip(
                counts, rows_of_classes(classes, real.data.num_classes), strict=True
            )
        ]
        rows = torch.cat(chosen)
        return Initial(images[rows], self._mean_logits(images, rows, labels[rows]))

    def _mean_logits(self, images: Images, rows: Tensor, labels: Tensor) -> Tensor:
        """Logits averaged over the experts that get an image right; over all where none does."""
        logits = torch.stack(
            [
                torch.cat(list(self._logits(expert, images, rows)))
                for expert in range(len(self.experts))
            ]
        )
        counts = logits.argmax(2) == labels  # (experts, n)
        counts |= ~counts.any(0)
        weights = counts.to(logits.dtype)
        return torch.einsum("en,enc->nc", weights, logits) / weights.sum(0)[:, None]

    @torch.no_grad()
    def _logits(self, expert: int, images: Images, rows: Tensor) -> Iterator[Tensor]:
        """What a fully trained expert says of some images, pass by pass. (B, C)"""
        theta, _ = self.experts.segment(expert, self.experts.num_epochs, 0)
        theta, call = theta.to(images.device), FunctionalModel(self.network)
        for batch in taken(images, rows.split(self._batch(images))):
            yield call(theta, batch)

    def _batch(self, images: Images) -> int:
        """Images in a pass; BatchNorm sees what else is in its batch, so that one is large."""
        return _BATCH if has_batch_norm(self.network) else pass_size(images, _BATCH)

    def _start_epoch(self, real: RealData) -> int:
        epochs = self.settings.start_epochs(real.iteration)
        return epochs[real.integer(len(epochs))]


def _key(logits: Tensor, truth: Tensor) -> Tensor:
    """1 where the likeliest class is the true one, else that one's log-likelihood. (B,)"""
    likelihood = logits.log_softmax(1).gather(1, truth[:, None])[:, 0]
    return likelihood.where(logits.argmax(1) != truth, 1)
