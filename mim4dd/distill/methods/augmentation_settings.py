"""How a method augments."""

from dataclasses import dataclass

from mim4dd.distill.settings import Settings
from mim4dd.distill.training.augment import augmentation

__all__ = ["AugmentationSettings"]


@dataclass(frozen=True)
class AugmentationSettings(Settings):
    """Of methods that augment images.

    Args:
        dsa_strategy: Augmentation: families joined by "_", or "none".
    """

    dsa_strategy: str = "none"

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        augmentation(self.dsa_strategy)
