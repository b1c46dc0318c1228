"""How many networks a method matches at once."""

from dataclasses import dataclass

from mim4dd.distill.settings import Settings

__all__ = ["NetworksSettings"]


@dataclass(frozen=True)
class NetworksSettings(Settings):
    """Of methods whose loss is a mean over networks.

    Args:
        num_networks: Networks in each step; the loss is the mean over them.
    """

    num_networks: int = 1

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(num_networks=1)
