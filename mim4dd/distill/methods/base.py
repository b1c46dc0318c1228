"""What a base method and an add-on agree on."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mim4dd.distill.data import ImageData
from mim4dd.distill.data.per_class import PerClass, draw_of_class
from mim4dd.distill.experts.train import ExpertBuffer
from mim4dd.distill.identity.describe import describe_network, describe_object
from mim4dd.distill.training.network import seeded_network, soft_labels

__all__ = [
    "BaseMethod",
    "ComparedNetwork",
    "Ingredients",
    "Initial",
    "Objective",
    "RealData",
    "identity_by_network",
    "network_of_seed",
]


Method = TypeVar("Method", bound="BaseMethod")


@dataclass(frozen=True)
class RealData:
    """The real side of an outer iteration, and the random stream of every draw in it.

    The stream is new in every iteration and on every rank, so no state of it has to be kept.
    ``per_class`` says how many synthetic images each class has; by default they are equally many.

    Example:
        >>> import torch
        >>> from mim4dd.distill.data import load_data
        >>> from mim4dd.distill.methods.base import RealData
        >>> real = RealData(load_data("digits"), torch.Generator().manual_seed(0))
        >>> images, labels = real.sample(8)
        >>> images.shape, labels.shape, real.sample_class(3, batch=5).shape
        (torch.Size([8, 1, 8, 8]), torch.Size([8]), torch.Size([5, 1, 8, 8]))
    """

    data: ImageData
    generator: torch.Generator  # on the CPU
    iteration: int = 0
    per_class: Sequence[int] | None = None

    def integer(self, below: int) -> int:
        """A number in [0, below)."""
        return int(torch.randint(below, (), generator=self.generator))

    def seed(self) -> int:
        """A seed for another stream, such as a new network's or an augmentation's."""
        return self.integer(2**31)

    def sample(self, batch: int) -> tuple[Tensor, Tensor]:
        """``batch`` training images and their labels, each drawn independently of the others."""
        size = len(self.data.image_train)
        rows = torch.randint(size, (batch,), generator=self.generator)
        rows = rows.to(self.data.image_train.device)
        return self.data.image_train[rows], self.data.label_train[rows]

    def class_syn(self, num_images: int) -> Tensor:
        """The class that every synthetic image is made for, in order. (n,)

        Raises:
            ValueError: If there cannot be so many.
        """
        classes = torch.arange(self.data.num_classes, device=self.data.image_train.device)
        counts = torch.tensor(self.syn_counts(num_images), device=classes.device)
        return classes.repeat_interleave(counts)

    def syn_counts(self, num_images: int) -> list[int]:
        """How many of the synthetic images, which are ordered by class, each class has.

        Raises:
            ValueError: If there cannot be so many.
        """
        num_classes = self.data.num_classes
        if self.per_class is None and num_images % num_classes:
            raise ValueError(
                f"num_images must be a multiple of the {num_classes} classes, got {num_images}"
            )
        counts = self.per_class or [num_images // num_classes] * num_classes
        if sum(counts) != num_images or len(counts) != num_classes:
            raise ValueError(
                f"num_images must be {sum(counts)}, for the images of {len(counts)} classes, got "
                f"{num_images} for {num_classes}"
            )
        return list(counts)

    def sample_class(self, label: int, batch: int) -> Tensor:
        """Up to ``batch`` different training images of one class.

        Raises:
            ValueError: If it has none.
        """
        rows = draw_of_class(self.data.label_train, label, batch, self.generator)
        if len(rows) == 0:
            raise ValueError(
                "data must have training images of every class, class "
                f"{self.data.class_names[label]!r} has none"
            )
        return self.data.image_train[rows]


@dataclass(frozen=True)
class Ingredients:
    """What a method may be made of.

    Example:
        >>> from torch import nn
        >>> from mim4dd.distill.data import load_data
        >>> from mim4dd.distill.methods.base import Ingredients
        >>> def no_experts():
        ...     raise ValueError("experts must be a folder of experts, got none")
        >>> given = Ingredients(load_data("digits"), lambda: nn.Linear(64, 10), no_experts, seed=0)
        >>> given.new_network()
        Linear(in_features=64, out_features=10, bias=True)
    """

    data: ImageData
    make_network: Callable[[], nn.Module]
    experts: Callable[[], ExpertBuffer]  # opens them, or raises ValueError where there are none
    seed: int

    def new_network(self, seed: int | None = None) -> nn.Module:
        """A fresh network on the device of the data; by default that of the run's own seed."""
        network = seeded_network(self.make_network, self.seed if seed is None else seed)
        return network.to(self.data.image_train.device)


