"""A distilled set: what it holds, what it was made of, and its file."""

from collections.abc import Iterable, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mim4dd.distill.data import ImageData
from mim4dd.distill.data.normalization import Normalization, fixed_normalization
from mim4dd.distill.files.atomic import load_tensors, save_tensors
from mim4dd.distill.files.fields import require_fields
from mim4dd.distill.files.regular import naming
from mim4dd.distill.identity.data import describe_data
from mim4dd.distill.identity.describe import differences, named_differences
from mim4dd.distill.runs.export import export_set
from mim4dd.distill.runs.provenance import Provenance
from mim4dd.distill.runs.whole import (
    read_tiles,
    require_description,
    require_provenance,
    require_set,
    require_tensors,
)
from mim4dd.distill.training.tiles import decode

__all__ = ["SyntheticSet"]

_FORMAT = "mim4dd.synthetic.3"
_WITHOUT_PROVENANCE = "mim4dd.synthetic.2"  # of mim4dd 0.2, otherwise the same
_TENSORS = ("image_syn", "label_syn", "class_syn", "syn_lr", "pixels")
_MOST_NAMED = 3


class SyntheticSet(Dataset[tuple[Tensor, Tensor]]):
    """A distilled set: images as networks are trained on them, labels, and the step size to use.

    It is a data set of PyTorch: item i is image and label i. The label is a class, or where the
    labels were learned a row of probabilities; ``torch.nn.functional.cross_entropy`` takes either.

    Args:
        image_syn: Normalised images, or rows. (n, channels, H, W), or (n, D)
        label_syn: Classes (n,), or probabilities (n, C).
        class_syn: The class that each image was made for. (n,)
        syn_lr: The step size to train networks with. ()
        pixels: The images as they are shown, or rows in their units; as ``image_syn``.
        class_names: Names of the C classes.
        made_of: What ``describe_data`` says of the real data; None where it is not known.
        provenance: How the set came to be.
        tiles: Networks are trained on the tiles² parts of every image: see :meth:`decoded`.

    Example:
        >>> import torch
        >>> from mim4dd.distill.runs import SyntheticSet
        >>> images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
        >>> synthetic = SyntheticSet(images, labels, labels, torch.tensor(0.1), images, "ab")
        >>> [label.item() for _, label in synthetic]
        [0, 1]
        >>> synthetic
        SyntheticSet of 2 images of 1 × 8 × 8, 1 per class of 2: a, b
          hard labels, syn_lr 0.1
    """

    def __init__(
        self,
        image_syn: Tensor,
        label_syn: Tensor,
        class_syn: Tensor,
        syn_lr: Tensor,
        pixels: Tensor,
        class_names: Iterable[str],
        made_of: Mapping[str, Any] | None = None,
        provenance: Provenance | None = None,
        tiles: int = 1,
    ) -> None:
        self.image_syn = image_syn
        self.label_syn = label_syn
        self.class_syn = class_syn
        self.syn_lr = syn_lr
        self.pixels = pixels
        self.class_names = tuple(class_names)
        self.made_of = made_of
        self.provenance = Provenance() if provenance is None else provenance
        self.tiles = tiles

    def __len__(self) -> int:
        return len(self.image_syn)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.image_syn[index], self.label_syn[index]

    def __repr__(self) -> str:
        kind, known = "images" if self.has_images else "rows", self.provenance
        shape = " × ".join(map(str, self.image_syn.shape[1:]))
        per_class = " to ".join(map(str, sorted({min(self.per_class), max(self.per_class)})))
        names = ", ".join(self.class_names[:_MOST_NAMED])
        more = ", …" if len(self.class_names) > _MOST_NAMED else ""
        data = f"{known.data} (ZCA)" if self.zca else known.data
        facts = {"method": known.method, "data": data, "mim4dd": known.version}
        told = [f"{name} {value}" for name, value in facts.items() if value]
        if self.tiles > 1:
            told.append(f"{self.tiles} × {self.tiles} tiles, to train on decoded()")
        told.append("soft labels" if self.label_syn.dim() == 2 else "hard labels")
        told.append(f"syn_lr {self.syn_lr.item():.4g}")
        lines = [
            f"{type(self).__name__} of {len(self)} {kind} of {shape}, {per_class} per class of "
            f"{len(self.class_names)}: {names}{more}",
            ", ".join(told),
        ]
        if known.accuracies:
            lines.append(f"test accuracy {', '.join(map(str, known.accuracies))}")
        return "\n  ".join([*lines, known.source] if known.source else lines)

    @property
    def has_images(self) -> bool:
        """Whether the samples are images, not rows."""
        return self.image_syn.dim() == 4

    @property
    def per_class(self) -> list[int]:
        """How many images were made for each class."""
        return self.class_syn.cpu().bincount(minlength=len(self.class_names)).tolist()

    @property
    def normalization(self) -> Normalization | None:
        """The map from pixels to what networks are trained on, for test images of one's own.

        None where the file does not hold it: of a set that does not say what it was made of, and of
        ZCA's matrix, which is fitted anew to the real data.
        """
        of_data = (self.made_of or {}).get("normalization", {})
        features = self.image_syn.shape[1]
        if self.zca or len(of_data.get("mean", ())) != features:
            return None
        mean, factor = (torch.tensor(of_data[name]) for name in ("mean", "factor"))
        return fixed_normalization(mean, 1 / factor, self.has_images)

    @property
    def zca(self) -> bool | None:
        """Whether the images are whitened by ZCA; None of a set that does not say it."""
        of_data: Mapping[str, Any] = (self.made_of or {}).get("normalization", {})
        return of_data["kind"] == "zca" if of_data else None

    def decoded(self) -> "SyntheticSet":
        """The set that networks are trained on: every part of an image, enlarged, as an image.

        The set itself where its images are not tiled. NCFM's are.
        """
        if self.tiles == 1:
            return self
        parts = self.tiles**2
        return SyntheticSet(
            decode(self.image_syn, self.tiles),
            self.label_syn.repeat_interleave(parts, dim=0),
            self.class_syn.repeat_interleave(parts),
            self.syn_lr,
            decode(self.pixels, self.tiles),
            self.class_names,
            self.made_of,
            self.provenance,
        )

    def to(self, device: torch.device | str) -> "SyntheticSet":
        """The same set on another device."""
        return SyntheticSet(
            self.image_syn.to(device),
            self.label_syn.to(device),
            self.class_syn.to(device),
            self.syn_lr.to(device),
            self.pixels.to(device),
            self.class_names,
            self.made_of,
            self.provenance,
            self.tiles,
        )

    def save(self, path: str | Path) -> None:
        """Write the set to a safetensors file, atomically."""
        tensors = {
            "image_syn": self.image_syn,
            "label_syn": self.label_syn,
            "class_syn": self.class_syn,
            "syn_lr": self.syn_lr,
            "pixels": self.pixels,
        }
        header = {
            "class_names": list(self.class_names),
            "made_of": self.made_of,
            "provenance": self.provenance.to_json(),
            "tiles": self.tiles,
        }
        save_tensors(Path(path), tensors, {"format": _FORMAT, **header})

    def export(self, folder: str | Path) -> None:
        """Write the set as a folder that other programs read, whole or not at all.

        - ``images/<class>/<index>.png``: as torchvision's ``ImageFolder`` and Hugging Face's
          ``imagefolder`` read them. They are to look at: pixels beyond 0 to 1 are clipped, the rest
          is rounded to bytes. Only of images of one or three channels.
        - ``set.safetensors``: what :meth:`save` writes. All else is of the :meth:`decoded` set.
        - ``set.pt``: ``images``, ``labels`` and ``syn_lr`` in a dictionary, for ``torch.load``.
        - ``ddranking/``: ``images.pt``, ``labels.pt`` and ``lr.pt``, as DD-Ranking's evaluators
          take them; soft labels as logits. Not of rows.

        Args:
            folder: A new one, or an earlier export, which is replaced.

        Raises:
            ValueError: If the folder holds something else, or two classes have one name.
        """
        export_set(self, Path(folder))

    @staticmethod
    def load(path: str | Path) -> "SyntheticSet":
        """Read what :meth:`save` wrote, of this version or an older one.

        Raises:
            ValueError: If the file is not there, truncated or something else.
        """
        tensors, header = load_tensors(Path(path))
        if header.get("format") not in (_FORMAT, _WITHOUT_PROVENANCE):
            raise ValueError(
                f"{path} does not hold a synthetic set of mim4dd that this version can read"
            )
        with naming(path):
            require_tensors(tensors, _TENSORS)
            require_fields(header, "the header", class_names=list)
            require_set(**tensors, class_names=header["class_names"])
            require_description(header.get("made_of"))
            require_provenance(header.get("provenance", {}))
            tiles = read_tiles(header, tensors["image_syn"])
        return SyntheticSet(
            **tensors,
            class_names=header["class_names"],
            made_of=header.get("made_of"),
            provenance=Provenance.of_json(header.get("provenance", {})),
            tiles=tiles,
        )

    @staticmethod
    def of_checkpoint(
        tensors: Mapping[str, Tensor],
        header: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
    ) -> "SyntheticSet":
        """The set that a run was at: images, or their average, and labels as they were learned.

        Args:
            tensors: What the checkpoint holds.
            header: Its header.
            options: The run's flat options, where it has any.

        Raises:
            ValueError: If the checkpoint is of a version that did not note all of it.
        """
        identity = header.get("identity", {})
        made_of = identity.get("data")
        if made_of is None:
            raise ValueError(
                "the checkpoint was written by an older mim4dd, which did not record the data of a "
                "set: continue it with that version"
            )
        if missing := sorted({"image_syn", "class_syn", "syn_lr", "pixels"} - tensors.keys()):
            raise ValueError(f"the checkpoint must hold a set, it lacks {', '.join(missing)}")
        require_description(made_of)
        classes, logits = tensors["class_syn"], tensors.get("label_logits")
        if logits is not None and (logits.dim() != 2 or not logits.is_floating_point()):
            raise ValueError(
                f"label_logits must be (n, C), got {tuple(logits.shape)} of {logits.dtype}"
            )
        parts = {
            "image_syn": tensors.get("average_image", tensors["image_syn"]),
            "label_syn": classes if logits is None else logits.softmax(1),
            "class_syn": classes,
            "syn_lr": tensors["syn_lr"],
            "pixels": tensors["pixels"],
        }
        require_set(**parts, class_names=made_of["class_names"])
        return SyntheticSet(
            **parts,
            class_names=made_of["class_names"],
            made_of=made_of,
            provenance=Provenance.of_run(identity, options),
            tiles=read_tiles(header, tensors["image_syn"]),
        )

    def with_accuracy(
        self, network: str, values: Iterable[float], first_seed: int = 0
    ) -> "SyntheticSet":
        """The same set, which tells what networks trained on it reached.

        Args:
            network: What the networks are called.
            values: Test accuracy of each, as a fraction.
            first_seed: Seed of the first one; the others follow.
        """
        noted = copy(self)
        noted.provenance = self.provenance.with_accuracy(network, tuple(values), first_seed)
        return noted

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
