"""Condensing by aligning features (CAFE)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd._checks import check_choice
from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.bilevel import BilevelMethod, BilevelSettings
from mim4dd.distill.methods.registry import method
from mim4dd.distill.training.class_means import class_means, class_weights
from mim4dd.distill.training.features import layer_features, unpooled_features
from mim4dd.distill.training.passes import in_passes

__all__ = ["CAFE", "CAFESettings", "discrimination_loss"]

# Both as in the published code: accuracies in a window, real images of each class for one of them.
_WINDOW = 10
_BATCH_WATCHED = 128


@dataclass(frozen=True)
class CAFESettings(BilevelSettings):
    """What feature alignment counts, and when its networks have learned enough.

    Args:
        aligned_maps: Maps to align: those of every layer after pooling, "pooled", or before
            pooling, with the last layer's also after it, "unpooled", as the published code does.
        early_weight: Weight of aligning features of layers before the last.
        last_weight: Weight of aligning the last layer; its unpooled maps count half.
        discrimination_weight: Weight of classifying real samples by synthetic means.
        lambda_1: Replace a network if accuracy changed less in ten steps.
        lambda_2: End training early if accuracy changed more in ten epochs.
    """

    aligned_maps: Literal["pooled", "unpooled"] = "pooled"
    early_weight: float = 0.1
    last_weight: float = 2.0
    discrimination_weight: float = 0.01
    lambda_1: float = 0.04
    lambda_2: float = 0.03

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        check_choice("aligned_maps", self.aligned_maps, ("pooled", "unpooled"))
        self.require_at_least(
            early_weight=0, last_weight=0, discrimination_weight=0, lambda_1=0, lambda_2=0
        )


@method("cafe", title="CAFE", settings=CAFESettings)
class CAFE(BilevelMethod):
    r"""Align the mean features of every class, and tell real samples apart by synthetic ones.

    .. math::
        \sum_l w_l \sum_c \|\bar f_l(S_c) - \bar f_l(B_c)\|^2
        + \beta \sum_i \mathrm{CE}\big(\bar F(S)\, F(x_i), y_i\big)

    over the network's ``feature_layers`` l, or over their maps before pooling and the last one
    again after it (``aligned_maps``), with S_c the synthetic samples of class c, B_c up to
    ``batch_real`` real ones x_i, and F the features of the last layer. Accuracy on real samples
    decides when a network is trained enough between two steps, and when a fresh one takes its
    place; ``inner_loop`` and ``outer_loop`` bound both, which the published code does not.

    Args:
        new_network: Makes a freshly initialised network from a seed.
        settings: What to match.

    Raises:
        ValueError: If the network has BatchNorm or does not name its feature layers.

    References:
        Wang et al. CAFE: Learning to Condense Dataset by Aligning Features. arXiv:2203.01531, and
        its code. docs/methods.md tells what differs.
    """

    metric = "cafe_loss"
    settings: CAFESettings

    def __init__(self, new_network: Callable[[int], nn.Module], settings: CAFESettings) -> None:
        super().__init__(new_network, settings)
        layers = getattr(self.network, "feature_layers", None)
        if not layers:
            raise ValueError(
                "network must name the submodules to align in feature_layers, "
                f"{type(self.network).__name__} has none"
            )
        self.layers = list(layers)
        self.weights = [settings.early_weight] * (len(layers) - 1) + [settings.last_weight]
        if settings.aligned_maps == "unpooled":
            self.weights.insert(-1, settings.last_weight / 2)
        self.call = FunctionalModel(self.network)

    def match(self, theta: Tensor, image_syn: Tensor, label_syn: Tensor, real: RealData) -> Tensor:
        """Alignment and discrimination from one real batch, in the mean over the networks. ()"""
        images, labels = _class_batches(real, self.settings.batch_real)
        class_syn = real.class_syn(len(image_syn))
        losses = []
        for row in theta:
            means_real, last_real = self._of_real(row, images, labels, real.data.num_classes)
            features_syn = self._features(row, image_syn)
            centres = [class_means(part, class_syn, real.data.num_classes) for part in features_syn]
            alignment = sum(
                weight * (centre - mean).square().sum()
                for weight, centre, mean in zip(self.weights, centres, means_real, strict=True)
            )
            discrimination = discrimination_loss(last_real, labels, centres[-1])
            losses.append(alignment + self.settings.discrimination_weight * discrimination)
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _of_real(
        self, theta: Tensor, images: Tensor, labels: Tensor, num_classes: int
    ) -> tuple[list[Tensor], Tensor]:
        """Class means (C, D) of every layer's features, and the last layer's features (N, D)."""
        passes = in_passes(images)
        weights = class_weights(labels, num_classes, images.dtype).split(len(passes[0]))
        means = [images.new_zeros(()) for _ in self.weights]
        last = []
        for part, weight in zip(passes, weights, strict=True):
            features = self._features(theta, part)
            last.append(features[-1])
            means = [
                mean + weight.T @ feature for mean, feature in zip(means, features, strict=True)
            ]
        return means, torch.cat(last)

    def _features(self, theta: Tensor, images: Tensor) -> list[Tensor]:
        """What is aligned, early to late; the last one also discriminates. (N, D) each"""
        unpooled = self.settings.aligned_maps == "unpooled"
        features = unpooled_features if unpooled else layer_features
        return [part.flatten(1) for part in features(self.network, theta, images, self.layers)]

    def next_networks(self, images: Tensor, labels: Tensor, real: RealData) -> dict[str, Tensor]:
        """The state that holds the networks to match now, each renewed in its own time."""
        following = [
            self._next(place, images, labels, real) for place in range(self.settings.num_networks)
        ]
        return {
            "theta": torch.stack([network.theta for network in following]),
            "image_steps": torch.tensor([network.image_steps for network in following]),
            "accuracies": torch.stack([network.accuracies for network in following]),
        }

    def _next(self, place: int, images: Tensor, labels: Tensor, real: RealData) -> "_Watched":
        if not self.carried:
            return _Watched.fresh(self.fresh(real))
        theta, steps, accuracies = (
            self.carried[name][place] for name in ("theta", "image_steps", "accuracies")
        )
        if steps >= self.settings.outer_loop:
            return _Watched.fresh(self.fresh(real))
        accuracies = self._watch(accuracies, theta, real)
        if _moved(accuracies) < self.settings.lambda_1:
            return _Watched.fresh(self.fresh(real))
        theta = self._train_until_it_moves(theta, images, labels, real)
        return _Watched(theta, int(steps) + 1, accuracies)

    def _train_until_it_moves(
        self, theta: Tensor, images: Tensor, labels: Tensor, real: RealData
    ) -> Tensor:
        if self.settings.inner_loop < _WINDOW:  # which would not fill
            return self.train(theta[None], images, labels, real, self.settings.inner_loop)[0]
        accuracies = _empty_window()
        for _ in range(self.settings.inner_loop):
            theta = self.train(theta[None], images, labels, real, epochs=1)[0]
            accuracies = self._watch(accuracies, theta, real)
            if _moved(accuracies) > self.settings.lambda_2:
                break
        return theta

    def _watch(self, accuracies: Tensor, theta: Tensor, real: RealData) -> Tensor:
        """The window moved on by the mean accuracy over the classes, on a fresh real batch."""
        images, labels = _class_batches(real, _BATCH_WATCHED)
        with torch.no_grad():
            logits = torch.cat([self.call(theta, part) for part in in_passes(images)])
            hits = (logits.argmax(1) == labels).to(theta.dtype)
        accuracy = class_means(hits[:, None], labels, real.data.num_classes).mean()
        return torch.cat([accuracies[1:], accuracy[None].float().cpu()])

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """What a state holds."""
        num_networks = (self.settings.num_networks,)
        own = {"image_steps": num_networks, "accuracies": (*num_networks, _WINDOW)}
        return super().state_shapes() | own

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up a state that :meth:`state` gave."""
        super().restore(state)
        if self.carried:  # what decides is looked at on the host
            self.carried["accuracies"] = self.carried["accuracies"].cpu()


