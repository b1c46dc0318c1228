"""The MIM4DD add-on: mutual information between features, on top of any base method."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mim4dd.distill.add_ons.feature_matching import FeatureMatchingLoss
from mim4dd.distill.add_ons.registry import AddOnSettings, add_on
from mim4dd.distill.data import ImageData
from mim4dd.distill.data.per_class import PerClass
from mim4dd.distill.methods.base import (
    BaseMethod,
    ComparedNetwork,
    Ingredients,
    Initial,
    Objective,
    RealData,
)
from mim4dd.distill.training.features import layer_features
from mim4dd.distill.training.network import seeded_network
from mim4dd.distill.training.passes import has_batch_norm, in_passes
from mim4dd.distill.training.tiles import decode
from mim4dd.losses import MIM4DDLoss, pooled_rows
from mim4dd.unroll import flatten_parameters

__all__ = ["MIM4DD", "MIM4DDSettings", "layer_features"]


@dataclass(frozen=True)
class MIM4DDSettings(AddOnSettings):
    """What the add-on compares, and what that counts.

    Args:
        temperature: Temperature of the contrastive loss.
        critic: "info_nce", "nce" (CRD), or "l2" without negatives.
        layer_decay: Weight of each layer, relative to the next layer.
        layers: Submodules to compare, joined by commas; by default all.
        projection: Randomly project the features of each layer to this dimension.
        num_keys: Real images in the contrastive batch, over all classes.

    Example:
        >>> from mim4dd.distill.add_ons import MIM4DDSettings
        >>> MIM4DDSettings(weight=0.3, layers="blocks.0,blocks.1").temperature
        0.1
    """

    temperature: float = 0.1
    critic: Literal["info_nce", "nce", "l2"] = "info_nce"
    layer_decay: float = 0.5
    layers: str | None = None
    projection: int | None = None
    num_keys: int = 200

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(projection=1, num_keys=1)
        self.make_criterion()

    def make_criterion(self, projection: Sequence[nn.Module] | None = None) -> MIM4DDLoss:
        """The loss over the layers."""
        if self.critic == "l2":
            return FeatureMatchingLoss(self.temperature, self.layer_decay, projection)
        return MIM4DDLoss(self.temperature, self.critic, self.layer_decay, projection)


class MIM4DD(BaseMethod):
    """Add ``weight`` times the contrastive loss of all layers to a base method.

    The features of the synthetic samples come from the network trained on them, those of a fresh
    real batch from the network trained on real data. Gradients reach the images both
    through their features and through the parameters.

    Args:
        base: The method to add to.
        criterion: The contrastive loss over the layers.
        weight: What it counts.
        layers: Names of the submodules whose outputs are compared, early to late; None takes the
            network's ``feature_layers``.
        num_keys: Real samples in a step, drawn independently, as the bound needs.

    Raises:
        ValueError: If the weight is negative or not finite.

    Example:
        >>> from mim4dd import MIM4DDLoss
        >>> from mim4dd.distill.add_ons import MIM4DD
        >>> from mim4dd.distill.methods.dm import DM, DMSettings
        >>> from mim4dd.distill.networks import ConvNet
        >>> dm = DM(lambda seed: ConvNet(10, 1, width=8, depth=2, image_size=8), DMSettings())
        >>> MIM4DD(dm, MIM4DDLoss(), weight=0.1, num_keys=100).weight
        0.1

    References:
        Shang, Yuan, Yan. MIM4DD. NeurIPS 2023, arXiv:2312.16627.
    """

    def __init__(
        self,
        base: BaseMethod,
        criterion: MIM4DDLoss,
        *,
        weight: float,
        layers: Sequence[str] | None = None,
        num_keys: int = 200,
    ) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be at least 0 and finite, got {weight}")
        self.base = base
        self.criterion = criterion
        self.weight = weight
        self.layers = layers
        self.num_keys = num_keys

    @staticmethod
    def from_settings(
        base: BaseMethod, settings: MIM4DDSettings, network: nn.Module, images: Tensor, seed: int
    ) -> "MIM4DD":
        """Build the add-on; ``images`` (n, …) show which features ``network`` has."""
        layers = (
            None
            if settings.layers is None
            else [name.strip() for name in settings.layers.split(",")]
        )
        projection = None
        with torch.no_grad():  # also when nothing is projected: it refuses unknown layers early
            theta = flatten_parameters(network)
            features = layer_features(network, theta, images[:1], _names(network, layers))
        if settings.projection is not None:
            sizes = [pooled_rows(part).shape[1] for part in features]
            dimension = settings.projection
            heads = seeded_network(
                lambda: nn.ModuleList([nn.Linear(size, dimension) for size in sizes]), seed
            )
            projection = list(heads.to(images.device).requires_grad_(False))
        return MIM4DD(
            base,
            settings.make_criterion(projection),
            weight=settings.weight,
            layers=layers,
            num_keys=settings.num_keys,
        )

    def loss(
        self, image_syn: Tensor, label_syn: Tensor, syn_lr: Tensor, real: RealData
    ) -> Objective:
        """The base method's loss plus the weighted contrastive loss.

        Raises:
            ValueError: If the base method gives no networks to compare.
        """
        base = self.base.loss(image_syn, label_syn, syn_lr, real)
        if not base.compared:
            raise ValueError(
                f"{type(self.base).__name__} must give the networks to compare in "
                "Objective.compared for MIM4DD, got none"
            )
        class_syn = real.class_syn(len(image_syn)).repeat_interleave(self.tiles**2)
        image_syn = decode(image_syn, self.tiles)
        image_real, label_real = real.sample(self.num_keys)
        losses, bounds = [], []
        for compared in base.compared:
            features_syn, features_real = self._features(compared, image_syn, image_real)
            losses.append(self.criterion(features_syn, features_real, class_syn, label_real))
            bounds.append(self.criterion.mi_lower_bound)
        contrastive = torch.stack(losses).mean()
        per_layer = torch.stack(bounds).mean(0).tolist()
        # The last layer's stands for all: picking the best of noisy bounds would not be a bound.
        metrics = {"contrastive_loss": contrastive.item(), "mi_lower_bound": per_layer[-1]}
        metrics |= {f"mi_lower_bound/{layer}": value for layer, value in enumerate(per_layer)}
        return Objective(
            base.value + self.weight * contrastive, base.compared, base.metrics | metrics
        )

    @property
    def tiles(self) -> int:
        """The base method's."""
        return self.base.tiles

    def prepare(self, folder: Path) -> None:
        """As the base method."""
        self.base.prepare(folder)

    def initial(self, real: RealData, ipc: PerClass) -> Initial | None:
        """Where the base method starts."""
        return self.base.initial(real, ipc)

    def labelling_network(self) -> nn.Module | None:
        """That of the base method."""
        return self.base.labelling_network()

    def relabel(self, image_syn: Tensor) -> Tensor | None:
        """The base method's labels of the result."""
        return self.base.relabel(image_syn)

    def require_data(self, data: ImageData) -> None:
        """Raise ValueError if the base method was made for other data."""
        self.base.require_data(data)

    def require_per_class(self, counts: Sequence[int]) -> None:
        """Raise ValueError if the base method cannot have so many images of each class."""
        self.base.require_per_class(counts)

    def example_network(self) -> nn.Module | None:
        """The base method's."""
        return self.base.example_network()

    def state(self) -> dict[str, Tensor]:
        """The base method's; the add-on has none."""
        return self.base.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up the base method's state."""
        self.base.restore(state)

    def _features(
        self, compared: ComparedNetwork, image_syn: Tensor, image_real: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        network, layers = compared.network, _names(compared.network, self.layers)
        features_syn = layer_features(network, compared.theta_syn, image_syn, layers)
        passes = [image_real] if has_batch_norm(network) else in_passes(image_real)
        with torch.no_grad():
            parts = [layer_features(network, compared.theta_real, part, layers) for part in passes]
        return features_syn, [torch.cat(of_layer) for of_layer in zip(*parts, strict=True)]


@add_on("mim4dd", title="MIM4DD", settings=MIM4DDSettings)
def _add(base: BaseMethod, settings: MIM4DDSettings, ingredients: Ingredients) -> MIM4DD:
    network, images = ingredients.new_network(), ingredients.data.image_train[:1]
    return MIM4DD.from_settings(base, settings, network, images, ingredients.seed)


def _names(network: nn.Module, layers: Sequence[str] | None) -> Sequence[str]:
    return layers if layers is not None else getattr(network, "feature_layers", ())
