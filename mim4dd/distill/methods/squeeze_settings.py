"""How a method trains networks on the real data before it distils."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mim4dd._checks import check_positive
from mim4dd.distill.methods.augmentation_settings import AugmentationSettings
from mim4dd.distill.methods.teachers import Teachers
from mim4dd.distill.training.augment import augmentation

__all__ = ["SqueezeSettings"]


@dataclass(frozen=True)
class SqueezeSettings(AugmentationSettings):
    """Of methods that train teachers.

    Args:
        squeeze_epochs: Epochs of a teacher on the real data.
        squeeze_lr: Step size of a teacher; a tenth after half of its steps.
        squeeze_batch: Real images in each step of a teacher.
    """

    squeeze_epochs: int = 20
    squeeze_lr: float = 0.1
    squeeze_batch: int = 128

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(squeeze_epochs=1, squeeze_batch=1)
        check_positive("squeeze_lr", self.squeeze_lr)

    def teachers(self, networks: Sequence[nn.Module], seed: int) -> Teachers:
        """Networks to be trained so, under ``dsa_strategy``."""
        return Teachers(
            networks,
            seed=seed,
            epochs=self.squeeze_epochs,
            lr=self.squeeze_lr,
            batch=self.squeeze_batch,
            augment=augmentation(self.dsa_strategy),
        )
