"""Networks that a method trains on the real data before it distils."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim4dd._unroll.steps import Augment
from mim4dd.distill.data import ImageData
from mim4dd.distill.identity.data import describe_data
from mim4dd.distill.identity.describe import describe_object, differences, named_differences
from mim4dd.distill.methods.base import BaseMethod
from mim4dd.distill.runtime.progress import progress_bar
from mim4dd.distill.training.kept import KeptTraining
from mim4dd.distill.training.network import train_network

__all__ = ["LabellingMethod", "TaughtMethod", "Teachers", "require_tileable"]


class Teachers:
    """Networks in eval mode that are trained when they are first asked for.

    Args:
        networks: What to train, in place.
        seed: Of the draws of the first one's training; the others' follow.
        epochs, lr, batch: Of the training, by SGD with momentum 0.9 and weight decay 5e-4, with a
            tenth of ``lr`` after half of the steps.
        augment: Of the training.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        *,
        seed: int,
        epochs: int,
        lr: float,
        batch: int,
        augment: Augment | None,
    ) -> None:
        self.networks = list(networks)
        self.seed = seed
        self.epochs = epochs
        self.lr = lr
        self.batch = batch
        self.augment = augment
        self.trained = False

    def trained_on(self, data: ImageData, folder: Path | None = None) -> list[nn.Module]:
        """The networks, trained.

        Args:
            data: What they are trained on.
            folder: Where the training is kept as it goes, a file for each, so that another call
                goes on from there after a stop.

        Raises:
            FloatingPointError: If one diverges.
            ValueError: If what ``folder`` holds is of other networks, another training or data.
        """
        if self.trained:
            return self.networks
        # Only where it is kept: to describe the data is to read all of it.
        identity: dict[str, Any] = {}
        if folder is not None:
            identity = {"teachers": self.identity(), "data": describe_data(data)}
        with progress_bar(self._num_steps(data) * len(self.networks), "teachers") as progress:
            for index in range(len(self.networks)):
                kept = None
                if folder is not None:
                    path = folder / f"teacher_{index:04d}.safetensors"
                    kept = KeptTraining(path, identity | {"index": index})
                    progress.update(kept.step)
                self._train(index, data, lambda _step: progress.update(), kept)
        self.trained = True
        return self.networks

    def identity(self) -> dict[str, Any]:
        """How they are trained, whether they are already or not."""
        return describe_object(self, without=("trained",))

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers of all; nothing before they are trained."""
        if not self.trained:
            return {}
        return {
            f"{index}.{name}": tensor
            for index, network in enumerate(self.networks)
            for name, tensor in network.state_dict().items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up a state that :meth:`state` gave.

        Raises:
            ValueError: If it is of other networks, or of more or fewer.
        """
        if not state:
            return
        own = nn.ModuleList(self.networks)
        expected = {name: tensor.shape for name, tensor in own.state_dict().items()}
        if expected != {name: tensor.shape for name, tensor in state.items()}:
            raise ValueError(
                f"the checkpoint must hold {len(self.networks)} teachers of the network to "
                "distil for, as the settings ask for"
            )
        own.load_state_dict(state)
        own.eval()
        self.trained = True

    def _num_steps(self, data: ImageData) -> int:
        return self.epochs * -(-len(data.image_train) // self.batch)

    def _train(
        self,
        index: int,
        data: ImageData,
        after_step: Callable[[int], object],
        kept: KeptTraining | None,
    ) -> None:
        network, images, num_steps = self.networks[index], data.image_train, self._num_steps(data)
        initial = deepcopy(network.state_dict())
        try:
            train_network(
                network,
                images,
                data.label_train,
                num_steps=num_steps,
                lr=self.lr,
                momentum=0.9,
                weight_decay=5e-4,
                batch_size=self.batch,
                generator=torch.Generator(images.device).manual_seed(self.seed + index),
                augment=self.augment,
                lr_drop=num_steps // 2,
                after_step=after_step,
                kept=kept,
            )
            if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
                if kept is not None:
                    kept.path.unlink(missing_ok=True)
                raise FloatingPointError(f"teacher {index} diverged: lower its step size {self.lr}")
        except BaseException:  # from what it is now another call would go on
            network.load_state_dict(initial)
            raise
        network.eval()


class TaughtMethod(BaseMethod):
    """A method that has networks trained on its data: what comes of that is alike for all."""

    data: ImageData
    teachers: Teachers

    def example_network(self) -> nn.Module:
        """The first teacher."""
        return self.teachers.networks[0]

    def require_data(self, data: ImageData) -> None:
        """Raise ValueError if the teachers are not of ``data``."""
        found = differences(describe_data(self.data), describe_data(data))
        if found:
            raise ValueError(
                f"data must be what the teachers are trained on, got {named_differences(found)}"
            )

    def prepare(self, folder: Path) -> None:
        """Train the teachers."""
        self.teachers.trained_on(self.data, folder)

    def state(self) -> dict[str, Tensor]:
        """The teachers, once they are trained."""
        return self.teachers.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up the teachers."""
        self.teachers.restore(state)


class LabellingMethod(TaughtMethod):
    """A method whose teachers also label the images that it made."""

    def labelling_network(self) -> nn.Module:
        """All teachers, trained, by the mean of their logits."""
        return _MeanLogits(self.teachers.trained_on(self.data)).eval()


class _MeanLogits(nn.Module):
    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([network(images) for network in self.networks]).mean(0)


def require_tileable(method: str, option: str, tiles: int, data: ImageData) -> None:
    """Raise ValueError unless ``data`` are images that may be scaled to ``tiles`` on a side."""
    if not data.has_images or data.zca:
        kind = "images whitened by ZCA" if data.has_images else "rows"
        raise ValueError(f"method {method!r} scales images, {data.name} holds {kind}")
    if data.image_size % tiles:
        raise ValueError(
            f"{option} must divide the size of the images, {data.image_size}, got {tiles}"
        )
