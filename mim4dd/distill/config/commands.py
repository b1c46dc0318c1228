"""Configurations of whole commands: data, network, method, add-on, loop and evaluation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from mim4dd.distill.add_ons import ADD_ONS, AddOnSettings, MIM4DDSettings
from mim4dd.distill.config.nested import Configuration, part
from mim4dd.distill.config.presets import expert_preset, preset
from mim4dd.distill.data import ImageData, load_data
from mim4dd.distill.data.per_class import class_counts
from mim4dd.distill.evaluation import Evaluation
from mim4dd.distill.experts import ExpertBuffer, ExpertTraining
from mim4dd.distill.loop import LoopSettings
from mim4dd.distill.loop.settings import read_counts
from mim4dd.distill.methods import METHODS, MethodEntry
from mim4dd.distill.methods.base import BaseMethod, Ingredients
from mim4dd.distill.methods.mtt import MTTSettings
from mim4dd.distill.networks import NETWORKS, make_network, network_title
from mim4dd.distill.networks.convnet import ConvNetSettings
from mim4dd.distill.registry import Entry, Registry
from mim4dd.distill.settings import Settings, options_of

__all__ = [
    "CompareConfig",
    "DistillConfig",
    "ExpertsConfig",
    "SweepConfig",
    "TaskSettings",
    "part",
]

Config = TypeVar("Config", bound="TaskSettings")

# What concerns the training of experts, and nothing else.
_OF_EXPERTS = options_of(ExpertTraining).keys() - {"precision", "seed"}
_CONVNET, _MTT, _MIM4DD = ConvNetSettings(), MTTSettings(), MIM4DDSettings()


@dataclass(frozen=True)
class TaskSettings(Configuration):
    """Data, network and device.

    :meth:`of` takes flat options as they are and the defaults of the classes for the rest, whatever
    the data and the method: it is for values that were resolved before, such as those of a
    ``config.json``. :meth:`resolve` fills in what was published.

    Args:
        data: Data set (docs/data.md), or folder of class folders.
        data_path: Folder of downloaded data sets.
        image_size: Size to resize the images of a folder or ImageNet subset to.
        zca: Whiten by ZCA instead of standardising every channel.
        keep_bytes: Keep the images of a folder as bytes in memory.
        stream: Read images of a folder only when needed.
        download: Let torchvision or Hugging Face download data.
        network: Architecture of the networks.
        device: Where to compute: "cpu", "cuda", "cuda:1", …
    """

    GROUP: ClassVar[str] = "Data and device"
    CHOICES: ClassVar[Mapping[str, Registry[Any]]] = {"network": NETWORKS}

    data: str = "digits"
    data_path: str = "data"
    image_size: int | None = None
    zca: bool = False
    keep_bytes: bool = False
    stream: bool = False
    download: bool = False
    network_name: str = "convnet"
    network: Settings = _CONVNET
    device: str = "cpu"

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(image_size=1)
        check_device("device", self.device)

    def load_data(self) -> ImageData:
        """The data set, on the device."""
        return load_data(
            self.data,
            self.image_size,
            self.zca,
            self.data_path,
            keep_bytes=self.keep_bytes,
            stream=self.stream,
            download=self.download,
        ).to(self.device)

    def make_network(self, data: ImageData) -> nn.Module:
        """A freshly initialised network for ``data``.

        Raises:
            ValueError: If the data are rows, which only some networks take, or images too small.
        """
        return self.network_maker(data)()

    def network_maker(self, data: ImageData) -> Callable[[], nn.Module]:
        """What makes networks for ``data``, and holds nothing of it.

        Raises:
            ValueError: If the data are rows, which only some networks take.
        """
        takes_rows = NETWORKS[self.network_name].takes_rows
        return partial(
            make_network,
            self.network_name,
            num_classes=data.num_classes,
            channels=data.image_train[0].numel() if takes_rows else data.channels,
            image_size=1 if takes_rows else data.image_size,
            settings=self.network,
        )

    def on_network(self: Config, network: str) -> Config:
        """The same task on another network, of the same size where that can be chosen.

        What else it can be asked for, such as its norm, is as it is by default for the data.
        """
        if network == self.network_name:
            return self
        new, own = NETWORKS[network], NETWORKS[self.network_name].options
        options = {name: value for name, value in self.options().items() if name not in own}
        options |= {name: each for name, each in preset(self.data).items() if name in new.options}
        sizes = {name: getattr(self.network, name) for name in own & new.options}
        options |= {name: size for name, size in sizes.items() if isinstance(size, int)}
        return type(self).of(**options | {"network": network})

    @classmethod
    def preset(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The tabulated defaults of other options beside these: published ones, or measured."""
        data = options.get("data", cls.data)
        method = options.get("method", getattr(cls, "method_name", None))
        found: dict[str, Any] = {}
        # Experts share options with methods, and must not set them for one that needs no experts.
        if issubclass(cls, ExpertTraining) and (method is None or METHODS[method].needs_experts):
            found |= expert_preset(data)
        ipc = with_ipc(options).get("ipc", getattr(cls, "ipc", None))
        found |= preset(data, method, ipc if isinstance(ipc, int) else None)  # else refused later
        known = cls.describe(cls.chosen(found | dict(options)))
        return {name: value for name, value in found.items() if name in known}

    @classmethod
    def resolve(cls: type[Config], /, **options: Any) -> Config:
        """The configuration that a command makes of these flat options.

        What is given counts; then the tabulated defaults for the data, and for the method and the
        images per class where there are such (:meth:`preset`); then the defaults of the classes.

        Raises:
            ValueError: If an option does not exist, is not of its type or has a bad value.
        """
        return cls.of(**(cls.preset(options) | options))

    @property
    def network_title(self) -> str:
        """What experts are told apart by."""
        return f"{network_title(self.network_name, self.network)} zca={self.zca}"


