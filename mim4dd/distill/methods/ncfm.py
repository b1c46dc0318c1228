"""Neural characteristic function matching (NCFM)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.data import ImageData
from mim4dd.distill.data.per_class import PerClass, class_counts
from mim4dd.distill.methods.base import (
    ComparedNetwork,
    Ingredients,
    Initial,
    Objective,
    RealData,
    identity_by_network,
)
from mim4dd.distill.methods.registry import method
from mim4dd.distill.methods.squeeze_settings import SqueezeSettings
from mim4dd.distill.methods.teachers import TaughtMethod, require_tileable
from mim4dd.distill.training.augment import Augmentation, ComposedAugmentation
from mim4dd.distill.training.features import embedding_read, last_linear
from mim4dd.distill.training.passes import has_batch_norm, in_passes, sum_over_classes
from mim4dd.distill.training.tiles import decode, mosaic
from mim4dd.unroll import flatten_parameters

__all__ = ["NCFM", "NCFMSettings", "characteristic_distance"]

_SCALE = 300  # of the distance beside the cross entropy, in the published code
_LEAST_PHASE = 1e-12


@dataclass(frozen=True)
class NCFMSettings(SqueezeSettings):
    """What characteristic functions match, and in which networks.

    Args:
        num_pairs: Networks to train; each step uses one of them.
        tiles: A stored image holds tiles × tiles small images.
        num_frequencies: Frequencies at which characteristic functions are compared.
        amplitude: Weight α of the amplitude term; the phase term has weight 1 − α.
        batch_real: Real images of each class in a step of the images.
    """

    num_pairs: int = 20
    tiles: int = 2
    num_frequencies: int = 4096
    amplitude: float = 0.5
    batch_real: int = 1024

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(num_pairs=1, tiles=1, num_frequencies=1, batch_real=1)
        if not 0 <= self.amplitude <= 1:
            raise ValueError(f"amplitude must lie in [0, 1], got {self.amplitude}")


@method("ncfm", title="NCFM", settings=NCFMSettings)
class NCFM(TaughtMethod):
    r"""Match the characteristic function of every class's features in partly trained networks.

    .. math::
        \sum_c 300\, D\big(\psi_\theta(A_c(x_c)), \psi_\theta(A_c(d(s_c)))\big) +
            \mathrm{CE}\big(\theta_*; A'_c(d(s_c))\big)

    with D of :func:`characteristic_distance` at fresh normal frequencies, ψ what the last linear
    layer reads, divided by its length, d the decoding into tiles, and A_c, A'_c one transformation
    of all families for all images of class c. θ = l θ₀ + (1 − l) θ_* lies between the initial and
    the trained weights of one of the networks, l uniform in [0, 1). They are trained before the
    first step. The set starts from mosaics of real images.

    Args:
        new_network: Makes an untrained network with the initial weights of a seed.
        data: What the networks are trained on.
        seed: Of the first network; the others follow.
        settings: How to train and what to match.

    Raises:
        ValueError: If the network has BatchNorm, whose statistics have no blend, or no linear
            layer.

    References:
        Wang et al. Dataset Distillation with Neural Characteristic Function: A Minmax Perspective.
        arXiv:2502.20653.
    """

    def __init__(
        self,
        new_network: Callable[[int], nn.Module],
        data: ImageData,
        seed: int,
        settings: NCFMSettings,
    ) -> None:
        networks = [new_network(seed + pair) for pair in range(settings.num_pairs)]
        if has_batch_norm(networks[0]):
            raise ValueError(
                "method 'ncfm' needs a network without BatchNorm, whose running statistics are "
                "not those of blended weights: --norm instance"
            )
        last_linear(networks[0])
        self.new_network = new_network
        self.data = data
        self.seed = seed
        self.settings = settings
        self.teachers = settings.teachers(networks, seed)
        strategy = settings.dsa_strategy
        self.augment: Augmentation | None = None
        if strategy != "none":
            self.augment = ComposedAugmentation(strategy, siamese=True)

    @classmethod
    def make(cls, ingredients: Ingredients, settings: NCFMSettings) -> "NCFM":
        """From what a configuration holds."""
        return cls(ingredients.new_network, ingredients.data, ingredients.seed, settings)

    def identity(self) -> dict[str, Any]:
        """What defines the method: what its networks are, not how they are called."""
        return identity_by_network(self, self.new_network)

    @property
    def tiles(self) -> int:
        """Of the settings."""
        return self.settings.tiles

    def initial(self, real: RealData, ipc: PerClass) -> Initial:
        """Mosaics of different real images of the class, each scaled down to a tile.

        Raises:
            ValueError: If a class has too few images.
        """
        parts = [
            count * self.settings.tiles**2 for count in class_counts(ipc, real.data.num_classes)
        ]
        images, _ = real.data.sample(parts, real.generator)
        size = real.data.image_size // self.settings.tiles
        return Initial(mosaic(F.interpolate(images, size=(size, size)), self.settings.tiles))

    def loss(
        self, image_syn: Tensor, label_syn: Tensor, syn_lr: Tensor, real: RealData
    ) -> Objective:
        """Distances of the characteristic functions and cross entropies, summed over the classes.

        The classes take their turn, so that memory is that of one.
        """
        pair = real.integer(self.settings.num_pairs)
        network = self.teachers.trained_on(self.data)[pair]
        share = torch.rand((), generator=real.generator).item()
        trained = flatten_parameters(network).detach()
        theta = trained.lerp(flatten_parameters(self.new_network(self.seed + pair)).detach(), share)
        counts = real.syn_counts(len(image_syn))
        distance, cross_entropy = (
            sum_over_classes(partial(part, network, at, real), counts, image_syn, together=False)
            for part, at in ((self._distance, theta), (self._cross_entropy, trained))
        )
        metrics = {
            "characteristic_distance": distance.item(),
            "cross_entropy": cross_entropy.item(),
        }
        value = _SCALE * distance + cross_entropy
        return Objective(value, [ComparedNetwork(network, theta, theta)], metrics)

    def require_data(self, data: ImageData) -> None:
        """Raise ValueError if the networks are not of ``data``, or these cannot be tiled."""
        require_tileable("ncfm", "tiles", self.settings.tiles, data)
        super().require_data(data)

    def _distance(
        self,
        network: nn.Module,
        theta: Tensor,
        real: RealData,
        classes: Sequence[int],
        samples: Tensor,
    ) -> Tensor:
        """The distance between real images of one class and its samples. ()"""
        (label,) = classes
        image_real = real.sample_class(label, self.settings.batch_real)
        seeds = real.seed(), real.seed()
        with torch.no_grad():
            image_real = self._augmented(image_real, seeds[0])
            features_real = torch.cat(
                [_embed(network, theta, part) for part in in_passes(image_real)]
            )
        decoded = self._augmented(decode(samples, self.settings.tiles), seeds[0])
        features_syn = _embed(network, theta, decoded)
        frequencies = torch.randn(
            (self.settings.num_frequencies, features_syn.shape[1]),
            generator=torch.Generator(samples.device).manual_seed(seeds[1]),
            dtype=samples.dtype,
            device=samples.device,
        )
        return characteristic_distance(
            features_real, features_syn, frequencies, self.settings.amplitude
        )

    def _cross_entropy(
        self,
        network: nn.Module,
        theta: Tensor,
        real: RealData,
        classes: Sequence[int],
        samples: Tensor,
    ) -> Tensor:
        """What the samples of one class are to the trained network. ()"""
        (label,) = classes
        decoded = self._augmented(decode(samples, self.settings.tiles), real.seed())
        logits = FunctionalModel(network)(theta, decoded)
        labels = torch.full((len(logits),), label, device=logits.device)
        return F.cross_entropy(logits, labels)

    def _augmented(self, images: Tensor, seed: int) -> Tensor:
        """Images under the transformation of a seed, the same for any images."""
        if self.augment is None:
            return images
        return self.augment(images, torch.Generator(images.device).manual_seed(seed))


def characteristic_distance(
    features_real: Tensor, features_syn: Tensor, frequencies: Tensor, amplitude: float = 0.5
) -> Tensor:
    r"""How far apart two empirical characteristic functions are, in the mean over frequencies.

    .. math::
        \mathrm{mean}_k \sqrt{\alpha\, (|\Phi_k| - |\Phi'_k|)^2 + (1 - \alpha)\,
            2 (|\Phi_k| |\Phi'_k| - \mathrm{Re}\, \Phi_k \overline{\Phi'_k})}

    with :math:`\Phi_k = \mathrm{mean}_b\, e^{i \langle t_k, a_b \rangle}` of the real features and
    :math:`\Phi'_k` of the synthetic ones. At α = ½ it is the mean of
    :math:`|\Phi_k - \Phi'_k| / \sqrt2`.

    Args:
        features_real: Rows a. (N, D)
        features_syn: Rows of the other set. (M, D)
        frequencies: Rows t. (K, D)
        amplitude: The weight α of the amplitudes' difference beside that of the phases.

    Returns:
        A scalar. ()

    Example:
        >>> import torch
        >>> from mim4dd.distill.methods.ncfm import characteristic_distance
        >>> here, there = torch.zeros(3, 1), torch.ones(5, 1)
        >>> characteristic_distance(here, there, torch.tensor([[torch.pi]]))
        tensor(1.4142)

    References:
        Wang et al. arXiv:2502.20653, and the published code.
    """
    cos_real, sin_real = _mean_wave(features_real, frequencies)
    cos_syn, sin_syn = _mean_wave(features_syn, frequencies)
    length_real, length_syn = torch.hypot(cos_real, sin_real), torch.hypot(cos_syn, sin_syn)
    apart = (length_real - length_syn).square()
    turned = 2 * (length_real * length_syn - cos_real * cos_syn - sin_real * sin_syn)
    # The least keeps the root differentiable where the phases agree.
    mixed = amplitude * apart + (1 - amplitude) * turned.clamp(min=_LEAST_PHASE)
    return mixed.sqrt().mean()


def _mean_wave(features: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of a characteristic function. (K,) each"""
    angles = features @ frequencies.T
    return angles.cos().mean(0), angles.sin().mean(0)


def _embed(network: nn.Module, theta: Tensor, images: Tensor) -> Tensor:
    """What the last linear layer reads, in rows of length 1. (B, D)"""
    with embedding_read(network) as read:
        FunctionalModel(network)(theta, images)
    return F.normalize(read[0])
