"""What every data set becomes: normalised samples of C classes in a training and a test part."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mim4dd.distill.data.byte_images import ByteImages, Images
from mim4dd.distill.data.normalization import Normalization
from mim4dd.distill.data.per_class import PerClass, class_counts, draw_of_class
from mim4dd.distill.data.split import stratified

__all__ = ["ImageData"]


@dataclass(frozen=True)
class ImageData:
    """Images of C classes, normalised, in a training and a test part.

    Where the samples are not images but rows of D features, ``image_train`` and ``image_test`` are
    (N, D), and all but ``channels`` and ``image_size`` works as it does for images. Images may be
    ``ByteImages``, which are normalised as they are taken.

    Example:
        >>> from mim4dd.distill.data import load_data
        >>> data = load_data("digits")
        >>> data.image_train.shape, data.label_train.shape, data.num_classes
        (torch.Size([1438, 1, 8, 8]), torch.Size([1438]), 10)
    """

    name: str
    image_train: Images  # (N, channels, H, W) float32, or (N, D)
    label_train: Tensor  # (N,) int64
    image_test: Images
    label_test: Tensor
    class_names: tuple[str, ...]
    normalization: Normalization

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: a copy's tensors may change, so it remembers no description."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def has_images(self) -> bool:
        """Whether the samples are images, not rows."""
        return self.image_train.dim() == 4

    @property
    def zca(self) -> bool:
        """Whether images are whitened by ZCA, not standardised by channel."""
        return self.has_images and self.normalization.whiten.dim() == 2

    @property
    def channels(self) -> int:
        """Channels of an image.

        Raises:
            ValueError: If the samples are rows.
        """
        self._require_images("channels")
        return self.image_train.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of an image.

        Raises:
            ValueError: If the samples are rows.
        """
        self._require_images("image_size")
        return self.image_train.shape[2]

    def _require_images(self, name: str) -> None:
        if not self.has_images:
            raise ValueError(
                f"{self.name} holds rows of {self.image_train.shape[1]} features, which have no "
                f"{name}: choose a network for rows"
            )

    def to(self, device: torch.device | str) -> "ImageData":
        """The same data on another device; itself where it is there, with what it remembers."""
        if torch.device(device) == self.image_train.device:
            return self
        return ImageData(
            self.name,
            self.image_train.to(device),
            self.label_train.to(device),
            self.image_test.to(device),
            self.label_test.to(device),
            self.class_names,
            self.normalization.to(device),
        )

    def require(self, ipc: PerClass) -> None:
        """Raise ValueError unless every class has as many training images."""
        sizes = self.label_train.bincount(minlength=self.num_classes).tolist()
        asked = class_counts(ipc, self.num_classes)
        for class_name, size, count in zip(self.class_names, sizes, asked, strict=True):
            if size < count:
                which = "the smallest class" if isinstance(ipc, int) else "each class"
                raise ValueError(
                    f"ipc must be at most the size of {which}: {count} images "
                    f"were asked for and class {class_name!r} has {size}"
                )

    def sample(self, ipc: PerClass, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw different training images of every class, ordered by class.

        Args:
            ipc: How many of each class: a number for all, or one for each.
            generator: Where the draw comes from, on the CPU.

        Raises:
            ValueError: If a class has fewer images.
        """
        self.require(ipc)
        labels = self.label_train.cpu()
        chosen = [
            draw_of_class(labels, label, count, generator)
            for label, count in enumerate(class_counts(ipc, self.num_classes))
        ]
        rows = torch.cat(chosen).to(self.label_train.device)
        return self.image_train[rows], self.label_train[rows]

    def hold_out(self, fraction: float, seed: int) -> "ImageData":
        """The training images alone, a stratified part of them as the test part.

        For choosing hyper-parameters: what is chosen here has not seen the test images. The name
        says what was held out, so that experts of the two are not mixed up. The normalisation stays
        the one of all training images.

        Args:
            fraction: Share of every class to test on, at least one image of each.
            seed: Seed of the draw.

        Raises:
            ValueError: If ``fraction`` is not between 0 and 1, or a class has a single image.

        Example:
            >>> from mim4dd.distill.data import load_data
            >>> data = load_data("digits").hold_out(0.25, seed=0)
            >>> data.name, len(data.image_train), len(data.image_test)
            ('digits hold_out=0.25 seed=0', 1079, 359)
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
        self.require(2)
        train, test = stratified(self.label_train, fraction, seed)
        return replace(
            self,
            name=f"{self.name} hold_out={fraction:g} seed={seed}",
            image_train=_part(self.image_train, train),
            label_train=self.label_train[train],
            image_test=_part(self.image_train, test),
            label_test=self.label_train[test],
        )


def _part(images: Images, rows: Tensor) -> Images:
    return images.take(rows) if isinstance(images, ByteImages) else images[rows]
