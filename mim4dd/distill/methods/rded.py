"""Realistic, diverse and efficient images (RDED): mosaics of the crops that a teacher likes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd.distill.data import ImageData
from mim4dd.distill.data.per_class import PerClass, class_counts
from mim4dd.distill.evaluation import ByTeacher
from mim4dd.distill.methods.base import Ingredients, Initial, Objective, RealData
from mim4dd.distill.methods.registry import method
from mim4dd.distill.methods.side_by_side import unchanged
from mim4dd.distill.methods.squeeze_settings import SqueezeSettings
from mim4dd.distill.methods.teachers import LabellingMethod, require_tileable
from mim4dd.distill.training.passes import in_passes
from mim4dd.distill.training.tiles import mosaic

__all__ = ["RDED", "RDEDSettings"]

_LEAST_AREA = 0.08  # of a crop, as torchvision's RandomResizedCrop has it by default


@dataclass(frozen=True)
class RDEDSettings(SqueezeSettings):
    """How RDED trains its teacher, and what that chooses from.

    Args:
        candidates: Real images of each class to choose from.
        crops: Random crops of each image; the teacher chooses one.
        mosaic: An image holds mosaic × mosaic crops.
    """

    candidates: int = 300
    crops: int = 5
    mosaic: int = 1

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(candidates=1, crops=1, mosaic=1)


@method("rded", title="RDED", settings=RDEDSettings, judged_by=ByTeacher())
class RDED(LabellingMethod):
    r"""Take the crops of real images that a teacher gives the least cross entropy.

    Of every class ``candidates`` real images are drawn, and of each ``crops`` random squares, which
    are resized to the images' size over ``mosaic`` = F. A crop's score is the teacher's cross
    entropy at the class, on the crop amid zeros. Every image's best crop is kept, and of those the
    ipc · F² best. In ascending order of their scores, crop k · ipc + r is tile k of image r.

    Nothing is optimised: the loss is 0 at any images, so that the images stay what they are, unless
    an add-on moves them. In the end the teacher labels them.

    Args:
        new_network: Makes an untrained network with the initial weights of a seed.
        data: What the teacher is trained on.
        seed: Of the teacher.
        settings: How to train and to choose.

    References:
        Sun et al. On the Diversity and Realism of Distilled Dataset: An Efficient Dataset
        Distillation Paradigm. arXiv:2312.03526.
    """

    def __init__(
        self,
        new_network: Callable[[int], nn.Module],
        data: ImageData,
        seed: int,
        settings: RDEDSettings,
    ) -> None:
        self.data = data
        self.settings = settings
        self.teachers = settings.teachers([new_network(seed)], seed)

    @classmethod
    def make(cls, ingredients: Ingredients, settings: RDEDSettings) -> "RDED":
        """From what a configuration holds."""
        return cls(ingredients.new_network, ingredients.data, ingredients.seed, settings)

    def initial(self, real: RealData, ipc: PerClass) -> Initial:
        """The mosaics.

        Raises:
            ValueError: If a class has too few images.
        """
        (teacher,) = self.teachers.trained_on(self.data)
        images = []
        for label, count in enumerate(class_counts(ipc, real.data.num_classes)):
            needed = count * self.settings.mosaic**2
            candidates = real.sample_class(label, self.settings.candidates)
            if len(candidates) < needed:
                raise ValueError(
                    f"ipc · mosaic² must be at most the number of images to choose from, {needed} "
                    f"were asked for and class {real.data.class_names[label]!r} has "
                    f"{len(candidates)}"
                )
            best = self._best_crops(teacher, candidates, label, real.generator)[:needed]
            of_images = best.unflatten(0, (-1, count)).transpose(0, 1).flatten(0, 1)
            images.append(mosaic(of_images, self.settings.mosaic))
        return Initial(torch.cat(images))

    def loss(
        self, image_syn: Tensor, label_syn: Tensor, syn_lr: Tensor, real: RealData
    ) -> Objective:
        """0, and the teacher, into which an add-on may look."""
        (teacher,) = self.teachers.trained_on(self.data)
        return Objective(0 * image_syn.square().sum(), [unchanged(teacher)])

    def require_data(self, data: ImageData) -> None:
        """Raise ValueError if the teacher is not of ``data``, or these are no images to crop."""
        require_tileable("rded", "mosaic", self.settings.mosaic, data)
        super().require_data(data)

    def require_per_class(self, counts: Sequence[int]) -> None:
        """Raise ValueError if there are more tiles of a class than candidates."""
        needed = max(counts) * self.settings.mosaic**2
        if needed > self.settings.candidates:
            raise ValueError(
                f"candidates must be at least ipc · mosaic², which is {needed}, "
                f"got {self.settings.candidates}"
            )

    def _best_crops(
        self, teacher: nn.Module, images: Tensor, label: int, generator: torch.Generator
    ) -> Tensor:
        """The best crop of every image, the best of them first. (N, channels, H / F, W / F)"""
        size = images.shape[-1]
        crops = torch.stack(
            [
                random_crop(image, size // self.settings.mosaic, generator)
                for image in images
                for _ in range(self.settings.crops)
            ]
        )
        scores = _scores(teacher, crops, label, size).view(len(images), -1)
        least, which = scores.min(1)
        kept = crops.view(len(images), -1, *crops.shape[1:])[range(len(images)), which]
        return kept[least.argsort(stable=True)]


def random_crop(
    image: Tensor, size: int, generator: torch.Generator, least_area: float = _LEAST_AREA
) -> Tensor:
    """A square of some of the area, anywhere in the image, resized. (channels, size, size)"""
    height, width = image.shape[1:]
    area, down, right = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    share = (least_area + (1 - least_area) * area) ** 0.5
    side = max(1, round(min(height, width) * share))
    top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
    part = image[None, :, top : top + side, left : left + side]
    return F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)[0]


@torch.no_grad()
def _scores(teacher: nn.Module, crops: Tensor, label: int, size: int) -> Tensor:
    """Cross entropy of crops, which lie amid zeros where they are smaller than an image. (N,)"""
    before = (size - crops.shape[-1]) // 2
    after = size - crops.shape[-1] - before
    padded = F.pad(crops, (before, after, before, after))
    return torch.cat([-teacher(part).log_softmax(1)[:, label] for part in in_passes(padded)])