@dataclass(frozen=True)
class ExpertsConfig(TaskSettings, ExpertTraining):
    """What `mim4dd experts` takes.

    Args:
        workers: Processes, each of which trains one expert at a time; they divide the CPU threads.
        devices: Devices to spread the workers over, such as cuda:0,cuda:1; by default --device.
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
class DistillConfig(TaskSettings, LoopSettings, Evaluation):
    """What `mim4dd distill` takes. Make it by :func:`mim4dd.distill.resolve`, as the command does.

    ``DistillConfig.of(data="cifar10", method="mtt")`` itself has the defaults of the classes, which
    are for small images, and not those that were published for CIFAR-10.

    Args:
        method: The base method.
        add_on: Loss that is added to the method's.
        experts: Folder of the expert trajectories.

    Example:
        >>> from mim4dd import distill
        >>> config = distill.resolve(method="dm", batch_real=64)
        >>> config.method_name, config.method.batch_real
        ('dm', 64)
    """

    CHOICES: ClassVar[Mapping[str, Registry[Any]]] = {
        "method": METHODS,
        "add_on": ADD_ONS,
        "network": NETWORKS,
    }

    method_name: str = "mtt"
    method: Any = _MTT  # the settings of that method
    add_on_name: str = "mim4dd"
    add_on: AddOnSettings = _MIM4DD
    experts: str = "runs/experts"

    @classmethod
    def resolve(cls: type[Config], /, **options: Any) -> Config:
        """As for all commands; ``add_on`` may be a mapping of its name and its options.

        ``ipc`` may be a sequence, a number for each class, in place of ``ipc_by_class``.

        Raises:
            ValueError: If an option does not exist, is not of its type, has a bad value or is given
                twice.
        """
        if isinstance(own := options.get("add_on"), Mapping):
            del options["add_on"]
            if twice := sorted(own.keys() & options.keys()):
                raise ValueError(f"{', '.join(twice)} must be given once: in add_on, or beside it")
            options |= own
        return super().resolve(**with_ipc(options))

    @classmethod
    def unused(cls, chosen: Mapping[str, Entry]) -> set[str]:
        """What only other methods learn by, and experts where the method matches none."""
        method = chosen["method"]
        assert isinstance(method, MethodEntry)
        unused: set[str] = set() if method.needs_experts else cls.of_experts(method)
        of_learned = LoopSettings.OF_LEARNED
        return unused.union(*(of_learned[what] for what in of_learned.keys() - method.learns))

    @classmethod
    def of_experts(cls, method: MethodEntry) -> set[str]:
        """The options that concern experts alone."""
        return {"experts"}

    def make_method(self, data: ImageData) -> BaseMethod:
        """The base method, with the add-on unless its weight is 0.

        Raises:
            ValueError: If the options do not fit the data, the network or the experts.
        """
        if not data.has_images and self.eval_dsa_strategy != "none":  # else found out at the end
            raise ValueError(
                f"eval_dsa_strategy must be 'none' for rows, which {data.name} holds, "
                f"got {self.eval_dsa_strategy!r}"
            )
        ingredients = Ingredients(data, self.network_maker(data), self._open_experts, self.seed)
        method = METHODS[self.method_name].make(ingredients, self.method)
        method.require_data(data)
        # Else found out once the run is made.
        method.require_per_class(class_counts(self.per_class, data.num_classes))
        if self.init == "real" or type(method).initial is not BaseMethod.initial:
            data.require(self.per_class)
        if self.add_on.weight == 0:
            return method
        return ADD_ONS[self.add_on_name].make(method, self.add_on, ingredients)

    def _open_experts(self) -> ExpertBuffer:
        experts = ExpertBuffer(self.experts)
        # The first word on options that do not fit; require_task compares layers and pictures.
        experts.require(network=self.network_title)
        return experts


@dataclass(frozen=True)
class CompareConfig(DistillConfig, ExpertTraining):
    """What `mim4dd compare` takes.

    Args:
        experts: Folder of experts; by default the comparison trains its own.
        dsa_strategy: Augmentation of experts and students: families joined by "_", or "none".
        num_distill: Distillations by each method, each with another seed.
        seed: Seed of the first distillation and expert; the others have the next seeds.
    """

    experts: str = ""
    num_distill: int = 2

    @classmethod
    def of_experts(cls, method: MethodEntry) -> set[str]:
        """The options that concern experts alone: where they are, and how they are trained."""
        return {"experts"} | _OF_EXPERTS - method.options

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(num_distill=1)
        if self.add_on.weight == 0:
            raise ValueError(
                "weight must be above 0 to compare the method with an add-on and without"
            )


@dataclass(frozen=True)
class SweepConfig(DistillConfig, ExpertTraining):
    """What `mim4dd sweep` takes: the base setting, and how to train the experts it needs.

    Args:
        experts: Folder of experts; by default the sweep trains its own.
        dsa_strategy: Augmentation of experts and students: families joined by "_", or "none".
        seed: Seed of the first distillation and expert; the others have the next seeds.
        eval_every: Iterations between evaluations, which the curves show and the seconds include;
            0: none.
    """

    experts: str = ""
    eval_every: int = 0

    @classmethod
    def of_experts(cls, method: MethodEntry) -> set[str]:
        """None: other settings of the sweep may have other methods, which match experts."""
        return set()


def with_ipc(options: Mapping[str, Any]) -> dict[str, Any]:
    """Flat options whose ``ipc`` is one number, the largest where each class has its own."""
    found = dict(options)
    if isinstance(found.get("ipc"), (list, tuple)):
        if found.get("ipc_by_class") is not None:
            raise ValueError("ipc must be one number beside ipc_by_class, got one for each class")
        found["ipc_by_class"] = ",".join(map(str, found.pop("ipc")))
    if "ipc" not in found and isinstance(found.get("ipc_by_class"), str):
        found["ipc"] = max(read_counts(found["ipc_by_class"]))
    return found


def check_device(name: str, value: str) -> None:
    """Require a device that this machine has."""
    try:
        device = torch.device(value)
    except RuntimeError as error:
        raise ValueError(f"{name} must be a device that PyTorch knows, got {value!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name} {value!r} was asked for, but PyTorch sees no CUDA GPU")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{name} must be below cuda:{torch.cuda.device_count()}, got {value!r}")
