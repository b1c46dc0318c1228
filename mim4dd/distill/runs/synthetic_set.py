"""A distilled set: what it holds, what it was made of, and its file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mim4dd.distill.data import ImageData
from mim4dd.distill.files.atomic import load_tensors, save_tensors
from mim4dd.distill.identity.data import describe_data
from mim4dd.distill.identity.describe import differences, named_differences

__all__ = ["SyntheticSet"]

_FORMAT = "mim4dd.synthetic.2"


class SyntheticSet:
    """A distilled set: images as networks are trained on them, labels, and the step size to use."""

    def __init__(
        self,
        image_syn: Tensor,  # (n, channels, H, W), normalised
        label_syn: Tensor,  # (n,) classes, or (n, C) probabilities
        class_syn: Tensor,  # (n,), the class that each image was made for
        syn_lr: Tensor,  # ()
        pixels: Tensor,  # (n, channels, H, W), for pictures
        class_names: Iterable[str],
        made_of: Mapping[str, Any] | None = None,  # what describe_data says of the real data
    ) -> None:
        self.image_syn = image_syn
        self.label_syn = label_syn
        self.class_syn = class_syn
        self.syn_lr = syn_lr
        self.pixels = pixels
        self.class_names = tuple(class_names)
        self.made_of = made_of

    def to(self, device: str) -> "SyntheticSet":
        """The same set on another device."""
        return SyntheticSet(
            self.image_syn.to(device),
            self.label_syn.to(device),
            self.class_syn.to(device),
            self.syn_lr.to(device),
            self.pixels.to(device),
            self.class_names,
            self.made_of,
        )

    def save(self, path: Path) -> None:
        """Write the set to a safetensors file, atomically."""
        tensors = {
            "image_syn": self.image_syn,
            "label_syn": self.label_syn,
            "class_syn": self.class_syn,
            "syn_lr": self.syn_lr,
            "pixels": self.pixels,
        }
        header = {"class_names": list(self.class_names), "made_of": self.made_of}
        save_tensors(path, tensors, {"format": _FORMAT, **header})

    @staticmethod
    def load(path: Path) -> "SyntheticSet":
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: If the file is not there, truncated or something else.
        """
        tensors, header = load_tensors(path)
        if header.get("format") != _FORMAT:
            raise ValueError(f"{path} does not hold a synthetic set of mim4dd")
        return SyntheticSet(
            **tensors, class_names=header["class_names"], made_of=header.get("made_of")
        )

    @staticmethod
    def of_checkpoint(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> "SyntheticSet":
        """The set that a run was at: images, or their average, and labels as they were learned.

        Raises:
            ValueError: If the checkpoint is of a version that did not note all of it.
        """
        made_of = header.get("identity", {}).get("data")
        if made_of is None:
            raise ValueError(
                "the checkpoint was written by an older mim4dd, which did not note what a set is "
                "of: it can only be continued there"
            )
        classes, logits = tensors["class_syn"], tensors.get("label_logits")
        return SyntheticSet(
            tensors.get("average_image", tensors["image_syn"]),
            classes if logits is None else logits.softmax(1),
            classes,
            tensors["syn_lr"],
            tensors["pixels"],
            made_of["class_names"],
            made_of,
        )

    def require_data(self, data: ImageData) -> None:
        """Raise ValueError unless ``data`` is what the set was made of: its order of classes,
        pictures and normalisation. Of a set that does not say it, classes and sizes must fit.
        """
        asked = describe_data(data)
        shape = list(self.image_syn.shape[1:])
        stored = {"class_names": list(self.class_names), "sample_shape": shape}
        if self.made_of is None:
            asked = {name: asked[name] for name in stored}
        found = differences(self.made_of or stored, asked)
        if found:
            raise ValueError(
                "data must be what the set was made of, but differ in (the set's → here) "
                f"{named_differences(found)}"
            )
