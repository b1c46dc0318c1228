"""Whether what the file of a set, or of a run, holds fits together."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mim4dd._checks import check_classes, check_floating, check_integer
from mim4dd.distill.files.fields import require_accuracies, require_each, require_fields

__all__ = [
    "read_tiles",
    "require_description",
    "require_provenance",
    "require_set",
    "require_tensors",
]


def require_tensors(tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Raise ValueError unless there are these tensors and no others."""
    if missing := sorted(set(names) - tensors.keys()):
        raise ValueError(f"it must hold the tensors of a set, it lacks {', '.join(missing)}")
    if others := sorted(tensors.keys() - set(names)):
        raise ValueError(f"it must hold the tensors of a set alone, it has {', '.join(others)}")


def require_set(
    image_syn: Tensor,
    label_syn: Tensor,
    class_syn: Tensor,
    syn_lr: Tensor,
    pixels: Tensor,
    class_names: Sequence[str],
) -> None:
    """Raise ValueError unless these are the parts of one set.

    Args:
        image_syn: Images (n, channels, H, W), or rows (n, D).
        label_syn: Classes (n,), or probabilities (n, C).
        class_syn: Classes (n,).
        syn_lr: A number, ().
        pixels: As ``image_syn``.
        class_names: Of the C classes.
    """
    require_each(list(class_names), "class_names", str)
    try:
        for name, part in (("image_syn", image_syn), ("syn_lr", syn_lr), ("pixels", pixels)):
            check_floating(name, part)
        check_integer("class_syn", class_syn)
    except TypeError as error:
        raise ValueError(str(error)) from error
    number, num_classes = len(image_syn) if image_syn.dim() else 0, len(class_names)
    if image_syn.dim() not in (2, 4) or image_syn.numel() == 0:
        raise ValueError(
            "image_syn must be (n, channels, H, W), or rows (n, D), and not empty, "
            f"got {tuple(image_syn.shape)}"
        )
    soft = label_syn.is_floating_point()
    for name, part, shape in (
        ("pixels", pixels, image_syn.shape),
        ("label_syn", label_syn, (number, num_classes) if soft else (number,)),
        ("class_syn", class_syn, (number,)),
        ("syn_lr", syn_lr, ()),
    ):
        if part.shape != shape:
            raise ValueError(
                f"{name} must be {tuple(shape)} beside image_syn {tuple(image_syn.shape)} and "
                f"{num_classes} classes, got {tuple(part.shape)}"
            )
    check_classes("class_syn", class_syn, num_classes)
    if not soft:
        try:
            check_integer("label_syn", label_syn)
        except TypeError as error:
            raise ValueError(str(error)) from error
        check_classes("label_syn", label_syn, num_classes)


def read_tiles(header: Mapping[str, Any], image_syn: Tensor) -> int:
    """How many tiles a header says that images have on a side.

    Raises:
        ValueError: If images cannot have them.
    """
    require_fields(header, "the header", tiles=int | None)
    tiles = header.get("tiles")
    if tiles is None:
        return 1
    sides = image_syn.shape[2:] if image_syn.dim() == 4 else (1,)  # rows have none
    if tiles < 1 or any(side % tiles for side in sides):
        raise ValueError(
            f"tiles must be positive and divide the sides of images, got {tiles} and images "
            f"{tuple(image_syn.shape)}"
        )
    return int(tiles)


def require_description(made_of: Any) -> None:
    """Raise ValueError unless it is what ``describe_data`` says, or None."""
    if made_of is None:
        return
    require_fields(made_of, "made_of", class_names=list, normalization=dict | None)
    require_each(made_of["class_names"], "made_of: class_names", str)
    if normalization := made_of.get("normalization"):
        require_fields(normalization, "made_of: normalization", kind=str, mean=list, factor=list)
        for name in ("mean", "factor"):
            require_each(normalization[name], f"made_of: {name}", float)


def require_provenance(values: Any) -> None:
    """Raise ValueError unless it is what :meth:`Provenance.to_json` makes."""
    known = {"data": str, "method": str, "options": dict, "version": str, "source": str}
    require_fields(values, "provenance", **{name: hint | None for name, hint in known.items()})
    if others := sorted(values.keys() - known.keys() - {"accuracies"}):
        raise ValueError(f"provenance must not hold {', '.join(others)}")
    accuracies = values.get("accuracies", [])
    require_each(accuracies, "provenance: accuracies", dict)
    for each in accuracies:
        require_fields(each, "accuracies", network=str, values=list, first_seed=int)
        require_accuracies(each["values"], "accuracies: values")
        if not each["values"]:
            raise ValueError("accuracies: values must not be empty")
