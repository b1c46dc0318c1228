"""In which arithmetic networks are trained."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch

from mim4dd.distill.settings import Settings

__all__ = ["Precision", "PrecisionSettings", "arithmetic"]

Precision: TypeAlias = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class PrecisionSettings(Settings):
    """Of what trains networks by plain steps, none of which is differentiated again.

    Float16 is not among them: its gradients vanish unless the loss is scaled.

    Args:
        precision: Arithmetic of experts and evaluation networks.
    """

    GROUP: ClassVar[str] = "Data and device"

    precision: Precision = "float32"


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Have what is computed within take its matrix products and convolutions in a precision.

    By :class:`torch.autocast`: parameters, their gradients and steps stay in float32.

    Example:
        >>> import torch
        >>> from mim4dd.distill.training.precision import arithmetic
        >>> with arithmetic("bfloat16", torch.device("cpu")):
        ...     print((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        torch.bfloat16
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
