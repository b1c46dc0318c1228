"""Methods whose networks learn from the synthetic set while it is learned."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mim4dd._unroll.steps import Augment
from mim4dd.distill.identity.describe import describe_object
from mim4dd.distill.methods.base import BaseMethod, ComparedNetwork, Objective, RealData
from mim4dd.distill.methods.networks_settings import NetworksSettings
from mim4dd.unroll import flatten_parameters, unroll_sgd

__all__ = ["BilevelMethod", "BilevelSettings"]


@dataclass(frozen=True)
class BilevelSettings(NetworksSettings):
    """How networks are trained on the synthetic set between its steps.

    Args:
        outer_loop: Steps of the images before a new network is drawn.
        inner_loop: Epochs of a network on the set between image steps.
        lr_net: Step size of the networks on the synthetic set.
        batch_real: Real images of each class in a step of the images.
        batch_syn: Synthetic images in each training step; by default all.
    """

    outer_loop: int = 1
    inner_loop: int = 1
    lr_net: float = 0.01
    batch_real: int = 256
    batch_syn: int | None = None

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(outer_loop=1, inner_loop=1, lr_net=0, batch_real=1, batch_syn=1)


class BilevelMethod(BaseMethod):
    """Match networks side by side, and train them on the synthetic set between its steps.

    They are fresh at first and after every ``outer_loop`` steps; before every other step they are
    trained by SGD for ``inner_loop`` epochs on the set as it has become. A subclass says how they
    are matched.

    Args:
        new_network: Makes a freshly initialised network from a seed.
        settings: How they are trained.

    Raises:
        ValueError: If the network has BatchNorm.
    """

    metric: str
    augment_inner: Augment | None = None

    def __init__(self, new_network: Callable[[int], nn.Module], settings: BilevelSettings) -> None:
        self.new_network = new_network
        self.network = new_network(0)
        self.settings = settings
        self.carried: dict[str, Tensor] = {}
        _refuse_batch_norm(self.network)

    @abstractmethod
    def match(self, theta: Tensor, image_syn: Tensor, label_syn: Tensor, real: RealData) -> Tensor:
        """The loss in the mean over the networks, () of parameters (K, P)."""

    def loss(
        self, image_syn: Tensor, label_syn: Tensor, syn_lr: Tensor, real: RealData
    ) -> Objective:
        """What :meth:`match` gives for the networks as they are now."""
        self.carried = self.next_networks(image_syn.detach(), label_syn.detach(), real)
        theta = self.carried["theta"]
        value = self.match(theta, image_syn, label_syn, real)
        compared = [ComparedNetwork(self.network, row, row) for row in theta]
        return Objective(value, compared, {self.metric: value.item()})

    def next_networks(self, images: Tensor, labels: Tensor, real: RealData) -> dict[str, Tensor]:
        """The state that holds the networks to match now."""
        if not self.carried or self.carried["image_steps"] >= self.settings.outer_loop:
            fresh = [self.fresh(real) for _ in range(self.settings.num_networks)]
            return {"theta": torch.stack(fresh), "image_steps": torch.tensor(1)}
        theta = self.train(self.carried["theta"], images, labels, real, self.settings.inner_loop)
        return {"theta": theta, "image_steps": self.carried["image_steps"] + 1}

    def fresh(self, real: RealData) -> Tensor:
        """Parameters of a fresh network. (P,)"""
        return flatten_parameters(self.new_network(real.seed()))

    def train(
        self, theta: Tensor, images: Tensor, labels: Tensor, real: RealData, epochs: int
    ) -> Tensor:
        """Networks (K, P) after some epochs on the synthetic set, each with an order of its own."""
        orders = [self._epoch_batches(len(images), real) for _ in range(epochs * len(theta))]
        batches = torch.cat(orders).view(len(theta), -1, orders[0].shape[1]).transpose(0, 1)
        with torch.no_grad():
            return unroll_sgd(
                self.network,
                theta,
                images,
                labels,
                batches.to(images.device),
                lr=self.settings.lr_net,
                augment=self.augment_inner,
                seed=real.seed(),
            )

    def _epoch_batches(self, num_samples: int, real: RealData) -> Tensor:
        """One permutation of the samples in batches of one size, as large as possible. (T, B)"""
        largest = min(self.settings.batch_syn or num_samples, num_samples)
        steps = -(-num_samples // largest)
        permutation = torch.randperm(num_samples, generator=real.generator)
        # A remainder below the number of steps sits this epoch out.
        return permutation[: num_samples // steps * steps].view(steps, -1)

    def identity(self) -> dict[str, Any]:
        """What defines the method: not where its networks are, nor how they are called."""
        return describe_object(self, without=("carried", "new_network"))

    def state(self) -> dict[str, Tensor]:
        """The networks, and for how many image steps they have served."""
        return dict(self.carried)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up a state that :meth:`state` gave.

        Raises:
            ValueError: If it is of other networks, or of another number of them.
        """
        expected = self.state_shapes()
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if found not in ({}, expected):
            raise ValueError(
                f"the checkpoint must hold {expected} for {type(self).__name__} with these "
                f"settings, got {found}"
            )
        self.carried = dict(state)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """What a state holds."""
        num_parameters = len(flatten_parameters(self.network))
        return {"theta": (self.settings.num_networks, num_parameters), "image_steps": ()}


def _refuse_batch_norm(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"network must have no BatchNorm, got one in {name!r}: the statistics of a few "
                "synthetic images are not those of real ones; take norm 'instance' or 'group'"
            )
