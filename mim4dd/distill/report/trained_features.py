"""A network trained on real data, and what it makes of synthetic and real samples."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mim4dd.distill.config.commands import DistillConfig
from mim4dd.distill.data import ImageData
from mim4dd.distill.experts.train import ExpertBuffer
from mim4dd.distill.training.features import layer_features
from mim4dd.distill.training.network import seeded_network, train_network
from mim4dd.distill.training.passes import in_passes
from mim4dd.losses import pooled_rows
from mim4dd.unroll import flatten_parameters

__all__ = ["TrainedNetwork", "expert_network", "feature_rows", "train_on_real", "typical_samples"]

_MAX_SAMPLES = 1000
_TRAINING_STEPS = 500
_BATCH = 250


class TrainedNetwork(NamedTuple):
    """A network and the words for where its parameters come from."""

    network: nn.Module
    origin: str


def expert_network(config: DistillConfig, data: ImageData) -> TrainedNetwork:
    """The run's first expert after its last epoch.

    Raises:
        ValueError: If the run's experts are not there, or of another network or data.
    """
    experts = ExpertBuffer(config.experts, num_experts=1)
    experts.require(network=config.network_title)
    network = config.make_network(data).to(config.device)
    experts.require_task(network, data)
    theta, _ = experts.segment(0, experts.num_epochs, 0)
    nn.utils.vector_to_parameters(theta.to(config.device), network.parameters())
    # A trajectory holds parameters alone; the statistics of BatchNorm are made anew.
    torch.optim.swa_utils.update_bn(
        data.image_train[:_MAX_SAMPLES].split(_BATCH), network, torch.device(config.device)
    )
    return TrainedNetwork(network.eval(), "the first expert")


def train_on_real(config: DistillConfig, data: ImageData) -> TrainedNetwork:
    """The run's network, trained for a few hundred steps on its real data."""
    network = seeded_network(lambda: config.make_network(data), config.seed).to(config.device)
    train_network(
        network,
        data.image_train,
        data.label_train,
        num_steps=_TRAINING_STEPS,
        lr=config.lr_teacher,
        momentum=0.9,
        weight_decay=0.0,
        batch_size=64,
        generator=torch.Generator(data.image_train.device).manual_seed(config.seed),
    )
    return TrainedNetwork(
        network.eval(), f"a network trained for {_TRAINING_STEPS} steps on real data"
    )


def typical_samples(data: ImageData) -> tuple[Tensor, Tensor]:
    """Test samples and labels, up to a thousand, equally many of every class; always the same."""
    each = max(1, _MAX_SAMPLES // data.num_classes)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data.label_test), generator=generator)
    labels = data.label_test.cpu()[order]
    chosen = torch.cat([order[labels == label][:each] for label in range(data.num_classes)]).to(
        data.label_test.device
    )
    return data.image_test[chosen], data.label_test[chosen]


@torch.no_grad()
def feature_rows(network: nn.Module, samples: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Features of samples, pooled to rows (n, D) as the add-on pools them, by layer.

    Raises:
        ValueError: If the network has no submodule of a name.
    """
    theta = flatten_parameters(network)
    parts = [layer_features(network, theta, batch, layers) for batch in in_passes(samples)]
    return {
        layer: torch.cat([pooled_rows(outputs) for outputs in by_batch]).cpu()
        for layer, by_batch in zip(layers, zip(*parts, strict=True), strict=True)
    }