def discrimination_loss(features: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Cross entropy, summed, of classifying real features by the class centres they point to.

    Args:
        features: Of real samples. (N, D)
        labels: Their classes. (N,)
        centres: Mean features of the synthetic samples of each class. (C, D)

    Example:
        >>> import torch
        >>> from mim4dd.distill.methods.cafe import discrimination_loss
        >>> features, labels = 100 * torch.eye(2), torch.arange(2)
        >>> discrimination_loss(features, labels, centres=torch.eye(2))
        tensor(0.)
    """
    return F.cross_entropy(features @ centres.T, labels, reduction="sum")


class _Watched(NamedTuple):
    """A network, for how many image steps it has served, and its accuracies at the last ten."""

    theta: Tensor  # (P,)
    image_steps: int
    accuracies: Tensor  # (10,)

    @staticmethod
    def fresh(theta: Tensor) -> "_Watched":
        """A network in its first image step."""
        return _Watched(theta, 1, _empty_window())


def _empty_window() -> Tensor:
    return torch.full((_WINDOW,), torch.nan)


def _moved(accuracies: Tensor) -> Tensor:
    """By how much accuracy differed in the window; NaN, which no bound meets, until it is full."""
    return accuracies.max() - accuracies.min()


def _class_batches(real: RealData, batch: int) -> tuple[Tensor, Tensor]:
    """Up to ``batch`` real images of every class, with their labels."""
    parts = [real.sample_class(label, batch) for label in range(real.data.num_classes)]
    images = torch.cat(parts)
    sizes = torch.tensor([len(part) for part in parts], device=images.device)
    labels = torch.arange(len(parts), device=images.device).repeat_interleave(sizes)
    return images, labels