class ComparedNetwork(NamedTuple):
    """A network at the parameters whose features of synthetic and of real samples may be compared.

    ``theta_syn`` carries gradients into the synthetic set where they were trained on it.

    Example:
        >>> import mim4dd
        >>> from torch import nn
        >>> from mim4dd.distill.methods.base import ComparedNetwork
        >>> network = nn.Linear(4, 2)
        >>> theta = mim4dd.flatten_parameters(network)
        >>> ComparedNetwork(network, theta_syn=theta, theta_real=theta).theta_syn.shape
        torch.Size([10])
    """

    network: nn.Module
    theta_syn: Tensor  # (P,)
    theta_real: Tensor  # (P,)


class Initial(NamedTuple):
    """Where a synthetic set starts from.

    Example:
        >>> import torch
        >>> from mim4dd.distill.methods.base import Initial
        >>> Initial(torch.randn(20, 1, 8, 8)).label_logits is None
        True
    """

    image_syn: Tensor  # (n, channels, H, W), ordered by class
    label_logits: Tensor | None = None  # (n, C), the soft labels before their softmax


@dataclass(frozen=True)
class Objective:
    """A method's loss of one outer step, and the networks that an add-on may look into.

    Raises:
        TypeError: If the loss is not a tensor.
        ValueError: If it is not a scalar.

    Example:
        >>> import torch
        >>> from mim4dd.distill.methods.base import Objective
        >>> image_syn = torch.zeros(10, 1, 8, 8, requires_grad=True)
        >>> Objective((image_syn - 1).square().mean(), compared=[]).value
        tensor(1., grad_fn=<MeanBackward0>)
    """

    value: Tensor  # ()
    compared: list[ComparedNetwork]
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.value, Tensor):
            raise TypeError(f"value must be a tensor, got {type(self.value).__name__}")
        if self.value.dim() != 0:
            raise ValueError(f"value must be a scalar (), got {tuple(self.value.shape)}")


