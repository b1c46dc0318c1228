"""Distilled sets by their files, those of other projects too.

MTT's, TESLA's, FTD's and DATM's, DC's, DSA's, DM's and CAFE's, and the form that DD-Ranking takes:
:mod:`~mim4dd.distill.runs.foreign_files` says which files those are. None of them says what its
images are of; the reader does.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from mim4dd.distill.data import ImageData
from mim4dd.distill.data.normalization import Normalization
from mim4dd.distill.identity.data import describe_data
from mim4dd.distill.runs.directory import RunDirectory
from mim4dd.distill.runs.export import SET_FILE
from mim4dd.distill.runs.foreign_files import (
    NAMES_OF_DATA,
    ForeignSet,
    images_paths,
    open_foreign,
)
from mim4dd.distill.runs.provenance import Provenance
from mim4dd.distill.runs.synthetic_set import SyntheticSet

__all__ = ["is_set", "own_file", "read_set", "read_sets", "set_of"]

# What --lr_teacher of MTT and --lr_net of DC are by default: where no file holds a step size.
_DEFAULT_LR = 0.01
_TOLERANCE = 1e-3  # of sums of probabilities in half precision


def is_set(path: str | Path) -> bool:
    """Whether a path is a set's own file, or a folder that holds one and no ``config.json``.

    That is an exported folder, one that another project left, or the run of a program without
    options; of other runs the configuration says how to judge them.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mim4dd.distill.runs import is_set
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "set.safetensors").touch()
        >>> is_set(folder / "set.safetensors"), is_set(folder / "elsewhere")
        (True, False)
    """
    path = Path(path)
    if not path.is_dir():
        return path.is_file()
    known = own_file(path) is not None or bool(images_paths(path))
    return known and not (path / "config.json").exists()


def own_file(path: str | Path) -> Path | None:
    """The file of mim4dd that a path is, or that an export or a run has; None of other projects."""
    path = Path(path)
    if path.is_dir():
        inside = (path / SET_FILE, RunDirectory(path).synthetic)
        return next((file for file in inside if file.exists()), None)
    return path if path.suffix == ".safetensors" else None


def read_set(
    path: str | Path,
    data: ImageData | None = None,
    *,
    experiment: int = 0,
    lr: float | None = None,
    normalization: Normalization | None = None,
) -> SyntheticSet:
    """Read a distilled set, of mim4dd or of another project.

    Other projects' files do not say what their images are of. They are taken for images that are
    normalised as ``data`` is: for MTT's with ``--zca`` load it with ``zca=True``. Labels that are
    no probabilities are taken for logits, as DATM's are. What was taken for granted is told by
    ``provenance.source`` and the ``repr``.

    Args:
        path: A ``.safetensors`` file of mim4dd, or the folder of an export or a finished run; a
            ``res_*.pt`` file of DC, DSA, DM or CAFE; ``images_*.pt`` of MTT, TESLA, FTD or DATM
            beside ``labels_*.pt``, or their folder, of which the best is taken, or else the last.
        data: The real data that another project's set is of; a set of mim4dd must be made of it.
        experiment: Which of the sets that a file of DC's holds.
        lr: Step size for another project's networks, in the place of the files' own; by default
            0.01, as in MTT and DC, where they hold none.
        normalization: What another project's images were normalised by, if not by that of ``data``.

    Raises:
        ValueError: If a file is missing, is truncated or holds anything else, if ``data`` is not
            given for another project's set, or the two do not fit.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from mim4dd.distill.data import load_data
        >>> from mim4dd.distill.runs import read_set
        >>> folder = Path(tempfile.mkdtemp())
        >>> torch.save(torch.randn(10, 1, 8, 8), folder / "images_best.pt")
        >>> torch.save(torch.arange(10), folder / "labels_best.pt")
        >>> read_set(folder, load_data("digits")).syn_lr
        tensor(0.0100)
    """
    found = read_sets(path, data, lr=lr, normalization=normalization)
    if not 0 <= experiment < len(found):
        raise ValueError(f"experiment must be from 0 to {len(found) - 1}, got {experiment}")
    return found[experiment]


def read_sets(
    path: str | Path,
    data: ImageData | None = None,
    *,
    lr: float | None = None,
    normalization: Normalization | None = None,
) -> list[SyntheticSet]:
    """Read all sets of a file, as :func:`read_set` does one: DC's hold one of each experiment.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from mim4dd.distill.data import load_data
        >>> from mim4dd.distill.runs import read_sets
        >>> path = Path(tempfile.mkdtemp()) / "res_DC_digits_ConvNet_1ipc.pt"
        >>> one = [torch.randn(10, 1, 8, 8), torch.arange(10)]
        >>> torch.save({"data": [one, one]}, path)
        >>> len(read_sets(path, load_data("digits")))
        2
    """
    own = own_file(path)
    if own is not None:
        if lr is not None or normalization is not None:
            raise ValueError(f"lr and normalization must be None for {own}, which holds its own")
        synthetic = SyntheticSet.load(own)
        if data is not None:
            synthetic.require_data(data)
        return [synthetic]
    sets = open_foreign(path)
    if data is None:
        raise ValueError(
            f"{path} does not record the classes and the normalisation of its images: data must be "
            f"given, got None"
        )
    return [set_of(each, data, lr=lr, normalization=normalization) for each in sets]


def set_of(
    found: ForeignSet,
    data: ImageData,
    *,
    lr: float | None = None,
    normalization: Normalization | None = None,
) -> SyntheticSet:
    """Another project's set as one of ``data``.

    Args:
        found: What its files hold.
        data: The real data, normalised as the images are.
        lr: Step size in the place of the files' own; by default 0.01 where they hold none.
        normalization: What the images were normalised by, if not by that of ``data``.

    Raises:
        ValueError: If the images are not of the size of the data's, the labels not of its
            classes, or the file's name says that it is of other data.
    """
    theirs = found.normalization if normalization is None else normalization
    _require(found, data, theirs)
    step_size = next((each for each in (lr, found.lr) if each is not None), _DEFAULT_LR)
    if not 0 < step_size < math.inf:
        raise ValueError(f"lr must be positive and finite, got {step_size} for {found.name}")
    own = data.normalization.to("cpu")
    pixels = (own if theirs is None else theirs.to("cpu")).inverse(found.images)
    if found.is_soft:
        per_class = len(found.images) // data.num_classes
        classes = torch.arange(data.num_classes).repeat_interleave(per_class)
    else:
        classes = found.labels.long()
    return SyntheticSet(
        found.images if theirs is None else own(pixels),
        _probabilities(found.labels) if found.is_soft else classes,
        classes,
        torch.tensor(float(step_size)),
        pixels,
        data.class_names,
        describe_data(data),
        Provenance(data.name, found.method, source=_taken(found, data, lr, theirs)),
    )


def _require(found: ForeignSet, data: ImageData, theirs: Normalization | None) -> None:
    known = data.name.partition(" ")[0]
    if found.data and known in NAMES_OF_DATA.values() and known != found.data:
        raise ValueError(f"{found.name} is of {found.data} by its name, data are {known}")
    shape = tuple(data.image_train.shape[1:])
    if tuple(found.images.shape[1:]) != shape:
        raise ValueError(
            f"{found.name} must hold images of {shape} to be of {data.name}, "
            f"got {tuple(found.images.shape[1:])}"
        )
    if theirs is None and found.zca not in (None, data.zca):
        raise ValueError(
            f"data must be loaded with zca={found.zca}, by which the images of {found.name} are "
            "normalised"
        )
    present = found.num_classes if found.is_soft else len(found.labels.unique())
    if present != data.num_classes or found.num_classes != data.num_classes:
        raise ValueError(
            f"{found.name} must have labels of every class of {data.name}, "
            f"{data.num_classes}, got labels of {present}"
        )


def _taken(
    found: ForeignSet, data: ImageData, lr: float | None, theirs: Normalization | None
) -> str:
    """Where the set is from, and what was taken for granted."""
    if theirs is not None:
        normalized = "another mean and deviation"
    elif data.zca:
        normalized = "ZCA"
    else:
        normalized = "its mean and deviation"
    taken = [f"normalised by {normalized}"]
    if found.is_soft and not _are_probabilities(found.labels):
        taken.append("labels as logits")
    if lr is None and found.lr is None:
        taken.append(f"step size {_DEFAULT_LR}, as no file holds it")
    return f"read from {Path(found.name).name}, taken for a set of {data.name}: {', '.join(taken)}"


def _are_probabilities(labels: Tensor) -> bool:
    return bool((labels >= 0).all()) and bool(((labels.sum(1) - 1).abs() < _TOLERANCE).all())


def _probabilities(labels: Tensor) -> Tensor:
    """Rows that sum to 1 within float32, of probabilities or logits. (n, C)"""
    if _are_probabilities(labels):
        return labels / labels.sum(1, keepdim=True)
    return labels.softmax(1)
