"""Configurations of whole commands: every option of the parts, flat, under the field's names."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from mim4dd._checks import check_choice
from mim4dd.distill.add_ons.mutual_information import MIM4DD, MIM4DDSettings
from mim4dd.distill.config.presets import expert_preset, preset
from mim4dd.distill.data import ImageData, load_data
from mim4dd.distill.evaluation.evaluate import Evaluation
from mim4dd.distill.experts.train import ExpertBuffer, ExpertTraining
from mim4dd.distill.loop.loop import LoopSettings
from mim4dd.distill.methods import METHODS
from mim4dd.distill.methods.base import BaseMethod, Ingredients
from mim4dd.distill.methods.cafe import CAFESettings
from mim4dd.distill.methods.datm import DATMSettings
from mim4dd.distill.methods.dm import DMSettings
from mim4dd.distill.methods.dsa import DSASettings
from mim4dd.distill.methods.rat_bptt import RaTBPTTSettings
from mim4dd.distill.methods.sre2l import SRe2LSettings
from mim4dd.distill.networks import (
    NetworkName,
    Norm,
    Pooling,
    check_network,
    make_network,
    network_title,
)
from mim4dd.distill.settings import Settings, check_options, option_names

__all__ = [
    "CompareConfig",
    "DistillConfig",
    "ExpertsConfig",
    "SweepConfig",
    "TaskSettings",
    "foreign_options",
    "method_titles",
    "needs_experts",
    "part",
]

Config = TypeVar("Config", bound="TaskSettings")
Part = TypeVar("Part", bound=Settings)


@dataclass(frozen=True)
class TaskSettings(Settings):
    """Data, network and device.

    A configuration that is called takes its arguments as they are and the defaults of the class
    for the rest, whatever the data and the method: it is for values that were resolved before, such
    as those of a ``config.json``. :meth:`resolve` fills in what was published.

    Args:
        data: Name of a data set ("digits", "shapes", "cifar10", …: docs/data.md), or a folder with
            one sub-folder of images per class.
        data_path: Where downloaded data sets lie.
        image_size: Height and width to resize the images of a folder or ImageNet subset to.
        zca: Whiten by ZCA instead of standardising every channel.
        network: Architecture of experts and students.
        width: Channels of every block of the ConvNet, units of the MLP's layers.
        depth: Blocks of the ConvNet; each halves the image.
        norm: Norm of the network; by default what the field gives it.
        pooling: Pooling of the ConvNet; for resnet18 "avg" halves by pooling in place of strides.
        device: Where to compute: "cpu", "cuda", "cuda:1", …
    """

    data: str = "digits"
    data_path: str = "data"
    image_size: int | None = None
    zca: bool = False
    network: NetworkName = "convnet"
    width: int = 32
    depth: int = 2
    norm: Norm | None = None
    pooling: Pooling | None = None
    device: str = "cpu"

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(image_size=1, width=1, depth=1)
        check_network(self.network, norm=self.norm, pooling=self.pooling)
        check_device("device", self.device)

    def load_data(self) -> ImageData:
        """The data set, on the device."""
        return load_data(self.data, self.image_size, self.zca, self.data_path).to(self.device)

    def make_network(self, data: ImageData) -> nn.Module:
        """A freshly initialised network for ``data``.

        Raises:
            ValueError: If the data are rows, which only the MLP takes, or images too small.
        """
        takes_rows = self.network == "mlp"
        return make_network(
            self.network,
            num_classes=data.num_classes,
            channels=data.image_train[0].numel() if takes_rows else data.channels,
            image_size=1 if takes_rows else data.image_size,
            width=self.width,
            depth=self.depth,
            norm=self.norm,
            pooling=self.pooling,
        )

    def on_network(self: Config, network: NetworkName) -> Config:
        """The same task on another network, with the norm and pooling that the field gives it."""
        if network == self.network:
            return self
        return replace(self, network=network, norm=None, pooling=None)

    @classmethod
    def preset(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The tabulated defaults of other options beside these: published ones, or measured."""
        method = options.get("method")
        found: dict[str, Any] = {}
        # Experts share options with methods, and must not set them for one that needs no experts.
        if issubclass(cls, ExpertTraining) and (method is None or needs_experts(method)):
            found |= expert_preset(options["data"])
        found |= preset(options["data"], method, options.get("ipc"))
        return {name: value for name, value in found.items() if name in option_names(cls)}

    @classmethod
    def resolve(cls: type[Config], /, **options: Any) -> Config:
        """The configuration that a command makes of these options.

        What is given counts; then the tabulated defaults for the data, and for the method and the
        images per class where there are such (:meth:`preset`); then the defaults of the class.

        Raises:
            ValueError: If an option does not exist, is not of its type or has a bad value.
        """
        check_options(options, cls, cls.__name__)
        defaults: dict[str, Any] = {option.name: option.default for option in fields(cls)}
        return cls(**(defaults | cls.preset(defaults | options) | options))

    @property
    def network_name(self) -> str:
        """What experts are told apart by."""
        title = network_title(
            self.network, width=self.width, depth=self.depth, norm=self.norm, pooling=self.pooling
        )
        return f"{title} zca={self.zca}"


