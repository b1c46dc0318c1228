"""The ``mim4dd::`` operator namespace and the compiled halves that put kernels into it."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor

LIB = torch.library.Library("mim4dd", "FRAGMENT")

REBUILD = (
    "install its wheel again, or in a checkout rebuild it with "
    "`pip install --no-build-isolation -e .`; `mim4dd doctor` says more"
)


def _load(module: str) -> ImportError | None:
    """Import a compiled half, whose import registers its kernels; return what went wrong."""
    try:
        importlib.import_module(f"mim4dd.{module}")
    except ImportError as error:  # absent (ModuleNotFoundError) or broken; doctor tells which
        return error
    return None


# The CUDA half links libtorch_cuda, so a CPU-only torch could not load it.
LOAD_ERRORS: dict[str, ImportError | None] = {"CPU": _load("_C")}
if torch.version.cuda is not None:
    LOAD_ERRORS["CUDA"] = _load("_C_cuda")


def expect_compiled(op: str, device: str) -> None:
    """Make ``mim4dd::<op>`` on ``device`` name the cure where its compiled kernel is missing."""
    error = LOAD_ERRORS.get(device)
    if error is None:
        return

    def missing(*_args: Tensor) -> NoReturn:
        raise RuntimeError(f"mim4dd::{op} has no {device} kernel ({error}): {REBUILD}") from error

    LIB.impl(op, missing, device)


def use_triton(op: str, room: str) -> None:
    """Make ``mim4dd::<op>`` on a GPU the launcher of that name in ``mim4dd.kernels.<room>``."""
    LIB.impl(op, triton_launcher(op, room), "CUDA")


def triton_launcher(op: str, room: str) -> Callable[..., Any]:
    """What ``mim4dd::<op>`` is on a GPU."""

    def launch(*inputs: Any) -> Any:
        # It imports Triton, so not before the first call.
        kernels = importlib.import_module(f"mim4dd.kernels.{room}")
        return apart(getattr(kernels, op)(*inputs), {storage(each) for each in tensors_in(inputs)})

    return launch


def apart(results: Any, taken: set[int]) -> Any:
    """The results, copied where they lie in storage that an input or an earlier result has.

    PyTorch asks that of every operator, and under ``torch.compile`` warns of what does not do so.
    Layers are packed in one buffer, of which their gradients are parts.
    """
    if isinstance(results, Tensor):
        if storage(results) in taken:
            return results.clone()
        taken.add(storage(results))
        return results
    if isinstance(results, (list, tuple)):
        return type(results)(apart(each, taken) for each in results)
    return results


def tensors_in(inputs: Iterable[Any]) -> list[Tensor]:
    """The tensors of an operator's inputs and of the lists among them."""
    lists = (each if isinstance(each, (list, tuple)) else [each] for each in inputs)
    return [each for some in lists for each in some if isinstance(each, Tensor)]


def storage(tensor: Tensor) -> int:
    """Which memory a tensor lies in, as PyTorch tells it."""
    return tensor.untyped_storage()._cdata
