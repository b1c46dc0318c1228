"""Distribution Matching (DM)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mim4dd.distill.methods.augmentation_settings import AugmentationSettings
from mim4dd.distill.methods.base import (
    BaseMethod,
    Objective,
    RealData,
    identity_by_network,
    network_of_seed,
)
from mim4dd.distill.methods.networks_settings import NetworksSettings
from mim4dd.distill.methods.registry import method
from mim4dd.distill.methods.side_by_side import (
    State,
    for_each_network,
    stack_networks,
    unchanged,
)
from mim4dd.distill.training.augment import Augmentation
from mim4dd.distill.training.features import embedding_read, last_linear
from mim4dd.distill.training.passes import has_batch_norm, in_passes, sum_over_classes

__all__ = ["DM", "DMSettings"]

_IMAGES_PER_PASS = 4096  # of all networks, which bounds the memory of real images on a GPU


@dataclass(frozen=True)
class DMSettings(NetworksSettings, AugmentationSettings):
    """What distribution matching matches.

    Args:
        batch_real: Real images of each class in a step of the images.
    """

    batch_real: int = 256

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(batch_real=1)


@method("dm", title="DM", settings=DMSettings)
class DM(BaseMethod):
    r"""Match the mean embedding of every class in networks that were never trained.

    .. math::
        \sum_c \Big\| \mathrm{mean}_i\, \psi(A_c(x_{ci})) -
            \mathrm{mean}_j\, \psi(A_c(s_{cj})) \Big\|^2

    with ψ what the last linear layer of a fresh random network reads, and A_c one transformation
    for the real x and the synthetic s of class c.

    Args:
        new_network: Makes a network with the initial weights of a seed.
        settings: What to match.

    Raises:
        ValueError: If the network has no linear layer.

    References:
        Zhao, Bilen. Dataset Condensation with Distribution Matching. arXiv:2110.04181.
    """

    def __init__(self, new_network: Callable[[int], nn.Module], settings: DMSettings) -> None:
        last_linear(new_network(0))
        self.new_network = new_network
        self.settings = settings
        strategy = settings.dsa_strategy
        self.augment = None if strategy == "none" else Augmentation(strategy, siamese=True)

    def identity(self) -> dict[str, Any]:
        """What defines the method: what its networks are, not how they are called."""
        return identity_by_network(self, self.new_network)

    def example_network(self) -> nn.Module:
        """A network as it draws them."""
        return network_of_seed(self.new_network)

    def loss(
        self, image_syn: Tensor, label_syn: Tensor, syn_lr: Tensor, real: RealData
    ) -> Objective:
        """The distance of the mean embeddings, in the mean over ``num_networks`` networks."""
        networks = [
            self.new_network(real.seed()).train() for _ in range(self.settings.num_networks)
        ]
        counts = real.syn_counts(len(image_syn))
        value = sum_over_classes(
            partial(self._distance, networks, real, counts),
            counts,
            image_syn,
            # On a GPU the classes share launches; with BatchNorm they are one batch, as published.
            together=image_syn.device.type != "cpu" or has_batch_norm(networks[0]),
        )
        compared = [unchanged(network) for network in networks]
        return Objective(value, compared, {"embedding_distance": value.item()})

    def _distance(
        self,
        networks: list[nn.Module],
        real: RealData,
        counts: Sequence[int],
        classes: Sequence[int],
        image_syn: Tensor,
    ) -> Tensor:
        """The distance summed over some classes, in the mean over the networks. ()"""
        of_classes = image_syn.split([counts[label] for label in classes])
        pairs = [
            self._augmented_alike(
                real.sample_class(label, self.settings.batch_real), samples, real.seed()
            )
            for label, samples in zip(classes, of_classes, strict=True)
        ]
        with torch.no_grad():
            mean_real = _mean_embeddings(networks, [image_real for image_real, _ in pairs])
        mean_syn = _mean_embeddings(networks, [samples for _, samples in pairs])
        return (mean_real - mean_syn).square().sum((1, 2)).mean()

    def _augmented_alike(
        self, image_real: Tensor, samples: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Both under one transformation."""
        if self.augment is None:
            return image_real, samples
        streams = [torch.Generator(samples.device).manual_seed(seed) for _ in range(2)]
        return self.augment(image_real, streams[0]), self.augment(samples, streams[1])


def _mean_embeddings(networks: list[nn.Module], groups: list[Tensor]) -> Tensor:
    """The mean over every group of images, in each of K networks. (K, groups, D)"""
    network, state = networks[0], stack_networks(networks)
    images = torch.cat(groups)
    passes: Sequence[Tensor] = [images]
    if not (has_batch_norm(network) or images.requires_grad):
        passes = in_passes(images, otherwise=-(-_IMAGES_PER_PASS // len(networks)))
    embedded = torch.cat(
        [
            for_each_network(lambda state, batch: _embed(network, state, batch), state, batch)
            for batch in passes
        ],
        dim=1,
    )
    parts = embedded.split([len(group) for group in groups], dim=1)
    return torch.stack([part.mean(1) for part in parts], dim=1)


def _embed(network: nn.Module, state: State, images: Tensor) -> Tensor:
    """What the last linear layer reads. (B, D)"""
    with embedding_read(network) as read:
        functional_call(network, state, (images,))
    return read[0]