@dataclass(frozen=True)
class ExpertsConfig(TaskSettings, ExpertTraining):
    """What `mim4dd experts` takes.

    Args:
        workers: Processes that train an expert each; they share the CPU's threads.
        devices: Devices that the workers take turns over, as in cuda:0,cuda:1; by default device.
    """

    workers: int = 1
    devices: str | None = None

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(workers=1)
        for device in self.worker_devices:
            check_device("devices", device)
        if len(self.worker_devices) > self.workers:
            raise ValueError(
                f"workers must be at least the number of devices, got {self.workers} for "
                f"{self.devices}"
            )

    @property
    def worker_devices(self) -> list[str]:
        """The devices to train on."""
        return [self.device] if self.devices is None else self.devices.split(",")


@dataclass(frozen=True)
class DistillConfig(
    TaskSettings,
    DATMSettings,
    DSASettings,
    CAFESettings,
    DMSettings,
    RaTBPTTSettings,
    SRe2LSettings,
    MIM4DDSettings,
    LoopSettings,
    Evaluation,
):
    """What `mim4dd distill` takes. Make it by :func:`mim4dd.distill.resolve`, as the command does.

    ``DistillConfig(data="cifar10", method="mtt")`` itself has the defaults shown here, which are
    for small images, and not those that were published for CIFAR-10.

    Args:
        method: The base method.
        experts: Folder of the expert trajectories, for methods that match them.
    """

    method: Literal["mtt", "tesla", "datm", "dc", "dsa", "cafe", "dm", "rat_bptt", "sre2l"] = "mtt"
    experts: str = "runs/experts"

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        check_choice("method", self.method, tuple(METHODS))
        others = foreign_options(self.method)
        for option in fields(self):
            if option.name in others and getattr(self, option.name) != option.default:
                raise ValueError(
                    f"{option.name} has no effect on method {self.method!r}: leave it at "
                    f"{option.default!r}, got {getattr(self, option.name)!r}"
                )

    def make_method(self, data: ImageData) -> BaseMethod:
        """The base method, with the MIM4DD add-on unless its weight is 0.

        Raises:
            ValueError: If the options do not fit the data, the network or the experts.
        """
        if not data.has_images and self.eval_dsa_strategy != "none":  # else found out at the end
            raise ValueError(
                f"eval_dsa_strategy must be 'none' for rows, which {data.name} holds, "
                f"got {self.eval_dsa_strategy!r}"
            )
        ingredients = Ingredients(
            data, lambda: self.make_network(data), self._open_experts, self.seed
        )
        kind = METHODS[self.method]
        method = kind.make(ingredients, part(self, kind.settings))
        method.require_data(data)
        if self.init == "real" or type(method).initial is not BaseMethod.initial:
            data.require(self.ipc)  # else found out once the run is made
        if self.weight == 0:
            return method
        network = ingredients.new_network()
        return MIM4DD.from_settings(method, self, network, data.image_train, self.seed)

    def _open_experts(self) -> ExpertBuffer:
        experts = ExpertBuffer(self.experts)
        # The first word on options that do not fit; require_task compares layers and pictures.
        experts.require(network=self.network_name)
        return experts


@dataclass(frozen=True)
class CompareConfig(DistillConfig, ExpertTraining):
    """What `mim4dd compare` takes.

    Args:
        experts: Folder of the expert trajectories; by default the comparison trains its own.
        dsa_strategy: Augmentation of experts and students: families joined by "_", or "none".
        num_distill: Distillations by each method, with different seeds.
        seed: Seed of the first distillation and expert; the others follow.
    """

    experts: str = ""
    num_distill: int = 2

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(num_distill=1)
        if self.weight == 0:
            raise ValueError(
                "weight must be above 0 to compare the method + MIM4DD with the method alone"
            )


@dataclass(frozen=True)
class SweepConfig(DistillConfig, ExpertTraining):
    """What `mim4dd sweep` takes: the base setting, and how to train the experts it needs.

    Args:
        experts: Folder of the expert trajectories; by default the sweep trains its own.
        dsa_strategy: Augmentation of experts and students: families joined by "_", or "none".
        seed: Seed of the first distillation and expert; the others follow.
        eval_every: Iterations between evaluations for the curves, which count as time; 0 leaves
            them out.
    """

    experts: str = ""
    eval_every: int = 0


def part(config: TaskSettings, kind: type[Part], **changes: Any) -> Part:
    """The part of a configuration that another command or a method takes, some options changed."""
    values = {name: value for name, value in asdict(config).items() if name in option_names(kind)}
    return kind(**(values | changes))


def check_device(name: str, value: str) -> None:
    """Require a device that this machine has."""
    try:
        device = torch.device(value)
    except RuntimeError as error:
        raise ValueError(f"{name} must be one of PyTorch's, got {value!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name} {value!r} was asked for, but PyTorch sees no CUDA GPU")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{name} must be below cuda:{torch.cuda.device_count()}, got {value!r}")


def needs_experts(method: str) -> bool:
    """Whether a method needs expert trajectories."""
    check_choice("method", method, tuple(METHODS))
    return METHODS[method].needs_experts


def foreign_options(method: str) -> set[str]:
    """Options of other methods alone, which have no effect on this one."""
    return set().union(*(kind.options for kind in METHODS.values())) - METHODS[method].options


def method_titles(option: str) -> list[str]:
    """Titles of the methods that an option is for; none for an option of all."""
    titles = [kind.title for kind in METHODS.values() if option in kind.options]
    return [] if len(titles) == len(METHODS) else titles