class BaseMethod(ABC):
    """A distillation objective. It knows nothing of the loop, the optimisers or the files.

    A method of one's own needs :meth:`loss` alone; docs/methods.md shows one.

    Example:
        >>> import torch
        >>> from mim4dd.distill.data import load_data
        >>> from mim4dd.distill.methods.base import BaseMethod, Objective, RealData
        >>> class MeanImage(BaseMethod):
        ...     def loss(self, image_syn, label_syn, syn_lr, real):
        ...         images, _ = real.sample(64)
        ...         return Objective((image_syn.mean(0) - images.mean(0)).square().sum(), [])
        >>> image_syn, label_syn = torch.zeros(10, 1, 8, 8), torch.arange(10)
        >>> real = RealData(load_data("digits"), torch.Generator())
        >>> MeanImage().loss(image_syn, label_syn, torch.tensor(0.01), real).value > 0
        tensor(True)
    """

    @classmethod
    def make(cls: type[Method], ingredients: Ingredients, settings: Any) -> Method:
        """From what a configuration holds: by default of ``new_network`` and the settings."""
        return cls(ingredients.new_network, settings)  # type: ignore[call-arg]

    @abstractmethod
    def loss(
        self,
        image_syn: Tensor,  # (n, channels, H, W)
        label_syn: Tensor,  # (n,) classes, or (n, C) probabilities
        syn_lr: Tensor,  # ()
        real: RealData,
    ) -> Objective:
        """The loss of one outer step, differentiable in images, soft labels and step size."""

    @property
    def tiles(self) -> int:
        """How many parts of an image stand beside each other, and above each other; by default 1.

        Networks are trained on the parts, enlarged by ``mim4dd.distill.training.tiles.decode``. It
        is called for evaluation and for add-ons. :meth:`loss` has to call it by itself.
        """
        return 1

    def prepare(self, folder: Path) -> None:
        """Do what takes long before the first step, such as training networks on the real data.

        The loop calls it before :meth:`initial`. It may be stopped at any moment. What it keeps in
        ``folder``, the next call may go on from. The loop removes the folder when a checkpoint
        holds what :meth:`state` gives.
        """
        return

    def initial(self, real: RealData, ipc: PerClass) -> Initial | None:
        """Where the set starts, for methods that choose it; None leaves that to the loop.

        ``ipc`` is a number for each class where the user gave one, as ``data.sample`` takes it.
        """
        return None

    def labelling_network(self) -> nn.Module | None:
        """A network in eval mode that labels images, for methods that trained one.

        It labels the result. If the method is registered with ``judged_by``, it also labels all
        batches in evaluation by a teacher's labels.
        """
        return None

    def relabel(self, image_syn: Tensor) -> Tensor | None:
        """Probabilities (n, C) to label the result with; None keeps those of the distillation.

        By default what :meth:`labelling_network` takes the images for, where there is one.
        """
        network = self.labelling_network()
        return None if network is None else soft_labels(network, image_syn)

    def require_data(self, data: ImageData) -> None:
        """Raise ValueError if the method was made for other data than ``data``."""
        return

    def require_per_class(self, counts: Sequence[int]) -> None:
        """Raise ValueError if there cannot be so many synthetic images of each class."""
        return

    def example_network(self) -> nn.Module | None:
        """A network such as it computes with, which tells how many threads the work is enough for.

        By default the attribute ``network``; None where there is none: threads stay as they are.
        """
        network = getattr(self, "network", None)
        return network if isinstance(network, nn.Module) else None

    def identity(self) -> dict[str, Any]:
        """What defines the method, as JSON holds it: what a checkpoint must agree on.

        By default the class with the code of a user's, and all attributes but those named as parts
        of :meth:`state`: of networks the layers and the frozen weights. Other objects of the
        attributes may have a method ``identity``, too.
        """
        return describe_object(self, without=self.state())

    def state(self) -> dict[str, Tensor]:
        """What the method carries on this rank from one outer step to the next, for checkpoints."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up a state that :meth:`state` gave."""
        if state:
            raise ValueError(
                f"the checkpoint must hold no state for {type(self).__name__}, "
                f"got {', '.join(state)}"
            )


def identity_by_network(
    method: BaseMethod, new_network: Callable[[int], nn.Module]
) -> dict[str, Any]:
    """The identity of a method with an attribute ``new_network``: what it makes, not its name.

    Example:
        >>> from torch import nn
        >>> from mim4dd.distill.methods.base import BaseMethod, identity_by_network
        >>> class Random(BaseMethod):
        ...     def __init__(self, new_network):
        ...         self.new_network = new_network
        ...     def identity(self):
        ...         return identity_by_network(self, self.new_network)
        ...     def loss(self, image_syn, label_syn, syn_lr, real): ...
        >>> sorted(Random(lambda seed: nn.Linear(4, 2)).identity())
        ['class', 'code', 'network']
    """
    described = describe_object(method, without=("new_network",))
    return described | {"network": describe_network(network_of_seed(new_network))}


def network_of_seed(new_network: Callable[[int], nn.Module]) -> nn.Module:
    """What ``new_network`` makes of seed 0, the global random stream left as it is.

    Example:
        >>> from torch import nn
        >>> from mim4dd.distill.methods.base import network_of_seed
        >>> network_of_seed(lambda seed: nn.Linear(4, 2))
        Linear(in_features=4, out_features=2, bias=True)
    """
    return seeded_network(lambda: new_network(0), 0)
